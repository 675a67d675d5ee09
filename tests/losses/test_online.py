"""Losses of students that train together, against their equations in plain loops, and their laws."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gankd.losses import (
    afd_discriminator_loss,
    afd_generator_loss,
    dml_loss,
    ffl_loss,
    kdcl_general_weights,
    kdcl_loss,
    mfef_loss,
    okddip_loss,
    one_loss,
    rampup_weight,
)
from tests.golden.adapters import one_gates

LABELS = torch.tensor([2, 0, 1, 2, 2])


@pytest.fixture
def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def normal(rng: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=rng, dtype=torch.float64)


def students(rng: torch.Generator, count: int = 3) -> list[Tensor]:
    return [(2 * normal(rng, 5, 3)).requires_grad_() for _ in range(count)]


def cross_entropy(logits: Tensor) -> Tensor:
    return -sum(row.softmax(0)[label].log() for row, label in zip(logits, LABELS, strict=True)) / len(logits)


def divergence(target: Tensor, student: Tensor, temperature: float) -> Tensor:
    """KL_T(target -> student) of the papers."""
    total = 0
    for t, s in zip(target, student, strict=True):
        p, q = (t / temperature).softmax(0), (s / temperature).softmax(0)
        total = total + sum(p[k] * (p[k] / q[k]).log() for k in range(len(p)))
    return temperature**2 * total / len(student)


def assert_same(got: tuple[Tensor, ...], expected: tuple[Tensor, ...], leaves: list[Tensor]) -> None:
    """Values of all terms, gradients of the totals."""
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(torch.autograd.grad(got[0], leaves), torch.autograd.grad(expected[0], leaves))


# --- dml_loss ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize("target", ["peers", "ensemble"])
def test_dml_students_follow_each_other(rng: torch.Generator, target: str, detach: bool) -> None:
    logits = students(rng)
    ce, kd = sum(cross_entropy(z) for z in logits), 0
    for i, z in enumerate(logits):
        others = [other.detach() if detach else other for j, other in enumerate(logits) if j != i]
        if target == "ensemble":
            kd = kd + divergence((others[0] + others[1]) / 2, z, 2.0)
        else:
            kd = kd + (divergence(others[0], z, 2.0) + divergence(others[1], z, 2.0)) / 2
    got = dml_loss(
        student_logits=logits, labels=LABELS, temperature=2.0, kd_weight=0.6, target=target, detach_targets=detach
    )
    assert_same(got, (ce + 0.6 * kd, ce, kd), logits)


def test_with_two_students_the_peer_is_the_ensemble(rng: torch.Generator) -> None:
    logits = students(rng, 2)
    torch.testing.assert_close(
        dml_loss(student_logits=logits, labels=LABELS),
        dml_loss(student_logits=logits, labels=LABELS, target="ensemble"),
    )


def test_dml_refuses_a_lonely_student_and_an_unknown_target(rng: torch.Generator) -> None:
    with pytest.raises(ValueError, match="at least 2 students, got 1"):
        dml_loss(student_logits=students(rng, 1), labels=LABELS)
    with pytest.raises(ValueError, match="unknown target 'mean': use 'peers' or 'ensemble'"):
        dml_loss(student_logits=students(rng), labels=LABELS, target="mean")
    with pytest.raises(ValueError, match=r"student logits need one shape, found \[5, 3\], \[5, 4\]"):
        dml_loss(student_logits=[*students(rng, 1), normal(rng, 5, 4)], labels=LABELS)


# --- one_gates, one_loss ----------------------------------------------------------------------------------------------


def test_one_branches_follow_their_gated_sum(rng: torch.Generator) -> None:
    logits, gates = students(rng), normal(rng, 5, 3).softmax(1).requires_grad_()
    ensemble = torch.stack([sum(gates[n, i] * logits[i][n] for i in range(3)) for n in range(5)])
    ce = sum(cross_entropy(z) for z in logits) + cross_entropy(ensemble)
    kd = 0.4 * sum(divergence(ensemble.detach(), z, 3.0) for z in logits)
    got = one_loss(branch_logits=logits, gates=gates, labels=LABELS, kd_weight=0.4)
    assert_same(got, (ce + kd, ce, kd), [*logits, gates])


def test_gates_of_an_opened_branch_win(rng: torch.Generator) -> None:
    feature_map, weight = normal(rng, 4, 6, 3, 3), normal(rng, 3, 6)
    zeros, biases = torch.zeros(3, dtype=torch.float64), torch.tensor([-1.0, 0.0, 2.0], dtype=torch.float64)
    gates = one_gates(feature_map=feature_map, weight=weight, bias=zeros, norm_weight=zeros, norm_bias=biases)
    e = math.exp(2)
    expected = torch.tensor([1, 1, e], dtype=torch.float64) / (2 + e)  # the ReLU makes the closed branches equal
    torch.testing.assert_close(gates, expected.expand(4, 3))


def test_gates_ignore_what_batch_norm_removes(rng: torch.Generator) -> None:
    feature_map, weight, bias = normal(rng, 4, 6, 3, 3), normal(rng, 3, 6), normal(rng, 3)
    norm = {"norm_weight": normal(rng, 3), "norm_bias": normal(rng, 3)}
    gates = one_gates(feature_map=feature_map, weight=weight, bias=bias, **norm)
    shifted = one_gates(feature_map=feature_map + 7, weight=weight, bias=bias - 3, **norm)
    torch.testing.assert_close(shifted, gates)
    torch.testing.assert_close(gates.sum(1), torch.ones(4, dtype=torch.float64))


def test_one_refuses_a_batch_of_one_and_gates_that_do_not_fit(rng: torch.Generator) -> None:
    ones = torch.ones(3)
    with pytest.raises(ValueError, match="at least 2 images, got 1"):
        one_gates(
            feature_map=torch.zeros(1, 6, 2, 2), weight=torch.zeros(3, 6), bias=ones, norm_weight=ones, norm_bias=ones
        )
    with pytest.raises(ValueError, match=r"gates should be \[5, 3\], found \[3, 5\]"):
        one_loss(branch_logits=students(rng), gates=torch.ones(3, 5), labels=LABELS)


# --- okddip_loss ------------------------------------------------------------------------------------------------------


def test_okddip_peers_follow_what_they_attend_to_and_the_leader_their_mean(rng: torch.Generator) -> None:
    *peers, leader = students(rng, 4)
    queries, keys = normal(rng, 5, 3, 2).requires_grad_(), normal(rng, 5, 3, 2).requires_grad_()
    ce = sum(cross_entropy(z) for z in [*peers, leader])
    kd = divergence(sum(peers) / 3, leader, 2.0)
    for a, peer in enumerate(peers):
        attention = [torch.stack([queries[n, a] @ keys[n, b] for b in range(3)]).softmax(0) for n in range(5)]
        target = torch.stack([sum(attention[n][b] * peers[b][n] for b in range(3)) for n in range(5)])
        kd = kd + divergence(target, peer, 2.0)
    got = okddip_loss(
        peer_logits=peers,
        leader_logits=leader,
        queries=queries,
        keys=keys,
        labels=LABELS,
        temperature=2.0,
        kd_weight=0.3,
    )
    assert_same(got, (ce + 0.3 * kd, ce, 0.3 * kd), [*peers, leader, queries, keys])


def test_okddip_peers_that_attend_to_themselves_learn_nothing_from_each_other(rng: torch.Generator) -> None:
    peers, itself = students(rng), 100 * torch.eye(3, dtype=torch.float64).expand(5, 3, 3)
    leader = sum(peers) / 3
    *_, kd = okddip_loss(peer_logits=peers, leader_logits=leader, queries=itself, keys=itself, labels=LABELS)
    assert kd.item() == pytest.approx(0, abs=1e-12)


def test_okddip_refuses_queries_of_other_peers(rng: torch.Generator) -> None:
    *peers, leader = students(rng, 4)
    with pytest.raises(ValueError, match=r"should both be \[5, 3\] \+ \[D\], found \[5, 4, 8\] and \[5, 4, 8\]"):
        okddip_loss(
            peer_logits=peers,
            leader_logits=leader,
            queries=torch.zeros(5, 4, 8),
            keys=torch.zeros(5, 4, 8),
            labels=LABELS,
        )


# --- kdcl_loss, kdcl_general_weights ----------------------------------------------------------------------------------


def kdcl_target(logits: list[Tensor], ensemble: str, weights: Tensor) -> Tensor:
    rows = []
    for n, label in enumerate(LABELS):
        each = [z.detach()[n] for z in logits]
        if ensemble == "mean":
            rows.append((each[0] + each[1] + each[2]) / 3)
        elif ensemble == "best":
            rows.append(max(each, key=lambda row: row.softmax(0)[label].item()))
        elif ensemble == "min_logit":
            rows.append(torch.stack([min(row[k] - row[label] for row in each) for k in range(3)]))
        else:
            rows.append(sum(weight * row for weight, row in zip(weights, each, strict=True)))
    return torch.stack(rows)


@pytest.mark.parametrize("ensemble", ["mean", "best", "min_logit", "weighted"])
def test_kdcl_students_follow_their_ensemble(rng: torch.Generator, ensemble: str) -> None:
    logits, weights = students(rng), torch.tensor([0.9, 0.4, -0.3], dtype=torch.float64)
    target = kdcl_target(logits, ensemble, weights)
    ce, kd = sum(cross_entropy(z) for z in logits), sum(divergence(target, z, 2.0) for z in logits)
    got = kdcl_loss(
        student_logits=logits,
        labels=LABELS,
        ce_weight=0.7,
        kd_weight=0.2,
        ensemble=ensemble,
        weights=weights if ensemble == "weighted" else None,
    )
    assert_same(got, (0.7 * ce + 0.2 * kd, ce, kd), logits)


@pytest.mark.parametrize("ensemble", ["mean", "best", "min_logit"])
def test_kdcl_students_that_agree_cost_nothing(rng: torch.Generator, ensemble: str) -> None:
    logits = normal(rng, 5, 3)
    *_, kd = kdcl_loss(student_logits=[logits, logits + 2], labels=LABELS, ensemble=ensemble)
    assert kd.item() == pytest.approx(0, abs=1e-14)


def test_no_student_has_a_larger_margin_than_min_logit(rng: torch.Generator) -> None:
    logits = students(rng)
    wide = [z.detach() for z in logits]
    wide.append(kdcl_target(wide, "min_logit", LABELS))  # a student that already is the ensemble
    *_, with_it = kdcl_loss(student_logits=wide, labels=LABELS, ensemble="min_logit")
    *_, without = kdcl_loss(student_logits=wide[:-1], labels=LABELS, ensemble="min_logit")
    torch.testing.assert_close(with_it, without)


def test_kdcl_refuses_weights_without_use_and_use_without_weights(rng: torch.Generator) -> None:
    logits = students(rng)
    with pytest.raises(ValueError, match="weights belong to the ensemble 'weighted'"):
        kdcl_loss(student_logits=logits, labels=LABELS, ensemble="weighted")
    with pytest.raises(ValueError, match="here it is 'best'"):
        kdcl_loss(student_logits=logits, labels=LABELS, ensemble="best", weights=torch.ones(3))
    with pytest.raises(ValueError, match=r"each of 3 students, found \[2\]"):
        kdcl_loss(student_logits=logits, labels=LABELS, ensemble="weighted", weights=torch.ones(2))
    with pytest.raises(ValueError, match="unknown ensemble 'median'"):
        kdcl_loss(student_logits=logits, labels=LABELS, ensemble="median")


def test_general_weights_make_the_smallest_error(rng: torch.Generator) -> None:
    labels = torch.randint(4, (50,), generator=rng)
    predictions = [normal(rng, 50, 4).softmax(1) for _ in range(3)]

    def error(weights: Tensor) -> float:
        mixture = sum(weight * p for weight, p in zip(weights, predictions, strict=True))
        return (mixture - F.one_hot(labels, 4)).square().sum().item()

    weights = kdcl_general_weights(predictions=predictions, labels=labels)
    assert weights.sum().item() == pytest.approx(1)
    for direction in torch.tensor([[1.0, -1, 0], [0, 1, -1], [1, 0, -1]], dtype=torch.float64):
        for step in (-0.05, 0.05):  # other weights that sum to one
            assert error(weights) < error(weights + step * direction)


def test_equal_students_share_the_general_weight(rng: torch.Generator) -> None:
    predictions = normal(rng, 20, 4).softmax(1)
    labels = torch.zeros(20, dtype=torch.long)
    weights = kdcl_general_weights(predictions=[predictions] * 3, labels=labels)
    torch.testing.assert_close(weights, torch.full((3,), 1 / 3, dtype=torch.float64), rtol=0, atol=1e-6)


# --- mfef_loss, ffl_loss ----------------------------------------------------------------------------------------------


def test_mfef_students_follow_the_fused_classifier_and_it_follows_their_mean(rng: torch.Generator) -> None:
    *logits, fused = students(rng, 4)
    ce = sum(cross_entropy(z) for z in [*logits, fused])
    down = sum(divergence(fused.detach(), z, 3.0) for z in logits)
    up = divergence(sum(logits).detach() / 3, fused, 3.0)
    got = mfef_loss(student_logits=logits, fused_logits=fused, labels=LABELS, kd_weight=0.5)
    assert_same(got, (ce + 0.5 * (down + up), ce, down, up), [*logits, fused])


def test_ffl_is_mfef_with_its_divergences_added_and_weighted(rng: torch.Generator) -> None:
    *logits, fused = students(rng, 3)
    total, ce, down, up = mfef_loss(student_logits=logits, fused_logits=fused, labels=LABELS, kd_weight=0.5)
    got = ffl_loss(student_logits=logits, fused_logits=fused, labels=LABELS, kd_weight=0.5)
    torch.testing.assert_close(got, (total, ce, 0.5 * (down + up)))


# --- afd --------------------------------------------------------------------------------------------------------------


def test_afd_sides_pull_a_score_in_opposite_directions() -> None:
    own, other = torch.tensor([[0.25], [0.5]], requires_grad=True), torch.tensor([[0.5], [1.0]], requires_grad=True)
    discriminator = afd_discriminator_loss(own_scores=own, other_scores=other)
    assert discriminator.item() == pytest.approx(0.25 / 2 + (0.0625 + 0.25) / 2)
    generator = afd_generator_loss(own_scores=own)
    assert generator.item() == pytest.approx((0.5625 + 0.25) / 2)
    assert (torch.autograd.grad(discriminator, own)[0] > 0).all()
    assert (torch.autograd.grad(generator, own)[0] < 0).all()


def test_afd_is_over_when_scores_tell_the_truth_or_are_fooled() -> None:
    assert afd_discriminator_loss(own_scores=torch.zeros(3, 1), other_scores=torch.ones(3, 1)).item() == 0
    assert afd_generator_loss(own_scores=torch.ones(3, 1)).item() == 0


# --- rampup_weight ----------------------------------------------------------------------------------------------------


@given(st.floats(-10, 200), st.floats(-10, 200), st.floats(1, 100))
def test_the_ramp_never_falls(first: float, second: float, num_epochs: float) -> None:
    early, late = sorted((first, second))
    assert rampup_weight(early, num_epochs=num_epochs) <= rampup_weight(late, num_epochs=num_epochs)


def test_the_ramp_starts_low_and_ends_at_one() -> None:
    assert rampup_weight(-3) == rampup_weight(0) == pytest.approx(math.exp(-5))
    assert rampup_weight(40) == pytest.approx(math.exp(-1.25))
    assert rampup_weight(80) == rampup_weight(300) == 1
    assert rampup_weight(0, num_epochs=0) == 1


# --- what every loss promises -----------------------------------------------------------------------------------------


def okddip(logits: list[Tensor], labels: Tensor) -> tuple[Tensor, ...]:
    *peers, leader = logits
    queries = torch.stack(peers, dim=1)
    return okddip_loss(peer_logits=peers, leader_logits=leader, queries=queries, keys=-queries, labels=labels)


EVERY_LOSS = {
    "dml": lambda z, y: dml_loss(student_logits=z, labels=y),
    "dml attached": lambda z, y: dml_loss(student_logits=z, labels=y, detach_targets=False),
    "one": lambda z, y: one_loss(branch_logits=z, gates=torch.full((len(y), len(z)), 1 / len(z)), labels=y),
    "okddip": okddip,
    "kdcl mean": lambda z, y: kdcl_loss(student_logits=z, labels=y),
    "kdcl best": lambda z, y: kdcl_loss(student_logits=z, labels=y, ensemble="best"),
    "kdcl min_logit": lambda z, y: kdcl_loss(student_logits=z, labels=y, ensemble="min_logit"),
    "mfef": lambda z, y: mfef_loss(student_logits=z[:-1], fused_logits=z[-1], labels=y),
    "ffl": lambda z, y: ffl_loss(student_logits=z[:-1], fused_logits=z[-1], labels=y),
}
every_loss = pytest.mark.parametrize("loss", EVERY_LOSS.values(), ids=EVERY_LOSS.keys())


@every_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_give_the_float32_result(rng: torch.Generator, loss, dtype: torch.dtype) -> None:
    logits = [z.detach().to(dtype) for z in students(rng)]
    values = loss(logits, LABELS)
    assert all(value.dtype == torch.float32 and value.shape == () for value in values)
    torch.testing.assert_close(values, loss([z.float() for z in logits], LABELS))


@every_loss
def test_autocast_changes_nothing(rng: torch.Generator, loss) -> None:
    logits = [z.detach().float() for z in students(rng)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        values = loss(logits, LABELS)
    torch.testing.assert_close(values, loss(logits, LABELS), rtol=0, atol=0)


@every_loss
def test_one_image_of_two_classes_seen_with_absurd_certainty_is_finite(loss) -> None:
    logits = [torch.tensor([row], requires_grad=True) for row in ([1e4, -1e4], [-1e4, 1e4], [3.0, 3.0])]
    total, *_ = loss(logits, torch.tensor([0]))
    total.backward()
    assert total.isfinite()
    assert all(z.grad.isfinite().all() for z in logits)


@every_loss
def test_the_order_of_the_batch_does_not_matter(rng: torch.Generator, loss) -> None:
    logits, order = students(rng), torch.randperm(5, generator=rng)
    torch.testing.assert_close(loss([z[order] for z in logits], LABELS[order]), loss(logits, LABELS))
