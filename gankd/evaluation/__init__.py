"""How good a network is, in the user's units."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch import nn

from gankd.data.loader import ordered_batches
from gankd.data.sets import ImageSet
from gankd.evaluation.neighbours import knn_accuracy, knn_predict, knn_regress, standardize_features
from gankd.evaluation.probes import (
    ProbeResult,
    extract_features,
    knn_probe,
    knn_regression_probe,
    linear_probe,
    ridge_probe,
)
from gankd.evaluation.protocols import PROBES, LabelledFeatures, check_probes, labelled_features, measure
from gankd.models.outputs import outputs_of
from gankd.models.state import preserve_state
from gankd.tasks import REGRESSION, Task, not_finite
from generators.images import to_unit_range

__all__ = [
    "PROBES",
    "LabelledFeatures",
    "ProbeResult",
    "check_probes",
    "evaluate",
    "extract_features",
    "knn_accuracy",
    "knn_predict",
    "knn_probe",
    "knn_regress",
    "knn_regression_probe",
    "labelled_features",
    "linear_probe",
    "measure",
    "ridge_probe",
    "standardize_features",
]


@torch.no_grad()
def evaluate(
    model: nn.Module,
    normalize: nn.Module,
    task: Task,
    dataset: ImageSet,
    *,
    accelerator: Accelerator,
    batch_size: int = 500,
) -> dict[str, float]:
    """The task's metrics of `model` (eval mode, un-augmented images, float32) on all of `dataset`.

    Every process evaluates its share; the metrics are joined over the processes, the model keeps its mode. Errors of scalar
    labels are summed in units of the labels' own spread, as sums of squares of raw ones leave float32; R2 is left out where
    all labels are the same.

    Raises:
        ValueError: no images, outputs that are not finite.
    """
    if not len(dataset):
        raise ValueError(f"{dataset.name} has no images to evaluate a network on.")
    metrics, centre, spread = task.metrics(), 0.0, 1.0
    if task.kind == REGRESSION:
        labels = dataset.labels.double()
        centre, spread = labels.mean().item(), labels.std(unbiased=False).item()
        if not spread:
            spread, metrics = 1.0, type(metrics)({key: value for key, value in metrics.items() if key != "r2"})
    metrics = metrics.to(accelerator.device)
    broken = torch.zeros((), device=accelerator.device)
    precision = torch.float32 if accelerator.device.type == "mps" else torch.float64  # which has no float64
    batches = ordered_batches(
        dataset,
        batch_size=batch_size,
        device=accelerator.device,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
    )
    with preserve_state(model):
        model.eval()
        for batch in batches:
            outputs = outputs_of(model(normalize(to_unit_range(batch.images)))).float()
            broken += not_finite(outputs, task).sum()
            found, labels = task.to_metric(outputs), batch.labels
            if task.kind == REGRESSION:
                found, labels = ((values.to(precision) - centre) / spread for values in (found, labels))
            metrics.update(found, labels)
    if accelerator.reduce(broken, "sum").item():
        raise ValueError(
            f"{dataset.name}: the outputs of {type(model).__name__} are not finite: it has diverged, or its input is not "
            "normalised as it expects."
        )
    values = {name: value.item() for name, value in metrics.compute().items()}
    if task.kind == REGRESSION:
        values = {name: value if name == "r2" else value * spread for name, value in values.items()}
    return task.in_units(values)
