"""No distillation: the task's own loss on the labels. On real + synthetic data this is plain cGAN-KD."""

from typing import Literal

from torch import Tensor

from gankd.data.loader import Batch
from gankd.data.views import view_of
from gankd.methods.base import Distiller, MethodConfig


class SupervisedConfig(MethodConfig):
    """Cross-entropy, or squared error on standardised labels."""

    name: Literal["supervised"] = "supervised"
    """The method's name."""


class Supervised(Distiller):
    """loss = task loss(student(view), labels).

    >>> student = gankd.distill(student, real=train, method="supervised", steps=2)
    """

    Config = SupervisedConfig
    repeats_views = True
    tasks = frozenset({"classification", "regression"})
    needs_teacher = False

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        view = view_of(self.augment, batch)  # [N, C, H, W]
        loss = self.task.loss(self.student(self.normalize(view)), batch.labels)
        return {"loss": loss, "task": loss}
