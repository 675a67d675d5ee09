"""Metrics of generated images on cases whose answer is known in closed form."""

from __future__ import annotations

import math

import pytest
import torch

from generators.metrics import frechet_distance, inception_score, label_entropy, label_score


def features(num_samples: int, width: int, seed: int = 0) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=rng, dtype=torch.float64)
    return torch.randn(num_samples, width, generator=rng, dtype=torch.float64) @ mixing


def whitened(num_samples: int, width: int, seed: int = 0) -> torch.Tensor:
    """Samples whose mean is exactly 0 and whose unbiased covariance is exactly the identity."""
    samples = features(num_samples, width, seed)
    samples = samples - samples.mean(dim=0)
    factor = torch.linalg.cholesky(samples.T @ samples / (num_samples - 1))
    return torch.linalg.solve_triangular(factor, samples.T, upper=False).T


# --- frechet_distance -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("num_samples", "width"), [(50, 8), (2, 5), (10, 64)])  # the last two: low-rank covariances
def test_distance_of_a_sample_to_itself_is_zero(num_samples: int, width: int) -> None:
    sample = features(num_samples, width)
    assert frechet_distance(real_features=sample, fake_features=sample.flip(0)) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("num_samples", [50, 5])
def test_a_shift_of_one_sample_costs_its_square(num_samples: int) -> None:
    sample, shift = features(num_samples, 8), features(1, 8, seed=1)[0]
    distance = frechet_distance(real_features=sample, fake_features=sample + shift)
    assert distance == pytest.approx(shift.square().sum().item(), rel=1e-9)


def test_distance_ignores_a_common_shift_a_rotation_and_the_order() -> None:
    real, fake = features(40, 6, seed=1), features(30, 6, seed=2)
    distance = frechet_distance(real_features=real, fake_features=fake)
    rotation = torch.linalg.qr(features(6, 6, seed=3)).Q
    for change in (lambda x: x + 5, lambda x: x @ rotation, lambda x: x.flip(0)):
        assert frechet_distance(real_features=change(real), fake_features=change(fake)) == pytest.approx(distance)
    assert frechet_distance(real_features=fake, fake_features=real) == pytest.approx(distance)


def test_distance_between_axis_aligned_gaussians() -> None:
    real_scale = torch.tensor([1.0, 2.0, 0.5, 0.0], dtype=torch.float64)  # 0: the real features never vary there
    fake_scale = torch.tensor([1.5, 0.5, 0.0, 1.0], dtype=torch.float64)
    real, fake = whitened(30, 4, seed=1) * real_scale, whitened(20, 4, seed=2) * fake_scale
    expected = (real_scale - fake_scale).square().sum().item()
    assert frechet_distance(real_features=real, fake_features=fake) == pytest.approx(expected, rel=1e-9)


def test_distance_equals_that_of_the_nuclear_norm_for_low_rank() -> None:
    real, fake = features(6, 40, seed=1), features(9, 40, seed=2)
    centred_real = (real - real.mean(dim=0)) / math.sqrt(5)
    centred_fake = (fake - fake.mean(dim=0)) / math.sqrt(8)
    # With C = A^T A the singular values of A_r A_g^T are the roots of the eigenvalues of C_r C_g.
    expected = (real.mean(dim=0) - fake.mean(dim=0)).square().sum()
    expected += centred_real.square().sum() + centred_fake.square().sum()
    expected -= 2 * torch.linalg.svdvals(centred_real @ centred_fake.T).sum()
    assert frechet_distance(real_features=real, fake_features=fake) == pytest.approx(expected.item(), rel=1e-9)


def test_distance_of_half_precision_features_is_computed_in_float64() -> None:
    real, fake = features(40, 6, seed=1).half(), features(30, 6, seed=2).half()
    exact = frechet_distance(real_features=real.double(), fake_features=fake.double())
    assert frechet_distance(real_features=real, fake_features=fake) == exact


@pytest.mark.parametrize(
    ("real", "fake", "message"),
    [
        (torch.zeros(1, 3), torch.zeros(5, 3), r"real_features .* at least two samples, got \[1, 3\]"),
        (torch.zeros(5, 3), torch.zeros(1, 3), r"fake_features .* at least two samples, got \[1, 3\]"),
        (torch.zeros(5, 3), torch.zeros(5, 4), r"differ in width: \[5, 3\] and \[5, 4\]"),
        (torch.zeros(5, 3), torch.full((5, 3), math.nan), "fake_features hold values that are not finite"),
    ],
)
def test_distance_refuses(real: torch.Tensor, fake: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        frechet_distance(real_features=real, fake_features=fake)


# --- label_entropy ----------------------------------------------------------------------------------------------------


def test_entropy_of_equal_shares_is_the_logarithm_of_their_number() -> None:
    assert label_entropy(labels=torch.arange(7).repeat(3)) == pytest.approx(math.log(7))
    assert label_entropy(labels=torch.full((9,), 4)) == 0


def test_entropy_of_unequal_shares() -> None:
    labels = torch.tensor([2, 2, 2, 9])
    assert label_entropy(labels=labels) == pytest.approx(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))


def test_entropy_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one label"):
        label_entropy(labels=torch.zeros(0))


# --- label_score ------------------------------------------------------------------------------------------------------


def test_label_score_is_the_absolute_error_in_raw_units() -> None:
    predicted = torch.tensor([[0.1], [0.5], [1.2]], dtype=torch.float64)  # errors .1, .1, .4; 1.2 is not clipped
    assigned = torch.tensor([0.2, 0.4, 0.8], dtype=torch.float64)
    score = label_score(predicted_labels=predicted, assigned_labels=assigned, label_min=-50, label_max=150)
    assert score == pytest.approx((40, math.sqrt((20**2 + 20**2 + 40**2) / 3)))


def test_label_score_refuses_unequal_numbers() -> None:
    with pytest.raises(ValueError, match="got 3 and 4"):
        label_score(predicted_labels=torch.zeros(3), assigned_labels=torch.zeros(4), label_min=0, label_max=1)


# --- inception_score --------------------------------------------------------------------------------------------------


def test_inception_score_of_sure_and_varied_predictions_is_the_number_of_classes() -> None:
    probabilities = torch.eye(5).repeat(8, 1)  # holds zeros: 0 ln 0 = 0
    assert inception_score(probabilities=probabilities, splits=4) == pytest.approx((5, 0))


def test_inception_score_of_predictions_that_do_not_vary_is_one() -> None:
    probabilities = torch.tensor([[0.7, 0.2, 0.1]]).repeat(11, 1)
    assert inception_score(probabilities=probabilities, splits=3) == pytest.approx((1, 0))


def test_inception_score_averages_over_splits() -> None:
    varied, single = torch.eye(2).repeat(2, 1), torch.tensor([[1.0, 0.0]]).repeat(4, 1)
    assert inception_score(probabilities=torch.cat([varied, single]), splits=2) == pytest.approx((1.5, 0.5))


@pytest.mark.parametrize("splits", [0, 5])
def test_inception_score_refuses_empty_splits(splits: int) -> None:
    with pytest.raises(ValueError, match="between 1 and the 4 rows"):
        inception_score(probabilities=torch.eye(4), splits=splits)
