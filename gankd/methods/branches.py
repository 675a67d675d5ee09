"""What the methods share in which a network teaches itself: taps on its own stages, branches on top of them, its last layer.

Everything here hangs on features that are read by module path, so that any network can have it.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from gankd.methods.setup import Setup
from gankd.methods.taps import Shape, stages
from gankd.methods.terms import TermConfig
from gankd.models.taps import INPUT, default_taps, feature_shapes


class StagesTermConfig(TermConfig):
    """A term on the student's own stages."""

    student_taps: tuple[str, ...] | None = None
    """Module paths of the stages' maps, shallow to deep. Null: every stage."""


def stage_taps(
    setup: Setup, name: str, paths: Sequence[str] | None, *, at_least: int = 1
) -> tuple[list[str], list[Shape]]:
    """Paths and shapes (C, H, W) of the student's stage maps, shallow to deep: the given ones, or every stage.

    A network with fewer than `at_least` stages lends its stem as the first.
    Raises ValueError: fewer than `at_least` maps even so, or a path that gives no map.
    """
    taps = list(paths or [])
    if not taps:
        known = default_taps(setup.student, image_shape=setup.data.image_shape)
        taps = stages(known) if len(stages(known)) >= at_least else known[:-1]
    if len(taps) < at_least:
        raise ValueError(
            f"{name} needs the maps of at least {at_least} stages, and of {type(setup.student).__name__} it has "
            f"{len(taps)}; name modules in student_taps."
        )
    shapes = feature_shapes(setup.student, setup.data.image_shape, taps)
    for path, shape in zip(taps, shapes, strict=True):
        if len(shape) != 3:
            raise ValueError(
                f"{name} takes maps [C, H, W], but '{path}' gives features of shape {list(shape)}; name a module before "
                "the pooling in student_taps."
            )
    return taps, shapes


def output_layer(setup: Setup, name: str) -> tuple[str, nn.Linear]:
    """Path of the input of the student's last linear layer, and the layer.
    Raises ValueError: a network whose outputs do not come from a linear layer, as far as its width tells."""
    path = default_taps(setup.student, image_shape=setup.data.image_shape)[-1]
    layer = setup.student.get_submodule(path.removesuffix(INPUT))
    if not isinstance(layer, nn.Linear) or layer.out_features != setup.task.num_outputs:
        raise ValueError(
            f"{name} needs a network that ends in a linear layer of {setup.task.num_outputs} outputs; the last one of "
            f"{type(setup.student).__name__} is {layer}."
        )
    return path, layer


class Branch(nn.Module):
    """From a shallow map to outputs: one block for each of the stages above it, average pooling, a linear layer.

    shapes: (C, H, W) of the map that comes in and of those of the stages above it, which the blocks' are like.
    block: (in_channels, out_channels, stride) to a module.
    """

    def __init__(self, shapes: Sequence[Shape], num_outputs: int, block: Callable[[int, int, int], nn.Module]):
        super().__init__()
        self.blocks = nn.Sequential(
            *(block(before[0], after[0], max(1, round(before[1] / after[1]))) for before, after in pairwise(shapes))
        )
        self.size = tuple(shapes[-1][1:])
        self.head = nn.Linear(shapes[-1][0], num_outputs)

    def forward(self, feature: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs [N, K], and the last map in the shape of the deepest stage's, [N, C, H, W]."""
        feature = self.blocks(feature)
        if feature.shape[2:] != self.size:  # an odd size may be halved up here and down in the network
            feature = F.adaptive_avg_pool2d(feature, self.size)
        return self.head(feature.mean(dim=(2, 3))), feature


def separable(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    """A light block: depthwise and pointwise convolution, each with batch norm and ReLU."""
    return nn.Sequential(
        nn.Conv2d(in_channels, in_channels, 3, stride=stride, padding=1, groups=in_channels, bias=False),
        nn.BatchNorm2d(in_channels),
        nn.ReLU(),
        nn.Conv2d(in_channels, out_channels, 1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
    )
