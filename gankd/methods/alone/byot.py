"""BYOT: the deepest classifier teaches classifiers on the shallower stages.

Zhang et al., "Be Your Own Teacher: Improve the Performance of Convolutional Neural Networks via Self Distillation",
ICCV 2019, arXiv 1905.08094.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from gankd.losses import byot_loss, hint_loss
from gankd.methods.branches import Branch, StagesTermConfig, imitation, separable, stage_taps
from gankd.methods.setup import Outputs, Setup
from gankd.methods.terms import Term
from gankd.tasks import CLASSIFICATION
from generators.settings import Positive, Weight


class BYOTConfig(StagesTermConfig):
    """Task loss + weight * sum over the branches of (task loss + T^2 KL to the deepest + feature_weight MSE)."""

    name: Literal["byot"] = "byot"
    """The method."""
    temperature: Positive = 4.0
    """Classes: softens both distributions."""
    feature_weight: Weight = 0.05
    """Of the distance of a branch's last map to the deepest one."""


class BYOT(Term):
    """sum_b [ CE(z_b, y) + KL(z_b, [z_0]) + feature_weight mean (F_b - [F_0])^2 ], a branch of light blocks on each stage
    but the last. Scalars: the task's loss and squares. Branches are for training only.
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
        return labels + self.rest(outputs, answers, maps, deepest)

    def rest(self, outputs: Outputs, answers: tuple[Tensor, ...], maps: tuple[Tensor, ...], deepest: Tensor) -> Tensor:
        """What the branches learn from the deepest head."""
        config, teacher = self.config, outputs.student
        if self.task.kind == CLASSIFICATION:
            _, _, rest = byot_loss(
                logits=[teacher, *answers],
                shallow_features=maps,
                deepest_feature=deepest,
                labels=outputs.batch.labels,
                temperature=config.temperature,
                feature_weight=config.feature_weight,
            )
            return rest
        rest = sum(imitation(self.task, output, teacher, config.temperature) for output in answers)
        hints = sum(hint_loss(student_feature=map_, teacher_feature=deepest) for map_ in maps)
        return rest + config.feature_weight * hints
