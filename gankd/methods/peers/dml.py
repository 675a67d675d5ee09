"""Mutual learning: students trained together learn from the labels and from one another.

Zhang, Xiang, Hospedales, Lu, "Deep Mutual Learning", CVPR 2018, arXiv 1706.00384.
Song and Chai, "Collaborative Learning for Deep Neural Networks" (CL-ILR), NeurIPS 2018, is
{name: dml, share: trunk, target: ensemble, temperature: 3, trunk_gradient: mean}.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from gankd.data.loader import Batch
from gankd.losses import dml_loss
from gankd.methods.peers.base import BranchesConfig, Online
from gankd.tasks import CLASSIFICATION
from generators.settings import Positive, Weight


class DMLConfig(BranchesConfig):
    """sum over students of the task's loss + weight * how far it is from the other students."""

    name: Literal["dml"] = "dml"
    """The method."""
    share: Literal["trunk", "nothing"] = "nothing"
    """Whether the peers share everything but the last stage and what follows it, or nothing."""
    weight: Weight = 1.0
    """Of what the students learn from one another."""
    temperature: Positive = 1.0
    """Classes: softens both distributions."""
    target: Literal["peers", "ensemble"] = "peers"
    """Every other student (the mean of their divergences), or the mean of the others' outputs."""


class DML(Online):
    """L = sum_i { CE(z_i) + weight / (m - 1) sum_{j != i} KL_T([z_j] -> z_i) }; scalars: squared differences for KL.

    All students take one simultaneous step; the authors update them in turn. No features are read.
    """

    Config = DMLConfig

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        config = self.config
        views, batch = self.views_of(batch)
        outputs = self.answer(views).outputs
        self.keep_score(outputs, batch.labels)
        if self.task.kind == CLASSIFICATION:
            loss, labels, mutual = dml_loss(
                student_logits=outputs,
                labels=batch.labels,
                temperature=config.temperature,
                kd_weight=config.weight,
                target=config.target,
            )
            return {"loss": loss, "task": labels, "dml": mutual}
        labels = self.label_loss(outputs, batch.labels)
        mutual = mutual_loss(self, outputs, config.temperature, config.target)
        return {"loss": labels + config.weight * mutual, "task": labels, "dml": mutual}


def mutual_loss(method: Online, outputs: list[Tensor], temperature: float, target: str = "peers") -> Tensor:
    """What students learn from one another, summed over students: mutual_regression_loss on a scalar head."""
    total = torch.zeros((), device=outputs[0].device)
    for index, student in enumerate(outputs):
        others = [other for place, other in enumerate(outputs) if place != index]
        targets = [torch.stack(others).mean(0)] if target == "ensemble" else others
        for each in targets:
            total = total + method.follow(student, each, temperature=temperature) / len(targets)
    return total
