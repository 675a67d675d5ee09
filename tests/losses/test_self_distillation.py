"""Self-distillation and its fellow regularisers against their equations and their invariants."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gankd.losses import (
    bake_loss,
    bake_targets,
    byot_loss,
    confidence_penalty,
    cs_kd_loss,
    ddgsd_loss,
    dks_loss,
    focal_loss,
    frskd_loss,
    kd_loss,
    label_smoothing_loss,
    ps_kd_loss,
    self_attention_loss,
    tf_kd_regularization_loss,
    tf_kd_self_loss,
    virtual_softmax_logits,
)


@pytest.fixture
def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def normal(rng: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=rng, dtype=torch.float64)


def class_ids(rng: torch.Generator, num_samples: int, num_classes: int) -> Tensor:
    return torch.randint(num_classes, (num_samples,), generator=rng)


def kl(student: Tensor, teacher: Tensor, temperature: float = 4.0) -> Tensor:
    return kd_loss(student_logits=student, teacher_logits=teacher, temperature=temperature)


# --- label smoothing and teacher-free distillation --------------------------------------------------------------------


@pytest.mark.parametrize("num_classes", [2, 7])
def test_label_smoothing_is_the_one_of_torch_with_the_label_left_out(rng: torch.Generator, num_classes: int) -> None:
    logits, labels = normal(rng, 5, num_classes), class_ids(rng, 5, num_classes)
    over_all_classes = 0.1 * num_classes / (num_classes - 1)
    expected = F.cross_entropy(logits, labels, label_smoothing=over_all_classes)
    torch.testing.assert_close(label_smoothing_loss(student_logits=logits, labels=labels, smoothing=0.1), expected)


def test_label_smoothing_is_least_at_the_smoothed_label() -> None:
    labels = torch.tensor([1])
    logits = torch.tensor([[0.05, 0.9, 0.05]], dtype=torch.float64).log().requires_grad_()
    label_smoothing_loss(student_logits=logits, labels=labels, smoothing=0.1).backward()
    torch.testing.assert_close(logits.grad, torch.zeros_like(logits))


def test_smoothing_one_class_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 2 classes"):
        label_smoothing_loss(student_logits=torch.zeros(3, 1), labels=torch.zeros(3, dtype=torch.int64))


def test_the_teacher_made_by_hand(rng: torch.Generator) -> None:
    logits, labels = normal(rng, 3, 4), torch.tensor([2, 0, 3])
    expected = 0.0
    for row, label in zip(logits, labels.tolist(), strict=True):
        virtual = [math.exp((0.9 if k == label else 0.1 / 3) / 10) for k in range(4)]
        student = row.exp() / row.exp().sum()
        for k in range(4):
            q = virtual[k] / sum(virtual)
            expected += 50 / 12 * q * math.log(q / student[k])
    loss = tf_kd_regularization_loss(
        student_logits=logits, labels=labels, temperature=10.0, correct_probability=0.9, multiplier=50.0
    )
    assert loss.item() == pytest.approx(expected, rel=1e-12)


def test_teacher_free_self_training_is_distillation_averaged_over_classes(rng: torch.Generator) -> None:
    student, teacher = normal(rng, 4, 6), normal(rng, 4, 6)
    p, q = (teacher / 3).softmax(dim=1), (student / 3).softmax(dim=1)
    expected = 20 * 9 * (p * (p / q).log()).mean()
    loss = tf_kd_self_loss(student_logits=student, teacher_logits=teacher, temperature=3.0, multiplier=20.0)
    torch.testing.assert_close(loss, expected)


# --- focal loss, confidence penalty, virtual softmax ------------------------------------------------------------------


def test_focal_loss_without_focus_is_the_cross_entropy(rng: torch.Generator) -> None:
    logits, labels = normal(rng, 5, 4), class_ids(rng, 5, 4)
    loss = focal_loss(student_logits=logits, labels=labels, gamma=0.0)
    torch.testing.assert_close(loss, F.cross_entropy(logits, labels))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 5.0])
def test_focal_loss_of_sure_predictions_is_finite(gamma: float) -> None:
    logits = torch.tensor([[200.0, 0.0], [0.0, 200.0]], requires_grad=True)  # one right, one wrong
    loss = focal_loss(student_logits=logits, labels=torch.tensor([0, 0]), gamma=gamma)
    loss.backward()
    assert loss.item() == pytest.approx(100)
    torch.testing.assert_close(logits.grad, torch.tensor([[0.0, 0.0], [-0.5, 0.5]]), rtol=1e-5, atol=1e-6)


def test_confidence_costs_more_than_doubt(rng: torch.Generator) -> None:
    uniform = confidence_penalty(student_logits=torch.zeros(3, 10))
    certain = confidence_penalty(student_logits=torch.eye(10) * 1e4)
    between = confidence_penalty(student_logits=torch.randn(3, 10, generator=rng))
    assert uniform.item() == pytest.approx(-math.log(10) / 10, rel=1e-6)
    assert uniform < between < certain
    assert certain.item() == pytest.approx(0, abs=1e-7)


def test_no_logit_of_the_label_exceeds_the_virtual_one(rng: torch.Generator) -> None:
    weight, labels = normal(rng, 5, 8), torch.tensor([0, 4, 2])
    embeddings = torch.stack([3 * weight[0], normal(rng, 8), -weight[2]])  # aligned, any, opposed
    logits = virtual_softmax_logits(
        logits=embeddings @ weight.T, embeddings=embeddings, classifier_weight=weight, labels=labels
    )
    own, virtual = logits[torch.arange(3), labels], logits[:, -1]
    torch.testing.assert_close(logits[:, :-1], embeddings @ weight.T)
    torch.testing.assert_close(virtual[0], own[0])
    assert virtual[1] > own[1]
    torch.testing.assert_close(virtual[2], -own[2])


def test_virtual_softmax_refuses_tensors_of_other_classifiers() -> None:
    with pytest.raises(ValueError, match="do not belong together"):
        virtual_softmax_logits(
            logits=torch.zeros(3, 5),
            embeddings=torch.zeros(3, 8),
            classifier_weight=torch.zeros(5, 7),
            labels=torch.tensor([0, 1, 2]),
        )


# --- CS-KD, PS-KD, BAKE -----------------------------------------------------------------------------------------------


def test_cs_kd_weighs_the_divergence(rng: torch.Generator) -> None:
    student, paired, labels = normal(rng, 4, 5), normal(rng, 4, 5).requires_grad_(), class_ids(rng, 4, 5)
    total, ce, rest = cs_kd_loss(
        student_logits=student, paired_logits=paired, labels=labels, temperature=2.0, kd_weight=3.0
    )
    torch.testing.assert_close(ce, F.cross_entropy(student, labels))
    torch.testing.assert_close(rest, 3 * kl(student, paired, temperature=2.0))
    torch.testing.assert_close(total, ce + rest)
    assert not total.requires_grad


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_ps_kd_softens_the_label_by_the_last_epoch(rng: torch.Generator, alpha: float) -> None:
    student, labels, previous = normal(rng, 4, 5), class_ids(rng, 4, 5), normal(rng, 4, 5).softmax(dim=1)
    loss = ps_kd_loss(student_logits=student, labels=labels, previous_probabilities=previous.half(), alpha=alpha)
    targets = (1 - alpha) * F.one_hot(labels, 5) + alpha * previous.half().double()
    torch.testing.assert_close(loss, -(targets * student.log_softmax(dim=1)).sum() / 4)


@pytest.mark.parametrize("omega", [0.0, 0.5, 0.9])
def test_bake_targets_are_where_the_propagation_ends(rng: torch.Generator, omega: float) -> None:
    embeddings, logits = normal(rng, 6, 8), normal(rng, 6, 5) * 4
    affinity = torch.zeros(6, 6, dtype=torch.float64)
    for i in range(6):
        for j in set(range(6)) - {i}:
            affinity[i, j] = F.cosine_similarity(embeddings[i], embeddings[j], dim=0).exp()
    affinity = affinity / affinity.sum(dim=1, keepdim=True)
    predictions = (logits / 2).softmax(dim=1)
    expected = predictions
    for _ in range(400):
        expected = omega * affinity @ expected + (1 - omega) * predictions
    targets = bake_targets(embeddings=embeddings, logits=logits, temperature=2.0, omega=omega)
    torch.testing.assert_close(targets, expected)
    torch.testing.assert_close(targets.sum(dim=1), torch.ones(6, dtype=torch.float64))


def test_bake_targets_carry_no_gradient_and_stand_half_precision(rng: torch.Generator) -> None:
    embeddings = (torch.randn(4, 8, generator=rng) * 1e3).half().requires_grad_()
    logits = torch.randn(4, 3, generator=rng).half().requires_grad_()
    targets = bake_targets(embeddings=embeddings, logits=logits)
    assert targets.dtype == torch.float32
    assert not targets.requires_grad
    torch.testing.assert_close(targets.sum(dim=1), torch.ones(4))


def test_bake_targets_need_neighbours() -> None:
    with pytest.raises(ValueError, match="at least 2 samples"):
        bake_targets(embeddings=torch.zeros(1, 8), logits=torch.zeros(1, 3))
    with pytest.raises(ValueError, match="omega is 1.0"):
        bake_targets(embeddings=torch.zeros(2, 8), logits=torch.zeros(2, 3), omega=1.0)
    with pytest.raises(ValueError, match="different batches: 3 and 2"):
        bake_targets(embeddings=torch.zeros(3, 8), logits=torch.zeros(2, 3))


def test_bake_loss_is_distillation_from_probabilities(rng: torch.Generator) -> None:
    student, teacher = normal(rng, 4, 5), normal(rng, 4, 5)
    loss = bake_loss(student_logits=student, soft_targets=(teacher / 3).softmax(dim=1), temperature=3.0)
    torch.testing.assert_close(loss, kl(student, teacher, temperature=3.0))


def test_bake_loss_takes_certain_targets(rng: torch.Generator) -> None:
    student, labels = normal(rng, 4, 5).requires_grad_(), class_ids(rng, 4, 5)
    loss = bake_loss(student_logits=student, soft_targets=F.one_hot(labels, 5), temperature=1.0)
    loss.backward()
    torch.testing.assert_close(loss, F.cross_entropy(student, labels))
    assert student.grad.isfinite().all()


# --- DDGSD, BYOT, DKS -------------------------------------------------------------------------------------------------


def test_ddgsd_compares_the_mean_features_of_two_views(rng: torch.Generator) -> None:
    views, embeddings = [normal(rng, 4, 5), normal(rng, 4, 5)], [normal(rng, 4, 3), normal(rng, 4, 3)]
    labels = class_ids(rng, 4, 5)
    gap = embeddings[0].mean(dim=0) - embeddings[1].mean(dim=0)
    divergences = kl(views[0], views[1]) + kl(views[1], views[0])
    for mmd, expected in [("vector", (gap**2).sum()), ("scalar", gap.mean() ** 2)]:
        total, ce, rest = ddgsd_loss(
            student_logits=views, embeddings=embeddings, labels=labels, mmd_weight=0.5, mmd=mmd
        )
        torch.testing.assert_close(ce, F.cross_entropy(torch.cat(views), labels.repeat(2)) / 2)
        torch.testing.assert_close(rest, divergences + 0.5 * expected)
        torch.testing.assert_close(total, ce + rest)


def test_ddgsd_of_equal_views_is_half_the_cross_entropy(rng: torch.Generator) -> None:
    logits, embedding, labels = normal(rng, 4, 5), normal(rng, 4, 3), class_ids(rng, 4, 5)
    total, _, rest = ddgsd_loss(student_logits=[logits] * 2, embeddings=[embedding] * 2, labels=labels)
    assert rest.item() == pytest.approx(0, abs=1e-14)
    torch.testing.assert_close(total, F.cross_entropy(logits, labels) / 2)


def test_byot_teaches_the_shallow_heads_by_the_deepest(rng: torch.Generator) -> None:
    logits = [normal(rng, 3, 4).requires_grad_() for _ in range(3)]
    shallow = [normal(rng, 3, 2, 2, 2) for _ in range(2)]
    deepest, labels = normal(rng, 3, 2, 2, 2).requires_grad_(), class_ids(rng, 3, 4)
    total, ce, rest = byot_loss(
        logits=logits, shallow_features=shallow, deepest_feature=deepest, labels=labels, feature_weight=0.2
    )
    torch.testing.assert_close(ce, sum(F.cross_entropy(z, labels) for z in logits))
    distances = sum(((feature - deepest) ** 2).mean() for feature in shallow)
    torch.testing.assert_close(rest, kl(logits[1], logits[0]) + kl(logits[2], logits[0]) + 0.2 * distances)

    total.backward()
    ce_gradient = (logits[0].softmax(dim=1) - F.one_hot(labels, 4)) / 3
    torch.testing.assert_close(logits[0].grad, ce_gradient)  # the deepest head learns from the labels alone
    assert deepest.grad is None


def test_dks_is_symmetric_in_its_heads(rng: torch.Generator) -> None:
    heads, labels = [normal(rng, 3, 4) for _ in range(3)], class_ids(rng, 3, 4)
    total, ce, rest = dks_loss(logits=heads, labels=labels, temperature=2.0)
    expected = sum(kl(heads[i], heads[j], temperature=2.0) for i in range(3) for j in range(3) if i != j)
    torch.testing.assert_close(rest, expected)
    torch.testing.assert_close(total, ce + rest)
    torch.testing.assert_close(dks_loss(logits=heads[::-1], labels=labels, temperature=2.0)[0], total)


# --- SAD, FRSKD -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "deeper_size", [(6, 4), (3, 2), (2, 3), (1, 1)]
)  # equal, half, and what stride 2 does not give
def test_self_attention_compares_where_two_stages_look(rng: torch.Generator, deeper_size: tuple[int, int]) -> None:
    shallow, deeper = normal(rng, 2, 3, 6, 4), normal(rng, 2, 5, *deeper_size).requires_grad_()
    upsampled = F.interpolate(deeper, size=(6, 4), mode="bilinear")
    expected = 0.0
    for n in range(2):
        here, there = ((m[n] ** 2).mean(dim=0) for m in (shallow, upsampled))
        expected += ((here.exp() / here.exp().sum() - there.exp() / there.exp().sum()) ** 2).sum().item() / 48
    loss = self_attention_loss(student_feature=shallow, teacher_feature=deeper)
    assert loss.item() == pytest.approx(expected, rel=1e-10)
    assert not loss.requires_grad


def test_self_attention_of_a_stage_with_itself_is_zero(rng: torch.Generator) -> None:
    feature = normal(rng, 2, 3, 4, 4)
    assert self_attention_loss(student_feature=feature, teacher_feature=-feature).item() == 0


def test_frskd_by_its_equation(rng: torch.Generator) -> None:
    student, teacher, labels = normal(rng, 3, 4), normal(rng, 3, 4), class_ids(rng, 3, 4)
    maps, refined = (
        [normal(rng, 3, 2, 4, 4), normal(rng, 3, 5, 2, 2)],
        [normal(rng, 3, 6, 4, 4), normal(rng, 3, 1, 2, 2)],
    )

    def distances(scale: float) -> tuple[Tensor, Tensor, Tensor]:
        return frskd_loss(
            student_logits=student,
            self_teacher_logits=teacher,
            student_features=[scale * feature for feature in maps],
            self_teacher_features=refined,
            labels=labels,
            kd_weight=3.0,
            attention_weight=7.0,
        )

    total, ce, rest = distances(scale=1.0)
    expected = 3 * kl(student, teacher)
    for feature, other in zip(maps, refined, strict=True):
        for n in range(3):
            here, there = ((m[n] ** 2).mean(dim=0).flatten() for m in (feature, other))
            expected += 7 * ((here / here.norm() - there / there.norm()) ** 2).sum() / (3 * len(here))
    torch.testing.assert_close(ce, F.cross_entropy(student, labels) + F.cross_entropy(teacher, labels))
    torch.testing.assert_close(rest, expected)
    torch.testing.assert_close(total, ce + rest)
    torch.testing.assert_close(distances(scale=30.0)[0], total)  # attention has no scale


def test_the_self_teacher_of_frskd_learns_from_its_labels_alone(rng: torch.Generator) -> None:
    teacher, labels = normal(rng, 3, 4).requires_grad_(), class_ids(rng, 3, 4)
    refined = normal(rng, 3, 6, 2, 2).requires_grad_()
    frskd_loss(
        student_logits=normal(rng, 3, 4),
        self_teacher_logits=teacher,
        student_features=[normal(rng, 3, 2, 2, 2)],
        self_teacher_features=[refined],
        labels=labels,
    )[0].backward()
    torch.testing.assert_close(teacher.grad, (teacher.softmax(dim=1) - F.one_hot(labels, 4)) / 3)
    assert refined.grad is None


# --- what all of them keep --------------------------------------------------------------------------------------------

LABELS = torch.tensor([1, 0])
ONE, OTHER, LAST = ([[0.3, -1.0], [2.0, 0.1]], [[1.5, 0.4], [-0.7, 0.2]], [[0.0, 3.0], [1.0, 1.0]])


def feature_map(scale: float, dtype: torch.dtype) -> Tensor:
    return (scale * torch.linspace(-1, 1, 16)).reshape(2, 2, 2, 2).to(dtype)


LOSSES: dict[str, Callable] = {
    "label smoothing": lambda z, f: label_smoothing_loss(student_logits=z[0], labels=LABELS),
    "tf-kd": lambda z, f: tf_kd_regularization_loss(student_logits=z[0], labels=LABELS),
    "tf-kd self": lambda z, f: tf_kd_self_loss(student_logits=z[0], teacher_logits=z[1], temperature=6.0),
    "focal": lambda z, f: focal_loss(student_logits=z[0], labels=LABELS),
    "confidence": lambda z, f: confidence_penalty(student_logits=z[0]),
    "cs-kd": lambda z, f: cs_kd_loss(student_logits=z[0], paired_logits=z[1], labels=LABELS)[0],
    "ps-kd": lambda z, f: ps_kd_loss(
        student_logits=z[0], labels=LABELS, previous_probabilities=z[1].softmax(dim=1), alpha=0.5
    ),
    "bake": lambda z, f: bake_loss(student_logits=z[0], soft_targets=bake_targets(embeddings=f[0], logits=z[0])),
    "ddgsd": lambda z, f: ddgsd_loss(student_logits=z[:2], embeddings=z[1:], labels=LABELS)[0],
    "byot": lambda z, f: byot_loss(logits=z, shallow_features=[f[0], f[1]], deepest_feature=f[2], labels=LABELS)[0],
    "dks": lambda z, f: dks_loss(logits=z, labels=LABELS)[0],
    "sad": lambda z, f: self_attention_loss(student_feature=f[0], teacher_feature=f[1]),
    "frskd": lambda z, f: frskd_loss(
        student_logits=z[0],
        self_teacher_logits=z[1],
        student_features=[f[0]],
        self_teacher_features=[f[1]],
        labels=LABELS,
    )[0],
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_two_classes_stay_finite_in_any_precision(name: str, dtype: torch.dtype, scale: float) -> None:
    logits = [(scale * torch.tensor(z)).to(dtype).requires_grad_() for z in (ONE, OTHER, LAST)]
    maps = [feature_map(s * min(scale, 100), dtype).requires_grad_() for s in (1, 2, 3)]
    loss = LOSSES[name](logits, maps)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.shape == ()
    assert loss.isfinite()
    for tensor in [*logits, *maps]:
        assert tensor.grad is None or tensor.grad.isfinite().all()


@pytest.mark.parametrize("name", LOSSES)
def test_autocast_changes_nothing(name: str) -> None:
    logits, maps = [torch.tensor(z) for z in (ONE, OTHER, LAST)], [feature_map(s, torch.float32) for s in (1, 2, 3)]
    loss = LOSSES[name](logits, maps)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(LOSSES[name](logits, maps), loss)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda z, f: ddgsd_loss(student_logits=[z], embeddings=[z, z], labels=LABELS), "two views are needed"),
        (lambda z, f: ddgsd_loss(student_logits=[z, z], embeddings=[z, z], labels=LABELS, mmd="rbf"), "unknown mmd"),
        (lambda z, f: ddgsd_loss(student_logits=[z, z], embeddings=[z, z[:1]], labels=LABELS), "two views differ"),
        (lambda z, f: dks_loss(logits=[z], labels=LABELS), "at least 2"),
        (
            lambda z, f: byot_loss(logits=[z], shallow_features=[], deepest_feature=f, labels=LABELS),
            "one deepest head",
        ),
        (
            lambda z, f: byot_loss(logits=[z, z], shallow_features=[f[:, :1]], deepest_feature=f, labels=LABELS),
            "shallow and deepest features differ",
        ),
        (lambda z, f: self_attention_loss(student_feature=f, teacher_feature=f[:1]), "of the same N"),
        (
            lambda z, f: frskd_loss(
                student_logits=z,
                self_teacher_logits=z,
                student_features=[f],
                self_teacher_features=[],
                labels=LABELS,
            ),
            "do not pair up",
        ),
        (
            lambda z, f: frskd_loss(
                student_logits=z,
                self_teacher_logits=z,
                student_features=[f],
                self_teacher_features=[f[..., :1]],
                labels=LABELS,
            ),
            "self-teacher's map differ",
        ),
        (lambda z, f: bake_loss(student_logits=z, soft_targets=z[:1]), "soft targets differ"),
        (
            lambda z, f: ps_kd_loss(student_logits=z, labels=LABELS, previous_probabilities=z[:1], alpha=0.1),
            "previous probabilities differ",
        ),
        (lambda z, f: focal_loss(student_logits=z, labels=LABELS.float()), "int64 class ids"),
        (lambda z, f: label_smoothing_loss(student_logits=z, labels=LABELS[:1]), "int64 class ids"),
    ],
)
def test_what_does_not_fit_is_refused(loss: Callable, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        loss(torch.zeros(2, 2), torch.zeros(2, 2, 2, 2))
