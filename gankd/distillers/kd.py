"""Knowledge distillation by outputs: soft classes, or a scalar teacher's prediction as a soft target.

Hinton et al., "Distilling the Knowledge in a Neural Network", 2015, arXiv 1503.02531.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from gankd.data.loader import Batch
from gankd.distillers.base import Distiller, MethodConfig
from gankd.losses import kd_loss, regression_kd_loss


class KDConfig(MethodConfig):
    """(1 - alpha) task loss + alpha distillation loss."""

    name: Literal["kd"] = "kd"
    """The method."""
    alpha: Annotated[float, Field(ge=0, le=1)] = 0.9
    """Weight of the teacher against the labels."""
    temperature: Annotated[float, Field(gt=0)] = 4.0
    """Classes: softens both distributions."""
    loss: Literal["l2", "l1", "huber"] = "l2"
    """Scalars: the distance to the teacher's prediction, in standardised units."""


class KD(Distiller):
    """Classes: (1 - alpha) CE(s, y) + alpha T^2 KL(softmax(t/T) || softmax(s/T)). Scalars: l(s - y) and l(s - t) instead."""

    Config = KDConfig
    tasks = frozenset({"classification", "regression"})

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        config = self.config
        view = self.augment(batch.images)  # [N, C, H, W]
        student = self.student(self.normalize(view))  # [N, K]
        terms = {}
        if config.alpha < 1:
            terms["task"] = self.task.loss(student, batch.labels)
        if config.alpha > 0:
            teacher = self.teacher(view)
            if self.task.kind == "classification":
                terms["kd"] = kd_loss(student_logits=student, teacher_logits=teacher, temperature=config.temperature)
            else:
                terms["kd"] = regression_kd_loss(
                    student_predictions=student.flatten(), teacher_predictions=teacher.flatten(), loss=config.loss
                )
        weights = {"task": 1 - config.alpha, "kd": config.alpha}
        return {"loss": sum(weights[name] * term for name, term in terms.items()), **terms}
