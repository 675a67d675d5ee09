"""The conditional density ratio: where its loss is stationary, and that training finds r(x|y) = p_real / p_generated."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from gankd.synthesis.config import SubsamplingConfig
from gankd.synthesis.density_ratio import DensityRatio, density_ratio_loss, train_density_ratio

NUM_CLASSES = 2
OFFSETS = torch.tensor([1.0, -1.0])  # of the generated mean from the real one, a class


# --- the loss ---------------------------------------------------------------------------------------------------------


def test_the_loss_equals_the_equation_also_for_batches_of_unequal_size() -> None:
    generator = torch.Generator().manual_seed(0)
    real, fake = torch.rand(3, 1, generator=generator) * 3, torch.rand(5, 1, generator=generator) * 3
    sigmoid = lambda r: 1 / (1 + (-r.double()).exp())  # noqa: E731
    divergence = (sigmoid(fake) * fake - (1 + fake.double().exp()).log()).mean() - sigmoid(real).mean()
    penalty = 0.3 * (fake.double().mean() - 1) ** 2
    found = density_ratio_loss(real_ratios=real, fake_ratios=fake, penalty_weight=0.3)
    torch.testing.assert_close(torch.stack(found).double(), torch.stack([divergence + penalty, divergence, penalty]))
    flat = density_ratio_loss(real_ratios=real[:, 0], fake_ratios=fake[:, 0], penalty_weight=0.3)
    torch.testing.assert_close(flat, found)


@settings(deadline=None)
@given(num_real=st.integers(1, 19), num_fake=st.integers(1, 19))
def test_on_two_points_the_gradient_is_zero_at_the_true_ratio_and_nowhere_near(num_real: int, num_fake: int) -> None:
    """Twenty real and twenty generated samples on two points a and b; the ratios of a and b are the unknowns."""
    real_is_a, fake_is_a = torch.arange(20) < num_real, torch.arange(20) < num_fake
    true = torch.tensor([num_real / num_fake, (20 - num_real) / (20 - num_fake)])

    def gradient(at: Tensor) -> Tensor:
        ratios = at.clone().requires_grad_()
        loss = density_ratio_loss(
            real_ratios=torch.where(real_is_a, ratios[0], ratios[1]),
            fake_ratios=torch.where(fake_is_a, ratios[0], ratios[1]),
            penalty_weight=0.01,
        )[0]
        return torch.autograd.grad(loss, ratios)[0]

    torch.testing.assert_close(gradient(true), torch.zeros(2), atol=1e-6, rtol=0)
    for index in range(2):  # and the true ratio is a minimum: the slope rises through it
        step = 0.05 * F.one_hot(torch.tensor(index), 2) * true
        assert gradient(true + step)[index] > 0 > gradient(true - step)[index]


def test_the_penalty_pins_the_mean_ratio_of_generated_images() -> None:
    for mean, expected in ((1.0, 0.0), (3.0, 0.04)):
        found = density_ratio_loss(real_ratios=torch.ones(2), fake_ratios=torch.full((2,), mean), penalty_weight=0.01)
        assert found[2].item() == pytest.approx(expected)


def test_large_and_half_precision_ratios_are_finite() -> None:
    ratios = torch.tensor([0.0, 1e-6, 1e4], dtype=torch.float16)
    assert all(
        term.isfinite() for term in density_ratio_loss(real_ratios=ratios, fake_ratios=ratios, penalty_weight=0.01)
    )


# --- the network ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_classes", [None, 3])
def test_ratios_are_one_a_sample_and_never_negative(num_classes: int | None) -> None:
    torch.manual_seed(0)
    network = DensityRatio(4, 5, (16, 8), num_classes=num_classes).eval()
    labels = torch.tensor([0, 1, 2, 0, 1, 2]) if num_classes else torch.randn(6, 5)
    ratios = network(10 * torch.randn(6, 4), labels)
    assert ratios.shape == (6,) and (ratios >= 0).all()


def test_ratios_depend_on_the_label() -> None:
    torch.manual_seed(0)
    network = DensityRatio(4, 5, (16,), num_classes=2, dropout=0.0).eval()
    network.layers[-2].bias.data.fill_(5.0)
    features = torch.randn(8, 4)
    assert not torch.allclose(network(features, torch.zeros(8).long()), network(features, torch.ones(8).long()))


def test_every_allowed_width_lets_the_features_through() -> None:
    """Eight groups of one channel each would normalise every sample to the same constant."""
    torch.manual_seed(0)
    allowed = [width for width in range(1, 33) if is_allowed(width)]
    assert allowed[-1] == 32
    for width in allowed:
        hidden = DensityRatio(4, 5, (width,), num_classes=2).eval().layers[:3]
        assert hidden(torch.randn(16, 9)).std(dim=0).max() > 0.01, f"width {width}"


def is_allowed(width: int) -> bool:
    try:
        SubsamplingConfig(widths=(width,))
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("spread", [0.1, 1.0])
def test_a_fresh_network_is_never_dead(spread: float) -> None:
    """A last ReLU that starts below zero for every input has no gradient and stays there."""
    torch.manual_seed(0)
    features, labels = 1 + spread * torch.randn(64, 16), torch.arange(64) % NUM_CLASSES
    for seed in range(40):
        torch.manual_seed(seed)
        ratios = DensityRatio(16, NUM_CLASSES, (32, 32), num_classes=NUM_CLASSES).eval()(features, labels)
        assert all(ratios[labels == label].max() > 0 for label in range(NUM_CLASSES)), f"seed {seed}"


def test_dropout_is_off_in_evaluation_mode() -> None:
    torch.manual_seed(0)
    network, features = DensityRatio(4, 5, (16,), num_classes=2), torch.randn(8, 4)
    labels = torch.zeros(8, dtype=torch.int64)
    network.eval()
    assert torch.equal(network(features, labels), network(features, labels))


# --- training ---------------------------------------------------------------------------------------------------------


def gaussians(labels: Tensor, *, generated: bool) -> Tensor:
    """Features [N, 1]: real ones are N(0, 1), generated ones N(+1, 1) for class 0 and N(-1, 1) for class 1."""
    mean = OFFSETS[labels] if generated else 0
    return torch.randn(len(labels), 1) + torch.as_tensor(mean).reshape(-1, 1)


def train(config: SubsamplingConfig, log=lambda values: None) -> DensityRatio:
    real_labels = torch.arange(1000) % NUM_CLASSES
    network = DensityRatio(1, NUM_CLASSES, config.widths, num_classes=NUM_CLASSES, dropout=config.dropout)
    return train_density_ratio(
        network,
        config,
        real_features=gaussians(real_labels, generated=False),
        real_labels=real_labels,
        fake_features=lambda labels: gaussians(labels, generated=True),
        encode=lambda labels: labels,
        log=log,
    )


def test_training_recovers_the_ratio_of_two_gaussians_of_every_class() -> None:
    """log r(x|y) = ((x - m)^2 - x^2) / 2 with m the generated mean of class y."""
    torch.manual_seed(0)
    logged = []
    config = SubsamplingConfig(
        widths=(64, 64), dropout=0.0, steps=400, batch_size=256, learning_rate=3e-3, penalty=0.01
    )
    network = train(config, logged.append)
    assert not network.training
    points = torch.linspace(-1.5, 1.5, 41)  # beyond, there is hardly a sample to learn from
    for label in range(NUM_CLASSES):
        truth = (((points - OFFSETS[label]) ** 2 - points**2) / 2).exp()
        found = network(points[:, None], torch.full((41,), label)).detach()
        assert torch.corrcoef(torch.stack([truth, found]))[0, 1] > 0.9
        order = torch.stack([truth.argsort().argsort(), found.argsort().argsort()]).double()
        assert torch.corrcoef(order)[0, 1] > 0.97
        assert (found.mean() / truth.mean()).item() == pytest.approx(1, abs=0.2), "the scale, not only the order"
    assert [values["step"] for values in logged] == [100, 200, 300, 400]
    assert logged[-1]["fake_ratio"] == pytest.approx(1, abs=0.2)


def test_a_ratio_of_equal_distributions_is_one() -> None:
    torch.manual_seed(0)
    config = SubsamplingConfig(widths=(64, 64), dropout=0.0, steps=200, batch_size=128, learning_rate=3e-3)
    labels = torch.arange(1000) % NUM_CLASSES
    network = train_density_ratio(
        DensityRatio(1, NUM_CLASSES, config.widths, num_classes=NUM_CLASSES, dropout=0.0),
        config,
        real_features=gaussians(labels, generated=False),
        real_labels=labels,
        fake_features=lambda labels: gaussians(labels, generated=False),
        encode=lambda labels: labels,
    )
    ratios = network(torch.linspace(-1, 1, 20)[:, None], torch.arange(20) % NUM_CLASSES)
    assert ratios.mean().item() == pytest.approx(1, abs=0.25)


def test_a_dead_ratio_is_refused_with_the_way_out() -> None:
    """An absurd learning rate drives the last ReLU below zero for every input."""
    torch.manual_seed(0)
    config = SubsamplingConfig(widths=(32,), steps=20, batch_size=16, learning_rate=1e4, penalty=0.0)
    with pytest.raises(ValueError, match=r"density ratio is 0 for every generated image.*subsample\.enabled=false"):
        train(config)


def test_training_shares_the_labels_of_real_and_generated_samples() -> None:
    asked = []

    def fake_features(labels: Tensor) -> Tensor:
        asked.append(labels)
        return torch.randn(len(labels), 1)

    torch.manual_seed(0)
    real_labels = torch.tensor([0, 0, 0, 1])
    train_density_ratio(
        DensityRatio(1, 2, (64,), num_classes=2),
        SubsamplingConfig(widths=(64,), steps=50, batch_size=16),
        real_features=torch.randn(4, 1),
        real_labels=real_labels,
        fake_features=fake_features,
        encode=lambda labels: labels,
    )
    assert all(len(labels) == 16 for labels in asked) and len(asked) == 50
    assert torch.cat(asked).float().mean().item() == pytest.approx(0.25, abs=0.06)
