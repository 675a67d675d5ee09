"""Stages of one network teach each other: by where they look, or by classifiers on top of them.

sad: Hou, Ma, Liu, Loy, "Learning Lightweight Lane Detection CNNs by Self Attention Distillation", ICCV 2019, arXiv
    1908.00821
byot: Zhang et al., "Be Your Own Teacher: Improve the Performance of Convolutional Neural Networks via Self
    Distillation", ICCV 2019, arXiv 1905.08094
dks: Sun, Yao, Zhou, Zhao, "Deeply-supervised Knowledge Synergy", CVPR 2019
"""

from itertools import pairwise
from typing import Literal

from torch import Tensor, nn

from gankd.losses import self_attention_loss
from gankd.losses.self_distillation import byot_divergence, mutual_divergence
from gankd.methods.branches import Branch, StagesTermConfig, separable, stage_taps
from gankd.methods.setup import Outputs, Setup
from gankd.methods.terms import Term
from gankd.models.small_resnet import ResidualBlock
from generators.settings import Positive, Weight


class SADConfig(StagesTermConfig):
    """Task loss + weight * sum over neighbouring stages of the squared difference of attention."""

    name: Literal["sad"] = "sad"
    """The method's name."""
    weight: Weight = 1000.0
    """Weight of the term."""


class SAD(Term):
    """sum over stages l of mean (at(F_l) - [at(F_l+1 enlarged)])^2, at = softmax over positions of mean_c F^2. No heads.

    >>> student = gankd.distill(student, real=train, method="sad", steps=2)

    Loss: losses.self_distillation.self_attention_loss
    """

    Config = SADConfig
    needs_teacher = False

    def __init__(self, config: SADConfig, setup: Setup):
        super().__init__(config, setup)
        self.student_taps, _ = stage_taps(setup, config.name, config.student_taps, at_least=2)

    def forward(self, outputs: Outputs) -> Tensor:
        features = [outputs.student_features[path] for path in self.student_taps]
        return sum(
            self_attention_loss(student_feature=shallow, teacher_feature=deep) for shallow, deep in pairwise(features)
        )


class BYOTConfig(StagesTermConfig):
    """Task loss + weight * sum over the branches of (task loss + T^2 KL to the deepest + feature_weight MSE)."""

    name: Literal["byot"] = "byot"
    """The method's name."""
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


class DKSConfig(StagesTermConfig):
    """CE + weight * (CE of the branches + T^2 KL of every ordered pair of heads)."""

    name: Literal["dks"] = "dks"
    """The method's name."""
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
