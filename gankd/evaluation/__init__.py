"""How good a network is, in the user's units."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch import nn

from gankd.data.loader import ordered_batches
from gankd.data.sets import ImageSet, match_classes
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
from gankd.tasks import Task, not_finite
from generators.images import to_unit_range

__all__ = [
    "PROBES",
    "LabelledFeatures",
    "ProbeResult",
    "check_probes",
    "network_metrics",
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
def network_metrics(
    model: nn.Module,
    normalize: nn.Module,
    task: Task,
    dataset: ImageSet,
    *,
    accelerator: Accelerator,
    batch_size: int = 500,
) -> dict[str, float]:
    """The task's metrics of `model` (eval mode, un-augmented images, float32) on all of `dataset`.

    Every process evaluates its share; the metrics are joined over the processes, the model keeps its mode. Classes are
    matched by their names, where both sides have some. R2 is left out where all labels are the same.

    Raises:
        ValueError: no images, a class that the network does not know, outputs that are not finite.
    """
    if not len(dataset):
        raise ValueError(f"{dataset.name} has no images to evaluate a network on.")
    dataset = match_classes(dataset, getattr(task, "class_names", None), "the network")
    metrics = task.metrics().to(accelerator.device)
    broken = torch.zeros((), device=accelerator.device)
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
            bad = not_finite(outputs, task)
            broken += bad.sum()  # said when all processes know it
            metrics.update(task.to_metric(outputs.masked_fill(bad, 0)), batch.labels)
    if accelerator.reduce(broken, "sum").item():
        raise ValueError(
            f"{dataset.name}: the outputs of {type(model).__name__} are not finite: it has diverged, or its input is not "
            "normalised as it expects."
        )
    return task.in_units({name: value.item() for name, value in metrics.compute().items()})
