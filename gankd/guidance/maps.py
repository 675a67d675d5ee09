"""Maps of a frozen network, for discriminators that look at them."""

from collections.abc import Sequence

from torch import Tensor, nn

from gankd.models.taps import Taps, default_taps, feature_shapes
from gankd.models.teacher import Teacher
from generators.images import from_generator_to_unit


class NetworkMaps:
    """Images [N, C, H, W] in [-1, 1] to the maps [N, C_l, H_l, W_l] of a network, finest first, differentiable.

    network: frozen, with its own normalisation; `Teacher(network, normalize)`.
    image_shape: (C, H, W) of the images.
    taps: module paths of the maps (see `models.taps`); none: the last module of every stage, without the stem.
    Raises ValueError: a path that the network does not have, or whose output is no map of more than one position.
    """

    def __init__(self, network: Teacher, image_shape: tuple[int, int, int], taps: Sequence[str] = ()):
        side = network.image_size
        shape = (image_shape[0], side, side) if side else image_shape
        paths = list(taps) or map_paths(network.module, shape)
        for path, found in zip(paths, feature_shapes(network.module, shape, paths), strict=True):
            if len(found) != 3 or found[1] * found[2] == 1:
                raise ValueError(
                    f"'{path}' of {type(network.module).__name__} is {list(found)} for images {list(shape)}; discriminators "
                    "look at maps [C, H, W]: name other modules (taps)."
                )
        self.network, self.taps = network, Taps(network.module, paths)

    def __call__(self, images: Tensor) -> list[Tensor]:
        return self.taps(self.network.inputs(from_generator_to_unit(images)))[1]


def map_paths(network: nn.Module, image_shape: tuple[int, int, int]) -> list[str]:
    """Paths of the stages' last modules, finest first: `default_taps` without the vector and, of several, the stem."""
    paths = default_taps(network, image_shape=image_shape)
    maps = [
        path
        for path, shape in zip(paths, feature_shapes(network, image_shape, paths), strict=True)
        if len(shape) == 3 and shape[1] * shape[2] > 1
    ]
    if not maps:
        raise ValueError(
            f"{type(network).__name__} makes no maps of images {list(image_shape)}; name modules that do (taps)."
        )
    return maps[1:] if len(maps) > 2 else maps
