"""The architectures by name, each a generator with its discriminator in the file of that name."""

from __future__ import annotations

import importlib
import inspect
from typing import TYPE_CHECKING, Any

from generators.config import GeneratorConfig

if TYPE_CHECKING:
    from torch import nn

    from generators.interface import ConditionalGenerator

NETWORKS = {
    "sngan": ("SNGANGenerator", "SNGANDiscriminator"),
    "sagan": ("SAGANGenerator", "SAGANDiscriminator"),
    "biggan": ("BigGANGenerator", "BigGANDiscriminator"),
    "biggan_deep": ("BigGANDeepGenerator", "BigGANDeepDiscriminator"),
    "dcgan": ("DCGANGenerator", "DCGANDiscriminator"),
}
# where each generator is defined; that of StyleGAN2 is loaded, not trained
GENERATORS = {generator: name for name, (generator, _) in NETWORKS.items()} | {"StyleGAN2Generator": "stylegan2"}


def generator_class(class_name: str) -> type[ConditionalGenerator]:
    """The generator class of that name, imported on first use."""
    return getattr(importlib.import_module(f"generators.networks.{GENERATORS[class_name]}"), class_name)


def network_classes(name: str) -> tuple[type[ConditionalGenerator], type[nn.Module]]:
    """The classes of the generator and of the discriminator called `name`, imported on first use."""
    generator, discriminator = NETWORKS[name]
    return generator_class(generator), getattr(importlib.import_module(f"generators.networks.{name}"), discriminator)


def build_networks(
    config: GeneratorConfig, image_shape: tuple[int, int, int], num_classes: int | None, label_range: tuple | None
) -> tuple[ConditionalGenerator, nn.Module]:
    """A fresh generator and discriminator for images [C, H, W] and one kind of label.

    Raises:
        ValueError: images that are not square or of a size the networks cannot take; labels of a kind they do not know.
    """
    channels, height, width = image_shape
    if height != width:
        raise ValueError(f"images are {height}x{width}; the generators need square images: set data.image_size.")
    settings = {
        **config.network_settings(),
        "resolution": height,
        "image_channels": channels,
        "num_classes": num_classes,
        "label_range": label_range,
        "label_input": config.label_input or ("embedding" if num_classes else "fourier"),
    }
    generator, discriminator = network_classes(config.network)
    return (
        generator(**understood(generator, settings)),
        discriminator(**understood(discriminator, {**settings, "widths": config.discriminator_widths})),
    )


def understood(network: type, settings: dict[str, Any]) -> dict[str, Any]:
    """Those of the settings that the network's constructor names."""
    return {name: value for name, value in settings.items() if name in inspect.signature(network).parameters}
