"""FRSKD: a self-teacher on top of the network refines its maps and returns what it learned.

Ji, Shin, Hwang, Park, Moon, "Refine Myself by Teaching Myself: Feature Refinement via Self-Knowledge Distillation",
CVPR 2021, arXiv 2103.08273. The self-teacher is a BiFPN: Tan, Pang, Le, "EfficientDet", CVPR 2020, arXiv 1911.09070.
"""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gankd.losses.self_distillation import frskd_divergence
from gankd.methods.branches import StagesTermConfig, separable, stage_taps
from gankd.methods.setup import Outputs, Setup
from gankd.methods.taps import Shape
from gankd.methods.terms import Term
from gankd.models.resnet import projection
from generators.settings import Count, Positive, Weight


class FRSKDConfig(StagesTermConfig):
    """Task loss + weight * (task loss of the self-teacher + kd_weight T^2 KL to it + attention_weight * attention)."""

    name: Literal["frskd"] = "frskd"
    """The method's name."""
    temperature: Positive = 4.0
    """Temperature that softens both distributions of classes."""
    kd_weight: Weight = 2.0
    """Weight of the self-teacher's predictions."""
    attention_weight: Weight = 100.0
    """Weight of the self-teacher's attention."""
    width: Count = 2
    """Channels of the self-teacher's maps, times those of the stage."""
    depth: Count = 2
    """Convolutions at each of its nodes."""


class FRSKD(Term):
    """CE(t, y) + kd_weight KL(s, [t]) + attention_weight sum_l mean (at(F_l) - [at(F'_l)])^2, t and F' of a BiFPN on the
    stages' maps F, at = mean_c F^2 to norm 1. The self-teacher learns from the labels alone, and so do the stages through
    it. Scalars: the task's loss and squares.

    >>> student = gankd.distill(student, real=train, method="frskd", steps=2)

    Loss: losses.self_distillation.frskd_loss
    """

    Config = FRSKDConfig
    heads = frozenset({"scalar"})
    hint = "frskd's self-teacher teaches by its prediction. Use task.head: scalar."
    needs_teacher = False

    def __init__(self, config: FRSKDConfig, setup: Setup):
        super().__init__(config, setup)
        self.student_taps, shapes = stage_taps(setup, config.name, config.student_taps, at_least=2)
        self.self_teacher = BiFPN(shapes, setup.task.num_outputs, width=config.width, depth=config.depth)

    def forward(self, outputs: Outputs) -> Tensor:
        config, student, labels = self.config, outputs.student, outputs.batch.labels
        features = [outputs.student_features[path] for path in self.student_taps]
        teacher, refined = self.self_teacher(features)
        return self.task.loss(teacher, labels) + frskd_divergence(
            student_logits=student,
            self_teacher_logits=teacher,
            student_features=features,
            self_teacher_features=refined,
            temperature=config.temperature,
            kd_weight=config.kd_weight,
            attention_weight=config.attention_weight,
            task=self.task,
        )


class BiFPN(nn.Module):
    """Maps of L stages go down from the deepest and up again; each node sums what arrives by learned shares.

        P_L = A_L,  P_l = node(A_l, up(P_l+1));  Q_1 = P_1,  Q_l = node(A_l, P_l, down(Q_l-1)),  A = lateral(F)

    shapes: (C, H, W) of the maps, shallow to deep.
    """

    def __init__(self, shapes: Sequence[Shape], num_outputs: int, *, width: int, depth: int):
        super().__init__()
        channels = [width * shape[0] for shape in shapes]
        steps = range(len(shapes) - 1)
        self.laterals = nn.ModuleList(projection(shape[0], mine) for shape, mine in zip(shapes, channels, strict=True))
        self.from_deeper = nn.ModuleList(projection(channels[level + 1], channels[level]) for level in steps)
        self.down_nodes = nn.ModuleList(Node(channels[level], num_inputs=2, depth=depth) for level in steps)
        self.from_shallower = nn.ModuleList(projection(channels[level], channels[level + 1]) for level in steps)
        self.up_nodes = nn.ModuleList(Node(channels[level + 1], num_inputs=3, depth=depth) for level in steps)
        self.head = nn.Linear(channels[-1], num_outputs)

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """L maps [N, C_l, H_l, W_l] to outputs [N, K] and L refined maps [N, width C_l, H_l, W_l]."""
        lateral = [project(feature) for project, feature in zip(self.laterals, features, strict=True)]
        down = list(lateral)
        for level in reversed(range(len(lateral) - 1)):
            deeper = F.interpolate(self.from_deeper[level](down[level + 1]), size=lateral[level].shape[2:])
            down[level] = self.down_nodes[level](lateral[level], deeper)
        refined = down[:1]
        for level, (project, node) in enumerate(zip(self.from_shallower, self.up_nodes, strict=True), start=1):
            shallower = F.adaptive_max_pool2d(project(refined[-1]), lateral[level].shape[2:])
            refined.append(node(lateral[level], down[level], shallower))
        return self.head(refined[-1].mean(dim=(2, 3))), refined


class Node(nn.Module):
    """sum_i w_i x_i / (sum_i w_i + 1e-4) with learned w >= 0, then convolutions: maps of one shape to another of it."""

    def __init__(self, channels: int, *, num_inputs: int, depth: int):
        super().__init__()
        self.shares = nn.Parameter(torch.ones(num_inputs))
        self.convolutions = nn.Sequential(*(separable(channels, channels, 1) for _ in range(depth)))

    def forward(self, *maps: Tensor) -> Tensor:
        shares = self.shares.relu()
        total = sum(share * map_ for share, map_ in zip(shares, maps, strict=True))
        return self.convolutions(total / (shares.sum() + 1e-4))
