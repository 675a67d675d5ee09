"""What a label means: conversions, losses, errors, replacement and metrics against numbers computed by hand or by numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gankd.data.sets import ImageSet
from gankd.tasks import Classification, Regression, adjust_labels, task_of, teacher_error

DEGREES = Regression(label_min=-60, label_max=60, mean=10, std=20, unit="degrees")
LETTERS = Classification(class_names=("a", "b", "c"))


def finite(smallest: float, largest: float) -> st.SearchStrategy[float]:
    return st.floats(smallest, largest, width=32)


def image_set(labels: torch.Tensor, **keywords) -> ImageSet:
    return ImageSet(torch.zeros(len(labels), 1, 2, 2, dtype=torch.uint8), labels, **keywords)


# --- regression: units ------------------------------------------------------------------------------------------------


def test_networks_answer_in_standardised_units_and_the_user_reads_label_units() -> None:
    # 10 + 20 * (-1, 0, 2) degrees
    outputs = torch.tensor([[-1.0], [0.0], [2.0]])
    torch.testing.assert_close(DEGREES.predict(outputs), torch.tensor([-10.0, 10.0, 50.0]))
    torch.testing.assert_close(DEGREES.normalize(outputs), torch.tensor([50.0, 70.0, 110.0]) / 120)
    torch.testing.assert_close(DEGREES.standardize(torch.tensor([-10.0, 10.0, 50.0])), outputs.flatten())


@given(labels=st.lists(finite(-60, 60), min_size=1, max_size=20))
def test_standardising_and_predicting_are_inverse_inside_the_label_range(labels: list[float]) -> None:
    labels = torch.tensor(labels)
    torch.testing.assert_close(DEGREES.predict(DEGREES.standardize(labels)), labels, atol=1e-4, rtol=0)


def test_outputs_with_and_without_a_trailing_dimension_mean_the_same() -> None:
    outputs = torch.randn(5, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0])
    for function in (DEGREES.loss, DEGREES.error, DEGREES.replace, DEGREES.label_score):
        torch.testing.assert_close(
            torch.as_tensor(function(outputs, labels)), torch.as_tensor(function(outputs[:, None], labels))
        )


def test_regression_loss_is_the_mean_squared_error_of_standardised_labels() -> None:
    # labels 10 and 50 degrees are 0 and 2; ((1 - 0)^2 + (0 - 2)^2) / 2
    loss = DEGREES.loss(torch.tensor([[1.0], [0.0]]), torch.tensor([10.0, 50.0]))
    assert loss.item() == pytest.approx(2.5)


def test_regression_error_clips_the_prediction_to_the_range_and_is_in_label_units() -> None:
    # predictions 10, 110 -> 60 and -90 -> -60 degrees
    outputs, labels = torch.tensor([0.0, 5.0, -5.0]), torch.tensor([4.0, 50.0, -60.0])
    torch.testing.assert_close(DEGREES.error(outputs, labels), torch.tensor([6.0, 10.0, 0.0]), atol=1e-4, rtol=0)
    torch.testing.assert_close(DEGREES.replace(outputs, labels), torch.tensor([10.0, 60.0, -60.0]), atol=1e-4, rtol=0)
    assert DEGREES.label_score(outputs, labels) == pytest.approx(16 / 3, abs=1e-4)


def test_published_rules_take_outputs_on_the_zero_to_one_scale() -> None:
    # 0.25 of [0, 80] is 20; 1.5 is clipped to 80
    outputs, labels = torch.tensor([0.25, 1.5]), torch.tensor([30.0, 70.0])
    keywords = dict(teacher_outputs=outputs, labels=labels, task="regression", label_min=0.0, label_max=80.0)
    torch.testing.assert_close(teacher_error(**keywords), torch.tensor([10.0, 10.0]))
    torch.testing.assert_close(adjust_labels(**keywords, replace=True), torch.tensor([20.0, 80.0]))
    assert torch.equal(adjust_labels(**keywords, replace=False), labels)


@settings(deadline=None, max_examples=200)
@given(
    ends=st.tuples(finite(-1e4, 1e4), finite(-1e4, 1e4)).filter(lambda ends: ends[1] - ends[0] > 1e-3),
    outputs=st.lists(finite(-1e4, 1e4), min_size=1, max_size=5),
)
def test_a_replaced_label_lies_in_the_label_range(ends: tuple[float, float], outputs: list[float]) -> None:
    """Otherwise a store of replaced labels would be refused by `check` when a student is to be trained on it."""
    task, outputs = Regression(*ends), torch.tensor(outputs)
    task.check(task.replace(outputs, torch.zeros_like(outputs)), "synthetic")


# --- classification ---------------------------------------------------------------------------------------------------


def test_classification_error_and_replacement_by_hand() -> None:
    # probabilities (1/4, 3/4, 0) and (1/2, 1/4, 1/4)
    logits = torch.tensor([[0.0, math.log(3), -40.0], [math.log(2), 0.0, 0.0]])
    labels = torch.tensor([0, 2])
    torch.testing.assert_close(LETTERS.error(logits, labels), torch.tensor([math.log(4), math.log(4)]))
    assert LETTERS.loss(logits, labels).item() == pytest.approx(math.log(4))
    assert LETTERS.predict(logits).tolist() == [1, 0]
    assert LETTERS.replace(logits, labels).tolist() == [1, 0]
    assert LETTERS.replace(logits, labels).dtype == torch.int64
    assert LETTERS.label_score(logits, torch.tensor([1, 2])) == 50


@given(shift=finite(-50, 50), seed=st.integers(0, 100))
def test_classification_error_ignores_a_shift_of_the_logits(shift: float, seed: int) -> None:
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(seed))
    labels = torch.tensor([0, 1, 2, 0])
    torch.testing.assert_close(LETTERS.error(logits + shift, labels), LETTERS.error(logits, labels), atol=1e-4, rtol=0)


def test_half_precision_outputs_give_full_precision_losses() -> None:
    logits, scalars = torch.randn(4, 3).half(), torch.randn(4, 1).half()
    assert LETTERS.loss(logits, torch.tensor([0, 1, 2, 0])).dtype == torch.float32
    assert DEGREES.loss(scalars, torch.zeros(4)).dtype == torch.float32


# --- metrics, in the units a user reads -------------------------------------------------------------------------------


def measured(task, outputs: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """What two batches of unequal size give together."""
    metrics = task.metrics()
    for part in (slice(0, 7), slice(7, None)):
        metrics.update(task.to_metric(outputs[part]), labels[part])
    return task.in_units({name: value.item() for name, value in metrics.compute().items()})


def test_accuracies_equal_numpy_in_percent() -> None:
    random = np.random.default_rng(0)
    logits, labels = random.normal(size=(50, 8)), random.integers(0, 8, size=50)
    order = np.argsort(-logits, axis=1)
    expected = {f"top{k}": 100 * (order[:, :k] == labels[:, None]).any(axis=1).mean() for k in (1, 5)}
    task = Classification(class_names=tuple("abcdefgh"))
    assert measured(task, torch.from_numpy(logits), torch.from_numpy(labels)) == pytest.approx(expected)
    assert task.metric in expected and task.higher_is_better


def test_top_five_says_nothing_of_five_classes() -> None:
    outputs, labels = torch.eye(5).repeat(2, 1), torch.arange(5).repeat(2)
    assert measured(Classification(class_names=tuple("abcde")), outputs, labels) == {"top1": 100}


def test_regression_metrics_equal_numpy_in_label_units() -> None:
    random = np.random.default_rng(0)
    outputs, labels = random.normal(size=50) * 2, random.uniform(-60, 60, size=50)
    predictions = np.clip(outputs * 20 + 10, -60, 60)
    residuals = predictions - labels
    expected = {
        "mae": np.abs(residuals).mean(),
        "rmse": np.sqrt((residuals**2).mean()),
        "r2": 1 - (residuals**2).sum() / ((labels - labels.mean()) ** 2).sum(),
    }
    found = measured(DEGREES, torch.from_numpy(outputs).float(), torch.from_numpy(labels).float())
    assert found == pytest.approx(expected, rel=1e-4)
    assert DEGREES.metric in expected and not DEGREES.higher_is_better


# --- labels that cannot be ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("label", [60.5, -61.0, math.nan, math.inf])
def test_a_scalar_out_of_range_is_refused_with_its_place_and_the_way_out(label: float) -> None:
    with pytest.raises(ValueError, match=r"train: label \S+ of sample 2 is outside \[-60, 60\].*task\.label_min"):
        DEGREES.check(torch.tensor([0.0, 60.0, label, 99.0]), "train")


@pytest.mark.parametrize("label", [3, -1])
def test_a_class_out_of_range_is_refused_with_its_place_and_the_way_out(label: int) -> None:
    with pytest.raises(ValueError, match=rf"train: label {label} of sample 2 is outside 0\.\.2[:;,] \w+"):
        LETTERS.check(torch.tensor([0, 2, label]), "train")


def test_labels_at_the_ends_of_the_range_are_accepted() -> None:
    DEGREES.check(torch.tensor([-60.0, 60.0]), "train")
    LETTERS.check(torch.tensor([0, 2]), "train")
    DEGREES.check(torch.empty(0), "train")


@pytest.mark.parametrize("labels", [[3.0, 3.0, 3.0], [3.0]])
def test_constant_scalars_are_no_target(labels: list[float]) -> None:
    with pytest.raises(ValueError, match="at least two values"):
        task_of(image_set(torch.tensor(labels)))


def test_a_range_that_is_upside_down_is_refused() -> None:
    with pytest.raises(ValueError):
        Regression(label_min=60, label_max=-60)


# --- which task a training set poses ----------------------------------------------------------------------------------


def test_class_ids_pose_a_classification() -> None:
    named = task_of(image_set(torch.tensor([0, 1]), class_names=("cat", "dog", "eel")))
    assert named == Classification(class_names=("cat", "dog", "eel")) and named.num_outputs == 3
    assert task_of(image_set(torch.tensor([0, 4]))).class_names == ("0", "1", "2", "3", "4")


def test_scalars_pose_a_regression_with_the_statistics_of_the_labels() -> None:
    labels = torch.tensor([1.0, 2.0, 6.0])
    task = task_of(image_set(labels), unit="years")
    assert (task.label_min, task.label_max, task.unit) == (1, 6, "years")
    assert (task.mean, task.std) == pytest.approx((3, np.std([1, 2, 6])))
    assert task.standardize(labels).double().mean().item() == pytest.approx(0, abs=1e-6)
    wide = task_of(image_set(labels), label_min=0, label_max=100)
    assert (wide.label_min, wide.label_max, wide.mean) == (0, 100, task.mean)
