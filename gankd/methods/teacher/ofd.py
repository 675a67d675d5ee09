"""OFD: the student's maps before the ReLU follow the teacher's where these are positive, and are low where they are not.

Heo et al., "A Comprehensive Overhaul of Feature Distillation", ICCV 2019, arXiv 1904.01866.
"""

import math
from typing import Literal

from torch import Tensor, nn

from gankd.losses import ofd_loss, ofd_margin
from gankd.methods.setup import Outputs, Setup
from gankd.methods.taps import map_taps
from gankd.methods.terms import FeatureTermConfig, Term
from gankd.models.taps import batch_norms_before_relu, default_taps
from generators.settings import Weight


class OFDConfig(FeatureTermConfig):
    """task loss + weight * (sum over stages of a partial squared distance before the ReLU)."""

    name: Literal["ofd"] = "ofd"
    """The method."""
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


class OFD(Term):
    """t' = max(t, margin); sum over channels and positions of (s - t')^2, zero where t <= 0 and s <= t'; mean over samples;
    halved from stage to stage upwards. The margin is the mean of a channel's negative values, by its batch norm.

    Raises ValueError: a teacher whose batch norms before the ReLU are not known.

    >>> student = gankd.distill(student, teacher, real=train, method="ofd")

    Loss: losses.activations.ofd_loss
    """

    Config = OFDConfig

    def __init__(self, config: OFDConfig, setup: Setup):
        super().__init__(config, setup)
        norms = norms_of(setup, config.teacher_taps)
        self.student_taps, self.teacher_taps, student_shapes, _ = map_taps(setup, config, preact=True)
        self.connectors = nn.ModuleList(
            Connector(shape[0], norms[path]) for shape, path in zip(student_shapes, self.teacher_taps, strict=True)
        )

    def forward(self, outputs: Outputs) -> Tensor:
        losses = [
            ofd_loss(student_feature=connect(student), teacher_feature=teacher, margin=connect.margin)
            for connect, student, teacher in zip(self.connectors, *self.features(outputs), strict=True)
        ]
        return sum(loss / 2**depth for depth, loss in enumerate(reversed(losses)))


def norms_of(setup: Setup, paths: tuple[str, ...] | None) -> dict[str, nn.BatchNorm2d]:
    """The batch norms that give the margins, by the tap whose channels they have.

    Raises ValueError: one that is not known.
    """
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
