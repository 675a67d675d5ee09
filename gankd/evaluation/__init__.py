"""How good a network is, in the user's units."""

import torch
from accelerate import Accelerator
from torch import nn

from gankd.data.loader import ordered_batches
from gankd.data.sets import ImageSet, match_classes
from gankd.evaluation.neighbours import *  # noqa: F403
from gankd.evaluation.probes import *  # noqa: F403
from gankd.models.outputs import outputs_of
from gankd.models.state import preserve_state
from gankd.tasks import Task, not_finite
from generators.images import to_unit_range


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
    Raises ValueError: no images, a class that the network does not know, outputs that are not finite.
    """
    if not len(dataset):
        raise ValueError(f"{dataset.name} has no images to evaluate a network on.")
    dataset = match_classes(dataset, getattr(task, "class_names", None), "the network")
    metrics, broken = task.metrics().to(accelerator.device), torch.zeros((), device=accelerator.device)
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
            wrong = not_finite(outputs, task)
            broken += (
                wrong.reshape(len(wrong), -1).any(dim=1).sum()
            )  # which all processes learn of below, so that none waits for another that has failed
            metrics.update(task.to_metric(outputs.masked_fill(wrong, 0)), batch.labels)
    if num_broken := int(accelerator.reduce(broken, "sum").item()):
        raise ValueError(
            f"{dataset.name}: the outputs of {type(model).__name__} are not finite ({num_broken} of {len(dataset)} images "
            "with NaN or infinite values): it has diverged, or its input is not normalised as it expects."
        )
    return task.in_units({name: value.item() for name, value in metrics.compute().items()})
