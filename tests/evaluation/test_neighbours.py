"""Neighbours by cosine: their votes, their mean label, and how ties are broken."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gankd.evaluation import knn_accuracy, knn_predict, knn_regress, neighbours, standardize_features


def samples(seed: int, count: int, num_classes: int = 3, dim: int = 4) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    features = torch.randn(count, dim, generator=rng, dtype=torch.float64)
    return features, torch.randint(num_classes, (count,), generator=rng)


def at_angles(*degrees: float) -> Tensor:
    """Unit vectors in the plane, [N, 2]."""
    radians = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    return torch.stack([radians.cos(), radians.sin()], dim=1)


# --- classification ---------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10_000), k=st.integers(1, 40), temperature=st.sampled_from([None, 0.07, 1.0]))
def test_scores_are_the_summed_votes_of_the_k_nearest(seed: int, k: int, temperature: float | None) -> None:
    bank, labels = samples(seed, 30)
    queries, _ = samples(seed + 1, 5)
    scores, predictions = knn_predict(
        query_features=queries,
        bank_features=bank,
        bank_labels=labels,
        num_classes=3,
        k=k,
        temperature=temperature,
    )
    for query, row, prediction in zip(queries, scores, predictions, strict=True):
        cosines = [float(query @ vector / (query.norm() * vector.norm())) for vector in bank]
        nearest = sorted(range(30), key=lambda index: -cosines[index])[:k]
        votes = [0.0] * 3
        for index in nearest:
            votes[labels[index]] += 1 if temperature is None else math.exp(cosines[index] / temperature)
        assert row.tolist() == pytest.approx(votes, rel=1e-9)
        assert votes[prediction] == pytest.approx(max(votes), rel=1e-9)


def test_lengths_do_not_matter_and_chunks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    bank, labels = samples(0, 30)
    queries, _ = samples(1, 11)
    arguments = {"bank_labels": labels, "num_classes": 3, "k": 7}
    whole = knn_predict(query_features=queries, bank_features=bank, **arguments)
    lengths = torch.linspace(0.1, 10, 30, dtype=torch.float64)[:, None]
    torch.testing.assert_close(
        knn_predict(query_features=3 * queries, bank_features=lengths * bank, **arguments), whole
    )
    monkeypatch.setattr(neighbours, "CHUNK", 60)  # two queries at a time
    torch.testing.assert_close(knn_predict(query_features=queries, bank_features=bank, **arguments), whole)


def test_of_equal_votes_the_nearest_neighbour_decides() -> None:
    arguments = {"bank_features": at_angles(10, 20, 30, 40), "num_classes": 5, "k": 4, "temperature": None}
    scores, labels = knn_predict(query_features=at_angles(0, 50), bank_labels=torch.tensor([4, 1, 1, 4]), **arguments)
    assert scores.tolist() == [[0, 2, 0, 0, 2]] * 2
    assert labels.tolist() == [4, 4]
    _, labels = knn_predict(query_features=at_angles(0, 50), bank_labels=torch.tensor([4, 4, 1, 1]), **arguments)
    assert labels.tolist() == [4, 1]
    _, labels = knn_predict(query_features=at_angles(0), bank_labels=torch.tensor([0, 2, 2, 1]), **arguments)
    assert labels.tolist() == [2]  # more votes beat a nearer one


def test_a_tiny_temperature_leaves_predictions_right_and_voteless_classes_at_zero() -> None:
    scores, labels = knn_predict(
        query_features=at_angles(0).float(),
        bank_features=at_angles(1, 5, 6).float(),
        bank_labels=torch.tensor([2, 0, 0]),
        num_classes=4,
        temperature=1e-3,  # exp(1000) is no float32
    )
    assert labels.tolist() == [2]
    assert scores[0, 1] == scores[0, 3] == 0 and not scores.isnan().any()


def test_samples_find_themselves_and_half_precision_is_lifted() -> None:
    bank, labels = samples(3, 50, dim=16)
    arguments = {"query_labels": labels, "bank_labels": labels, "num_classes": 3, "k": 1}
    assert knn_accuracy(query_features=bank, bank_features=bank, **arguments) == 100
    half = bank.to(torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert knn_accuracy(query_features=half, bank_features=half, **arguments) == 100
        scores, _ = knn_predict(query_features=half, bank_features=half, bank_labels=labels, num_classes=3)
    assert scores.dtype == torch.float32


def test_accuracy_is_the_share_of_right_answers_in_per_cent() -> None:
    accuracy = knn_accuracy(
        query_features=at_angles(0, 91, 1, 89),
        query_labels=torch.tensor([0, 1, 1, 1]),
        bank_features=at_angles(0, 90),
        bank_labels=torch.tensor([0, 1]),
        num_classes=2,
        k=1,
        temperature=None,
    )
    assert accuracy == 75


def test_what_cannot_be_answered_is_refused() -> None:
    bank = at_angles(0, 90)
    arguments = {
        "query_features": bank,
        "bank_features": bank,
        "bank_labels": torch.tensor([0, 1]),
        "num_classes": 2,
    }
    with pytest.raises(ValueError, match="k is 0"):
        knn_predict(**arguments, k=0)
    with pytest.raises(ValueError, match="temperature is 0"):
        knn_predict(**arguments, temperature=0.0)
    with pytest.raises(ValueError, match=r"0\.\.1.*\[0, 2\]"):
        knn_predict(**arguments | {"bank_labels": torch.tensor([0, 2])})
    with pytest.raises(ValueError, match="float"):
        knn_predict(**arguments | {"bank_labels": torch.tensor([0.0, 1.0])})
    with pytest.raises(ValueError, match=r"\[3\] labels for 2 samples"):
        knn_predict(**arguments | {"bank_labels": torch.tensor([0, 1, 1])})
    with pytest.raises(ValueError, match=r"\[2, 3\] and \[2, 2\]"):
        knn_predict(**arguments | {"query_features": torch.zeros(2, 3)})
    with pytest.raises(ValueError, match="bank of features is empty"):
        knn_predict(**arguments | {"bank_features": bank[:0], "bank_labels": torch.tensor([])})
    with pytest.raises(ValueError, match="not finite"):
        knn_predict(**arguments | {"query_features": bank / 0})
    with pytest.raises(ValueError, match=r"\[1\] labels for 2 samples"):
        knn_accuracy(**arguments, query_labels=torch.tensor([0]))


# --- regression -------------------------------------------------------------------------------------------------------


def test_the_prediction_is_the_weighted_mean_of_the_neighbours_labels() -> None:
    arguments = {
        "query_features": at_angles(0),
        "bank_features": at_angles(10, 20, 170),
        "bank_labels": torch.tensor([1.0, 4.0, 100.0]),
    }
    assert knn_regress(**arguments, k=1).item() == pytest.approx(1)
    assert knn_regress(**arguments, k=2, temperature=None).item() == pytest.approx(2.5)
    near, far = (math.exp(math.cos(math.radians(angle)) / 0.1) for angle in (10, 20))
    assert knn_regress(**arguments, k=2, temperature=0.1).item() == pytest.approx((near + 4 * far) / (near + far))
    assert knn_regress(**arguments, k=3, temperature=1e-6).item() == pytest.approx(1)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10_000), scale=st.floats(-50, 50), shift=st.floats(-50, 50), k=st.integers(1, 30))
def test_predictions_follow_the_unit_of_the_labels(seed: int, scale: float, shift: float, k: int) -> None:
    bank, _ = samples(seed, 20)
    queries, _ = samples(seed + 1, 4)
    labels = torch.randn(20, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    arguments = {"query_features": queries, "bank_features": bank, "k": k}
    predictions = knn_regress(**arguments, bank_labels=labels)
    torch.testing.assert_close(
        knn_regress(**arguments, bank_labels=scale * labels + shift), scale * predictions + shift
    )
    assert ((predictions >= labels.min() - 1e-12) & (predictions <= labels.max() + 1e-12)).all()


# --- standardised features --------------------------------------------------------------------------------------------


def test_the_bank_itself_becomes_standard_whatever_the_lengths_were() -> None:
    bank, _ = samples(0, 40)
    standard = standardize_features(features=bank * 5, bank_features=bank, eps=0.0)
    torch.testing.assert_close(standard.mean(dim=0), torch.zeros(4, dtype=torch.float64))
    torch.testing.assert_close(standard.var(dim=0), torch.ones(4, dtype=torch.float64))


def test_a_dimension_that_never_varies_stays_finite() -> None:
    bank = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [1.0, 0.0]])
    assert torch.equal(standardize_features(features=bank, bank_features=bank)[:, 1], torch.zeros(3))


def test_a_bank_of_one_is_refused() -> None:
    with pytest.raises(ValueError, match="at least two"):
        standardize_features(features=torch.ones(3, 2), bank_features=torch.ones(1, 2))
