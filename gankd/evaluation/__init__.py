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
from gankd.evaluation.protocols import PROBES, LabelledFeatures, labelled_features, measure
from gankd.tasks import Task
from generators.images import to_unit_range

__all__ = [
    "PROBES",
    "LabelledFeatures",
    "ProbeResult",
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

    Every process evaluates its share; the metrics are joined over the processes.
    """
    model.eval()
    metrics = task.metrics().to(accelerator.device)
    batches = ordered_batches(
        dataset,
        batch_size=batch_size,
        device=accelerator.device,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
    )
    for batch in batches:
        outputs = model(normalize(to_unit_range(batch.images))).float()
        metrics.update(task.to_metric(outputs), batch.labels)
    return task.in_units({name: value.item() for name, value in metrics.compute().items()})
