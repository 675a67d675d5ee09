"""DKS: classifiers on several stages learn from each other.

Sun, Yao, Zhou, Zhao, "Deeply-supervised Knowledge Synergy", CVPR 2019.
"""

from typing import Literal

from torch import Tensor, nn

from gankd.losses.self_distillation import mutual_divergence
from gankd.methods.branches import Branch, StagesTermConfig, stage_taps
from gankd.methods.setup import Outputs, Setup
from gankd.methods.terms import Term
from gankd.models.small_resnet import ResidualBlock
from generators.settings import Positive


class DKSConfig(StagesTermConfig):
    """CE + weight * (CE of the branches + T^2 KL of every ordered pair of heads)."""

    name: Literal["dks"] = "dks"
    """The method."""
    temperature: Positive = 4.0
    """Temperature that softens both distributions."""


class DKS(Term):
    """sum_b CE(z_b, y) + sum over i != j of KL(z_i, [z_j]), the network's own head among them. A branch of residual blocks
    on each stage but the last, for training only.

    >>> student = gankd.distill(student, real=train, method="dks", steps=2)

    Loss: losses.self_distillation.dks_loss
    """

    Config = DKSConfig
    tasks = frozenset({"classification"})
    needs_teacher = False
    hint = "dks' heads exchange class probabilities; this task has a scalar target. Use byot, or a classification task."

    def __init__(self, config: DKSConfig, setup: Setup):
        super().__init__(config, setup)
        self.student_taps, shapes = stage_taps(setup, config.name, config.student_taps, at_least=2)
        self.branches = nn.ModuleList(
            Branch(shapes[stage:], setup.task.num_outputs, ResidualBlock) for stage in range(len(shapes) - 1)
        )

    def forward(self, outputs: Outputs) -> Tensor:
        labels = outputs.batch.labels
        features = [outputs.student_features[path] for path in self.student_taps[:-1]]
        logits = [branch(feature)[0] for branch, feature in zip(self.branches, features, strict=True)]
        mutual = mutual_divergence([outputs.student, *logits], self.config.temperature, self.task)
        return sum(self.task.loss(head, labels) for head in logits) + mutual
