"""BYOT: the deepest classifier teaches classifiers on the shallower stages.

Zhang et al., "Be Your Own Teacher: Improve the Performance of Convolutional Neural Networks via Self Distillation",
ICCV 2019, arXiv 1905.08094.
"""

from typing import Literal

from torch import Tensor, nn

from gankd.losses.self_distillation import byot_divergence
from gankd.methods.branches import Branch, StagesTermConfig, separable, stage_taps
from gankd.methods.setup import Outputs, Setup
from gankd.methods.terms import Term
from generators.settings import Positive, Weight


class BYOTConfig(StagesTermConfig):
    """Task loss + weight * sum over the branches of (task loss + T^2 KL to the deepest + feature_weight MSE)."""

    name: Literal["byot"] = "byot"
    """The method."""
    temperature: Positive = 4.0
    """Temperature that softens both distributions of classes."""
    feature_weight: Weight = 0.05
    """Weight of the distance of a branch's last map to the deepest one."""


class BYOT(Term):
    """sum_b [ CE(z_b, y) + KL(z_b, [z_0]) + feature_weight mean (F_b - [F_0])^2 ], a branch of light blocks on each stage
    but the last. Scalars: the task's loss and squares. Branches are for training only.

    >>> student = gankd.distill(student, real=train, method="byot", steps=2)

    Loss: losses.self_distillation.byot_loss
    """

    Config = BYOTConfig
    heads = frozenset({"scalar"})
    hint = "byot's deepest head teaches by its prediction. Use task.head: scalar."
    needs_teacher = False

    def __init__(self, config: BYOTConfig, setup: Setup):
        super().__init__(config, setup)
        self.student_taps, shapes = stage_taps(setup, config.name, config.student_taps, at_least=2)
        self.branches = nn.ModuleList(
            Branch(shapes[stage:], setup.task.num_outputs, separable) for stage in range(len(shapes) - 1)
        )

    def forward(self, outputs: Outputs) -> Tensor:
        *shallow, deepest = (outputs.student_features[path] for path in self.student_taps)
        answers, maps = zip(*(branch(map_) for branch, map_ in zip(self.branches, shallow, strict=True)), strict=True)
        labels = sum(self.task.loss(output, outputs.batch.labels) for output in answers)
        return labels + byot_divergence(
            logits=[outputs.student, *answers],
            shallow_features=maps,
            deepest_feature=deepest,
            temperature=self.config.temperature,
            feature_weight=self.config.feature_weight,
            task=self.task,
        )
