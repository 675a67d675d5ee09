"""ReviewKD: each stage of the student, fused with a review of the deeper ones, gives the teacher's stage.

Chen et al., "Distilling Knowledge via Knowledge Review", CVPR 2021, arXiv 2104.09044.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gankd.losses import hcl_loss
from gankd.losses.precision import full_precision
from gankd.methods.setup import Outputs, Setup
from gankd.methods.taps import Shape
from gankd.methods.terms import FeatureTermConfig, Term
from gankd.models.taps import default_taps
from generators.settings import Share, Weight


class ReviewKDConfig(FeatureTermConfig):
    """task loss + weight * (sum over stages of the hierarchical context loss)."""

    name: Literal["reviewkd"] = "reviewkd"
    """The method's name."""
    weight: Weight = 5.0
    """Weight of the term. CIFAR-100: 5 for resnet32x4, wrn and ShuffleV1 students, 8 for ShuffleV2, 0.6 for resnet56 to
    resnet20, 1 for resnet110 to resnet32."""
    warmup: Share = 20 / 240
    """Share of the run in which the term's weight first rises linearly."""


class Attention(nn.Conv2d):
    """A stage's map and the review of the deeper ones, [N, M, h, w] each, the second enlarged to the first's size, summed
    with the weights that their own attention maps give: z1, z2 = sigmoid(conv1x1([feature, review])).
    """

    def __init__(self, width: int):
        super().__init__(2 * width, 2, 1)

    def forward(self, feature: Tensor, review: Tensor) -> Tensor:
        feature, review = full_precision(feature), full_precision(review)
        review = F.interpolate(review, size=feature.shape[2:], mode="nearest")
        with torch.autocast(feature.device.type, enabled=False):
            attention = torch.sigmoid(super().forward(torch.cat([feature, review], dim=1)))  # [N, 2, h, w]
        return feature * attention[:, :1] + review * attention[:, 1:]


class ReviewStage(nn.Module):
    """One stage: x = BN(conv1x1(feature)), fused with the review of the deeper stages, and BN(conv3x3) of that.

    `forward` returns the output [N, C_t, H_t, W_t] and the review for the next shallower stage, [N, M, H_s, W_s].
    """

    def __init__(self, student_shape: Shape, teacher_shape: Shape, width: int, *, deepest: bool):
        super().__init__()
        self.size = teacher_shape[1:]
        self.enter = nn.Sequential(nn.Conv2d(student_shape[0], width, 1, bias=False), nn.BatchNorm2d(width))
        self.attention = None if deepest else Attention(width)
        self.leave = nn.Sequential(
            nn.Conv2d(width, teacher_shape[0], 3, padding=1, bias=False), nn.BatchNorm2d(teacher_shape[0])
        )
        for convolution in (self.enter[0], self.leave[0]):  # as the published code; torch's default is a = sqrt(5)
            nn.init.kaiming_uniform_(convolution.weight, a=1)

    def forward(self, feature: Tensor, review: Tensor | None) -> tuple[Tensor, Tensor]:
        fused = self.enter(feature)
        if self.attention is not None:
            fused = self.attention(fused, review)
        resized = fused if fused.shape[2:] == self.size else F.interpolate(fused, self.size, mode="nearest")
        return self.leave(resized), fused


class ReviewKD(Term):
    """Stages from the deepest (the pooled vector, as a map of one position) to the shallowest; the loss compares them with
    the teacher's before their ReLU, at full size and pooled to 4, 2 and 1.

    >>> student = gankd.distill(student, teacher, real=train, method={"name": "reviewkd", "weight": 1})

    Loss: losses.activations.hcl_loss
    """

    Config = ReviewKDConfig

    def __init__(self, config: ReviewKDConfig, setup: Setup):
        super().__init__(config, setup)
        self.student_taps, self.teacher_taps = setup.taps(config, lambda taps: taps[1:])
        if not config.teacher_taps:
            before_relu = default_taps(setup.teacher.module, preact=True, image_shape=setup.data.image_shape)
            self.teacher_taps = before_relu[-len(self.teacher_taps) :]
        student, teacher = (
            [to_map_shape(path, shape) for path, shape in zip(paths, shapes, strict=True)]
            for paths, shapes in zip(
                (self.student_taps, self.teacher_taps), setup.shapes(self.student_taps, self.teacher_taps), strict=True
            )
        )
        width = min(512, student[-1][0])
        self.fusions = nn.ModuleList(
            ReviewStage(s, t, width, deepest=index == len(student) - 1)
            for index, (s, t) in enumerate(zip(student, teacher, strict=True))
        )

    def forward(self, outputs: Outputs) -> Tensor:
        student, teacher = ([to_map(feature) for feature in features] for features in self.features(outputs))
        reviewed, review = [], None
        for fuse, feature in zip(reversed(self.fusions), reversed(student), strict=True):
            output, review = fuse(feature, review)
            reviewed.append(output)
        return hcl_loss(student_features=reviewed, teacher_features=teacher[::-1])


def to_map_shape(path: str, shape: Shape) -> Shape:
    """(C, H, W) of what `to_map` makes of a feature of a shape without the batch dimension."""
    if len(shape) not in (1, 3):
        raise ValueError(
            f"reviewkd compares maps [C, H, W] and vectors [D], but '{path}' gives features of shape {list(shape)}; name "
            "other modules in student_taps and teacher_taps."
        )
    return (*shape, 1, 1)[:3]


def to_map(feature: Tensor) -> Tensor:
    """A vector [N, C] as a map [N, C, 1, 1]; a map as it is."""
    return feature[:, :, None, None] if feature.ndim == 2 else feature
