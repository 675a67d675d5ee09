"""The classic distillation losses against their equations by plain loops, and the laws that they promise."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from itertools import pairwise, product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gankd import losses
from gankd.losses import (
    activation_boundary_loss,
    attention_transfer_loss,
    correlation_congruence_loss,
    dist_loss,
    dkd_loss,
    factor_transfer_loss,
    fsp_loss,
    hcl_loss,
    hint_loss,
    kd_loss,
    nst_loss,
    ofd_loss,
    ofd_margin,
    pkt_loss,
    rkd_angle_loss,
    rkd_distance_loss,
    rkd_loss,
)
from tests.golden.adapters import attention_based_fusion, vid_loss


@pytest.fixture
def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def normal(rng: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=rng, dtype=torch.float64)


def dkd(student: Tensor, teacher: Tensor, **options: object) -> Tensor:
    labels = torch.arange(len(student)) % student.shape[1]
    return dkd_loss(student_logits=student, teacher_logits=teacher, labels=labels, **options)


def vid(student: Tensor, teacher: Tensor) -> Tensor:
    widths = [student.shape[1], *[teacher.shape[1]] * 3]
    dtype = torch.promote_types(student.dtype, torch.float32)  # parameters stay in full precision
    kernels = [torch.linspace(-1, 1, a * b, dtype=dtype).view(b, a, 1, 1) for a, b in pairwise(widths)]
    log_scale = torch.linspace(-2, 2, widths[-1], dtype=dtype)
    return vid_loss(student_feature=student, teacher_feature=teacher, regressor_weights=kernels, log_scale=log_scale)


def ofd(student: Tensor, teacher: Tensor) -> Tensor:
    margin = torch.linspace(-1, -0.1, student.shape[1])
    return ofd_loss(student_feature=student, teacher_feature=teacher, margin=margin)


def fsp(student: Tensor, teacher: Tensor) -> Tensor:  # one map, cut into two taps of half the channels
    return fsp_loss(student_features=student.chunk(2, dim=1), teacher_features=teacher.chunk(2, dim=1))


def kernel_congruence(student: Tensor, teacher: Tensor) -> Tensor:
    return correlation_congruence_loss(student_embedding=student, teacher_embedding=teacher.detach(), form="kernel")


LOGIT_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "kd": lambda s, t: kd_loss(student_logits=s, teacher_logits=t),
    "dkd": dkd,
    "dist": lambda s, t: dist_loss(student_logits=s, teacher_logits=t),
}
VECTOR_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "hint": lambda s, t: hint_loss(student_feature=s, teacher_feature=t),
    "rkd distance": lambda s, t: rkd_distance_loss(student_feature=s, teacher_feature=t),
    "rkd angle": lambda s, t: rkd_angle_loss(student_feature=s, teacher_feature=t),
    "rkd": lambda s, t: rkd_loss(student_feature=s, teacher_feature=t),
    "pkt": lambda s, t: pkt_loss(student_feature=s, teacher_feature=t),
    "cc": lambda s, t: correlation_congruence_loss(student_embedding=s, teacher_embedding=t.detach()),
    "cc kernel": kernel_congruence,
}
MAP_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "at": lambda s, t: attention_transfer_loss(student_features=[s], teacher_features=[t]),
    "nst": lambda s, t: nst_loss(student_features=[s], teacher_features=[t]),
    "fsp": fsp,
    "vid": vid,
    "ft": lambda s, t: factor_transfer_loss(student_factor=s, teacher_factor=t),
    "ab": lambda s, t: activation_boundary_loss(student_features=[s], teacher_features=[t]),
    "hcl": lambda s, t: hcl_loss(student_features=[s], teacher_features=[t]),
    "ofd": ofd,
}
CASES = {
    **{name: (loss, (6, 8)) for name, loss in {**LOGIT_LOSSES, **VECTOR_LOSSES}.items()},
    **{name: (loss, (3, 4, 8, 6)) for name, loss in MAP_LOSSES.items()},
}
every_loss = pytest.mark.parametrize(("loss", "shape"), CASES.values(), ids=CASES.keys())


# --- what every loss promises -----------------------------------------------------------------------------------------


@every_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_inputs_give_the_float32_result(rng: torch.Generator, loss, shape, dtype: torch.dtype) -> None:
    student, teacher = normal(rng, *shape).to(dtype), normal(rng, *shape).to(dtype)
    value = loss(student, teacher)
    assert value.dtype == torch.float32
    assert value.shape == ()
    torch.testing.assert_close(value, loss(student.float(), teacher.float()), rtol=1e-6, atol=0)


@every_loss
def test_autocast_changes_nothing(rng: torch.Generator, loss, shape) -> None:
    student, teacher = normal(rng, *shape).float(), normal(rng, *shape).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(student, teacher)
    torch.testing.assert_close(value, loss(student, teacher), rtol=0, atol=0)


@every_loss
def test_gradient_is_that_of_the_value_and_the_student_s_alone(rng: torch.Generator, loss, shape) -> None:
    shape = (*shape[:2], *(side // 2 for side in shape[2:]))
    student, teacher = normal(rng, *shape).requires_grad_(), normal(rng, *shape).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: loss(s, teacher), student)
    loss(student, teacher).backward()
    assert teacher.grad is None
    assert student.grad.abs().sum() > 0


ZERO_AT_EQUALITY = [name for name in CASES if name not in {"vid", "ab", "dist"}]


@pytest.mark.parametrize("name", ZERO_AT_EQUALITY)
def test_a_student_equal_to_its_teacher_costs_nothing(rng: torch.Generator, name: str) -> None:
    loss, shape = CASES[name]
    student = normal(rng, *shape).requires_grad_()
    value = loss(student, student.detach().clone())
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-12)
    torch.testing.assert_close(student.grad, torch.zeros_like(student), rtol=0, atol=1e-7)


@every_loss
@pytest.mark.parametrize("count", [1, 2])
def test_tiny_batches_are_finite(rng: torch.Generator, loss, shape, count: int) -> None:
    student, teacher = normal(rng, count, *shape[1:]).float().requires_grad_(), normal(rng, count, *shape[1:]).float()
    value = loss(student, teacher)
    value.backward()
    assert value.isfinite()
    assert student.grad.isfinite().all()


@every_loss
@pytest.mark.parametrize("silent", ["student", "teacher", "both", "repeated samples"])
def test_silent_networks_are_finite(rng: torch.Generator, loss, shape, silent: str) -> None:
    student, teacher = normal(rng, *shape).float(), normal(rng, *shape).float()
    if silent == "repeated samples":
        student[1] = student[0]
    if silent in {"student", "both"}:
        student.zero_()
    if silent in {"teacher", "both"}:
        teacher.zero_()
    student.requires_grad_()
    value = loss(student, teacher)
    value.backward()
    assert value.isfinite()
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("name", [*VECTOR_LOSSES, "at", "nst", "ft", "hcl"])
def test_no_gradient_explodes_where_samples_coincide(rng: torch.Generator, name: str) -> None:
    loss, shape = CASES[name]
    student = normal(rng, *shape).float()
    student[1] = student[0]
    student.requires_grad_()
    loss(student, normal(rng, *shape).float()).backward()
    assert student.grad.abs().max() < 100


# --- logits -----------------------------------------------------------------------------------------------------------


def softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


def divergence(p: np.ndarray, q: np.ndarray) -> float:
    return float((p * np.log(p / q)).sum())


def decoupled(s: np.ndarray, t: np.ndarray, label: int, temperature: float) -> tuple[float, float, float]:
    """TCKD, NCKD and the teacher's probability of the label, of one sample, without T^2."""
    p_s, p_t = softmax(s / temperature), softmax(t / temperature)
    target = divergence(*(np.array([p[label], 1 - p[label]]) for p in (p_t, p_s)))
    rest = divergence(*(np.delete(p, label) / np.delete(p, label).sum() for p in (p_t, p_s)))
    return target, rest, p_t[label]


@pytest.mark.parametrize("num_classes", [3, 7])
def test_dkd_adds_the_target_and_the_non_target_divergence(rng: torch.Generator, num_classes: int) -> None:
    student, teacher = normal(rng, 5, num_classes) * 2, normal(rng, 5, num_classes) * 2
    labels = torch.randint(num_classes, (5,), generator=rng)
    expected = 0.0
    for s, t, label in zip(student.numpy(), teacher.numpy(), labels.tolist(), strict=True):
        target, rest, _ = decoupled(s, t, label, 3.0)
        expected += 9 * (0.7 * target + 2.5 * rest) / 5
    loss = dkd_loss(student_logits=student, teacher_logits=teacher, labels=labels, alpha=0.7, beta=2.5, temperature=3.0)
    assert loss.item() == pytest.approx(expected, rel=1e-12)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), num_classes=st.integers(2, 9), temperature=st.floats(0.5, 8))
@pytest.mark.filterwarnings("ignore:two classes")
def test_kd_is_tckd_plus_the_non_target_share_of_nckd(seed: int, num_classes: int, temperature: float) -> None:
    rng = torch.Generator().manual_seed(seed)
    student, teacher = normal(rng, 1, num_classes) * 3, normal(rng, 1, num_classes) * 3
    labels = torch.randint(num_classes, (1,), generator=rng)
    logits = {"student_logits": student, "teacher_logits": teacher, "temperature": temperature}
    target = dkd_loss(**logits, labels=labels, alpha=1.0, beta=0.0)
    rest = dkd_loss(**logits, labels=labels, alpha=0.0, beta=1.0)
    share = 1 - F.softmax(teacher / temperature, dim=1)[0, labels[0]]
    torch.testing.assert_close(target + share * rest, kd_loss(**logits))


@pytest.mark.parametrize("gap", [200.0, -200.0, 3e4])
@pytest.mark.parametrize("certain", ["student", "teacher", "both"])
@pytest.mark.parametrize("name", LOGIT_LOSSES)
def test_certain_networks_are_finite(rng: torch.Generator, name: str, certain: str, gap: float) -> None:
    student, teacher = normal(rng, 4, 6).float(), normal(rng, 4, 6).float()
    if certain != "teacher":
        student[:, 2] += gap
    if certain != "student":
        teacher[:, 2] -= gap
    student.requires_grad_()
    temperature = torch.ones(1, requires_grad=True)
    labels = torch.tensor([2, 2, 0, 5])
    value = {
        "kd": lambda: kd_loss(student_logits=student, teacher_logits=teacher, temperature=temperature),
        "dkd": lambda: dkd_loss(student_logits=student, teacher_logits=teacher, labels=labels, temperature=temperature),
        "dist": lambda: dist_loss(student_logits=student, teacher_logits=teacher, temperature=temperature),
    }[name]()
    value.backward()
    assert value.isfinite()
    assert student.grad.isfinite().all()
    assert temperature.grad.isfinite().all()


def test_dkd_of_a_certain_student_is_the_logit_gap() -> None:
    student = torch.tensor([[-200.0, 0.0, 0.0]], requires_grad=True)
    teacher = torch.tensor([[200.0, 0.0, 0.0]])
    loss = dkd_loss(student_logits=student, teacher_logits=teacher, labels=torch.tensor([0]), temperature=1.0)
    loss.backward()
    assert loss.item() == pytest.approx(200 + math.log(2), rel=1e-6)  # -ln p_s(label); the others agree
    torch.testing.assert_close(student.grad, torch.tensor([[-1.0, 0.5, 0.5]]))


def test_dkd_keeps_what_a_certain_teacher_knows_of_the_other_classes() -> None:
    others = torch.tensor([[1.0, -1.0, 0.5]])
    teacher = torch.cat([torch.tensor([[300.0]]), others], dim=1)  # their probabilities underflow
    student = torch.zeros(1, 4)
    loss = dkd_loss(student_logits=student, teacher_logits=teacher, labels=torch.tensor([0]), alpha=0, temperature=1.0)
    expected = 8 * kd_loss(student_logits=student[:, 1:], teacher_logits=others, temperature=1.0)
    torch.testing.assert_close(loss, expected)


def test_dkd_of_two_classes_is_the_target_term_with_a_warning(rng: torch.Generator) -> None:
    student, teacher = normal(rng, 5, 2).requires_grad_(), normal(rng, 5, 2)
    with pytest.warns(UserWarning, match="NCKD is 0"):
        loss = dkd(student, teacher, alpha=2.0)
    torch.testing.assert_close(loss, 2 * kd_loss(student_logits=student, teacher_logits=teacher))


@pytest.mark.parametrize("labels", [torch.zeros(4), torch.zeros(4, 3), torch.zeros(3, dtype=torch.long)])
def test_dkd_needs_one_class_id_a_sample(labels: Tensor) -> None:
    with pytest.raises(ValueError, match=r"one class id a sample, \[4\] integers"):
        dkd_loss(student_logits=torch.zeros(4, 3), teacher_logits=torch.zeros(4, 3), labels=labels)


def test_dkd_refuses_a_single_class() -> None:
    with pytest.raises(ValueError, match="at least two classes"):
        dkd(torch.zeros(4, 1), torch.zeros(4, 1))


@pytest.mark.parametrize("name", ["kd", "dkd"])
@pytest.mark.parametrize("shape", [(5,), (5, 1)])
def test_a_temperature_of_each_sample_is_the_mean_over_samples_alone(
    rng: torch.Generator, name: str, shape: tuple[int, ...]
) -> None:
    student, teacher = normal(rng, 5, 4), normal(rng, 5, 4)
    temperatures = torch.linspace(1, 9, 5, dtype=torch.float64)
    labels = torch.tensor([3, 0, 1, 1, 2])

    def loss(rows: slice, temperature: float | Tensor) -> Tensor:
        logits = {"student_logits": student[rows], "teacher_logits": teacher[rows], "temperature": temperature}
        return kd_loss(**logits) if name == "kd" else dkd_loss(**logits, labels=labels[rows])

    together = loss(slice(None), temperatures.view(shape))
    alone = [loss(slice(n, n + 1), temperatures[n].item()) for n in range(5)]
    torch.testing.assert_close(together, torch.stack(alone).mean())


@pytest.mark.parametrize("name", LOGIT_LOSSES)
@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_a_learned_temperature_acts_like_the_number_and_gets_the_whole_gradient(
    rng: torch.Generator, name: str, shape: tuple[int, ...]
) -> None:
    student, teacher = normal(rng, 4, 5), normal(rng, 4, 5)
    labels = torch.tensor([0, 4, 2, 2])

    def loss(temperature: float | Tensor) -> Tensor:
        logits = {"student_logits": student, "teacher_logits": teacher, "temperature": temperature}
        if name == "dkd":
            return dkd_loss(**logits, labels=labels)
        return kd_loss(**logits) if name == "kd" else dist_loss(**logits)

    learned = torch.full(shape, 2.5, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(loss(learned), loss(2.5))
    assert loss(learned).shape == ()
    assert torch.autograd.gradcheck(loss, learned)  # T^2 and both softmaxes


@pytest.mark.parametrize("name", ["kd", "dkd"])
def test_learned_temperatures_of_samples_get_their_gradient(rng: torch.Generator, name: str) -> None:
    student, teacher = normal(rng, 4, 5), normal(rng, 4, 5)
    loss = {"kd": lambda t: kd_loss(student_logits=student, teacher_logits=teacher, temperature=t)}.get(
        name, lambda t: dkd(student, teacher, temperature=t)
    )
    assert torch.autograd.gradcheck(loss, torch.linspace(1, 5, 4, dtype=torch.float64)[:, None].requires_grad_())


def test_temperatures_that_fit_nothing_are_refused() -> None:
    logits = {"student_logits": torch.zeros(4, 3), "teacher_logits": torch.zeros(4, 3)}
    with pytest.raises(ValueError, match=r"shape \[3\]; give a number or a tensor \[1\], \[4\] or \[4, 1\]"):
        kd_loss(**logits, temperature=torch.ones(3))
    with pytest.raises(ValueError, match=r"shape \[1, 4\]"):
        dkd_loss(**logits, labels=torch.zeros(4, dtype=torch.long), temperature=torch.ones(1, 4))
    with pytest.raises(ValueError, match=r"shape \[4\]; give a number or a tensor \[1\]"):
        dist_loss(**logits, temperature=torch.ones(4))
    with pytest.raises(ValueError, match="temperature is 0"):
        kd_loss(**logits, temperature=0)


def pearson(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a - a.mean(), b - b.mean()
    return float((a * b).sum() / (np.sqrt((a**2).sum()) * np.sqrt((b**2).sum()) + 1e-8))


def test_dist_correlates_rows_and_columns(rng: torch.Generator) -> None:
    student, teacher = normal(rng, 6, 4) * 2, normal(rng, 6, 4) * 2
    p_s, p_t = (np.array([softmax(row / 2) for row in logits.numpy()]) for logits in (student, teacher))
    inter = 1 - statistics.mean(pearson(a, b) for a, b in zip(p_s, p_t, strict=True))
    intra = 1 - statistics.mean(pearson(a, b) for a, b in zip(p_s.T, p_t.T, strict=True))
    loss = dist_loss(student_logits=student, teacher_logits=teacher, beta=0.3, gamma=1.7, temperature=2.0)
    assert loss.item() == pytest.approx(4 * (0.3 * inter + 1.7 * intra), rel=1e-12)


def test_dist_of_equal_logits_is_zero_up_to_eps(rng: torch.Generator) -> None:
    logits = normal(rng, 6, 4)
    assert dist_loss(student_logits=logits, teacher_logits=logits).item() == pytest.approx(0, abs=1e-6)


def test_dist_gives_a_class_that_does_not_vary_no_correlation() -> None:
    teacher = torch.tensor([[2.0, 0, -1], [0, 1, 3], [1, 1, 0]])
    loss = dist_loss(student_logits=torch.zeros(3, 3), teacher_logits=teacher, beta=2.0, gamma=0.5)
    assert loss.item() == pytest.approx(2.5)


@pytest.mark.parametrize("loss", LOGIT_LOSSES.values(), ids=LOGIT_LOSSES.keys())
def test_logit_losses_ignore_a_shift_of_the_logits(rng: torch.Generator, loss) -> None:
    student, teacher = normal(rng, 6, 5), normal(rng, 6, 5)
    torch.testing.assert_close(loss(student + normal(rng, 6, 1), teacher - 7), loss(student, teacher))


@pytest.mark.parametrize("loss", LOGIT_LOSSES.values(), ids=LOGIT_LOSSES.keys())
def test_logit_losses_refuse_what_is_not_samples_by_classes(loss) -> None:
    with pytest.raises(ValueError, match=r"\[4, 10\] and \[4, 100\]"):
        loss(torch.zeros(4, 10), torch.zeros(4, 100))
    with pytest.raises(ValueError, match=r"\[4, 10, 2\]"):
        loss(torch.zeros(4, 10, 2), torch.zeros(4, 10, 2))


# --- relations between samples ----------------------------------------------------------------------------------------


def smooth_l1(difference: float) -> float:
    return difference**2 / 2 if abs(difference) < 1 else abs(difference) - 0.5


def test_rkd_distance_compares_distances_in_units_of_their_mean(rng: torch.Generator) -> None:
    student, teacher = normal(rng, 5, 3), normal(rng, 5, 4) ** 3  # cubes: some differences beyond 1
    student[3] = student[1]

    def relative(feature: np.ndarray) -> np.ndarray:
        distances = np.array([[max(np.sqrt(((a - b) ** 2).sum()), 1e-6) for b in feature] for a in feature])
        np.fill_diagonal(distances, 0)
        return distances / distances[distances > 0].mean()

    differences = (relative(student.numpy()) - relative(teacher.numpy())).flatten().tolist()
    loss = rkd_distance_loss(student_feature=student, teacher_feature=teacher)
    assert loss.item() == pytest.approx(statistics.mean(map(smooth_l1, differences)), rel=1e-12)
    assert max(map(abs, differences)) > 1


def test_rkd_angle_compares_the_cosines_at_every_sample(rng: torch.Generator) -> None:
    student, teacher = normal(rng, 4, 3), normal(rng, 4, 5)

    def cosine(feature: np.ndarray, i: int, j: int, k: int) -> float:
        if i in (j, k):
            return 0.0
        a, b = feature[j] - feature[i], feature[k] - feature[i]
        return float((a * b).sum() / np.sqrt((a**2).sum() * (b**2).sum()))

    differences = [cosine(student.numpy(), *ijk) - cosine(teacher.numpy(), *ijk) for ijk in product(range(4), repeat=3)]
    loss = rkd_angle_loss(student_feature=student, teacher_feature=teacher)
    assert loss.item() == pytest.approx(statistics.mean(map(smooth_l1, differences)), rel=1e-12)


def test_rkd_weighs_distance_and_angle(rng: torch.Generator) -> None:
    features = {"student_feature": normal(rng, 5, 3), "teacher_feature": normal(rng, 5, 4)}
    expected = 3 * rkd_distance_loss(**features) + 7 * rkd_angle_loss(**features)
    torch.testing.assert_close(rkd_loss(**features, distance_weight=3, angle_weight=7), expected)


@pytest.mark.parametrize("loss", [rkd_distance_loss, rkd_angle_loss])
def test_rkd_ignores_scale_rotation_and_translation(rng: torch.Generator, loss) -> None:
    student, teacher = normal(rng, 6, 4), normal(rng, 6, 8)
    rotation = torch.linalg.qr(normal(rng, 8, 8)).Q
    moved = loss(student_feature=3 * student + 1, teacher_feature=teacher @ rotation - 5)
    torch.testing.assert_close(moved, loss(student_feature=student, teacher_feature=teacher))


def test_rkd_distances_do_not_cancel_far_from_the_origin(rng: torch.Generator) -> None:
    student, teacher = normal(rng, 6, 4) + 1000, normal(rng, 6, 4)
    exact = rkd_distance_loss(student_feature=student.float().double(), teacher_feature=teacher.float().double())
    single = rkd_distance_loss(student_feature=student.float(), teacher_feature=teacher.float())
    torch.testing.assert_close(single.double(), exact, rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", ["rkd", "rkd distance", "rkd angle", "cc"])
def test_relations_of_one_sample_cost_nothing(rng: torch.Generator, name: str) -> None:
    student = normal(rng, 1, 4).requires_grad_()
    value = VECTOR_LOSSES[name](student, normal(rng, 1, 4))
    value.backward()
    assert value.item() == 0
    torch.testing.assert_close(student.grad, torch.zeros_like(student))


def test_pkt_compares_the_probabilities_of_neighbours(rng: torch.Generator) -> None:
    student, teacher = normal(rng, 5, 3), normal(rng, 5, 4)

    def probabilities(feature: np.ndarray) -> np.ndarray:
        unit = [row / (np.sqrt((row**2).sum()) + 1e-7) for row in feature]
        similarities = np.array([[((a * b).sum() + 1) / 2 for b in unit] for a in unit])
        return similarities / similarities.sum(axis=1, keepdims=True)

    p_s, p_t = probabilities(student.numpy()), probabilities(teacher.numpy())
    expected = (p_t * np.log((p_t + 1e-7) / (p_s + 1e-7))).mean()
    assert pkt_loss(student_feature=student, teacher_feature=teacher).item() == pytest.approx(expected, rel=1e-10)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**31), width=st.integers(1, 300))
def test_pkt_of_opposite_samples_is_finite(seed: int, width: int) -> None:
    half = torch.randn(1, width, generator=torch.Generator().manual_seed(seed))
    student = torch.cat([half, -half]).requires_grad_()  # their similarity rounds to a little below 0
    loss = pkt_loss(student_feature=student, teacher_feature=torch.tensor([[1.0], [2.0]]))
    loss.backward()
    assert loss.isfinite()
    assert student.grad.isfinite().all()


def test_correlation_congruence_multiplies_the_errors_of_neighbours(rng: torch.Generator) -> None:
    student, teacher = normal(rng, 5, 3).requires_grad_(), normal(rng, 5, 3).requires_grad_()
    errors = (student - teacher).abs().tolist()
    expected = statistics.mean(sum(a * b for a, b in zip(i, j, strict=True)) for i, j in pairwise(errors))
    loss = correlation_congruence_loss(student_embedding=student, teacher_embedding=teacher)
    loss.backward()
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    torch.testing.assert_close(teacher.grad, -student.grad)  # both embeddings train


def test_kernel_congruence_compares_the_series_of_a_gaussian(rng: torch.Generator) -> None:
    student, teacher = normal(rng, 4, 3).requires_grad_(), normal(rng, 4, 6).requires_grad_()

    def series(feature: np.ndarray, order: int) -> np.ndarray:
        unit = [row / np.sqrt((row**2).sum()) for row in feature]
        terms = [
            [[math.exp(-0.8) * 0.8**p / math.factorial(p) * (a * b).sum() ** p for b in unit] for a in unit]
            for p in range(order + 1)
        ]
        return np.array(terms).sum(axis=0)

    def loss(**options: object) -> Tensor:
        return correlation_congruence_loss(
            student_embedding=student, teacher_embedding=teacher, form="kernel", **options
        )

    expected = ((series(student.detach().numpy(), 2) - series(teacher.detach().numpy(), 2)) ** 2).mean()
    assert loss().item() == pytest.approx(expected, rel=1e-12)
    loss().backward()
    assert teacher.grad.abs().sum() > 0

    def gaussian(feature: Tensor) -> Tensor:
        return torch.exp(-0.4 * torch.cdist(F.normalize(feature), F.normalize(feature)).square())

    torch.testing.assert_close(loss(order=20), (gaussian(student) - gaussian(teacher)).square().mean())


def test_correlation_congruence_refuses_unknown_forms_and_different_widths() -> None:
    embeddings = {"student_embedding": torch.zeros(4, 3), "teacher_embedding": torch.zeros(4, 2)}
    with pytest.raises(ValueError, match=r"\[4, 3\] and \[4, 2\]"):
        correlation_congruence_loss(**embeddings)
    with pytest.raises(ValueError, match="'rbf' of correlation congruence: use 'neighbours' or 'kernel'"):
        correlation_congruence_loss(**embeddings, form="rbf")


@pytest.mark.parametrize("name", [name for name in VECTOR_LOSSES if name != "hint"])
def test_relations_refuse_different_batches(name: str) -> None:
    with pytest.raises(ValueError, match="3 and 4 samples"):
        VECTOR_LOSSES[name](torch.zeros(3, 2), torch.zeros(4, 2))


# --- feature maps -----------------------------------------------------------------------------------------------------


def test_hint_is_the_mean_squared_error_of_equal_shapes(rng: torch.Generator) -> None:
    student, teacher = normal(rng, 2, 3, 4), normal(rng, 2, 3, 4)
    loss = hint_loss(student_feature=student, teacher_feature=teacher)
    assert loss.item() == pytest.approx(((student.numpy() - teacher.numpy()) ** 2).mean(), rel=1e-12)
    with pytest.raises(ValueError, match=r"\[2, 3, 4\] and \[2, 1, 4\]"):
        hint_loss(student_feature=student, teacher_feature=teacher[:, :1])


def attention(feature: np.ndarray, power: int) -> np.ndarray:
    """[C, H, W] -> [H * W]"""
    strength = np.array([np.mean([c[h, w] ** power for c in feature]) for h, w in np.ndindex(feature.shape[1:])])
    return strength / np.sqrt((strength**2).sum())


@pytest.mark.parametrize("p", [1, 2, 4])
def test_attention_transfer_compares_unit_maps_summed_over_stages(rng: torch.Generator, p: int) -> None:
    students, teachers = (
        [normal(rng, 2, 3, 2, 4), normal(rng, 2, 5, 2, 2)],
        [normal(rng, 2, c, 2, 4 // c) for c in (1, 2)],
    )
    expected = 0.0
    for student, teacher in zip(students, teachers, strict=True):
        pairs = zip(student.numpy(), teacher.numpy(), strict=True)
        expected += np.mean([(attention(s, p) - attention(t, p)) ** 2 for s, t in pairs])
    loss = attention_transfer_loss(student_features=students, teacher_features=teachers, p=p)
    assert loss.item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("p1", "p2"), [(2, 1), (2, 2), (1, 2), (4, 3)])
def test_factor_transfer_compares_unit_factors(rng: torch.Generator, p1: int, p2: int) -> None:
    student, teacher = normal(rng, 2, 3, 2, 4), normal(rng, 2, 5, 2, 4)
    pairs = list(zip(student.numpy(), teacher.numpy(), strict=True))
    differences = np.array([attention(s, p1) - attention(t, p1) for s, t in pairs])
    expected = np.abs(differences).mean() if p2 == 1 else (differences**p2).mean()
    loss = factor_transfer_loss(student_factor=student, teacher_factor=teacher, p1=p1, p2=p2)
    assert loss.item() == pytest.approx(expected, rel=1e-12)


def test_nst_is_the_kernel_discrepancy_between_channels(rng: torch.Generator) -> None:
    student, teacher = normal(rng, 2, 3, 2, 3), normal(rng, 2, 4, 2, 3)

    def kernel(a: np.ndarray, b: np.ndarray) -> float:  # [C, H, W] and [C', H, W]
        rows = [[c.flatten() / np.sqrt((c**2).sum()) for c in f] for f in (a, b)]
        return statistics.mean(float((x * y).sum()) ** 2 for x, y in product(*rows))

    expected = statistics.mean(
        kernel(t, t) + kernel(s, s) - 2 * kernel(s, t) for s, t in zip(student.numpy(), teacher.numpy(), strict=True)
    )
    loss = nst_loss(student_features=[student], teacher_features=[teacher])
    assert loss.item() == pytest.approx(expected, rel=1e-12)


def test_nst_ignores_the_scale_and_order_of_channels(rng: torch.Generator) -> None:
    student, teacher = normal(rng, 2, 3, 2, 3), normal(rng, 2, 4, 2, 3)
    scales, order = torch.tensor([0.5, 2.0, 30.0]).view(3, 1, 1), torch.randperm(4, generator=rng)
    changed = nst_loss(student_features=[scales * student], teacher_features=[teacher[:, order]])
    torch.testing.assert_close(changed, nst_loss(student_features=[student], teacher_features=[teacher]))


def test_fsp_compares_the_flow_between_consecutive_taps(rng: torch.Generator) -> None:
    shapes = [(2, 2, 4, 2), (2, 3, 4, 2), (2, 4, 2, 2)]
    students, teachers = [normal(rng, *shape) for shape in shapes], [normal(rng, *shape) for shape in shapes]

    def flow(a: np.ndarray, b: np.ndarray) -> np.ndarray:  # [C, H, W] each
        return np.array([[(c * d).mean() for d in b] for c in a])

    def halved(f: np.ndarray) -> np.ndarray:  # [C, 4, 2] -> [C, 2, 2]
        return (f[:, 0::2] + f[:, 1::2]) / 2

    expected = 0.0
    for n in range(2):
        (s0, s1, s2), (t0, t1, t2) = ([f[n].numpy() for f in features] for features in (students, teachers))
        expected += ((flow(s0, s1) - flow(t0, t1)) ** 2).mean() / 2
        expected += ((flow(halved(s1), s2) - flow(halved(t1), t2)) ** 2).mean() / 2
    loss = fsp_loss(student_features=students, teacher_features=teachers)
    assert loss.item() == pytest.approx(expected, rel=1e-12)


def test_fsp_refuses_different_channels_and_single_taps() -> None:
    with pytest.raises(ValueError, match="feature map 1 has 3 in the student and 5 in the teacher"):
        fsp_loss(
            student_features=[torch.zeros(2, 2, 4, 4), torch.zeros(2, 3, 4, 4)],
            teacher_features=[torch.zeros(2, 2, 4, 4), torch.zeros(2, 5, 4, 4)],
        )
    with pytest.raises(ValueError, match="at least two feature maps"):
        fsp_loss(student_features=[torch.zeros(2, 2, 4, 4)], teacher_features=[torch.zeros(2, 2, 4, 4)])


def test_vid_is_the_negative_log_likelihood_of_the_teacher(rng: torch.Generator) -> None:
    student, teacher = normal(rng, 2, 3, 2, 1), normal(rng, 2, 6, 2, 1)
    kernels, log_scale = [normal(rng, 6, c, 1, 1) for c in (3, 6, 6)], normal(rng, 6)
    first, second, third = (kernel[:, :, 0, 0].numpy() for kernel in kernels)
    variance = np.log(1 + np.exp(log_scale.numpy())) + 1e-3
    terms = []
    for n, h in np.ndindex(2, 2):
        mean = third @ np.maximum(second @ np.maximum(first @ student[n, :, h, 0].numpy(), 0), 0)
        residual = mean - teacher[n, :, h, 0].numpy()
        terms.append((residual**2 / variance + np.log(variance)) / 2)
    loss = vid_loss(
        student_feature=student, teacher_feature=teacher, regressor_weights=kernels, log_scale=log_scale, eps=1e-3
    )
    assert loss.item() == pytest.approx(np.mean(terms), rel=1e-12)


def test_vid_takes_large_log_scales_and_trains_regressor_and_scales(rng: torch.Generator) -> None:
    kernels = [normal(rng, 2, c, 1, 1).float().requires_grad_() for c in (3, 2, 2)]
    log_scale = torch.tensor([200.0, -200.0], requires_grad=True)  # exp(200) overflows
    student, teacher = normal(rng, 2, 3, 2, 2).float(), normal(rng, 2, 2, 2, 2).float()
    loss = vid_loss(student_feature=student, teacher_feature=teacher, regressor_weights=kernels, log_scale=log_scale)
    loss.backward()
    assert loss.isfinite()
    assert log_scale.grad.isfinite().all() and log_scale.grad[0] > 0  # the variance is far too large
    assert all(kernel.grad.isfinite().all() and kernel.grad.abs().sum() > 0 for kernel in kernels)


def test_vid_refuses_maps_of_unlike_channels() -> None:
    with pytest.raises(ValueError, match=r"differ in shape: \[2, 3, 4, 4\] and \[2, 5, 4, 4\]"):
        losses.vid_loss(
            student_feature=torch.zeros(2, 3, 4, 4), teacher_feature=torch.zeros(2, 5, 4, 4), log_scale=torch.zeros(5)
        )


MATCHING = {name: MAP_LOSSES[name] for name in ("at", "nst", "vid", "ft")}


@pytest.mark.parametrize("loss", MATCHING.values(), ids=MATCHING.keys())
@pytest.mark.parametrize(
    ("student_size", "teacher_size", "smaller"),
    [((8, 4), (4, 2), (4, 2)), ((4, 2), (8, 4), (4, 2)), ((4, 8), (4, 4), (4, 4)), ((8, 4), (4, 8), (4, 4))],
)
def test_maps_meet_at_the_smaller_height_and_width(
    rng: torch.Generator, loss, student_size: tuple[int, int], teacher_size: tuple[int, int], smaller: tuple[int, int]
) -> None:
    student, teacher = normal(rng, 2, 3, *student_size), normal(rng, 2, 3, *teacher_size)
    pooled = (F.adaptive_avg_pool2d(feature, smaller) for feature in (student, teacher))
    torch.testing.assert_close(loss(student, teacher), loss(*pooled))


@pytest.mark.parametrize("loss", MAP_LOSSES.values(), ids=MAP_LOSSES.keys())
def test_maps_of_different_batches_and_vectors_are_refused(loss) -> None:
    for student, teacher in [
        (torch.zeros(3, 2, 4, 4), torch.zeros(4, 2, 4, 4)),
        (torch.zeros(3, 2), torch.zeros(3, 2)),
    ]:
        with pytest.raises(ValueError, match="of one batch"):
            loss(student, teacher)


@pytest.mark.parametrize(
    "loss", [attention_transfer_loss, nst_loss, fsp_loss, activation_boundary_loss, hcl_loss], ids=lambda f: f.__name__
)
def test_lists_that_do_not_pair_are_refused(loss) -> None:
    feature = torch.zeros(2, 3, 4, 4)
    with pytest.raises(ValueError, match="gives 2 feature maps and the teacher 3"):
        loss(student_features=[feature] * 2, teacher_features=[feature] * 3)
    with pytest.raises(ValueError, match="gives 0 feature maps"):
        loss(student_features=[], teacher_features=[])


@pytest.mark.parametrize("loss", [attention_transfer_loss, nst_loss, hcl_loss], ids=lambda f: f.__name__)
def test_stages_add_up(rng: torch.Generator, loss) -> None:
    students, teachers = ([normal(rng, 2, 3, size, size) for size in (8, 4, 1)] for _ in range(2))
    alone = [loss(student_features=[s], teacher_features=[t]) for s, t in zip(students, teachers, strict=True)]
    torch.testing.assert_close(loss(student_features=students, teacher_features=teachers), torch.stack(alone).sum())


# --- before the activation --------------------------------------------------------------------------------------------


def test_activation_boundary_is_a_hinge_on_the_sign_and_deep_stages_count_most(rng: torch.Generator) -> None:
    shapes = [(2, 3, 4, 2), (2, 4, 2, 2), (2, 5, 1, 1)]
    students, teachers = [2 * normal(rng, *shape) for shape in shapes], [normal(rng, *shape) for shape in shapes]
    teachers[1][0, 0, 0, 0] = 0  # silent counts as not firing
    margin, expected = 0.7, 0.0
    for weight, student, teacher in zip([0.25, 0.5, 1.0], students, teachers, strict=True):
        for s, t in zip(student.flatten().tolist(), teacher.flatten().tolist(), strict=True):
            if s > -margin and t <= 0:
                expected += weight * (s + margin) ** 2
            if s <= margin and t > 0:
                expected += weight * (s - margin) ** 2
    loss = activation_boundary_loss(student_features=students, teacher_features=teachers, margin=margin)
    assert loss.item() == pytest.approx(expected / 2 * 3 / 1000, rel=1e-12)


def test_activation_boundary_of_a_student_beyond_the_margin_is_zero(rng: torch.Generator) -> None:
    teacher = normal(rng, 2, 3, 4, 4)
    student = teacher.sign() * 1.5
    assert activation_boundary_loss(student_features=[student], teacher_features=[teacher]).item() == 0


@pytest.mark.parametrize("loss", [activation_boundary_loss, hcl_loss])
def test_entrywise_losses_refuse_different_shapes(loss) -> None:
    with pytest.raises(ValueError, match=r"\[2, 3, 4, 4\] and \[2, 5, 4, 4\]"):
        loss(student_features=[torch.zeros(2, 3, 4, 4)], teacher_features=[torch.zeros(2, 5, 4, 4)])


def test_ofd_margin_is_the_mean_of_the_negative_part(rng: torch.Generator) -> None:
    weight, bias = torch.tensor([1.0, -0.5, 2.0, 0.3]), torch.tensor([0.0, 0.4, -1.0, 0.5])
    margin = ofd_margin(bn_weight=weight, bn_bias=bias)
    for m, s, value in zip(bias.tolist(), weight.abs().tolist(), margin.tolist(), strict=True):
        samples = m + s * torch.randn(400_000, generator=rng)
        assert value == pytest.approx(samples[samples < 0].mean().item(), rel=0.02)


def test_ofd_margin_of_a_channel_that_is_hardly_negative_is_three_deviations() -> None:
    margin = ofd_margin(bn_weight=torch.tensor([-0.1, 0.1]), bn_bias=torch.tensor([1.0, 100.0]))
    torch.testing.assert_close(margin, torch.tensor([-0.3, -0.3]))


def test_ofd_margin_of_constant_channels_is_their_negative_part() -> None:
    margin = ofd_margin(bn_weight=torch.zeros(3), bn_bias=torch.tensor([-2.0, 0.0, 2.0]))
    torch.testing.assert_close(margin, torch.tensor([-2.0, 0.0, 0.0]), rtol=0, atol=1e-10)


def test_ofd_margin_carries_no_gradient() -> None:
    assert not ofd_margin(bn_weight=torch.ones(2, requires_grad=True), bn_bias=torch.zeros(2)).requires_grad


@pytest.mark.parametrize("teacher_size", [(2, 3), (4, 6)])
def test_ofd_is_a_partial_square(rng: torch.Generator, teacher_size: tuple[int, int]) -> None:
    student, teacher = normal(rng, 3, 2, 2, 3), normal(rng, 3, 2, *teacher_size)
    margins = torch.tensor([-0.3, -1.2])
    smaller, expected = F.adaptive_avg_pool2d(teacher, (2, 3)), 0.0
    for index in np.ndindex(3, 2, 2, 3):
        s, t, m = student[index].item(), smaller[index].item(), margins[index[1]].item()
        if t > 0 or s > max(t, m):
            expected += (s - max(t, m)) ** 2 / 3
    for margin in (margins, margins.view(1, 2, 1, 1)):
        loss = ofd_loss(student_feature=student, teacher_feature=teacher, margin=margin)
        assert loss.item() == pytest.approx(expected, rel=1e-12)


def test_ofd_refuses_other_channels() -> None:
    with pytest.raises(ValueError, match="gives 3 channels, the teacher has 5"):
        ofd(torch.zeros(2, 3, 4, 4), torch.zeros(2, 5, 4, 4))


@pytest.mark.parametrize(
    ("size", "levels"),
    [((8, 8), [4, 2, 1]), ((8, 16), [4, 2, 1]), ((4, 8), [2, 1]), ((2, 2), [1]), ((1, 1), [])],
    ids=str,
)
def test_hcl_compares_coarser_and_coarser_averages(
    rng: torch.Generator, size: tuple[int, int], levels: list[int]
) -> None:
    student, teacher = normal(rng, 2, 3, *size), normal(rng, 2, 3, *size)
    errors = [((student - teacher) ** 2).mean().item()]
    for level in levels:
        difference = (student - teacher).numpy().reshape(2, 3, level, size[0] // level, level, size[1] // level)
        errors.append((difference.mean(axis=(3, 5)) ** 2).mean())
    weights = [0.5**depth for depth in range(len(errors))]
    expected = sum(w * e for w, e in zip(weights, errors, strict=True)) / sum(weights)
    loss = hcl_loss(student_features=[student], teacher_features=[teacher])
    assert loss.item() == pytest.approx(expected, rel=1e-12)


def test_hcl_never_widens_a_narrow_map(rng: torch.Generator) -> None:
    difference = normal(rng, 2, 3, 8, 3)
    loss = hcl_loss(student_features=[difference + 5], teacher_features=[torch.full_like(difference, 5)])
    sizes = [(8, 3), (4, 3), (2, 2), (1, 1)]
    errors = torch.stack([F.adaptive_avg_pool2d(difference, size).square().mean() for size in sizes])
    weights = 0.5 ** torch.arange(4, dtype=torch.float64)
    torch.testing.assert_close(loss, (weights * errors).sum() / weights.sum())


@pytest.mark.parametrize("residual_size", [(4, 3), (1, 1), (2, 3)])
def test_fusion_weighs_a_stage_and_the_review_by_their_attention(
    rng: torch.Generator, residual_size: tuple[int, int]
) -> None:
    feature, residual = normal(rng, 2, 2, 4, 3), normal(rng, 2, 2, *residual_size)
    weight, bias = normal(rng, 2, 4, 1, 1), normal(rng, 2)
    fused = attention_based_fusion(feature=feature, residual=residual, weight=weight, bias=bias)
    assert fused.shape == feature.shape
    for n, h, w in np.ndindex(2, 4, 3):
        x = feature[n, :, h, w]
        y = residual[n, :, h * residual_size[0] // 4, w * residual_size[1] // 3]  # nearest
        z1, z2 = torch.sigmoid(weight[:, :, 0, 0] @ torch.cat([x, y]) + bias)
        torch.testing.assert_close(fused[n, :, h, w], x * z1 + y * z2)


def test_fusion_trains_all_its_inputs_and_survives_autocast(rng: torch.Generator) -> None:
    shapes = {"feature": (2, 3, 4, 4), "residual": (2, 3, 2, 2), "weight": (2, 6, 1, 1), "bias": (2,)}
    inputs = {name: normal(rng, *shape).float().requires_grad_() for name, shape in shapes.items()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        fused = attention_based_fusion(**inputs)
    torch.testing.assert_close(fused, attention_based_fusion(**inputs), rtol=0, atol=0)
    fused.sum().backward()
    assert all(tensor.grad.abs().sum() > 0 for tensor in inputs.values())


@pytest.mark.parametrize("temperature", [1.0, 4.0, torch.tensor([20.0], requires_grad=True)], ids=["1", "4", "learned"])
@pytest.mark.parametrize("name", ["kd", "dkd", "dist"])
def test_f18_a_teacher_may_exclude_classes_by_logits_of_minus_infinity(
    rng: torch.Generator, name: str, temperature
) -> None:
    """As one that finds them as good as impossible."""
    if name == "dist" and isinstance(temperature, Tensor):
        temperature = temperature.detach()
    loss = {"kd": lambda s, t, **options: kd_loss(student_logits=s, teacher_logits=t, **options), "dkd": dkd}.get(
        name, lambda s, t, **options: dist_loss(student_logits=s, teacher_logits=t, **options)
    )
    student, teacher = normal(rng, 4, 5).float(), normal(rng, 4, 5).float()
    found = []
    for excluded in (-torch.inf, -1e5):
        teacher[:, 3] = teacher[0, 0] = excluded
        leaf = student.clone().requires_grad_()
        value = loss(leaf, teacher, temperature=temperature)
        inputs = [leaf, temperature] if isinstance(temperature, Tensor) and temperature.requires_grad else [leaf]
        found.append([value.detach(), *torch.autograd.grad(value, inputs)])
    assert all(tensor.isfinite().all() for tensor in found[0])
    if name != "dkd":  # whose two ways and rest tell how impossible the label is
        torch.testing.assert_close(*found)
