"""What methods without labels have in common: a backbone is trained by its pooled feature, and its classifier is not."""

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gankd.data.loader import Batch, BatchSource
from gankd.distributed.batch_norm import synchronized
from gankd.methods.base import EVERY_TASK, Distiller, MethodConfig
from gankd.methods.setup import Setup
from gankd.models.taps import INPUT, Taps, default_taps, feature_shapes
from gankd.tasks import CLASSIFICATION, REPRESENTATION, Task
from generators.settings import Weight


class LabelFreeConfig(MethodConfig):
    """A loss that needs no labels, and task_weight * the task's loss."""

    task_weight: Weight = 0.0
    """Weight of the labels' loss, in `gankd.distill`. In `gankd.pretrain` it is 0: no label is read, and the last layer,
    which no loss reaches, stays as it is."""

    def check_task(self, task_kind: str, head: str = "scalar") -> None:
        if task_kind == REPRESENTATION and self.task_weight > 0:
            raise ValueError(f"{self.name} with a task_weight reads labels; use it as a student's method, or set 0.")
        if task_kind != REPRESENTATION and self.task_weight == 0:
            raise ValueError(
                f"{self.name} trains no last layer; give a task_weight, or pretrain with it (gankd.pretrain, or an arm of "
                "`representation`)."
            )


class LabelFree(Distiller):
    """A subclass computes its loss in `learn`; the backbone's features, the labels' loss and the online probe are here.

    With several processes, batch norms see the images of all of them, and the embeddings of all are compared.
    """

    tasks = EVERY_TASK | {REPRESENTATION}
    needs_teacher = False

    def __init__(self, config: MethodConfig, setup: Setup):
        super().__init__(config, setup)
        data: BatchSource = setup.data
        image_shape = data.image_shape
        self.feature_path = default_taps(setup.student, image_shape=image_shape)[-1]
        self.width = feature_shapes(setup.student, image_shape, [self.feature_path])[0][0]
        self.probe = None
        if setup.task.kind == REPRESENTATION:
            setup.student.get_submodule(self.feature_path.removesuffix(INPUT)).requires_grad_(False)
            with torch.random.fork_rng():  # the weights of what is built next are the same with a probe and without
                self.probe = OnlineProbe(self.width, setup.task.labels) if setup.task.labels is not None else None

    def learn(self, batch: Batch) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Returns the losses by name, `"loss"` being the total, and the student's outputs [N, K] and pooled features [N, D]
        for one view of the batch."""
        raise NotImplementedError

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        with synchronized(self):
            losses, outputs, pooled = self.learn(batch)
        if self.config.task_weight > 0:
            losses["task"] = self.task.loss(outputs, batch.labels)
            losses["loss"] = losses["loss"] + self.config.task_weight * losses["task"]
        if self.probe is not None:
            losses["probe"], losses["probe_metric"] = self.probe(pooled.detach(), batch)
            losses["loss"] = losses["loss"] + losses["probe"]
        return losses

    def outputs_and_pooled(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The student's outputs [N, K] and pooled features [N, D] for a view [N, C, H, W] in [0, 1]."""
        outputs, (pooled,) = Taps(self.student, [self.feature_path])(self.normalize(images))
        return outputs, pooled

    def parameter_groups(self) -> list[dict]:
        if self.probe is None:
            return []
        return [{"params": list(self.probe.parameters()), "weight_decay": 0.0}]


class OnlineProbe(nn.Module):
    """A linear layer that learns the real images' labels from detached features: it measures the backbone while that trains,
    and does not change it."""

    def __init__(self, width: int, labels: Task):
        super().__init__()
        self.labels = labels
        self.norm = nn.BatchNorm1d(width, affine=False)
        self.linear = nn.Linear(width, labels.num_outputs)

    def forward(self, features: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Loss and metric (top-1 in %, or the mean absolute error in the labels' units) over the batch's real images."""
        assert not features.requires_grad, "the probe would train the backbone"
        outputs, labels = self.linear(self.norm(features.float())), batch.labels
        is_real = (~batch.is_synthetic).float()
        if self.labels.kind == CLASSIFICATION:
            losses = F.cross_entropy(outputs, labels, reduction="none")
            scores = 100 * (outputs.argmax(dim=1) == labels).float()
        else:
            losses = (outputs[:, 0] - self.labels.standardize(labels)).square()
            scores = self.labels.error(outputs.detach(), labels)
        num_real = is_real.sum().clamp(min=1)
        return (losses * is_real).sum() / num_real, (scores * is_real).sum() / num_real


class Projector(nn.Sequential):
    """(layers - 1) x [Linear, BatchNorm, ReLU], then Linear: [N, in_width] -> [N, out_width], no biases."""

    def __init__(self, in_width: int, hidden_width: int, out_width: int, layers: int):
        widths = [in_width, *[hidden_width] * (layers - 1)]
        hidden = []
        for before, after in itertools.pairwise(widths):
            hidden += [nn.Linear(before, after, bias=False), nn.BatchNorm1d(after), nn.ReLU()]
        super().__init__(*hidden, nn.Linear(widths[-1], out_width, bias=False))
