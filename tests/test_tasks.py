"""What a label means: conversions, losses, errors, replacement and metrics against numbers computed by hand or by numpy."""

from __future__ import annotations

import dataclasses
import functools
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import gankd
from gankd.data.sets import ImageSet
from gankd.experiment.config import ExperimentConfig, TeacherConfig
from gankd.models import build_model
from gankd.models.config import ModelConfig
from gankd.models.inputs import Normalize
from gankd.models.store import save_model
from gankd.models.teacher import Teacher
from gankd.tasks import (
    HEADS,
    Classification,
    Regression,
    adjust_labels,
    task_from,
    task_of,
    teacher_error,
    uniform_bins,
)

DEGREES = Regression(label_min=-60, label_max=60, mean=10, std=20, unit="degrees")
BINS, GAUSSIAN = (dataclasses.replace(DEGREES, head=head) for head in ("bins", "gaussian"))
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
    keywords = {"teacher_outputs": outputs, "labels": labels, "task": "regression", "label_min": 0.0, "label_max": 80.0}
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


# --- heads of a regression --------------------------------------------------------------------------------------------


def answers(task: Regression, predictions: torch.Tensor) -> torch.Tensor:
    """Outputs of a network of that head whose standardised predictions are (nearly) these [N]."""
    if task.head == "bins":  # as close to the prediction as a label's own distribution
        return -(predictions[:, None] - torch.tensor(task.bins)).square() / (2 * task.sigma**2)
    if task.head == "gaussian":
        return torch.stack([predictions, torch.linspace(-6, -5, len(predictions))], dim=1)
    return predictions[:, None]


every_head = pytest.mark.parametrize("task", [DEGREES, BINS, GAUSSIAN], ids=HEADS)


@every_head
def test_whatever_the_head_networks_answer_standardised_and_the_user_reads_label_units(task: Regression) -> None:
    outputs = answers(task, torch.tensor([-1.0, 0.0, 2.0, 2.5]))
    assert outputs.shape == (4, task.num_outputs)
    labels = torch.tensor([4.0, 10.0, 50.0, 60.0])
    close = {"atol": 1e-3, "rtol": 0}
    torch.testing.assert_close(task.prediction(outputs), torch.tensor([-1.0, 0.0, 2.0, 2.5]), atol=0.005, rtol=0)
    # the expectation over bins is drawn inwards by 0.02 sigma (2.4 degrees) where the label range ends
    torch.testing.assert_close(task.predict(outputs), torch.tensor([-10.0, 10.0, 50.0, 60.0]), atol=0.06, rtol=0)
    torch.testing.assert_close(task.predict(outputs), 120 * task.normalize(outputs) - 60, **close)
    torch.testing.assert_close(task.error(outputs, labels), (task.predict(outputs) - labels).abs(), **close)
    torch.testing.assert_close(task.replace(outputs, labels), task.predict(outputs), **close)
    assert task.label_score(outputs, labels) == pytest.approx(task.error(outputs, labels).mean().item())


@every_head
def test_predictions_are_clipped_to_the_label_range(task: Regression) -> None:
    outputs = answers(task, torch.tensor([-9.0, 9.0]))
    assert task.predict(outputs).tolist() == [-60, 60]
    task.check(task.replace(outputs, torch.zeros(2)), "synthetic")


@every_head
def test_metrics_of_every_head_are_those_of_its_predictions(task: Regression) -> None:
    random = np.random.default_rng(0)
    outputs = answers(task, torch.from_numpy(random.uniform(-3, 2, size=50)).float())
    labels = torch.from_numpy(random.uniform(-60, 60, size=50)).float()
    residuals = (task.predict(outputs) - labels).double()
    found = measured(task, outputs, labels)
    assert found["mae"] == pytest.approx(residuals.abs().mean().item(), rel=1e-4)
    assert found["rmse"] == pytest.approx(residuals.square().mean().sqrt().item(), rel=1e-4)
    assert set(found) == {"mae", "rmse", "r2"}


@every_head
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_head_computes_in_full_precision_and_reaches_all_outputs(task: Regression, dtype) -> None:
    outputs = torch.randn(4, task.num_outputs, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()
    loss = task.loss(outputs, torch.tensor([-60.0, 0.0, 10.0, 60.0]))
    loss.backward()
    assert loss.dtype == task.prediction(outputs).dtype == task.predict(outputs).dtype == torch.float32
    assert outputs.grad.isfinite().all() and (outputs.grad != 0).any(dim=0).all()


def test_the_loss_of_bins_is_the_divergence_from_the_label_s_distribution_and_the_expectation_s_error() -> None:
    logits = torch.randn(3, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    labels = [-60.0, 7.5, 33.0]
    total = 0.0
    for row, label in zip(logits.tolist(), labels, strict=True):
        target = (label - 10) / 20
        weights = [math.exp(-((target - b) ** 2) / (2 * BINS.sigma**2)) for b in BINS.bins]
        exponentials = [math.exp(z) for z in row]
        expectation = 0.0
        for weight, exponential, centre in zip(weights, exponentials, BINS.bins, strict=True):
            p, q = weight / sum(weights), exponential / sum(exponentials)
            total += p * math.log(p / q) / 3 if p > 0 else 0.0
            expectation += q * centre
        total += abs(expectation - target) / 3
    assert BINS.loss(logits, torch.tensor(labels)).item() == pytest.approx(total, rel=1e-4)


def test_the_loss_of_a_gaussian_head_is_the_likelihood_of_standardised_labels() -> None:
    # labels 10 and 50 degrees are 0 and 2: ((0 + 1) / 2 + (ln 4 + (0 - 2)^2 / 4) / 2) / 2
    outputs = torch.tensor([[1.0, 0.0], [0.0, math.log(4)]])
    expected = (1 / 2 + (math.log(4) + 1) / 2) / 2
    assert GAUSSIAN.loss(outputs, torch.tensor([10.0, 50.0])).item() == pytest.approx(expected)


def test_a_gaussian_head_learns_its_mean_first() -> None:
    """Else the variance of hard samples grows before their mean has moved."""
    outputs = torch.tensor([[1.0, 3.0], [0.0, -2.0]], requires_grad=True)
    labels = torch.tensor([10.0, 50.0])
    GAUSSIAN.at(0.049).loss(outputs, labels).backward()
    assert GAUSSIAN.at(0.049).loss(outputs, labels).item() == pytest.approx((1 + 4) / 4)
    assert outputs.grad.tolist() == [[0.5, 0], [-1, 0]]
    assert GAUSSIAN.at(0.05) is GAUSSIAN
    for task in (DEGREES, BINS, LETTERS):
        assert task.at(0) is task


def test_the_loop_holds_the_variance_for_a_twentieth_of_the_run_and_gives_the_task_back() -> None:
    dataset, logged = rotated(), []
    task, student = task_of(dataset, head="gaussian"), network(2)
    last, frozen = student[1], student[1].bias.detach()[1].item()
    biases = []
    student.register_forward_pre_hook(lambda *_: biases.append(last.bias.detach()[1].item()))
    settings = {"steps": 40, "batch_size": 8, "log_every": 1, "weight_decay": 0.0}
    gankd.distill(student, real=dataset, method="supervised", task=task, log=logged.append, **settings)
    biases = biases[-40:]  # without those of the checks before the training
    assert biases[:3] == [frozen] * 3 and biases[3] != frozen
    assert student.output_task == task and type(student.output_task) is Regression


# --- bins -------------------------------------------------------------------------------------------------------------


@given(
    low=finite(-100, 100),
    span=st.floats(0.1, 100),
    num_bins=st.integers(6, 100),
    share=st.one_of(st.none(), st.floats(0.001, 0.5)),
)
def test_bins_are_uniform_over_the_range_widened_by_two_sigma(low, span, num_bins, share) -> None:
    bins, sigma = uniform_bins(low, low + span, num_bins, None if share is None else share * span)
    spacings = np.diff(bins)
    assert len(bins) == num_bins and np.allclose(spacings, spacings.mean(), rtol=1e-6)
    assert bins[0] == pytest.approx(low - 2 * sigma, abs=1e-6 * span)
    assert bins[-1] == pytest.approx(low + span + 2 * sigma, abs=1e-6 * span)
    assert sigma == pytest.approx(max(spacings.mean(), 0.02 * span) if share is None else share * span, rel=1e-6)


def test_bins_are_standardised_and_64_by_default() -> None:
    assert BINS.num_outputs == len(BINS.bins) == 64
    assert BINS.sigma * 20 == pytest.approx(2.4)  # 2 % of 120 degrees
    assert BINS.bins[0] * 20 + 10 == pytest.approx(-64.8) and BINS.bins[-1] * 20 + 10 == pytest.approx(64.8)
    assert BINS.centres("cpu").tolist() == pytest.approx(BINS.bins)


def test_as_many_bins_as_distinct_labels_where_those_are_few() -> None:
    ages = torch.arange(61).repeat(3).float()
    assert task_of(image_set(ages), head="bins").num_outputs == 61
    assert task_of(image_set(torch.linspace(0, 1, 100)), head="bins").num_outputs == 64
    assert task_of(image_set(torch.tensor([1.0, 2.0, 3.0])), head="bins").num_outputs == 16
    task = task_of(image_set(ages), head="bins", num_bins=20, sigma=3.0, label_min=-10)
    assert task.num_outputs == 20 and task.sigma * task.std == pytest.approx(3)
    assert task.bins[0] * task.std + task.mean == pytest.approx(-16)
    assert task.bins[-1] * task.std + task.mean == pytest.approx(66)
    assert task_of(image_set(ages), head="gaussian").num_outputs == 2
    assert task_of(image_set(ages)).head == "scalar"


@pytest.mark.parametrize("num_outside", [0, 1, 2])
def test_more_than_one_percent_of_the_labels_outside_the_bins_are_refused(num_outside: int) -> None:
    task = Regression(label_min=0, label_max=10, head="bins", bins=tuple(range(10)), sigma=1.0)
    labels = torch.cat([torch.full((100 - num_outside,), 5.0), torch.full((num_outside,), 9.5)])
    if num_outside < 2:
        task.check(labels, "train")
    else:
        with pytest.raises(ValueError, match=r"train: 2\.0 % of the labels lie outside the bins \[0, 9\].*label_max"):
            task.check(labels, "train")


@pytest.mark.parametrize("task", [BINS, GAUSSIAN])
def test_labels_out_of_range_are_refused_with_every_head(task: Regression) -> None:
    with pytest.raises(ValueError, match=r"outside \[-60, 60\]"):
        task.check(torch.tensor([0.0, 60.5]), "train")


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"head": "softmax"}, "unknown task.head 'softmax': use scalar, bins, gaussian"),
        ({"head": "bins", "bins": (0.0, 2.0, 1.0)}, "two or more centres that ascend"),
        ({"head": "bins", "bins": (0.0,)}, "two or more centres that ascend"),
        ({"head": "bins", "sigma": 0.0}, r"sigma \(task.sigma\) must be positive, got 0"),
        ({"head": "bins", "sigma": math.nan}, "must be positive, got nan"),
    ],
)
def test_heads_that_cannot_be_are_refused(fields: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        dataclasses.replace(DEGREES, **fields)
    with pytest.raises(ValueError, match=r"5 bins \(task.num_bins\) are too few"):
        uniform_bins(0, 1, 5)


# --- a teacher of another head or standardisation ---------------------------------------------------------------------

YEARS = Regression(label_min=-60, label_max=60, mean=-5, std=40)  # the same labels, standardised by other samples


@pytest.mark.parametrize("theirs", HEADS)
@pytest.mark.parametrize("ours", HEADS)
def test_what_a_teacher_predicts_survives_the_translation(theirs: str, ours: str) -> None:
    theirs, ours = dataclasses.replace(YEARS, head=theirs), dataclasses.replace(DEGREES, head=ours)
    outputs = answers(theirs, torch.tensor([-1.0, 0.0, 1.0, 1.3]))
    translated = ours.translate(outputs, theirs)
    assert translated.shape == (4, ours.num_outputs)
    torch.testing.assert_close(ours.predict(translated), theirs.predict(outputs), atol=0.06, rtol=0)
    assert ours.translate(translated, ours) is translated


def test_translated_gaussians_keep_their_width_in_label_units() -> None:
    theirs = dataclasses.replace(YEARS, head="gaussian")
    translated = GAUSSIAN.translate(torch.tensor([[0.5, 2 * math.log(0.25)]]), theirs)  # 15 +- 10 degrees
    torch.testing.assert_close(translated, torch.tensor([[0.25, 2 * math.log(0.5)]]))
    spread = BINS.translate(torch.tensor([[0.5, 2 * math.log(0.25)]]), theirs).softmax(dim=1)
    centres = 20 * torch.tensor(BINS.bins) + 10
    mean = (spread * centres).sum()
    assert mean.item() == pytest.approx(15, abs=0.01)
    assert (spread * (centres - mean).square()).sum().sqrt().item() == pytest.approx(10, rel=0.01)
    back = GAUSSIAN.translate(spread.log(), BINS)
    torch.testing.assert_close(back, translated, atol=0.02, rtol=0)


def test_a_narrow_gaussian_does_not_lose_its_mean_between_two_bins() -> None:
    outputs = torch.stack([torch.linspace(-2, 2, 41), torch.full((41,), -10.0)], dim=1)
    torch.testing.assert_close(BINS.prediction(BINS.translate(outputs, GAUSSIAN)), outputs[:, 0], atol=1e-3, rtol=0)


def test_the_same_bins_need_no_translation_whatever_the_standardisation() -> None:
    theirs = dataclasses.replace(YEARS, head="bins")
    logits = torch.randn(3, 64)
    assert BINS.translate(logits, theirs) is logits
    finer = dataclasses.replace(YEARS, head="bins", bins=uniform_bins(-1.375, 1.625, 100)[0], sigma=None)
    assert BINS.translate(torch.randn(3, 100), finer).shape == (3, 64)


def test_a_number_speaks_to_another_head_as_a_label_does_or_as_widely_as_it_errs() -> None:
    outputs = torch.tensor([[0.25], [1.0]])  # 5 and 35 degrees
    label = -(torch.tensor([[-0.25], [1.25]]) - torch.tensor(BINS.bins)).square() / (2 * BINS.sigma**2)
    torch.testing.assert_close(BINS.translate(outputs, YEARS).softmax(1), label.softmax(1))
    torch.testing.assert_close(GAUSSIAN.translate(outputs, YEARS), torch.tensor([[-0.25, -10.0], [1.25, -10.0]]))
    erring = dataclasses.replace(YEARS, sigma=0.25)  # 10 degrees
    torch.testing.assert_close(
        GAUSSIAN.translate(outputs, erring), torch.tensor([[-0.25, 2 * math.log(0.5)], [1.25, 2 * math.log(0.5)]])
    )
    wide = -(torch.tensor([[-0.25], [1.25]]) - torch.tensor(BINS.bins)).square() / (2 * 0.5**2)
    torch.testing.assert_close(BINS.translate(outputs, erring).softmax(1), wide.softmax(1))


@pytest.mark.parametrize("ours", HEADS)
def test_a_teacher_of_which_nothing_is_known_answers_as_the_student_or_with_one_number(ours: str) -> None:
    task = dataclasses.replace(DEGREES, head=ours)
    view = torch.rand(5, 1, 4, 4)
    for num_outputs in {1, task.num_outputs}:
        asked = Teacher(network(num_outputs, pixels=4), nn.Identity())
        expected, spoken = asked(view), asked.for_task(task)(view)
        assert spoken.shape == (5, task.num_outputs)
        if num_outputs == task.num_outputs:
            assert torch.equal(spoken, expected)
        else:
            torch.testing.assert_close(task.prediction(spoken), expected.flatten(), atol=5e-3, rtol=0)


# --- heads from a configuration to a deployed student -----------------------------------------------------------------


def rotated(num_samples: int = 24) -> ImageSet:
    """Images whose brightness is their label, in degrees."""
    labels = torch.linspace(-60, 60, num_samples)
    levels = ((labels + 60) * 2).to(torch.uint8)
    noise = torch.randint(10, (num_samples, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return ImageSet(levels.view(-1, 1, 1, 1) + noise, labels)


def network(num_outputs: int, pixels: int = 8) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(pixels * pixels, num_outputs))


FAST = {"steps": 150, "batch_size": 12, "learning_rate": 0.02, "weight_decay": 0.0}


@functools.cache
def trained(head: str) -> nn.Module:
    """A network of that head that knows the labels of `rotated`."""
    task = task_of(rotated(), head=head)
    return gankd.distill(network(task.num_outputs), real=rotated(), method="supervised", task=task, **FAST)


@pytest.mark.parametrize("head", HEADS)
def test_a_student_of_every_head_learns_from_labels(head: str) -> None:
    assert trained(head).output_task == task_of(rotated(), head=head)
    assert gankd.evaluate(trained(head), rotated())["mae"] < 8, "saying 0 to all of them is wrong by 31 degrees"


@pytest.mark.parametrize("teaches", HEADS)
@pytest.mark.parametrize("learns", HEADS)
def test_a_student_of_every_head_learns_from_a_teacher_of_every_head(learns: str, teaches: str) -> None:
    task = task_of(rotated(), label_min=-70, label_max=70, head=learns)  # so that bins are others than the teacher's
    method = {"name": "kd", "alpha": 1, "temperature": 1}  # not a look at the labels
    student = network(task.num_outputs)
    gankd.distill(student, trained(teaches), real=rotated(), method=method, task=task, **FAST)
    assert gankd.evaluate(student, rotated())["mae"] < 12


@every_head
def test_a_stored_network_knows_its_head(task: Regression, tmp_path) -> None:
    options = {"widths": [4]}
    model = build_model("small_resnet", task.num_outputs, 1, **options)
    normalize = Normalize(torch.tensor([0.5]), torch.tensor([0.25]))
    config = ModelConfig(name="small_resnet", options=options)
    save_model(tmp_path, model, config, normalize, num_outputs=task.num_outputs, image_shape=(1, 8, 8), task=task)
    loaded, _ = gankd.load_model(tmp_path)
    assert loaded.output_task == task
    images = torch.rand(2, 1, 8, 8)
    torch.testing.assert_close(loaded.output_task.predict(loaded(images)), task.predict(model.eval()(images)))


def test_networks_stored_before_there_were_heads_are_scalar() -> None:
    stored = {"kind": "regression", "label_min": 0, "label_max": 1, "mean": 0.5, "std": 0.25, "unit": "m"}
    assert task_from(stored) == Regression(0, 1, 0.5, 0.25, "m", head="scalar")
    for task in (BINS, LETTERS):
        assert task_from(json.loads(json.dumps({"kind": task.kind, **dataclasses.asdict(task)}))) == task


def experiment(**groups) -> ExperimentConfig:
    return ExperimentConfig.of({"name": "mine", "data": {"name": "rotated_digits"}, **groups})


@pytest.mark.parametrize(
    ("groups", "sentence"),
    [
        ({"task": {"head": "bins"}}, "task: head: bins is for kind: regression"),
        ({"task": {"kind": "regression", "num_bins": 20}}, "task: num_bins and sigma are for head: bins"),
        ({"task": {"kind": "regression", "head": "gaussian", "sigma": 1}}, "num_bins and sigma are for head: bins"),
        ({"task": {"kind": "regression", "head": "bins", "num_bins": 5}}, "task.num_bins"),
        ({"task": {"kind": "regression", "head": "softmax"}}, "task.head"),
        ({"teacher": {"head": "bins"}}, "teacher.head: bins is for task.kind: regression"),
    ],
)
def test_settings_of_heads_that_do_not_fit_are_refused_by_name(groups: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        experiment(**groups)


def test_bins_have_no_units() -> None:
    with pytest.raises(ValueError, match="bins have no units: outputs: raw"):
        TeacherConfig.of({"head": "bins", "outputs": "raw"})


def test_an_experiment_refuses_a_method_that_the_head_is_nothing_for() -> None:
    arms = {"arms": {"one": {"method": {"name": "ctkd"}}}}
    experiment(task={"kind": "regression", "head": "bins"}, student=arms)
    with pytest.raises(ValueError, match=r"student\.arms\.one: .*task\.head: bins"):
        experiment(task={"kind": "regression"}, student=arms)


# --- F8, F24: scores of labels that are far from zero, tiny or huge ----------------------------------------------------


@pytest.mark.parametrize(("centre", "scale"), [(20000.0, 1.0), (0.0, 1e-9), (0.0, 1e30), (5.0, 1e-3)])
def test_f8_scores_are_right_wherever_the_labels_lie(centre: float, scale: float) -> None:
    random = np.random.default_rng(0)
    labels = torch.from_numpy(centre + scale * random.uniform(-1, 1, size=50)).float()
    task, outputs = task_of(image_set(labels)), torch.from_numpy(random.normal(size=50)).float()
    exact = labels.double().numpy()
    predictions = np.clip(outputs.double().numpy() * task.std + task.mean, exact.min(), exact.max())
    squares = (predictions - exact) ** 2
    r2 = 1 - squares.sum() / ((exact - exact.mean()) ** 2).sum()
    found = measured(task, outputs, labels)
    assert found["r2"] == pytest.approx(r2, rel=1e-4) and r2 < 0
    assert found["mae"] == pytest.approx(np.abs(predictions - exact).mean(), rel=1e-4)
    assert found["rmse"] == pytest.approx(math.sqrt(squares.mean()), rel=1e-4)


def test_f15_outputs_that_are_no_numbers_have_no_score() -> None:
    outputs = torch.zeros(4, 3)
    outputs[1, 2] = math.nan
    with pytest.raises(ValueError, match="1 of 4 images with NaN"):
        LETTERS.to_metric(outputs)
    with pytest.raises(ValueError, match="2 of 4 images with NaN or infinity"):
        DEGREES.to_metric(torch.tensor([[0.0], [math.nan], [math.inf], [1.0]]))


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"label_min": 60, "label_max": -60}, "label_min 60 is above label_max -60: exchange the ends"),
        ({"label_min": 0, "label_max": math.inf}, "label_max inf: a label range has finite ends"),
        ({"label_min": 0, "label_max": 1, "mean": math.nan}, "mean nan"),
    ],
)
def test_f24_a_range_that_cannot_be_says_why(fields: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Regression(**fields)


def test_f24_one_class_is_no_classification() -> None:
    with pytest.raises(ValueError, match="tells two classes or more apart, and this one has cat"):
        Classification(class_names=("cat",))
