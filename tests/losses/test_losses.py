"""KD, similarity-preserving and regression losses against their equations and their invariants."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gankd.losses import kd_loss, regression_kd_loss, similarity_preserving_loss


@pytest.fixture
def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def normal(rng: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=rng, dtype=torch.float64)


# --- kd_loss ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_kd_is_the_divergence_from_teacher_to_student(rng: torch.Generator, temperature: float) -> None:
    student, teacher = normal(rng, 6, 5) * 3, normal(rng, 6, 5) * 3
    expected = 0.0
    for s, t in zip(student.numpy(), teacher.numpy(), strict=True):
        p, q = (np.exp(z / temperature) / np.exp(z / temperature).sum() for z in (t, s))
        expected += (p * np.log(p / q)).sum()
    expected *= temperature**2 / 6
    loss = kd_loss(student_logits=student, teacher_logits=teacher, temperature=temperature)
    assert loss.item() == pytest.approx(expected, rel=1e-12)


def test_kd_gradient(rng: torch.Generator) -> None:
    student, teacher = normal(rng, 3, 4).requires_grad_(), normal(rng, 3, 4)
    assert torch.autograd.gradcheck(lambda s: kd_loss(student_logits=s, teacher_logits=teacher), student)


def test_kd_ignores_a_shift_of_the_logits_and_the_order_of_the_batch(rng: torch.Generator) -> None:
    student, teacher = normal(rng, 6, 5), normal(rng, 6, 5)
    loss = kd_loss(student_logits=student, teacher_logits=teacher)
    shifted = kd_loss(student_logits=student + normal(rng, 6, 1), teacher_logits=teacher - 7)
    order = torch.randperm(6, generator=rng)
    permuted = kd_loss(student_logits=student[order], teacher_logits=teacher[order])
    torch.testing.assert_close(shifted, loss)
    torch.testing.assert_close(permuted, loss)


@pytest.mark.parametrize("shape", [(1, 2), (1, 10), (2, 2)])
def test_kd_of_a_student_equal_to_its_teacher_is_zero(rng: torch.Generator, shape: tuple[int, int]) -> None:
    logits = normal(rng, *shape)
    student = logits.clone().requires_grad_()
    loss = kd_loss(student_logits=student, teacher_logits=logits)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-14)
    torch.testing.assert_close(student.grad, torch.zeros_like(student))


def test_kd_stays_finite_with_a_teacher_that_is_certain() -> None:
    student = torch.tensor([[-200.0, 0.0, 300.0]], requires_grad=True)
    loss = kd_loss(student_logits=student, teacher_logits=torch.tensor([[400.0, 0.0, -400.0]]), temperature=1.0)
    loss.backward()
    assert loss.item() == pytest.approx(500)  # ln softmax of the student at the teacher's class is -(300 + 200)
    torch.testing.assert_close(student.grad, torch.tensor([[-1.0, 0.0, 1.0]]))


def test_kd_refuses_different_classes() -> None:
    with pytest.raises(ValueError, match=r"\[4, 10\] and \[4, 100\]"):
        kd_loss(student_logits=torch.zeros(4, 10), teacher_logits=torch.zeros(4, 100))


# --- similarity_preserving_loss ---------------------------------------------------------------------------------------


def test_similarity_is_the_distance_of_row_normalised_gram_matrices(rng: torch.Generator) -> None:
    student, teacher = normal(rng, 5, 3, 4, 4), normal(rng, 5, 6, 2, 2)

    def gram_rows(feature: np.ndarray) -> np.ndarray:
        gram = np.array([[(a * b).sum() for b in feature] for a in feature])
        return np.array([row / np.sqrt((row**2).sum()) for row in gram])

    expected = ((gram_rows(teacher.numpy()) - gram_rows(student.numpy())) ** 2).sum() / 25
    loss = similarity_preserving_loss(student_feature=student, teacher_feature=teacher)
    assert loss.item() == pytest.approx(expected, rel=1e-12)


def test_similarity_gradient(rng: torch.Generator) -> None:
    student, teacher = normal(rng, 4, 2, 3).requires_grad_(), normal(rng, 4, 5)
    assert torch.autograd.gradcheck(
        lambda s: similarity_preserving_loss(student_feature=s, teacher_feature=teacher), student
    )


def test_similarity_ignores_scale_rotation_and_order(rng: torch.Generator) -> None:
    student, teacher = normal(rng, 6, 4), normal(rng, 6, 8)
    loss = similarity_preserving_loss(student_feature=student, teacher_feature=teacher)
    rotation = torch.linalg.qr(normal(rng, 8, 8)).Q
    order = torch.randperm(6, generator=rng)
    for changed_student, changed_teacher in [
        (student * 3, teacher * 0.1),
        (student, teacher @ rotation),
        (student[order], teacher[order]),
    ]:
        changed = similarity_preserving_loss(student_feature=changed_student, teacher_feature=changed_teacher)
        torch.testing.assert_close(changed, loss)


def test_similarity_of_equal_features_is_zero(rng: torch.Generator) -> None:
    feature = normal(rng, 5, 7)
    assert similarity_preserving_loss(student_feature=feature, teacher_feature=feature).item() == 0


def test_similarity_of_one_sample_is_zero_with_zero_gradient(rng: torch.Generator) -> None:
    student = normal(rng, 1, 7).requires_grad_()
    loss = similarity_preserving_loss(student_feature=student, teacher_feature=normal(rng, 1, 3))
    loss.backward()
    assert loss.item() == 0
    torch.testing.assert_close(student.grad, torch.zeros_like(student))


def test_similarity_of_dead_and_repeated_samples_is_finite(rng: torch.Generator) -> None:
    student = normal(rng, 4, 6).float()
    student[0] = 0
    student[2] = student[1]
    student.requires_grad_()
    loss = similarity_preserving_loss(student_feature=student, teacher_feature=normal(rng, 4, 3).float())
    loss.backward()
    assert loss.isfinite()
    assert student.grad.isfinite().all()


def test_similarity_takes_long_half_precision_rows(rng: torch.Generator) -> None:
    student = (normal(rng, 4, 16384) * 10).half()  # squares sum to 1.6e6, beyond float16
    teacher = (normal(rng, 4, 16384) * 10).half()
    loss = similarity_preserving_loss(student_feature=student, teacher_feature=teacher)
    exact = similarity_preserving_loss(student_feature=student.double(), teacher_feature=teacher.double())
    torch.testing.assert_close(loss.double(), exact, rtol=1e-4, atol=0)


def test_similarity_refuses_different_batches() -> None:
    with pytest.raises(ValueError, match="3 and 4 samples"):
        similarity_preserving_loss(student_feature=torch.zeros(3, 2), teacher_feature=torch.zeros(4, 2))


# --- regression_kd_loss -----------------------------------------------------------------------------------------------

ELEMENT_LOSSES = {
    "l2": lambda r: r * r,
    "l1": abs,
    "huber": lambda r: r * r / 2 if abs(r) <= 0.7 else 0.7 * (abs(r) - 0.35),
}


@pytest.mark.parametrize("loss", list(ELEMENT_LOSSES))
def test_regression_kd_sums_over_outputs_and_averages_over_samples(rng: torch.Generator, loss: str) -> None:
    student, teacher = normal(rng, 8, 3), normal(rng, 8, 3)
    expected = sum(ELEMENT_LOSSES[loss](r) for r in (student - teacher).flatten().tolist()) / 8
    value = regression_kd_loss(student_predictions=student, teacher_predictions=teacher, loss=loss, delta=0.7)
    assert value.item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("loss", list(ELEMENT_LOSSES))
def test_regression_kd_gradient(rng: torch.Generator, loss: str) -> None:
    student, teacher = normal(rng, 8).requires_grad_(), normal(rng, 8)
    assert torch.autograd.gradcheck(
        lambda s: regression_kd_loss(student_predictions=s, teacher_predictions=teacher, loss=loss, delta=0.7), student
    )


@pytest.mark.parametrize("loss", list(ELEMENT_LOSSES))
def test_regression_kd_of_equal_predictions_is_zero(rng: torch.Generator, loss: str) -> None:
    student = normal(rng, 1).requires_grad_()
    value = regression_kd_loss(student_predictions=student, teacher_predictions=student.detach().clone(), loss=loss)
    value.backward()
    assert value.item() == 0
    assert student.grad.item() == 0


def test_squared_regression_kd_is_the_square_to_a_blended_label(rng: torch.Generator) -> None:
    student, teacher, labels = normal(rng, 9).requires_grad_(), normal(rng, 9), normal(rng, 9)
    mixed = 0.3 * (student - labels).square().mean()
    mixed = mixed + 0.7 * regression_kd_loss(student_predictions=student, teacher_predictions=teacher)
    blended = (student - (0.3 * labels + 0.7 * teacher)).square().mean()
    torch.testing.assert_close(*(torch.autograd.grad(value, student)[0] for value in (mixed, blended)))


def test_regression_kd_refuses_what_would_broadcast() -> None:
    with pytest.raises(ValueError, match=r"\[4\] and \[4, 1\]"):
        regression_kd_loss(student_predictions=torch.zeros(4), teacher_predictions=torch.zeros(4, 1))


def test_regression_kd_names_the_known_losses() -> None:
    with pytest.raises(ValueError, match="'mse': use 'l2', 'l1' or 'huber'"):
        regression_kd_loss(student_predictions=torch.zeros(4), teacher_predictions=torch.zeros(4), loss="mse")


# --- what every loss promises -----------------------------------------------------------------------------------------

EVERY_LOSS = {
    "kd": lambda s, t: kd_loss(student_logits=s, teacher_logits=t),
    "similarity": lambda s, t: similarity_preserving_loss(student_feature=s, teacher_feature=t),
    "regression l2": lambda s, t: regression_kd_loss(student_predictions=s, teacher_predictions=t),
    "regression l1": lambda s, t: regression_kd_loss(student_predictions=s, teacher_predictions=t, loss="l1"),
    "regression huber": lambda s, t: regression_kd_loss(student_predictions=s, teacher_predictions=t, loss="huber"),
}
every_loss = pytest.mark.parametrize("loss", EVERY_LOSS.values(), ids=EVERY_LOSS.keys())


@every_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_inputs_give_the_float32_result(rng: torch.Generator, loss, dtype: torch.dtype) -> None:
    student, teacher = normal(rng, 6, 8).to(dtype), normal(rng, 6, 8).to(dtype)
    value = loss(student, teacher)
    assert value.dtype == torch.float32
    assert value.shape == ()
    torch.testing.assert_close(value, loss(student.float(), teacher.float()))


@every_loss
def test_autocast_changes_nothing(rng: torch.Generator, loss) -> None:
    student, teacher = normal(rng, 6, 8).float(), normal(rng, 6, 8).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(student, teacher)
    torch.testing.assert_close(value, loss(student, teacher), rtol=0, atol=0)


@every_loss
def test_no_gradient_reaches_the_teacher(rng: torch.Generator, loss) -> None:
    student, teacher = normal(rng, 6, 8).requires_grad_(), normal(rng, 6, 8).requires_grad_()
    loss(student, teacher).backward()
    assert teacher.grad is None
    assert student.grad.abs().sum() > 0
