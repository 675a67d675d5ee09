"""Any callable as a generator, in one line.

generator = wrap(my_network, resolution=32, latent_dim=128, num_classes=10)
images = generator.sample(torch.tensor([3, 1, 4]))
"""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from generators.interface import ConditionalGenerator, evaluating
from generators.settings import nearest


class Facts(dict):
    """A dictionary whose entries are attributes too."""

    __getattr__ = dict.__getitem__


class WrappedGenerator(ConditionalGenerator):
    """A generator around `source(z, y)`; see `wrap`."""

    def __init__(
        self,
        *,
        source: Callable[[Tensor, Tensor], Tensor],
        feature_names: Sequence[str] = (),
        class_names: Sequence[str] | None = None,
        **config: Any,
    ):
        super().__init__()
        self.class_names = tuple(class_names) if class_names else None
        self.source, self.config = source, Facts(config)
        self.feature_names = tuple(f"source.{name}" for name in feature_names)
        self.register_buffer("place", torch.empty(0), persistent=False)  # the device, where `source` has no parameter

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        with evaluating(self.source) if isinstance(self.source, nn.Module) else contextlib.nullcontext():
            images = self.source(z, y)
        expected = (len(z), self.config.image_channels, self.config.resolution, self.config.resolution)
        if images.shape != expected:
            raise ValueError(f"the wrapped generator returns images {tuple(images.shape)}; expected {expected}.")
        if len(images) and not images.abs().max() <= 1:
            low, high = images.min().item(), images.max().item()
            raise ValueError(f"the wrapped generator returns values in [{low:g}, {high:g}]; expected [-1, 1].")
        return images

    def sample_with_features(self, labels: Tensor, latents: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        images, features = super().sample_with_features(labels, latents)
        return images, {name.removeprefix("source."): values for name, values in features.items()}

    def save_pretrained(self, *args, **kwargs) -> None:
        raise ValueError("a wrapped generator is code, which is not saved; save the weights of what is wrapped.")


def wrap(
    source: Callable[[Tensor, Tensor], Tensor],
    *,
    resolution: int,
    latent_dim: int,
    num_classes: int | None = None,
    label_range: tuple[float, float] | None = None,
    image_channels: int = 3,
    feature_names: Sequence[str] = (),
    class_names: Sequence[str] | None = None,
) -> ConditionalGenerator:
    """`source` as a generator, ready to sample. It draws in evaluation mode; otherwise `source` stays as it is.

    source: a function or module of (z [N, latent_dim] standard normal, y [N]) that returns images [N, C, H, W] in [-1,
        1]; y are class ids (int64), or scalars scaled to [0, 1].
    num_classes: for class ids; 1 for a source that knows no classes. Exactly one of this and `label_range` is given.
    label_range: (min, max) of a scalar label in the user's units.
    class_names: what the class ids mean, in their order; compared with the data's where they are known.
    feature_names: submodules of `source` whose outputs `sample_with_features` returns.
    Raises ValueError: both or neither kind of label, a feature name that `source` does not have.
    """
    if (num_classes is None) == (label_range is None):
        raise ValueError("give exactly one of num_classes (class ids; 1 for none) and label_range (scalar labels).")
    modules = dict(source.named_modules()) if isinstance(source, nn.Module) else {}
    for name in feature_names:
        if name not in modules:
            raise ValueError(f"feature name '{name}' is no module of what is wrapped{nearest(name, modules)}.")
    images = {"resolution": resolution, "image_channels": image_channels, "latent_dim": latent_dim}
    labels = {"num_classes": num_classes, "label_range": label_range}
    return WrappedGenerator(source=source, feature_names=feature_names, class_names=class_names, **images, **labels)
