"""Losses for scalar targets: their equations in plain loops, their boundaries and what they do on empty selections."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gankd.losses import (
    attentive_hint_loss,
    attentive_imitation_loss,
    distribution_expectation,
    gaussian_kd_loss,
    gaussian_nll_loss,
    label_distribution,
    label_distribution_loss,
    mixskd_regression_loss,
    mixup_regression_loss,
    mutual_regression_loss,
    regression_ensemble_weights,
    regression_kd_loss,
    teacher_bounded_regression_loss,
    teacher_confidence,
    teacher_outlier_rejection_loss,
    vicinal_contrastive_loss,
    vicinal_positives,
)


@pytest.fixture
def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def normal(rng: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=rng, dtype=torch.float64)


def triple(rng: torch.Generator, *shape: int) -> dict[str, Tensor]:
    return {
        "student_predictions": normal(rng, *shape),
        "teacher_predictions": normal(rng, *shape),
        "labels": normal(rng, *shape),
    }


def square(one: list[float], other: list[float]) -> float:
    return sum((a - b) ** 2 for a, b in zip(one, other, strict=True))


# --- teacher-bounded --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("margin", [0.0, 0.8])
def test_bounded_term_counts_the_students_that_do_not_beat_their_teacher_by_the_margin(
    rng: torch.Generator, margin: float
) -> None:
    case = triple(rng, 9, 3)
    expected = 0.0
    for s, t, y in zip(*(tensor.tolist() for tensor in case.values()), strict=True):
        expected += square(s, y) / 9 if square(s, y) + margin > square(t, y) else 0
    total, base, bounded = teacher_bounded_regression_loss(**case, margin=margin, weight=0.3, loss="l1")
    assert bounded.item() == pytest.approx(expected, rel=1e-12)
    assert base.item() == pytest.approx((case["student_predictions"] - case["labels"]).abs().sum().item() / 9)
    assert total.item() == pytest.approx((base + 0.3 * bounded).item())


def test_bounded_term_is_silent_for_a_student_as_good_as_its_teacher() -> None:
    labels, student = torch.tensor([0.0, 0.0]), torch.tensor([0.5, -0.5])
    teacher = torch.tensor([0.5, 0.5])
    assert bounded_term(student, teacher, labels, margin=0.0) == 0  # strictly worse only
    assert bounded_term(student, teacher, labels, margin=1e-3) == 0.25


def bounded_term(student: Tensor, teacher: Tensor, labels: Tensor, margin: float) -> float:
    return teacher_bounded_regression_loss(
        student_predictions=student, teacher_predictions=teacher, labels=labels, margin=margin
    )[2].item()


def test_bounded_gradient_never_points_to_the_teacher() -> None:
    student = torch.tensor([1.0, 1.0], requires_grad=True)
    teacher, labels = torch.tensor([0.5, 3.0]), torch.tensor([0.0, 0.0])  # a better and a worse teacher
    _, _, bounded = teacher_bounded_regression_loss(
        student_predictions=student, teacher_predictions=teacher, labels=labels
    )
    bounded.backward()
    assert student.grad.tolist() == [1.0, 0.0]  # 2 (s - y) / N where it is on


# --- attentive imitation ----------------------------------------------------------------------------------------------


def test_confidence_falls_with_the_squared_error_and_never_below_zero() -> None:
    teacher, labels = torch.tensor([[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]]), torch.zeros(3, 2)  # squared errors 0, 2, 8
    for error_range, confidences in [(4.0, [1.0, 0.5, 0.0]), (16.0, [1.0, 0.875, 0.5]), (None, [1.0, 0.75, 0.0])]:
        value = teacher_confidence(teacher_predictions=teacher, labels=labels, error_range=error_range)
        assert value.tolist() == confidences


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=6),
    st.one_of(st.none(), st.floats(0, 1e6, width=32)),
)
def test_confidence_lies_between_zero_and_one(teacher: list[float], error_range: float | None) -> None:
    predictions = torch.tensor(teacher)
    value = teacher_confidence(
        teacher_predictions=predictions, labels=torch.zeros_like(predictions), error_range=error_range
    )
    assert ((value >= 0) & (value <= 1)).all()


@pytest.mark.parametrize(("error", "confidence"), [(0.0, 1.0), (0.3, 0.0)])
def test_confidence_in_a_batch_of_one_is_full_only_without_error(error: float, confidence: float) -> None:
    value = teacher_confidence(teacher_predictions=torch.tensor([error]), labels=torch.zeros(1))
    assert value.tolist() == [confidence]


def test_attentive_imitation_weighs_each_sample_by_its_confidence(rng: torch.Generator) -> None:
    case = triple(rng, 7, 2)
    to_labels = to_teacher = 0.0
    for s, t, y in zip(*(tensor.tolist() for tensor in case.values()), strict=True):
        to_labels += square(s, y) / 7
        to_teacher += max(0, 1 - square(t, y) / 3) * square(s, t) / 7
    total, label_term, imitation_term = attentive_imitation_loss(**case, error_range=3.0, alpha=0.2)
    assert label_term.item() == pytest.approx(to_labels, rel=1e-12)
    assert imitation_term.item() == pytest.approx(to_teacher, rel=1e-12)
    assert total.item() == pytest.approx(0.2 * to_labels + 0.8 * to_teacher, rel=1e-12)


def test_imitating_a_perfect_teacher_is_regression_kd(rng: torch.Generator) -> None:
    student, labels = normal(rng, 6), normal(rng, 6)
    _, _, imitation = attentive_imitation_loss(student_predictions=student, teacher_predictions=labels, labels=labels)
    torch.testing.assert_close(imitation, regression_kd_loss(student_predictions=student, teacher_predictions=labels))


def test_attentive_hint_averages_over_entries_before_it_weighs(rng: torch.Generator) -> None:
    student, teacher = normal(rng, 4, 3, 2, 2), normal(rng, 4, 3, 2, 2)
    confidences = torch.tensor([0.0, 0.25, 0.5, 1.0], dtype=torch.float64)
    expected = sum(c * (s - t).square().mean() for c, s, t in zip(confidences, student, teacher, strict=True)) / 4
    value = attentive_hint_loss(student_feature=student, teacher_feature=teacher, confidences=confidences)
    torch.testing.assert_close(value, expected)


# --- outlier rejection ------------------------------------------------------------------------------------------------


def test_rejected_labels_are_left_out_and_still_imitated(rng: torch.Generator) -> None:
    case = triple(rng, 10, 2)
    second_head = normal(rng, 10, 2)
    rows = list(zip(*(tensor.tolist() for tensor in case.values()), strict=True))
    kept = [square(s, y) for s, t, y in rows if math.sqrt(square(t, y)) <= 1.7]
    assert 0 < len(kept) < 10
    total, label_term, imitation = teacher_outlier_rejection_loss(
        **case, threshold=1.7, student_teacher_predictions=second_head, imitation_weight=0.4
    )
    assert label_term.item() == pytest.approx(sum(kept) / len(kept), rel=1e-12)
    expected = (second_head - case["teacher_predictions"]).square().sum().item() / 10
    assert imitation.item() == pytest.approx(expected, rel=1e-12)
    assert total.item() == pytest.approx((label_term + 0.4 * imitation).item(), rel=1e-12)


@pytest.mark.parametrize("shape", [(3,), (3, 1)])
def test_a_label_at_the_threshold_is_kept(shape: tuple[int, ...]) -> None:
    labels, teacher = torch.zeros(shape), torch.tensor([0.7, -0.7, 0.70001]).reshape(shape)
    student = torch.tensor([1.0, 2.0, 100.0]).reshape(shape)
    _, label_term, _ = teacher_outlier_rejection_loss(
        student_predictions=student, teacher_predictions=teacher, labels=labels, threshold=0.7
    )
    assert label_term.item() == 2.5


def test_a_batch_whose_labels_are_all_rejected_keeps_its_graph() -> None:
    student = torch.tensor([1.0, 2.0], requires_grad=True)
    _, label_term, _ = teacher_outlier_rejection_loss(
        student_predictions=student, teacher_predictions=torch.full((2,), 9.0), labels=torch.zeros(2), threshold=0.5
    )
    label_term.backward()
    assert label_term.item() == 0
    assert student.grad.tolist() == [0.0, 0.0]


# --- label distributions ----------------------------------------------------------------------------------------------

BINS = torch.linspace(-1, 1, 9, dtype=torch.float64)


def test_label_distribution_is_a_renormalised_gaussian(rng: torch.Generator) -> None:
    labels = normal(rng, 5) / 2
    value = label_distribution(labels=labels, bins=BINS, sigma=0.3)
    for row, label in zip(value.tolist(), labels.tolist(), strict=True):
        density = [math.exp(-((label - b) ** 2) / (2 * 0.3**2)) for b in BINS.tolist()]
        assert row == pytest.approx([d / sum(density) for d in density], rel=1e-12)


@pytest.mark.parametrize(("label", "position"), [(-50.0, 0), (0.25, 5), (50.0, 8)])
def test_a_narrow_label_distribution_is_the_nearest_bin(label: float, position: int) -> None:
    value = label_distribution(labels=torch.tensor([label]), bins=BINS.float(), sigma=1e-3)
    assert value[0, position].item() == pytest.approx(1)


def test_expectation_lies_between_the_bins_and_sharpens_with_the_temperature() -> None:
    logits = torch.tensor([[0.0] * 8 + [2.0]], dtype=torch.float64)
    weights = [1.0] * 8 + [math.exp(2.0 / 0.5)]
    expected = sum(w * b for w, b in zip(weights, BINS.tolist(), strict=True)) / sum(weights)
    cold = distribution_expectation(student_logits=logits, bins=BINS, temperature=0.5)
    assert cold.item() == pytest.approx(expected, rel=1e-12)
    assert cold > distribution_expectation(student_logits=logits, bins=BINS) > 0


def test_distribution_loss_is_a_divergence_and_an_absolute_error(rng: torch.Generator) -> None:
    logits, labels = normal(rng, 4, 9), normal(rng, 4) / 2
    divergence = error = 0.0
    for z, p, y in zip(logits, label_distribution(labels=labels, bins=BINS, sigma=0.3), labels, strict=True):
        q = z.exp() / z.exp().sum()
        divergence += (p * (p / q).log()).sum().item() / 4
        error += abs((q * BINS).sum().item() - y.item()) / 4
    total, divergence_term, error_term = label_distribution_loss(
        student_logits=logits, labels=labels, bins=BINS, sigma=0.3, expectation_weight=0.7
    )
    assert divergence_term.item() == pytest.approx(divergence, rel=1e-12)
    assert error_term.item() == pytest.approx(error, rel=1e-12)
    assert total.item() == pytest.approx(divergence + 0.7 * error, rel=1e-12)


def test_a_head_that_predicts_the_label_distribution_has_no_divergence() -> None:
    labels = torch.tensor([0.1, -0.4], dtype=torch.float64)
    logits = label_distribution(labels=labels, bins=BINS, sigma=0.3).log().requires_grad_()
    _, divergence, _ = label_distribution_loss(student_logits=logits, labels=labels, bins=BINS, sigma=0.3)
    divergence.backward()
    assert divergence.item() == pytest.approx(0, abs=1e-14)
    torch.testing.assert_close(logits.grad, torch.zeros_like(logits))


def test_distribution_loss_stays_finite_with_a_certain_student_and_one_hot_labels() -> None:
    logits = torch.tensor([[-300.0, 0.0, 400.0]], requires_grad=True)
    bins = torch.tensor([0.0, 1.0, 2.0])
    total, divergence, error = label_distribution_loss(
        student_logits=logits, labels=torch.zeros(1), bins=bins, sigma=1e-4
    )
    total.backward()
    assert divergence.item() == pytest.approx(700)
    assert error.item() == pytest.approx(2)
    assert logits.grad.isfinite().all()


# --- Gaussian heads ---------------------------------------------------------------------------------------------------


def test_gaussian_losses_agree_with_the_distributions_of_torch(rng: torch.Generator) -> None:
    means, log_variances = normal(rng, 2, 6, 3), normal(rng, 2, 6, 3)
    labels = normal(rng, 6, 3)
    student, teacher = (
        torch.distributions.Normal(mean, (log_variance / 2).exp())
        for mean, log_variance in zip(means, log_variances, strict=True)
    )
    expected = torch.distributions.kl_divergence(teacher, student).sum(1).mean()
    divergence = gaussian_kd_loss(
        student_mean=means[0],
        student_log_variance=log_variances[0],
        teacher_mean=means[1],
        teacher_log_variance=log_variances[1],
    )
    torch.testing.assert_close(divergence, expected)

    expected = -student.log_prob(labels).sum(1).mean() - 3 * math.log(2 * math.pi) / 2
    likelihood = gaussian_nll_loss(student_mean=means[0], student_log_variance=log_variances[0], labels=labels)
    torch.testing.assert_close(likelihood, expected)


@settings(deadline=None, max_examples=50)
@given(*[st.floats(-100, 100, width=32)] * 4)
def test_gaussian_divergence_is_finite_and_never_negative(mean: float, v: float, other: float, other_v: float) -> None:
    student = [torch.tensor([value], requires_grad=True) for value in (mean, v)]
    teacher = [torch.tensor([value]) for value in (other, other_v)]
    loss = gaussian_kd_loss(
        student_mean=student[0],
        student_log_variance=student[1],
        teacher_mean=teacher[0],
        teacher_log_variance=teacher[1],
    )
    loss.backward()
    assert loss.isfinite() and loss >= 0
    assert all(tensor.grad.isfinite().all() for tensor in student)


def test_gaussian_divergence_of_equal_heads_is_exactly_zero(rng: torch.Generator) -> None:
    mean, log_variance = normal(rng, 8).float(), normal(rng, 8).float()
    loss = gaussian_kd_loss(
        student_mean=mean, student_log_variance=log_variance, teacher_mean=mean, teacher_log_variance=log_variance
    )
    assert loss.item() == 0


# --- vicinal contrast -------------------------------------------------------------------------------------------------


def test_vicinal_positives_include_the_boundary_and_are_symmetric() -> None:
    positives = vicinal_positives(labels=torch.tensor([0.0, 0.5, 1.0, 7.0]), kappa=0.5)
    assert positives.int().tolist() == [[1, 1, 0, 0], [1, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 1]]


def unit_rows(rng: torch.Generator, *shape: int) -> Tensor:
    return torch.nn.functional.normalize(normal(rng, *shape), dim=1)


def test_vicinal_contrast_averages_over_positives_then_over_rows_that_have_one(rng: torch.Generator) -> None:
    embeddings, labels, kappa, temperature = unit_rows(rng, 6, 4), [0.0, 0.1, 0.2, 3.0, 9.0, 3.1], 0.15, 0.2
    row_losses = []
    for i in range(6):
        exponentials = {j: math.exp(embeddings[i] @ embeddings[j] / temperature) for j in range(6) if j != i}
        positives = [j for j in exponentials if abs(labels[i] - labels[j]) <= kappa]
        if positives:
            terms = [-math.log(exponentials[j] / sum(exponentials.values())) for j in positives]
            row_losses.append(sum(terms) / len(terms))
    assert len(row_losses) == 5  # the label 9.0 is alone
    value = vicinal_contrastive_loss(
        embeddings=embeddings,
        labels=torch.tensor(labels, dtype=torch.float64),
        kappa=kappa,
        contrastive_temperature=temperature,
    )
    assert value.item() == pytest.approx(sum(row_losses) / 5, rel=1e-12)


def test_vicinal_contrast_gradient(rng: torch.Generator) -> None:
    embeddings, labels = unit_rows(rng, 5, 3).requires_grad_(), torch.tensor([0.0, 0.1, 0.2, 5.0, 5.1])
    assert torch.autograd.gradcheck(
        lambda e: vicinal_contrastive_loss(embeddings=e, labels=labels, kappa=0.15), embeddings
    )


@pytest.mark.parametrize("labels", [[3.0], [0.0, 1.0], [0.0, 1.0, 2.0]])
def test_vicinal_contrast_without_a_positive_is_zero_and_keeps_its_graph(
    rng: torch.Generator, labels: list[float]
) -> None:
    embeddings = unit_rows(rng, len(labels), 4).float().requires_grad_()
    with torch.autograd.set_detect_anomaly(True):  # no NaN on the way to the zero either
        loss = vicinal_contrastive_loss(embeddings=embeddings, labels=torch.tensor(labels), kappa=0.5)
        loss.backward()
    assert loss.item() == 0
    torch.testing.assert_close(embeddings.grad, torch.zeros_like(embeddings))


def test_vicinal_contrast_ignores_the_order_of_the_batch_and_a_shift_of_the_labels(rng: torch.Generator) -> None:
    embeddings, labels = unit_rows(rng, 8, 4), torch.rand(8, generator=rng, dtype=torch.float64)
    loss = vicinal_contrastive_loss(embeddings=embeddings, labels=labels, kappa=0.2)
    order = torch.randperm(8, generator=rng)
    changed = vicinal_contrastive_loss(embeddings=embeddings[order], labels=labels[order] - 4, kappa=0.2)
    torch.testing.assert_close(changed, loss)


# --- mixing -----------------------------------------------------------------------------------------------------------


def test_mixup_of_one_share_is_the_squared_error(rng: torch.Generator) -> None:
    student, labels, permutation = normal(rng, 6, 2), normal(rng, 6, 2), torch.tensor([3, 1, 0, 5, 2, 4])
    for mixing, targets in [(1.0, labels), (0.0, labels[permutation]), (0.5, (labels + labels[permutation]) / 2)]:
        value = mixup_regression_loss(
            student_predictions=student, labels=labels, permutation=permutation, mixing=mixing
        )
        torch.testing.assert_close(value, (student - targets).square().sum(1).mean())


def test_mixup_takes_whole_numbers_as_labels() -> None:
    value = mixup_regression_loss(
        student_predictions=torch.zeros(2), labels=torch.tensor([1, 2]), permutation=torch.tensor([1, 0]), mixing=0.5
    )
    assert value.item() == 2.25


def test_mixskd_moves_each_side_towards_the_other_once() -> None:
    predictions = torch.tensor([0.0, 4.0], requires_grad=True)
    mixed = torch.tensor([2.0, 2.0], requires_grad=True)
    total, mixed_term, interpolated_term = mixskd_regression_loss(
        predictions=predictions, mixed_predictions=mixed, permutation=torch.tensor([1, 0]), mixing=0.25
    )
    assert (mixed_term.item(), interpolated_term.item(), total.item()) == (1.0, 1.0, 2.0)  # i = [3, 1]
    to_mixed = torch.autograd.grad(mixed_term, [mixed, predictions], allow_unused=True, retain_graph=True)
    to_interpolated = torch.autograd.grad(interpolated_term, [mixed, predictions], allow_unused=True)
    assert to_mixed[0].tolist() == [-1.0, 1.0] and to_mixed[1] is None
    assert to_interpolated[1].tolist() == [-0.5, 0.5] and to_interpolated[0] is None


def test_a_network_linear_in_its_input_pays_no_mixskd(rng: torch.Generator) -> None:
    images, weights = normal(rng, 5, 7), normal(rng, 7, 2)
    permutation = torch.randperm(5, generator=rng)
    mixtures = 0.3 * images + 0.7 * images[permutation]
    total, _, _ = mixskd_regression_loss(
        predictions=images @ weights, mixed_predictions=mixtures @ weights, permutation=permutation, mixing=0.3
    )
    assert total.item() == pytest.approx(0, abs=1e-25)


# --- several students -------------------------------------------------------------------------------------------------


def test_mutual_learning_averages_over_peers_and_detaches_them(rng: torch.Generator) -> None:
    students = [normal(rng, 5, 2).requires_grad_() for _ in range(3)]
    labels = normal(rng, 5, 2)
    total, label_term, mutual_term = mutual_regression_loss(student_predictions=students, labels=labels, kd_weight=0.6)

    def distance(one: Tensor, other: Tensor) -> Tensor:
        return (one - other.detach()).square().sum(1).mean()

    expected_label = sum(distance(s, labels) for s in students)
    expected_mutual = sum(distance(a, b) for a in students for b in students if a is not b) / 2
    torch.testing.assert_close(label_term, expected_label)
    torch.testing.assert_close(mutual_term, expected_mutual)
    gradients = torch.autograd.grad(total, students)
    expected_gradients = torch.autograd.grad(expected_label + 0.6 * expected_mutual, students)
    for gradient, expected in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, expected)


def test_ensemble_weights_minimise_the_squared_error(rng: torch.Generator) -> None:
    labels = normal(rng, 200, 2)
    shared = normal(rng, 200, 2)
    predictions = [labels + 0.5 * shared + scale * normal(rng, 200, 2) for scale in (0.2, 0.6, 1.0)]
    weights = regression_ensemble_weights(predictions=predictions, labels=labels)

    def error(weights: Tensor) -> Tensor:
        mixture = sum(a * s for a, s in zip(weights, predictions, strict=True))
        return (mixture - labels).square().sum(1).mean()

    assert weights.sum().item() == pytest.approx(1)
    for _ in range(20):
        direction = normal(rng, 3)
        assert error(weights) < error(weights + 0.05 * (direction - direction.mean()))


def test_independent_errors_get_weights_inverse_to_their_squares() -> None:
    errors = torch.tensor([[1.0, 1.0, 1.0, 1.0], [2.0, -2.0, 2.0, -2.0]])
    weights = regression_ensemble_weights(predictions=list(errors), labels=torch.zeros(4))
    torch.testing.assert_close(weights, torch.tensor([0.8, 0.2]), rtol=1e-4, atol=0)


@pytest.mark.parametrize("error", [0.0, 0.5])
def test_equal_students_share_equally(error: float) -> None:
    predictions = [torch.full((6,), error)] * 3
    weights = regression_ensemble_weights(predictions=predictions, labels=torch.zeros(6))
    torch.testing.assert_close(weights, torch.full((3,), 1 / 3))


@pytest.mark.parametrize("count", [1, 4, 8])
def test_students_without_any_error_share_alike_however_many(count: int) -> None:
    labels = torch.linspace(-1, 1, 6)
    weights = regression_ensemble_weights(predictions=[labels] * count, labels=labels)
    torch.testing.assert_close(weights, torch.full((count,), 1 / count))


def test_ensemble_weights_favour_a_student_without_error(rng: torch.Generator) -> None:
    labels = normal(rng, 50)
    weights = regression_ensemble_weights(predictions=[labels, labels + normal(rng, 50)], labels=labels)
    torch.testing.assert_close(weights, torch.tensor([1.0, 0.0], dtype=torch.float64), atol=1e-5, rtol=0)


# --- what every loss promises -----------------------------------------------------------------------------------------

PERMUTATION = torch.tensor([2, 0, 3, 1])

# loss of (student's answer, teacher's answer, labels), each [N]
EVERY_LOSS = {
    "bounded": lambda s, t, y: teacher_bounded_regression_loss(
        student_predictions=s, teacher_predictions=t, labels=y, margin=100
    ),
    "attentive": lambda s, t, y: attentive_imitation_loss(student_predictions=s, teacher_predictions=t, labels=y),
    "hint": lambda s, t, y: attentive_hint_loss(
        student_feature=s,
        teacher_feature=t,
        confidences=teacher_confidence(teacher_predictions=t, labels=y, error_range=100.0),
    ),
    "rejection": lambda s, t, y: teacher_outlier_rejection_loss(
        student_predictions=s, teacher_predictions=t, labels=y, threshold=1.0
    ),
    "gaussian_kd": lambda s, t, y: gaussian_kd_loss(
        student_mean=s, student_log_variance=s / 2, teacher_mean=t, teacher_log_variance=t / 2
    ),
    "gaussian_nll": lambda s, t, y: gaussian_nll_loss(student_mean=s, student_log_variance=s / 2, labels=y),
    "label_distribution": lambda s, t, y: label_distribution_loss(
        student_logits=s[:, None] * BINS.to(s), labels=t, bins=BINS.to(s), sigma=0.3
    ),
    "vicinal": lambda s, t, y: vicinal_contrastive_loss(embeddings=s[:, None], labels=y, kappa=1.0),
    "mixup": lambda s, t, y: mixup_regression_loss(
        student_predictions=s, labels=y, permutation=PERMUTATION[: len(y)], mixing=0.3
    ),
    "mutual": lambda s, t, y: mutual_regression_loss(student_predictions=[s, 2 * s], labels=y),
}


def total(loss: Tensor | tuple[Tensor, ...]) -> Tensor:
    return loss[0] if isinstance(loss, tuple) else loss


def batch(rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    return normal(rng, 4).requires_grad_(), normal(rng, 4).requires_grad_(), normal(rng, 4)


@pytest.mark.parametrize("name", list(EVERY_LOSS))
def test_gradient_reaches_the_student_and_never_the_teacher(rng: torch.Generator, name: str) -> None:
    student, teacher, labels = batch(rng)
    total(EVERY_LOSS[name](student, teacher, labels)).backward()
    assert student.grad.abs().sum() > 0
    assert teacher.grad is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", list(EVERY_LOSS))
def test_half_precision_inputs_are_computed_in_full_precision_even_in_autocast(
    rng: torch.Generator, name: str, dtype: torch.dtype
) -> None:
    student, teacher, labels = (tensor.detach().to(dtype) for tensor in batch(rng))
    exact = total(EVERY_LOSS[name](student.float(), teacher.float(), labels.float()))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = total(EVERY_LOSS[name](student, teacher, labels))
    assert value.dtype == torch.float32
    # the lambdas compute 2 s, s / 2 and logits in the half precision of s, before the loss
    rounded_outside = ("gaussian_kd", "gaussian_nll", "label_distribution", "mutual")
    tolerance = 1e-2 if name in rounded_outside else 1e-6
    torch.testing.assert_close(value, exact, rtol=tolerance, atol=1e-6)


REFUSED = {
    "labels": lambda: attentive_imitation_loss(
        student_predictions=torch.zeros(4), teacher_predictions=torch.zeros(4), labels=torch.zeros(4, 1)
    ),
    "confidence": lambda: attentive_hint_loss(
        student_feature=torch.zeros(4, 2), teacher_feature=torch.zeros(4, 2), confidences=torch.zeros(4, 1)
    ),
    "imitate": lambda: teacher_outlier_rejection_loss(
        student_predictions=torch.zeros(4),
        teacher_predictions=torch.zeros(4),
        labels=torch.zeros(4),
        threshold=1.0,
        student_teacher_predictions=torch.zeros(4, 1),
    ),
    "one logit a bin": lambda: distribution_expectation(student_logits=torch.zeros(4, 5), bins=torch.zeros(6)),
    "sigma": lambda: label_distribution(labels=torch.zeros(4), bins=torch.zeros(3), sigma=0.0),
    "log variances": lambda: gaussian_nll_loss(
        student_mean=torch.zeros(4), student_log_variance=torch.zeros(4, 1), labels=torch.zeros(4)
    ),
    "one label per sample": lambda: vicinal_positives(labels=torch.zeros(4, 1), kappa=0.1),
    "different batches": lambda: vicinal_contrastive_loss(
        embeddings=torch.zeros(4, 2), labels=torch.zeros(5), kappa=0.1
    ),
    "does not fit a batch": lambda: mixup_regression_loss(
        student_predictions=torch.zeros(4), labels=torch.zeros(4), permutation=torch.arange(3), mixing=0.5
    ),
    "at least two students": lambda: mutual_regression_loss(
        student_predictions=[torch.zeros(4)], labels=torch.zeros(4)
    ),
    "student 1": lambda: regression_ensemble_weights(
        predictions=[torch.zeros(4), torch.zeros(4, 1)], labels=torch.zeros(4)
    ),
}


@pytest.mark.parametrize("reason", list(REFUSED))
def test_what_would_broadcast_or_mean_nothing_is_refused(reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        REFUSED[reason]()
