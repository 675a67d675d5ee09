"""Mutual learning: students trained together learn from the labels and from one another.

Zhang, Xiang, Hospedales, Lu, "Deep Mutual Learning", CVPR 2018, arXiv 1706.00384.
Song and Chai, "Collaborative Learning for Deep Neural Networks" (CL-ILR), NeurIPS 2018, is
{name: dml, share: trunk, target: ensemble, temperature: 3, trunk_gradient: mean}.
"""

from typing import Literal

from torch import Tensor

from gankd.data.loader import Batch
from gankd.losses import dml_loss
from gankd.methods.peers.base import BranchesConfig, Online
from generators.settings import Positive, Weight


class DMLConfig(BranchesConfig):
    """sum over students of the task's loss + weight * how far it is from the other students."""

    name: Literal["dml"] = "dml"
    """The method's name."""
    share: Literal["trunk", "nothing"] = "nothing"
    """Whether the peers share everything but the last stage and what follows it, or nothing."""
    weight: Weight = 1.0
    """Weight of what the students learn from one another."""
    temperature: Positive = 1.0
    """Temperature that softens both distributions of classes."""
    target: Literal["peers", "ensemble"] = "peers"
    """Every other student (the mean of their divergences), or the mean of the others' outputs."""


class DML(Online):
    """L = sum_i { CE(z_i) + weight / (m - 1) sum_{j != i} KL_T([z_j] -> z_i) }; scalars: squared differences for KL.

    All students take one simultaneous step; the authors update them in turn. No features are read.

    >>> student = gankd.distill(student, real=train, method="dml", steps=2)

    Loss: losses.online.dml_loss
    """

    Config = DMLConfig

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        config = self.config
        answers, batch = self.answers_to(batch)
        loss, labels, mutual = dml_loss(
            student_logits=answers.outputs,
            labels=batch.labels,
            temperature=config.temperature,
            kd_weight=config.weight,
            target=config.target,
            task=self.task,
        )
        return {"loss": loss, "task": labels, "dml": mutual}
