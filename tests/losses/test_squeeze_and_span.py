"""Squeeze and span (a generator's features) and SimReg (a teacher's features) against their equations and their laws."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from gankd.losses import (
    covariance_loss,
    invariance_loss,
    multi_teacher_simreg_loss,
    pool_generator_features,
    simreg_loss,
    span_loss,
    squeeze_and_span_loss,
    squeeze_loss,
    variance_loss,
)
from tests.golden.adapters import squeeze_embeddings


@pytest.fixture
def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def normal(rng: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=rng, dtype=torch.float64)


# --- the three terms --------------------------------------------------------------------------------------------------


def test_covariance_is_the_mean_squared_correlation_of_different_dimensions(rng: torch.Generator) -> None:
    embeddings = normal(rng, 7, 4)
    expected = 0.0
    for i in range(4):
        for j in range(4):
            if i != j:
                products = [
                    (row[i] - embeddings[:, i].mean()) * (row[j] - embeddings[:, j].mean()) for row in embeddings
                ]
                expected += (sum(products) / 6) ** 2 / 4
    assert covariance_loss(embeddings=embeddings).item() == pytest.approx(float(expected), rel=1e-12)


def test_variance_asks_every_dimension_for_the_target_and_no_more(rng: torch.Generator) -> None:
    unit = torch.tensor([[-1.0], [1.0]], dtype=torch.float64) / 2**0.5  # unbiased variance 1
    embeddings = torch.cat([unit * 0.5, unit * 3], dim=1)
    wanting = variance_loss(embeddings=embeddings, eps=0.0)
    assert wanting.item() == pytest.approx((1 - 0.5 + 0) / 2)
    assert variance_loss(embeddings=embeddings, eps=0.0, target_std=4.0).item() == pytest.approx((3.5 + 1) / 2)


def test_terms_have_the_gradients_of_their_equations(rng: torch.Generator) -> None:
    embeddings, other = (normal(rng, 5, 3) * 0.3).requires_grad_(), (normal(rng, 5, 3)).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: variance_loss(embeddings=z), embeddings)
    assert torch.autograd.gradcheck(lambda z: covariance_loss(embeddings=z), embeddings)
    assert torch.autograd.gradcheck(lambda a, b: invariance_loss(embeddings_a=a, embeddings_b=b), (embeddings, other))


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10_000), shift=st.floats(-100, 100))
def test_variance_and_covariance_ignore_the_mean_the_order_of_samples_and_of_dimensions(
    seed: int, shift: float
) -> None:
    rng = torch.Generator().manual_seed(seed)
    embeddings = normal(rng, 6, 5) * 0.5
    changed = embeddings[torch.randperm(6, generator=rng)][:, torch.randperm(5, generator=rng)] + shift
    for loss in (variance_loss, covariance_loss):
        torch.testing.assert_close(loss(embeddings=changed), loss(embeddings=embeddings))


def test_a_large_variance_does_not_drown_a_small_covariance(rng: torch.Generator) -> None:
    design = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]])  # orthogonal columns
    embeddings = torch.stack([1000 * design[:, 0], design[:, 1] + 1e-3 * design[:, 0]], dim=1)
    covariance = 1000 * 1e-3 * 4 / 3
    assert covariance_loss(embeddings=embeddings).item() == pytest.approx(covariance**2, rel=1e-4)


def test_one_dimension_has_no_covariance_with_another(rng: torch.Generator) -> None:
    embeddings = normal(rng, 4, 1).requires_grad_()
    loss = covariance_loss(embeddings=embeddings)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(embeddings.grad, torch.zeros(4, 1, dtype=torch.float64))


def test_collapsed_embeddings_cost_almost_the_target_and_stay_finite() -> None:
    embeddings = torch.full((4, 3), 7.0, requires_grad=True)
    loss = variance_loss(embeddings=embeddings) + covariance_loss(embeddings=embeddings)
    loss.backward()
    assert loss.item() == pytest.approx(0.99)
    assert embeddings.grad.isfinite().all()


@pytest.mark.parametrize("loss", [variance_loss, covariance_loss])
@pytest.mark.parametrize("shape", [(1, 8), (0, 8), (8,)])
def test_a_batch_without_variance_is_refused(loss, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="at least two samples"):
        loss(embeddings=torch.zeros(shape))


def test_sides_of_different_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\[4, 1\] and \[4, 3\]"):  # which would broadcast
        invariance_loss(embeddings_a=torch.zeros(4, 1), embeddings_b=torch.zeros(4, 3))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_lifted_before_anything_is_summed(rng: torch.Generator, dtype: torch.dtype) -> None:
    a, b = (normal(rng, 64, 32) * 30).to(dtype), (normal(rng, 64, 32) * 30).to(dtype)
    lifted = span_loss(student_embedding_a=a.float(), student_embedding_b=b.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = span_loss(student_embedding_a=a, student_embedding_b=b)
    for term, expected in zip(got, lifted, strict=True):
        assert term.dtype == torch.float32
        torch.testing.assert_close(term, expected)


# --- squeeze and span -------------------------------------------------------------------------------------------------


def test_squeeze_trains_both_sides_and_regularises_the_squeezed_one_if_asked(rng: torch.Generator) -> None:
    student, squeezed = normal(rng, 6, 4), normal(rng, 6, 4)
    total, invariance, variance, covariance = squeeze_loss(
        student_embedding=student,
        squeezed_embedding=squeezed,
        invariance_weight=2.0,
        variance_weight=3.0,
        covariance_weight=5.0,
    )
    torch.testing.assert_close(total, 2 * invariance + 3 * variance + 5 * covariance)
    alone = squeeze_loss(student_embedding=student, squeezed_embedding=squeezed, regularize_squeezed=False)
    torch.testing.assert_close(alone[1], invariance)
    torch.testing.assert_close(variance - alone[2], variance_loss(embeddings=squeezed))
    torch.testing.assert_close(covariance - alone[3], covariance_loss(embeddings=squeezed))
    squeezed.requires_grad_()
    squeeze_loss(student_embedding=student, squeezed_embedding=squeezed, regularize_squeezed=False)[0].backward()
    torch.testing.assert_close(squeezed.grad, 25 * 2 * (squeezed.detach() - student) / 24)  # of the invariance alone


def test_span_does_not_mind_which_view_is_which(rng: torch.Generator) -> None:
    a, b = normal(rng, 6, 4), normal(rng, 6, 4)
    there = span_loss(student_embedding_a=a, student_embedding_b=b)
    back = span_loss(student_embedding_a=b, student_embedding_b=a)
    torch.testing.assert_close(there, back)
    torch.testing.assert_close(there, squeeze_loss(student_embedding=a, squeezed_embedding=b))


@pytest.mark.parametrize("ratio", [0.0, 0.3, 1.0])
def test_the_ratio_weighs_synthetic_against_real_batches_of_any_size(rng: torch.Generator, ratio: float) -> None:
    synthetic = {"student_embedding": normal(rng, 3, 4), "squeezed_embedding": normal(rng, 3, 4)}
    a, b = normal(rng, 7, 4), normal(rng, 7, 4)
    weights = {"invariance_weight": 10.0, "variance_weight": 7.0, "covariance_weight": 2.0}
    total, squeeze, span = squeeze_and_span_loss(
        **synthetic,
        student_embedding_real_a=a,
        student_embedding_real_b=b,
        synthetic_ratio=ratio,
        regularize_squeezed=False,
        **weights,
    )
    torch.testing.assert_close(squeeze, squeeze_loss(**synthetic, regularize_squeezed=False, **weights)[0])
    torch.testing.assert_close(span, span_loss(student_embedding_a=a, student_embedding_b=b, **weights)[0])
    torch.testing.assert_close(total, ratio * squeeze + (1 - ratio) * span)


def test_a_ratio_that_is_no_share_is_refused() -> None:
    names = ["student_embedding", "squeezed_embedding", "student_embedding_real_a", "student_embedding_real_b"]
    with pytest.raises(ValueError, match="synthetic_ratio is 1.5"):
        squeeze_and_span_loss(**{name: torch.zeros(2, 2) for name in names}, synthetic_ratio=1.5)


# --- the squeeze network ----------------------------------------------------------------------------------------------


def test_maps_tokens_and_vectors_are_pooled_in_the_order_given(rng: torch.Generator) -> None:
    maps, tokens, vectors = normal(rng, 2, 3, 4, 5).requires_grad_(), normal(rng, 2, 6, 4), normal(rng, 2, 1)
    pooled = pool_generator_features(generator_features=[maps, vectors, tokens])
    expected = torch.cat([maps.detach().sum(dim=(2, 3)) / 20, vectors, tokens.sum(dim=1) / 6], dim=1)
    torch.testing.assert_close(pooled, expected)
    assert not pooled.requires_grad  # the generator is frozen


def test_half_precision_maps_are_averaged_in_full() -> None:
    feature = torch.full((1, 1, 64, 64), 60_000.0, dtype=torch.float16)  # their sum is far outside float16
    assert pool_generator_features(generator_features=[feature]).item() == pytest.approx(60_000, rel=1e-3)


@pytest.mark.parametrize("depth", [1, 3])
def test_the_squeeze_network_is_a_perceptron_on_the_concatenated_pooled_features(
    rng: torch.Generator, depth: int
) -> None:
    channels, width, dim = (3, 2), 5, 4
    features = [normal(rng, 6, count, 2, 2) for count in channels]
    fusion = [(normal(rng, width, count), normal(rng, width)) for count in channels]
    hidden = [(normal(rng, width, width), normal(rng, width), normal(rng, width)) for _ in range(depth - 1)]
    output = normal(rng, dim, width), normal(rng, dim)

    fuse = nn.Linear(sum(channels), width)
    fuse.weight.data, fuse.bias.data = torch.cat([w for w, _ in fusion], dim=1), sum(b for _, b in fusion)
    layers = [fuse]
    for weight, scale, shift in hidden:
        linear, norm = nn.Linear(width, width, bias=False), nn.BatchNorm1d(width).double()
        linear.weight.data, norm.weight.data, norm.bias.data = weight, scale, shift
        layers += [linear, norm, nn.ReLU()]
    last = nn.Linear(width, dim)
    last.weight.data, last.bias.data = output
    expected = nn.Sequential(*layers, last)(pool_generator_features(generator_features=features))

    arguments = {
        "fusion_weights": [w for w, _ in fusion],
        "fusion_biases": [b for _, b in fusion],
        "hidden_weights": [w for w, _, _ in hidden],
        "norm_weights": [w for _, w, _ in hidden],
        "norm_biases": [b for _, _, b in hidden],
        "output_weight": output[0],
        "output_bias": output[1],
    }
    torch.testing.assert_close(squeeze_embeddings(generator_features=features, **arguments), expected)
    pooled = [feature.mean(dim=(2, 3)) for feature in features]  # a cache of pooled vectors serves as well
    torch.testing.assert_close(squeeze_embeddings(generator_features=pooled, **arguments), expected)


def test_features_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="no generator features"):
        pool_generator_features(generator_features=[])
    with pytest.raises(ValueError, match=r"feature 1 has shape \[4\]"):
        pool_generator_features(generator_features=[torch.zeros(4, 2), torch.zeros(4)])
    with pytest.raises(ValueError, match="2 and 3 samples"):
        pool_generator_features(generator_features=[torch.zeros(2, 4), torch.zeros(3, 4)])


# --- SimReg -----------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10_000), num_samples=st.integers(1, 5), scale=st.floats(1e-3, 1e3))
def test_simreg_is_twice_one_minus_the_cosine_whatever_the_lengths(seed: int, num_samples: int, scale: float) -> None:
    rng = torch.Generator().manual_seed(seed)
    student, teacher = normal(rng, num_samples, 6), normal(rng, num_samples, 6)
    cosines = (student * teacher).sum(dim=1) / (student.norm(dim=1) * teacher.norm(dim=1))
    loss = simreg_loss(student_feature=student * scale, teacher_feature=teacher / scale)
    torch.testing.assert_close(loss, (2 - 2 * cosines).mean())


def test_simreg_of_parallel_features_is_zero_and_of_opposite_ones_four(rng: torch.Generator) -> None:
    feature = normal(rng, 3, 5).float()
    assert simreg_loss(student_feature=2 * feature, teacher_feature=feature).item() == 0  # by a power of two: exactly
    assert simreg_loss(student_feature=-feature, teacher_feature=feature).item() == pytest.approx(4)


def test_simreg_sees_a_difference_that_one_minus_the_cosine_loses() -> None:
    angle = 1e-4  # 2 - 2 cos is 1e-8, below the resolution of float32 around 1
    teacher, student = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, angle]])
    loss = simreg_loss(student_feature=student, teacher_feature=teacher)
    assert loss.item() == pytest.approx(angle**2, rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_simreg_takes_half_precision_and_carries_no_gradient_to_the_teacher(
    rng: torch.Generator, dtype: torch.dtype
) -> None:
    student = (normal(rng, 4, 64) * 100).to(dtype).requires_grad_()
    teacher = (normal(rng, 4, 64) * 100).to(dtype).requires_grad_()
    loss = simreg_loss(student_feature=student, teacher_feature=teacher)
    loss.backward()
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, simreg_loss(student_feature=student.float(), teacher_feature=teacher.float()))
    assert student.grad.isfinite().all() and teacher.grad is None


def test_several_teachers_add_up_by_their_weights(rng: torch.Generator) -> None:
    students, teachers = [normal(rng, 4, dim) for dim in (3, 7)], [normal(rng, 4, dim) for dim in (3, 7)]
    total, terms = multi_teacher_simreg_loss(student_features=students, teacher_features=teachers, weights=[0.5, 2.0])
    for term, student, teacher in zip(terms, students, teachers, strict=True):
        torch.testing.assert_close(term, simreg_loss(student_feature=student, teacher_feature=teacher))
    torch.testing.assert_close(total, 0.5 * terms[0] + 2 * terms[1])
    plain = multi_teacher_simreg_loss(student_features=students, teacher_features=teachers)
    torch.testing.assert_close(plain, (terms.sum(), terms))


def test_simreg_refuses_features_and_lists_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"\[2, 3\] and \[2, 4\]"):
        simreg_loss(student_feature=torch.zeros(2, 3), teacher_feature=torch.zeros(2, 4))
    feature = torch.ones(2, 3)
    with pytest.raises(ValueError, match="1 student heads regress 2 teachers"):
        multi_teacher_simreg_loss(student_features=[feature], teacher_features=[feature] * 2)
    with pytest.raises(ValueError, match="0 student heads"):
        multi_teacher_simreg_loss(student_features=[], teacher_features=[])
    with pytest.raises(ValueError, match="1 weights for 2 teachers"):
        multi_teacher_simreg_loss(student_features=[feature] * 2, teacher_features=[feature] * 2, weights=[1.0])
