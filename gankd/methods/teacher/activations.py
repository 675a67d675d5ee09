"""Which neurons fire: the student's maps before the ReLU are on the teacher's side of zero.

ab: Heo et al., "Knowledge Transfer via Distillation of Activation Boundaries Formed by Hidden Neurons", AAAI 2019, arXiv
    1811.03233; learned first, then the student is trained on its task alone
ofd: Heo et al., "A Comprehensive Overhaul of Feature Distillation", ICCV 2019, arXiv 1904.01866; the student
    follows the teacher where that is positive, and is low where it is not
"""

import math
from typing import Literal

from torch import Tensor, nn

from gankd.losses import activation_boundary_loss, ofd_loss, ofd_margin
from gankd.methods.setup import Outputs, Setup
from gankd.methods.taps import ConvRegressor, MapTerm
from gankd.methods.terms import FeatureTermConfig
from gankd.models.taps import batch_norms_before_relu, default_taps
from generators.settings import Positive, Weight


class ABConfig(FeatureTermConfig):
    """First the sum over stages of a hinge on the signs before the ReLU alone, then the task loss alone."""

    name: Literal["ab"] = "ab"
    """The method's name."""
    weight: Weight = 1.0
    """Whether the term is used: 0 leaves it out, any other weight is the same, as the first stage minimises it alone."""
    task_weight: Positive = 1.0
    """Weight of the labels' loss, the only one in the second stage."""
    margin: Positive = 1.0
    """How far beyond zero the student's maps should be where the teacher's are on one side of it."""
    first_stage: Positive = 30 / 240
    """Steps of the first stage, before the training's own, as a share of them; its learning rate is constant."""


class AB(MapTerm):
    """max(m + s, 0)^2 where t <= 0 and max(m - s, 0)^2 where t > 0, summed and halved from stage to stage upwards, of maps
    before the ReLU. The student's go through connectors (where its shapes differ), which the second stage leaves alone.

    >>> student = gankd.distill(student, teacher, real=train, method="ab")

    Loss: losses.activations.activation_boundary_loss
    """

    Config = ABConfig
    preact = True
    first_stage_modules = ("connectors",)

    def __init__(self, config: ABConfig, setup: Setup):
        super().__init__(config, setup)
        self.connectors = nn.ModuleList(
            nn.Identity() if s == t else ConvRegressor(s, t, relu=False) for s, t in zip(*self.shapes, strict=True)
        )
        self.first_stage_share, self.factor = config.first_stage, 0.0

    def forward(self, outputs: Outputs) -> Tensor:
        student, teacher = self.features(outputs)
        return activation_boundary_loss(
            student_features=[connect(s) for connect, s in zip(self.connectors, student, strict=True)],
            teacher_features=teacher,
            margin=self.config.margin,
        )

    def first_stage_loss(self, outputs: Outputs) -> Tensor:
        return self(outputs)


class OFDConfig(FeatureTermConfig):
    """task loss + weight * (sum over stages of a partial squared distance before the ReLU)."""

    name: Literal["ofd"] = "ofd"
    """The method's name."""
    weight: Weight = 1e-3
    """Weight of the term, which is a sum over channels and positions."""
    teacher_taps: tuple[str, ...] | None = None
    """Module paths of the teacher's features, one for each of the student's: maps of its own list before their ReLU, or
    batch norms, whose weights the margins come from. Null: its stages before their ReLU."""


class Connector(nn.Module):
    """A student's map with the teacher's channels, and the margin of each of these, [C]."""

    def __init__(self, student_channels: int, norm: nn.BatchNorm2d):
        super().__init__()
        channels = norm.num_features
        self.convolution = nn.Conv2d(student_channels, channels, 1, bias=False)
        nn.init.normal_(self.convolution.weight, std=math.sqrt(2 / channels))
        self.norm = nn.BatchNorm2d(channels)
        self.register_buffer("margin", ofd_margin(bn_weight=norm.weight, bn_bias=norm.bias).cpu())

    def forward(self, feature: Tensor) -> Tensor:
        return self.norm(self.convolution(feature))


class OFD(MapTerm):
    """t' = max(t, margin); sum over channels and positions of (s - t')^2, zero where t <= 0 and s <= t'; mean over samples;
    halved from stage to stage upwards. The margin is the mean of a channel's negative values, by its batch norm.

    Raises ValueError: a teacher whose batch norms before the ReLU are not known.

    >>> student = gankd.distill(student, teacher, real=train, method="ofd")

    Loss: losses.activations.ofd_loss
    """

    Config = OFDConfig
    preact = True

    def __init__(self, config: OFDConfig, setup: Setup):
        norms = norms_of(setup, config.teacher_taps)
        super().__init__(config, setup)
        self.connectors = nn.ModuleList(
            Connector(shape[0], norms[path]) for shape, path in zip(self.shapes[0], self.teacher_taps, strict=True)
        )

    def forward(self, outputs: Outputs) -> Tensor:
        losses = [
            ofd_loss(student_feature=connect(student), teacher_feature=teacher, margin=connect.margin)
            for connect, student, teacher in zip(self.connectors, *self.features(outputs), strict=True)
        ]
        return sum(loss / 2**depth for depth, loss in enumerate(reversed(losses)))


def norms_of(setup: Setup, paths: tuple[str, ...] | None) -> dict[str, nn.BatchNorm2d]:
    """The batch norms that give the margins, by the tap whose channels they have.
    Raises ValueError: one that is not known."""
    teacher = setup.teacher.module
    norms: dict[str, nn.BatchNorm2d] = {}
    if paths is None or hasattr(teacher, "norms_before_relu"):
        before_relu = batch_norms_before_relu(teacher)
        norms = dict(zip(default_taps(teacher, preact=True)[1:-1], before_relu, strict=True))
    modules = dict(teacher.named_modules())
    for path in paths or ():
        module = modules.get(path)
        if path not in norms and isinstance(module, nn.BatchNorm2d) and module.affine:
            norms[path] = module
        if path not in norms:
            raise ValueError(
                f"ofd takes its margins from batch norms, and which one belongs to '{path}' of teacher_taps is not "
                "known; name a batch norm with weights (the last one of a stage), or use method reviewkd."
            )
    return norms
