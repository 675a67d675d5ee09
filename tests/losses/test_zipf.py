"""Zipf's label smoothing: who votes, how ranks become a target, what the loss trains."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gankd.losses import class_votes, zipf_loss, zipf_targets


@pytest.fixture
def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def normal(rng: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=rng, dtype=torch.float64)


# --- class_votes ------------------------------------------------------------------------------------------------------


def test_every_pixel_votes_for_its_largest_logit(rng: torch.Generator) -> None:
    feature_map, weight, bias = normal(rng, 3, 5, 2, 4), normal(rng, 7, 5), normal(rng, 7)
    expected = torch.zeros(3, 7)
    for n in range(3):
        for row in range(2):
            for column in range(4):
                expected[n, (weight @ feature_map[n, :, row, column] + bias).argmax()] += 1
    assert torch.equal(class_votes(feature_map=feature_map, weight=weight, bias=bias), expected)


@pytest.mark.parametrize("upsample_scale", [1, 2, 3])
def test_votes_count_the_pixels_after_upsampling(rng: torch.Generator, upsample_scale: int) -> None:
    votes = class_votes(feature_map=normal(rng, 2, 4, 3, 2), weight=normal(rng, 5, 4), upsample_scale=upsample_scale)
    assert votes.sum(dim=1).tolist() == [6 * upsample_scale**2] * 2


def test_upsampling_keeps_the_corners_and_blends_between_them() -> None:
    """From 0 and 1 the half-pixel grid reads 0, 1/4, 3/4, 1, so a threshold at 0.3 has two pixels on each side."""
    feature_map = torch.tensor([0.0, 1.0]).reshape(1, 1, 1, 2)
    weight, bias = torch.tensor([[0.0], [1.0]]), torch.tensor([0.0, -0.3])
    votes = class_votes(feature_map=feature_map, weight=weight, bias=bias, upsample_scale=2)
    assert votes.tolist() == [[4.0, 4.0]]


def test_a_map_too_large_for_one_pass_is_counted_in_parts(rng: torch.Generator) -> None:
    feature_map = torch.randn(2, 1, 2048, 2048, generator=rng)  # 3 classes: each sample is a part of its own
    weight, bias = torch.tensor([[-1.0], [0.0], [1.0]]), torch.tensor([0.0, 0.5, 0.0])
    votes = class_votes(feature_map=feature_map, weight=weight, bias=bias)
    low, high = (feature_map < -0.5).sum(dim=(1, 2, 3)), (feature_map > 0.5).sum(dim=(1, 2, 3))
    assert torch.equal(votes, torch.stack([low, 2048**2 - low - high, high], dim=1).float())


def test_votes_carry_no_gradient_and_ignore_autocast(rng: torch.Generator) -> None:
    feature_map, weight = torch.randn(4, 64, 4, 4, generator=rng).requires_grad_(), torch.randn(9, 64, generator=rng)
    votes = class_votes(feature_map=feature_map, weight=weight)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(class_votes(feature_map=feature_map, weight=weight), votes)
    assert not votes.requires_grad


def test_votes_refuse_a_map_of_other_channels() -> None:
    with pytest.raises(ValueError, match="8 channels and the classifier takes 6"):
        class_votes(feature_map=torch.zeros(1, 8, 2, 2), weight=torch.zeros(5, 6))


# --- zipf_targets -----------------------------------------------------------------------------------------------------


def power_integral(start: float, end: float, power: float) -> float:
    if power == 1:
        return math.log(end / start)
    return (end ** (1 - power) - start ** (1 - power)) / (1 - power)


def targets_by_hand(scores: list[float], label: int, power: float, distribution: str) -> list[float]:
    left, right, num_classes = 0.001, 1.0, len(scores)
    step = (right - left) / num_classes
    weights = []
    for score in scores:
        first = 1 + sum(other > score for other in scores)
        last = sum(other >= score for other in scores)
        if distribution == "zipf":
            weights.append(first**-power)
        else:
            mass = power_integral(left + (first - 1) * step, left + last * step, power)
            weights.append(mass / (last - first + 1))
    weights[label] = 0.0
    return [weight / sum(weights) for weight in weights]


@settings(deadline=None, max_examples=60)
@given(
    votes=st.lists(st.integers(0, 5), min_size=3, max_size=12),
    label=st.integers(0, 11),
    power=st.sampled_from([0.0, 0.5, 1.0, 2.0, 3.5]),
    distribution=st.sampled_from(["zipf", "unbiased"]),
)
def test_targets_follow_the_law_of_the_ranks(votes: list[int], label: int, power: float, distribution: str) -> None:
    label %= len(votes)
    scores = torch.tensor([votes], dtype=torch.float64)
    targets = zipf_targets(scores=scores, labels=torch.tensor([label]), power=power, distribution=distribution)
    expected = torch.tensor([targets_by_hand(votes, label, power, distribution)], dtype=torch.float64)
    torch.testing.assert_close(targets, expected, rtol=1e-9, atol=1e-12)
    assert targets[0, label] == 0


def test_the_label_uses_up_its_rank() -> None:
    first = zipf_targets(scores=torch.tensor([[4.0, 3.0, 2.0, 1.0]]), labels=torch.tensor([0]))
    last = zipf_targets(scores=torch.tensor([[4.0, 3.0, 2.0, 1.0]]), labels=torch.tensor([3]))
    torch.testing.assert_close(first, torch.tensor([[0, 6, 4, 3]]) / 13)  # 1/2, 1/3, 1/4
    torch.testing.assert_close(last, torch.tensor([[6, 3, 2, 0]]) / 11)  # 1, 1/2, 1/3


@pytest.mark.parametrize("distribution", ["zipf", "unbiased"])
def test_only_the_order_of_the_scores_matters(rng: torch.Generator, distribution: str) -> None:
    scores, labels = normal(rng, 6, 9), torch.arange(6)
    targets = zipf_targets(scores=scores, labels=labels, distribution=distribution)
    stretched = zipf_targets(scores=scores.exp() * 3 - 50, labels=labels, distribution=distribution)
    assert torch.equal(stretched, targets)


def test_most_of_a_plain_target_lies_on_classes_without_votes_and_less_of_an_unbiased_one() -> None:
    scores = torch.cat([torch.arange(6, 0, -1.0), torch.zeros(94)])[None]
    labels = torch.tensor([0])
    plain = zipf_targets(scores=scores, labels=labels)[0, 6:].sum()
    unbiased = zipf_targets(scores=scores, labels=labels, distribution="unbiased")[0, 6:].sum()
    assert plain > 0.85
    assert unbiased < plain - 0.1


@pytest.mark.parametrize("distribution", ["zipf", "unbiased"])
def test_a_large_power_puts_everything_on_the_first_class(distribution: str) -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0, 3.0]], dtype=torch.float16, requires_grad=True)
    labels = torch.tensor([0])
    targets = zipf_targets(scores=logits, labels=labels, power=300.0, distribution=distribution)
    torch.testing.assert_close(targets, torch.tensor([[0.0, 0.0, 0.0, 1.0]]))
    loss = zipf_loss(student_logits=logits, labels=labels, scores=logits, power=300.0, distribution=distribution)
    loss.backward()
    assert loss.isfinite()
    assert logits.grad.isfinite().all()


# --- zipf_loss --------------------------------------------------------------------------------------------------------


def test_loss_is_the_divergence_over_the_wrong_classes(rng: torch.Generator) -> None:
    student, scores, labels = normal(rng, 4, 6) * 2, normal(rng, 4, 6), torch.tensor([0, 5, 2, 2])
    expected = 0.0
    for n, label in enumerate(labels.tolist()):
        target = targets_by_hand(scores[n].tolist(), label, 1.0, "zipf")
        wrong = [k for k in range(6) if k != label]
        total = sum(math.exp(student[n, k]) for k in wrong)
        expected += sum(target[k] * math.log(target[k] * total / math.exp(student[n, k])) for k in wrong) / 4
    assert zipf_loss(student_logits=student, labels=labels, scores=scores).item() == pytest.approx(expected, rel=1e-12)


def test_gradient_is_prediction_minus_target_and_spares_the_label(rng: torch.Generator) -> None:
    student, scores, labels = normal(rng, 3, 5).requires_grad_(), normal(rng, 3, 5).requires_grad_(), torch.arange(3)
    zipf_loss(student_logits=student, labels=labels, scores=scores).backward()
    own = F.one_hot(labels, 5).bool()
    wrong_only = student.detach().masked_fill(own, -torch.inf).softmax(dim=1)
    torch.testing.assert_close(student.grad, (wrong_only - zipf_targets(scores=scores, labels=labels)) / 3)
    assert torch.equal(student.grad[own], torch.zeros(3, dtype=torch.float64))
    assert scores.grad is None


def test_loss_is_zero_at_the_target_whatever_the_label_logit(rng: torch.Generator) -> None:
    scores, labels = normal(rng, 4, 6), torch.tensor([1, 1, 0, 5])
    targets = zipf_targets(scores=scores, labels=labels)
    student = targets.clamp(min=1e-30).log().scatter(1, labels[:, None], normal(rng, 4, 1) * 9)
    loss = zipf_loss(student_logits=student + normal(rng, 4, 1), labels=labels, scores=scores)
    assert loss.item() == pytest.approx(0, abs=1e-14)


def test_only_correct_is_the_loss_of_the_correct_samples(rng: torch.Generator) -> None:
    student, scores = normal(rng, 6, 4), normal(rng, 6, 4)
    labels = student.argmax(dim=1)
    labels[::2] = (labels[::2] + 1) % 4
    loss = zipf_loss(student_logits=student, labels=labels, scores=scores, only_correct=True)
    subset = zipf_loss(student_logits=student[1::2], labels=labels[1::2], scores=scores[1::2])
    torch.testing.assert_close(loss, subset)


def test_only_correct_is_zero_when_nothing_is(rng: torch.Generator) -> None:
    student = normal(rng, 3, 4).requires_grad_()
    labels = student.argmin(dim=1)
    loss = zipf_loss(student_logits=student, labels=labels, scores=student, only_correct=True)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(student.grad, torch.zeros_like(student))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_extreme_logits_and_one_sample(dtype: torch.dtype) -> None:
    student = torch.tensor([[3e4, -3e4, 0.0]], dtype=dtype, requires_grad=True)
    loss = zipf_loss(student_logits=student, labels=torch.tensor([2]), scores=torch.zeros(1, 3))
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    assert student.grad.isfinite().all()


@pytest.mark.parametrize(("num_classes", "reason"), [(1, "scalar target"), (2, "of 2 classes only 1 is wrong")])
def test_tasks_without_ranks_are_refused(num_classes: int, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        zipf_targets(scores=torch.zeros(2, num_classes), labels=torch.tensor([0, 0]))


def test_bad_arguments_are_refused() -> None:
    scores, labels = torch.zeros(2, 4), torch.tensor([0, 1])
    with pytest.raises(ValueError, match="unknown distribution 'pareto'"):
        zipf_targets(scores=scores, labels=labels, distribution="pareto")
    with pytest.raises(ValueError, match="0 < left < right"):
        zipf_targets(scores=scores, labels=labels, distribution="unbiased", left_bound=0.0)
    with pytest.raises(ValueError, match="differ in shape"):
        zipf_loss(student_logits=torch.zeros(2, 5), labels=labels, scores=scores)
    with pytest.raises(ValueError, match="int64 class ids"):
        zipf_loss(student_logits=scores, labels=labels[:1], scores=scores)
