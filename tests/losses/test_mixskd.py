"""Mixed batches and MixSKD against their equations and their invariants."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from gankd.losses import (
    cutmix_batch,
    kd_loss,
    mixskd_discriminator_loss,
    mixskd_loss,
    mixup_batch,
    mixup_cross_entropy,
)
from tests.golden.adapters import mixskd_discriminator_scores


@pytest.fixture
def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def normal(rng: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=rng, dtype=torch.float64)


# --- mixing -----------------------------------------------------------------------------------------------------------


def test_mixup_blends_with_the_partner(rng: torch.Generator) -> None:
    images, permutation = normal(rng, 3, 1, 2, 2), torch.tensor([2, 0, 1])
    mixed = mixup_batch(images=images, permutation=permutation, mixing=0.25)
    for n, partner in enumerate([2, 0, 1]):
        torch.testing.assert_close(mixed[n], 0.25 * images[n] + 0.75 * images[partner])


def test_mixup_cross_entropy_is_the_cross_entropy_of_the_mixed_label(rng: torch.Generator) -> None:
    logits, labels, permutation = normal(rng, 4, 3), torch.tensor([0, 2, 1, 2]), torch.tensor([1, 0, 2, 3])
    mixed_labels = mixup_batch(images=F.one_hot(labels, 3).double(), permutation=permutation, mixing=0.3)
    loss = mixup_cross_entropy(student_logits=logits, labels=labels, permutation=permutation, mixing=0.3)
    torch.testing.assert_close(loss, F.cross_entropy(logits, mixed_labels))


@settings(deadline=None, max_examples=40)
@given(rows=st.tuples(st.integers(0, 5), st.integers(0, 5)), columns=st.tuples(st.integers(0, 7), st.integers(0, 7)))
def test_cutmix_takes_the_box_from_the_partner_and_nothing_else(
    rows: tuple[int, int], columns: tuple[int, int]
) -> None:
    images, permutation = torch.arange(3.0).reshape(3, 1, 1, 1).repeat(1, 2, 5, 7), torch.tensor([1, 2, 0])
    before = images.clone()
    (row0, row1), (column0, column1) = sorted(rows), sorted(columns)
    mixed, kept = cutmix_batch(images=images, permutation=permutation, box=[row0, row1, column0, column1])
    for n in range(3):
        for row in range(5):
            for column in range(7):
                inside = row0 <= row < row1 and column0 <= column < column1
                assert (mixed[n, :, row, column] == (permutation[n] if inside else n)).all()
    assert kept == pytest.approx((mixed[0] == 0).double().mean().item())
    assert torch.equal(images, before)


@pytest.mark.parametrize("box", [[-1, 2, 0, 2], [0, 5, 0, 2], [2, 1, 0, 2], [0, 2, 0, 5]])
def test_cutmix_refuses_a_box_that_leaves_the_image(box: list[int]) -> None:
    with pytest.raises(ValueError, match="not inside 4 x 4 images"):
        cutmix_batch(images=torch.zeros(2, 3, 4, 4), permutation=torch.tensor([1, 0]), box=box)


def test_a_permutation_of_another_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="does not fit a batch of 2"):
        mixup_batch(images=torch.zeros(2, 3), permutation=torch.tensor([0]), mixing=0.5)


# --- mixskd_loss ------------------------------------------------------------------------------------------------------


def arguments(rng: torch.Generator, num_samples: int = 3, num_stages: int = 3, num_classes: int = 4) -> dict:
    return {
        "logits": [normal(rng, 2 * num_samples, num_classes).requires_grad_() for _ in range(num_stages)],
        "features": [normal(rng, 2 * num_samples, 2 + b, 2, 2).requires_grad_() for b in range(num_stages)],
        "interpolated_teacher_logits": normal(rng, num_samples, num_classes).requires_grad_(),
        "mixup_teacher_logits": normal(rng, num_samples, num_classes).requires_grad_(),
        "labels": torch.arange(num_samples) % num_classes,
        "permutation": torch.randperm(num_samples, generator=rng),
        "mixing": 0.3,
    }


@pytest.mark.parametrize(("num_samples", "num_stages", "num_classes"), [(3, 3, 4), (1, 1, 2), (2, 2, 2)])
def test_mixskd_by_its_equations(rng: torch.Generator, num_samples: int, num_stages: int, num_classes: int) -> None:
    given_ = arguments(rng, num_samples, num_stages, num_classes)
    labels, permutation = given_["labels"], given_["permutation"]
    h_i, h_m = given_["interpolated_teacher_logits"], given_["mixup_teacher_logits"]

    def i(output: Tensor) -> Tensor:
        return torch.stack([0.3 * output[n] + 0.7 * output[permutation[n]] for n in range(num_samples)])

    def m(output: Tensor) -> Tensor:
        return output[num_samples:]

    def mixed_ce(logits: Tensor) -> Tensor:
        return 0.3 * F.cross_entropy(logits, labels) + 0.7 * F.cross_entropy(logits, labels[permutation])

    def kl(student: Tensor, teacher: Tensor) -> Tensor:
        return kd_loss(student_logits=student, teacher_logits=teacher, temperature=2.0)

    total, clean_ce, mixup_ce, divergence, feature_mse = mixskd_loss(**given_, temperature=2.0)
    *branches, backbone = given_["logits"]
    torch.testing.assert_close(clean_ce, sum(F.cross_entropy(z[:num_samples], labels) for z in given_["logits"]))
    torch.testing.assert_close(mixup_ce, sum(mixed_ce(m(z)) for z in given_["logits"]) + mixed_ce(h_i) + mixed_ce(h_m))
    branch_kl = sum(kl(i(z), m(z)) + kl(m(z), i(z)) for z in branches)
    torch.testing.assert_close(divergence, branch_kl + kl(i(backbone), h_m) + kl(m(backbone), h_i))
    torch.testing.assert_close(feature_mse, sum(((i(f) - m(f)) ** 2).mean() for f in given_["features"]))
    torch.testing.assert_close(total, clean_ce + mixup_ce + divergence + feature_mse)


def test_the_self_teacher_learns_from_its_mixup_labels_alone(rng: torch.Generator) -> None:
    given_ = arguments(rng)
    total, _, mixup_ce, _, _ = mixskd_loss(**given_)
    for teacher in (given_["interpolated_teacher_logits"], given_["mixup_teacher_logits"]):
        (from_total,) = torch.autograd.grad(total, teacher, retain_graph=True)
        (from_labels,) = torch.autograd.grad(mixup_ce, teacher, retain_graph=True)
        torch.testing.assert_close(from_total, from_labels)


def test_a_network_linear_in_its_images_has_nothing_left_to_learn_from_mixing(rng: torch.Generator) -> None:
    images, permutation = normal(rng, 4, 8), torch.tensor([3, 0, 1, 2])
    both = torch.cat([images, mixup_batch(images=images, permutation=permutation, mixing=0.6)])
    logits = both @ normal(rng, 8, 5)
    _, _, _, divergence, feature_mse = mixskd_loss(
        logits=[logits, logits],
        features=[both, 2 * both],
        interpolated_teacher_logits=logits[4:],
        mixup_teacher_logits=logits[4:],
        labels=torch.tensor([0, 1, 2, 3]),
        permutation=permutation,
        mixing=0.6,
    )
    assert divergence.item() == pytest.approx(0, abs=1e-13)
    assert feature_mse.item() == pytest.approx(0, abs=1e-26)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_inputs_give_a_finite_float32_loss(rng: torch.Generator, dtype: torch.dtype) -> None:
    given_ = arguments(rng)
    for name in ("logits", "features"):
        given_[name] = [(1e3 * tensor.detach()).to(dtype).requires_grad_() for tensor in given_[name]]
    given_["interpolated_teacher_logits"] = given_["interpolated_teacher_logits"].detach().to(dtype)
    given_["mixup_teacher_logits"] = given_["mixup_teacher_logits"].detach().to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = mixskd_loss(**given_)
    terms[0].backward()
    assert all(term.dtype == torch.float32 and term.isfinite() for term in terms)
    assert all(tensor.grad.isfinite().all() for tensor in given_["logits"] + given_["features"])


def test_stages_that_do_not_pair_up_are_refused(rng: torch.Generator) -> None:
    given_ = arguments(rng)
    with pytest.raises(ValueError, match="3 and 2 were given"):
        mixskd_loss(**{**given_, "features": given_["features"][:2]})
    with pytest.raises(ValueError, match="3 images and their 3 mixtures"):
        mixskd_loss(**{**given_, "logits": [logits[:5] for logits in given_["logits"]]})


# --- discriminators ---------------------------------------------------------------------------------------------------


def test_discriminators_that_cannot_tell_pay_log_2_a_stage() -> None:
    undecided = [torch.zeros(3, 2), torch.zeros(3, 2)]
    loss = mixskd_discriminator_loss(interpolated_scores=undecided, mixup_scores=undecided)
    assert loss.item() == pytest.approx(2 * math.log(2))


def test_discriminator_loss_by_its_equation(rng: torch.Generator) -> None:
    interpolated, mixup = normal(rng, 3, 2), normal(rng, 3, 2)
    expected = 0.0
    for scores, target in [(interpolated, (1, 0)), (mixup, (0, 1))]:
        for row in scores.sigmoid().tolist():
            expected -= sum(math.log(p if t else 1 - p) for p, t in zip(row, target, strict=True)) / 12
    loss = mixskd_discriminator_loss(interpolated_scores=[interpolated], mixup_scores=[mixup])
    assert loss.item() == pytest.approx(expected, rel=1e-12)


def test_discriminator_scores_are_those_of_the_layers_they_name(rng: torch.Generator) -> None:
    feature = torch.randn(3, 4, 2, 5, generator=rng, requires_grad=True)
    hidden, output = nn.Linear(4, 16), nn.Linear(16, 2)
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), hidden, nn.ReLU(), output)
    parameters = {
        "hidden_weight": hidden.weight,
        "hidden_bias": hidden.bias,
        "output_weight": output.weight,
        "output_bias": output.bias,
    }
    scores = mixskd_discriminator_scores(feature=feature, **parameters)
    torch.testing.assert_close(scores, network(feature))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(mixskd_discriminator_scores(feature=feature, **parameters), scores)
    for tensor in (feature, *parameters.values()):
        (gradient,) = torch.autograd.grad(scores.sum(), tensor, retain_graph=True)
        assert gradient.abs().sum() > 0


def test_discriminators_refuse_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="1 interpolated and 2 mixup"):
        mixskd_discriminator_loss(interpolated_scores=[torch.zeros(3, 2)], mixup_scores=[torch.zeros(3, 2)] * 2)
    with pytest.raises(ValueError, match="must both be"):
        mixskd_discriminator_loss(interpolated_scores=[torch.zeros(3, 1)], mixup_scores=[torch.zeros(3, 1)])
