"""Distillation by correlation: the student's probabilities relate like the teacher's instead of equalling them.

Huang et al., "Knowledge Distillation from A Stronger Teacher" (DIST), NeurIPS 2022, arXiv 2205.10536.
"""

from typing import Literal

from torch import Tensor

from gankd.distributed.processes import gather, gather_with_gradient
from gankd.losses import dist_loss
from gankd.methods.setup import Outputs
from gankd.methods.terms import Term, TermConfig
from generators.settings import Positive, Weight


class DISTConfig(TermConfig):
    """task loss + weight T^2 (beta inter + gamma intra)."""

    name: Literal["dist"] = "dist"
    """The method."""
    weight: Weight = 2.0
    """Weight of the term."""
    beta: Weight = 1.0
    """Weight of the relations between the classes of a sample."""
    gamma: Weight = 1.0
    """Weight of the relations between the samples of a class; they take at least three samples a batch."""
    temperature: Positive = 4.0
    """What the logits of both are divided by (CIFAR-100: 4, ImageNet: 1). A number, as a column mixes all samples."""


class DIST(Term):
    """inter = 1 - mean over samples, intra = 1 - mean over classes, of Pearson's correlation of the probabilities.

    >>> student = gankd.distill(student, teacher, real=train, method={"name": "dist", "temperature": 1})

    Loss: losses.logits.dist_loss
    """

    Config = DISTConfig
    heads = frozenset({"bins"})
    hint = "It correlates probabilities; set task.head: bins."
    reads_teacher_outputs = True

    def forward(self, outputs: Outputs) -> Tensor:
        return dist_loss(
            student_logits=gather_with_gradient(outputs.student),
            teacher_logits=gather(outputs.teacher),
            beta=self.config.beta,
            gamma=self.config.gamma,
            temperature=self.config.temperature,
        )
