"""Feature fusion: students and a classifier on their fused last maps teach each other.

Kim, Hyun, Chung, Kwak, "Feature Fusion for Online Mutual Knowledge Distillation", ICPR 2020, arXiv 1904.09058.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gankd.data.loader import Batch
from gankd.losses import mfef_loss
from gankd.methods.peers.base import Online, RampedConfig, disagreement
from gankd.methods.setup import Setup
from gankd.models.resnet import projection
from generators.settings import Weight


class FusionConfig(RampedConfig):
    """sum over students and fused classifier of the task's loss + weight * w(step) * how far they are from their targets."""

    fusion_weight_decay: Weight = 1e-5
    """Weight decay of the fusion's parameters."""
    detach_fusion_input: bool = False
    """Whether the fused classifier's losses stop before the students' features."""


class FFLConfig(FusionConfig):
    """sum over students and fused classifier of the task's loss + weight * w(step) * how far they are from their targets."""

    name: Literal["ffl"] = "ffl"
    """The method's name."""


class Align(nn.Module):
    """Brings the maps of unlike networks [N, C_i, H_i, W_i] to one shape [N, C, H, W].

    Channels go through a 1x1 convolution and batch norm, positions are averaged down to the smallest map. Where all maps
    agree there is nothing to do, and nothing to train unless `always`.
    """

    def __init__(self, shapes: list[tuple[int, ...]], always: bool = False):
        super().__init__()
        for shape in shapes:
            if len(shape) != 3:
                raise ValueError(f"the last stage gives features of shape {list(shape)}, not maps [C, H, W]; use dml.")
        self.channels = shapes[0][0]
        self.size = (min(shape[1] for shape in shapes), min(shape[2] for shape in shapes))
        same = len({shape[0] for shape in shapes}) == 1 and not always
        self.projections = nn.ModuleList(
            nn.Identity() if same else projection(shape[0], self.channels) for shape in shapes
        )

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        projected = [projection(each) for projection, each in zip(self.projections, maps, strict=True)]
        return [each if each.shape[2:] == self.size else F.adaptive_avg_pool2d(each, self.size) for each in projected]


class Fusion(nn.Module):
    """One classifier on the last maps of m students: maps [N, C, H, W] to logits [N, K].

    concatenate -> depthwise 3x3 -> batch norm -> ReLU -> 1x1 -> batch norm -> ReLU -> global average -> linear

    Batch norm uses the batch's statistics. Raises ValueError when the maps differ in size: see `Align`.
    """

    def __init__(self, num_maps: int, channels: int, num_outputs: int):
        super().__init__()
        joined = num_maps * channels
        self.depthwise = nn.Conv2d(joined, joined, 3, padding=1, groups=joined, bias=False)
        self.depthwise_norm = nn.BatchNorm2d(joined, track_running_stats=False)
        self.pointwise = nn.Conv2d(joined, channels, 1, bias=False)
        self.pointwise_norm = nn.BatchNorm2d(channels, track_running_stats=False)
        self.classifier = nn.Linear(channels, num_outputs)

    def forward(self, maps: list[Tensor]) -> Tensor:
        if len({each.shape for each in maps}) != 1:
            shapes = ", ".join(str(list(each.shape)) for each in maps)
            raise ValueError(f"feature maps to fuse need one shape, found {shapes}: pool them to the smallest")
        spread = self.depthwise_norm(self.depthwise(torch.cat(maps, dim=1))).relu()  # [N, m C, H, W]
        mixed = self.pointwise_norm(self.pointwise(spread)).relu()  # [N, C, H, W]
        return self.classifier(mixed.mean((2, 3)))


class FFL(Online):
    """z_f = Fusion(F_1, ..., F_m) of the students' last maps
    L = sum_i CE(z_i) + CE(z_f) + weight w(step) { sum_i KL_T([z_f] -> z_i) + KL_T([mean_i z_i] -> z_f) }

    Scalars: squared differences for KL. Students of unlike architecture have their maps aligned first. The deployed
    student is the plain network. `spread` in the log is how unlike the students answer.

    >>> student = gankd.distill(student, real=train, method="ffl", steps=2)

    Loss: losses.online.mfef_loss
    """

    Config = FFLConfig
    reads = ("map",)

    def __init__(self, config: FFLConfig, setup: Setup):
        super().__init__(config, setup)
        self.align = Align(self.shapes("map"))
        self.fusion = Fusion(config.peers, self.align.channels, setup.task.num_outputs)

    def fuse(self, maps: list[Tensor]) -> Tensor:
        """The fused classifier's outputs [N, K]."""
        return self.fusion(self.align(maps))

    def fusion_modules(self) -> list[nn.Module]:
        return [self.align, self.fusion]

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        config, weight = self.config, self.config.weight * self.ramp
        answers, batch = self.answers_to(batch)
        outputs, maps = answers.outputs, answers.maps
        fused = self.fuse([each.detach() for each in maps] if config.detach_fusion_input else maps)
        loss, labels, to_students, to_fused = mfef_loss(
            student_logits=outputs,
            fused_logits=fused,
            labels=batch.labels,
            temperature=config.temperature,
            kd_weight=weight,
            task=self.task,
        )
        log = {"fused_to_students": to_students, "students_to_fused": to_fused}
        return {"loss": loss, "task": labels, **log, "spread": disagreement(outputs, self.task)}

    def parameter_groups(self) -> list[dict]:
        parameters = [parameter for module in self.fusion_modules() for parameter in module.parameters()]
        return [{"params": parameters, "weight_decay": self.config.fusion_weight_decay}]
