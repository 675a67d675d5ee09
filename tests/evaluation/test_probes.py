"""What a probe finds in features, on what it makes its choices, and how it leaves the network it was lent."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from gankd.data.sets import ImageSet
from gankd.evaluation import (
    check_probes,
    extract_features,
    knn_accuracy,
    knn_probe,
    knn_regress,
    knn_regression_probe,
    linear_probe,
    ridge_probe,
    standardize_features,
)
from gankd.models import SmallResNet
from gankd.models.inputs import Normalize

Split = tuple[Tensor, Tensor, Tensor, Tensor]


def classes(seed: int = 0, *, num_train: int = 90, num_test: int = 200, noise: float = 0.5) -> Split:
    """Three noisy classes around the axes of a space with two dimensions that mean nothing."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.arange(num_train + num_test) % 3
    features = torch.cat([nn.functional.one_hot(labels, 3).float(), torch.zeros(len(labels), 2)], dim=1)
    features += noise * torch.randn(features.shape, generator=rng)
    return features[:num_train], labels[:num_train], features[num_train:], labels[num_train:]


def scalars(seed: int = 0, *, num_train: int = 60, num_test: int = 100, noise: float = 1.0, dim: int = 5) -> Split:
    """Labels that are linear in the features, in a unit where they are about 100 +- 20, and noise."""
    rng = torch.Generator().manual_seed(seed)
    features = torch.randn(num_train + num_test, dim, generator=rng)
    labels = 100 + 10 * features.sum(dim=1) + noise * torch.randn(len(features), generator=rng)
    return features[:num_train], labels[:num_train], features[num_train:], labels[num_train:]


# --- features ---------------------------------------------------------------------------------------------------------


def images(count: int = 7) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (count, 1, 8, 8), generator=generator, dtype=torch.uint8)


def network() -> SmallResNet:
    torch.manual_seed(0)
    return SmallResNet(3, in_channels=1, widths=(4, 6))


def test_features_are_what_the_last_linear_layer_takes_image_by_image() -> None:
    model, normalize = network(), Normalize.of(images())
    features = extract_features(model, images(), normalize=normalize, batch_size=3)
    assert features.shape == (7, 6) and features.dtype == torch.float32 and not features.requires_grad
    model.eval()
    with torch.no_grad():
        outputs = model(normalize(images().float() / 255))
        torch.testing.assert_close(model.head(features), outputs)
    torch.testing.assert_close(extract_features(model, images()[2:3], normalize=normalize), features[2:3])


def test_a_named_map_is_averaged_over_space() -> None:
    model, normalize = network().eval(), Normalize.of(images())
    features = extract_features(model, images(), normalize=normalize, feature_path="stem")
    expected = model.stem(normalize(images().float() / 255)).mean(dim=(2, 3))
    torch.testing.assert_close(features, expected.detach())
    with pytest.raises(ValueError, match="no module 'stm'; nearest: stem"):
        extract_features(model, images(), normalize=normalize, feature_path="stm")


@pytest.mark.parametrize("feature_path", [None, "stages.0", "nowhere"])
def test_the_network_comes_back_as_it_was_lent(feature_path: str | None) -> None:
    model = network()
    model.stem.eval()  # frozen statistics under a network in training
    model.head.weight.requires_grad_(False)
    modes = [module.training for module in model.modules()]
    trainable = [parameter.requires_grad for parameter in model.parameters()]
    state = {key: value.clone() for key, value in model.state_dict().items()}
    try:
        extract_features(model, images(), normalize=Normalize.of(images()), feature_path=feature_path)
    except ValueError:
        assert feature_path == "nowhere"
    assert [module.training for module in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == trainable
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


# --- linear probe -----------------------------------------------------------------------------------------------------


def test_the_linear_probe_is_the_penalised_logistic_regression_of_its_strength() -> None:
    from sklearn.linear_model import LogisticRegression

    train, labels, test, test_labels = classes()
    result = linear_probe(train, labels, test, test_labels)
    reference = LogisticRegression(C=1 / (len(train) * result.strength), tol=1e-8, max_iter=10_000)
    reference.fit(standardize_features(features=train, bank_features=train).numpy(), labels.numpy())
    queries = standardize_features(features=test, bank_features=train).numpy()
    assert result.metric == "top1"
    assert result.value == pytest.approx(100 * reference.score(queries, test_labels.numpy()), abs=0.6)  # one sample
    assert 70 < result.value < 100


def test_the_linear_probe_separates_what_is_separable() -> None:
    assert linear_probe(*classes(noise=0.02)).value == 100


def test_shuffled_labels_leave_chance() -> None:
    train, labels, test, test_labels = classes(num_train=300)
    shuffled = labels[torch.randperm(300, generator=torch.Generator().manual_seed(1))]
    assert 15 < linear_probe(train, shuffled, test, test_labels).value < 52


@pytest.mark.parametrize("probe", [linear_probe, ridge_probe])
def test_choices_are_made_without_the_test_samples(probe) -> None:
    train, labels, test, test_labels = classes(noise=1.0) if probe is linear_probe else scalars(noise=30.0)
    chosen = probe(train, labels, test, test_labels)
    other = probe(train, labels, -7 * test.flip(0), test_labels.roll(1))
    assert other.strength == chosen.strength and other.value != chosen.value
    first = probe(train, labels, test[:50], test_labels[:50]).value
    second = probe(train, labels, test[50:], test_labels[50:]).value
    share = 50 / len(test)
    assert share * first + (1 - share) * second == pytest.approx(chosen.value, rel=1e-5)  # samples are judged alone


@pytest.mark.parametrize("probe", [linear_probe, ridge_probe])
def test_a_probe_repeats_itself_and_leaves_the_random_state_and_its_arguments_alone(probe) -> None:
    arguments = classes(noise=1.0) if probe is linear_probe else scalars(noise=30.0)
    before, state = [tensor.clone() for tensor in arguments], torch.get_rng_state()
    assert probe(*arguments) == probe(*arguments)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, copy) for tensor, copy in zip(arguments, before, strict=True))


@pytest.mark.parametrize("probe", [linear_probe, ridge_probe])
def test_copies_of_one_sample_on_both_sides_of_the_split_are_prevented_by_groups(probe) -> None:
    """Noise features: with copies held out, overfitting looks like skill and the weakest regularisation wins."""
    rng = torch.Generator().manual_seed(0)
    features, groups = torch.randn(30, 60, generator=rng).repeat(4, 1), torch.arange(30).repeat(4)
    test = torch.randn(50, 60, generator=rng)
    labels, test_labels = torch.arange(30).repeat(4) % 2, torch.arange(50) % 2
    if probe is ridge_probe:
        labels, test_labels = torch.randn(30, generator=rng).repeat(4), torch.randn(50, generator=rng)
    leaking = probe(features, labels, test, test_labels).strength
    assert probe(features, labels, test, test_labels, groups=groups).strength > leaking


def test_probes_train_inside_no_grad_and_under_autocast() -> None:
    arguments = classes()
    outside = linear_probe(*arguments), ridge_probe(*scalars())
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        inside = linear_probe(*arguments), ridge_probe(*scalars())
    assert inside == outside


def test_a_class_that_only_the_test_samples_have_counts_as_missed() -> None:
    train, labels, test, test_labels = classes(noise=0.02)
    seen, tested = labels < 2, test_labels.bincount(minlength=3)
    expected = 100 * float(tested[:2].sum() / tested.sum())
    assert linear_probe(train[seen], labels[seen], test, test_labels).value == pytest.approx(expected)
    assert knn_probe(train[seen], labels[seen], test, test_labels, k=5).value == pytest.approx(expected)


# --- ridge probe ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [5, 90])  # fewer dimensions than samples, and more
def test_the_ridge_probe_is_the_ridge_regression_of_its_strength(dim: int) -> None:
    from sklearn.linear_model import Ridge

    train, labels, test, test_labels = (part.double().numpy() for part in scalars(noise=20.0, dim=dim))
    result = ridge_probe(*scalars(noise=20.0, dim=dim))
    mean, spread = train.mean(axis=0), train.std(axis=0)
    reference = Ridge(alpha=len(train) * result.strength).fit((train - mean) / spread, labels)
    errors = np.abs(reference.predict((test - mean) / spread) - test_labels)
    assert result.metric == "mae"
    assert result.value == pytest.approx(errors.mean(), rel=1e-3)


def test_the_ridge_probe_finds_what_is_linear() -> None:
    assert ridge_probe(*scalars(noise=0.0)).value < 1e-3


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 1000), unit=st.floats(0.01, 100), scale=st.floats(1e-4, 1e4), shift=st.floats(-10, 10))
def test_the_ridge_probe_speaks_the_unit_of_the_labels_and_ignores_that_of_the_features(
    seed: int, unit: float, scale: float, shift: float
) -> None:
    train, labels, test, test_labels = (part.double() for part in scalars(seed, noise=20.0))
    plain = ridge_probe(train, labels, test, test_labels)
    moved = ridge_probe(scale * (train + shift), unit * labels - 7, scale * (test + shift), unit * test_labels - 7)
    assert moved.value == pytest.approx(unit * plain.value, rel=1e-3)


def test_dimensions_that_never_vary_add_nothing() -> None:
    train, labels, test, test_labels = scalars(noise=20.0)
    constant, dead = torch.full((160, 1), 1 / 3, dtype=torch.float64), torch.zeros(160, 1)
    wider = [torch.cat([part, constant[: len(part)], dead[: len(part)]], dim=1) for part in (train, test)]
    plain = ridge_probe(train, labels, test, test_labels)
    wider[1][:, -2:] += 1  # even where they do vary in the test samples
    assert ridge_probe(wider[0], labels, wider[1], test_labels).value == pytest.approx(plain.value, rel=1e-3)
    blind = ridge_probe(torch.zeros(60, 3), labels, torch.zeros(100, 3), test_labels)
    assert blind.value == pytest.approx((test_labels - labels.mean()).abs().mean().item(), rel=1e-5)


# --- neighbours -------------------------------------------------------------------------------------------------------


def test_knn_probes_take_the_training_samples_as_the_bank() -> None:
    train, labels, test, test_labels = classes()
    queries = {"query_features": test, "bank_features": train}
    for k, temperature in ((200, 0.1), (5, None)):
        result = knn_probe(train, labels, test, test_labels, k=k, temperature=temperature)
        accuracy = knn_accuracy(
            **queries, query_labels=test_labels, bank_labels=labels, num_classes=3, k=k, temperature=temperature
        )
        assert (result.metric, result.value) == ("top1", accuracy)
    train, labels, test, test_labels = scalars()
    result = knn_regression_probe(train, labels, test, test_labels, k=3, temperature=None)
    predictions = knn_regress(query_features=test, bank_features=train, bank_labels=labels, k=3, temperature=None)
    assert result.metric == "mae"
    assert result.value == pytest.approx((predictions - test_labels).abs().mean().item())


# --- what is said -----------------------------------------------------------------------------------------------------


def test_a_result_says_in_one_line_how_it_was_measured() -> None:
    linear, ridge = linear_probe(*classes(), seed=4), ridge_probe(*scalars())
    votes, mean = knn_probe(*classes()), knn_regression_probe(*scalars(), temperature=None)
    for result in (linear, ridge, votes, mean):
        assert "\n" not in result.protocol and result.protocol in str(result)
    assert "strength chosen on 18 of them (seed 4)" in linear.protocol
    assert f"strength {linear.strength:.3g}" in str(linear)
    assert "60 un-augmented training images" in ridge.protocol and "12 of them" in ridge.protocol
    assert "the 90 nearest" in votes.protocol and "exp(cos / 0.1)" in votes.protocol  # 200 asked of 90
    assert "the 20 nearest" in mean.protocol and "equal weights" in mean.protocol


@pytest.mark.parametrize("probe", [linear_probe, knn_probe, ridge_probe, knn_regression_probe])
def test_what_does_not_fit_is_refused(probe) -> None:
    of_classes = probe in (linear_probe, knn_probe)
    train, labels, test, test_labels = classes() if of_classes else scalars()
    with pytest.raises(ValueError, match="not class ids" if of_classes else "not scalars"):
        probe(train, labels.float() if of_classes else labels.long(), test, test_labels)
    with pytest.raises(ValueError, match=r"test: features \[\d+, 5\] with labels \[3\]"):
        probe(train, labels, test, test_labels[:3])
    with pytest.raises(ValueError, match="5 dimensions, test features 4"):
        probe(train, labels, test[:, :4], test_labels)
    with pytest.raises(ValueError, match="train: .*not finite"):
        probe(train / 0, labels, test, test_labels)
    if of_classes:
        with pytest.raises(ValueError, match="label -1 is no class id"):
            probe(train, labels - 1, test, test_labels)


@pytest.mark.parametrize("probe", [linear_probe, ridge_probe])
def test_one_training_sample_leaves_nothing_to_choose_on(probe) -> None:
    train, labels, test, test_labels = classes() if probe is linear_probe else scalars()
    with pytest.raises(ValueError, match="the probe's validation part: 0.2 asked of 1 samples"):
        probe(train[:1], labels[:1], test, test_labels)


@pytest.mark.parametrize("count", [0, 1])
@pytest.mark.parametrize("kind", [torch.int64, torch.float32])
def test_too_few_labels_for_a_probe_are_said_before_anything_is_trained_f27(count, kind):
    images = torch.zeros(3, 1, 2, 2, dtype=torch.uint8)
    few, enough = (ImageSet(images[:n], torch.arange(n).to(kind), name="labelled") for n in (count, 3))
    with pytest.raises(ValueError, match=f"labelled: {count} labelled images are too few"):
        check_probes(few)
    check_probes(enough)
