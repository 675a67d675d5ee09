"""The architectures by name: a generator with its discriminator, ours in the file of that name, and those of a user.

    from generators.model import GeneratorModel, register_to_config
    from generators.networks import NETWORKS

    @NETWORKS.register("tiny")
    def tiny(resolution, image_channels, num_classes, label_range, *, width: Count = 16, latent_dim: Count = 8):
        return TinyGenerator(...), TinyDiscriminator(...)

    generators.train(images, labels, num_classes=10, network="tiny", options={"width": 32})

The generator is a `GeneratorModel`, the discriminator a module of (images [N, C, H, W] in [-1, 1], y [N]) that returns
logits [N]; y are class ids, or scalars in [0, 1]. The keyword-only parameters are the network's options. A generator that
has a loss of its own comes with None in place of the discriminator, see `own_loss`.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from generators.registry import Registry

if TYPE_CHECKING:
    from torch import nn

    from generators.model import GeneratorModel

Networks = tuple["GeneratorModel", "nn.Module | None"]

# settings that are what suits the network where they are not given, and what they are for most
NETWORKS: Registry[Callable[..., Networks]] = Registry(
    "generator network", widths=(256,) * 4, depth=2, learning_rate=2e-4, betas=(0.0, 0.9), warmup=0.0, decay=0.0
)

# ours: what the names of the two classes begin with, and the fields of GeneratorConfig that shape them
OURS = {
    "sngan": ("SNGAN", ("widths", "discriminator_widths", "latent_dim", "label_dim", "label_input")),
    "sagan": ("SAGAN", ("channels", "latent_dim", "label_dim", "label_input")),
    "biggan": ("BigGAN", ("channels", "latent_dim", "label_dim", "attention", "shared_embedding", "hierarchical")),
    "biggan_deep": ("BigGANDeep", ("channels", "latent_dim", "label_dim", "attention", "depth")),
    "dcgan": ("DCGAN", ("channels", "latent_dim", "label_dim", "label_input")),
    "unet": ("Flow", ("widths", "depth", "label_dim", "label_input", "patch", "sampling_steps", "label_guidance")),
}
OWN_DEFAULTS = {"unet": {"widths": (64, 96, 128), "depth": 1, "learning_rate": 1e-3, "betas": (0.9, 0.99)}}
OWN_DEFAULTS["unet"] |= {"warmup": 0.03, "decay": 0.5}
NETWORK_SETTINGS = {name: settings for name, (_, settings) in OURS.items()}
# where each generator is defined; that of StyleGAN2 is loaded, not trained
GENERATORS = {f"{title}Generator": name for name, (title, _) in OURS.items()} | {"StyleGAN2Generator": "stylegan2"}


class NetworkChoice(Protocol):
    """What a configuration says about the networks, see `generators.config.GeneratorConfig`."""

    @property
    def network(self) -> str: ...
    def network_settings(self) -> dict[str, Any]: ...


def generator_class(class_name: str, module: str | None = None) -> type[GeneratorModel]:
    """The generator class of that name: one of ours, imported on first use, or of a user's `module`, imported before.

    Raises LookupError: no class of that name is known; what would help, as the end of a sentence.
    """
    if class_name in GENERATORS:
        return getattr(importlib.import_module(f"generators.networks.{GENERATORS[class_name]}"), class_name)
    from generators.model import GeneratorModel

    kinds = [GeneratorModel]
    for kind in kinds:  # grows: every class whose base is in it
        kinds += kind.__subclasses__()
    found = [kind for kind in kinds if kind.__name__ == class_name and not kind.__module__.startswith("generators.")]
    if not found:
        missing = f"defined in {module}, which is not imported: import it first (in a YAML, plugins: [{module}])."
        raise LookupError(
            f"the architecture '{class_name}'; {missing if module else 'known: ' + ', '.join(GENERATORS)}"
        )
    return max(found, key=lambda kind: kind.__module__ == module)  # a plugin may be imported under another name


def network_classes(name: str) -> tuple[type[GeneratorModel], type[nn.Module] | None]:
    """The classes of our generator called `name` and of its discriminator, if any, imported on first use."""
    module, title = importlib.import_module(f"generators.networks.{name}"), OURS[name][0]
    return getattr(module, f"{title}Generator"), getattr(module, f"{title}Discriminator", None)


def build_networks(
    config: NetworkChoice,
    image_shape: tuple[int, int, int],
    num_classes: int | None,
    label_range: tuple[float, float] | None,
) -> Networks:
    """A fresh generator and discriminator for images [C, H, W] and one kind of label; None where the generator needs none.

    Raises ValueError: images that are not square or of a size the networks cannot take; labels of a kind they do not
    know; a network of a user's that is no generator for these images; settings of a game where there is none.
    """
    channels, height, width = image_shape
    if height != width:
        raise ValueError(f"images are {height}x{width}; the generators need square images: set data.image_size.")
    data = {"resolution": height, "image_channels": channels, "num_classes": num_classes, "label_range": label_range}
    generator, discriminator = NETWORKS.find(config.network)(**data, **config.network_settings())
    check_config(generator, config.network, data)
    if discriminator is None:
        from generators.own_loss import check_own_loss

        check_own_loss(generator, config)
    return generator, discriminator


def check_config(generator: nn.Module, network: str, data: dict[str, Any]) -> None:
    """Raise a ValueError unless what a network's builder returns first is a generator for images and labels of `data`."""
    from generators.model import GeneratorModel

    if not isinstance(generator, GeneratorModel):
        raise ValueError(
            f"the generator network '{network}' returns a {type(generator).__name__} first; return a GeneratorModel and its "
            "discriminator."
        )
    there = {name: tuple(value) if isinstance(value, list) else value for name, value in generator.config.items()}
    if "latent_dim" not in there:
        raise ValueError(f"the generator of '{network}' has no latent_dim in its config; let its __init__ take one.")
    for name, value in data.items():
        if there.get(name) != value:
            raise ValueError(
                f"the generator of '{network}' has {name} {there.get(name)} in its config, where the data has {value}; let "
                "its __init__ take what the builder is given, under @register_to_config."
            )


def _ours(name: str) -> Callable[..., Networks]:
    """The builder of one of our networks; its settings are fields of GeneratorConfig."""

    def build(*, num_classes, **settings):
        label_input = settings.get("label_input") or ("embedding" if num_classes else "fourier")
        settings |= {"num_classes": num_classes, "label_input": label_input}
        generator, discriminator = network_classes(name)
        of_generator = settings | {
            "num_steps": settings.get("sampling_steps"),
            "guidance": settings.get("label_guidance"),
        }
        of_discriminator = settings | {"widths": settings.get("discriminator_widths")}
        return _call(generator, of_generator), discriminator and _call(discriminator, of_discriminator)

    return build


def _call(network: type, settings: dict[str, Any]):
    """The network, made of those settings that its constructor names."""
    names = inspect.signature(network).parameters
    return network(**{name: value for name, value in settings.items() if name in names})


for _name in OURS:
    NETWORKS.register(_name, **OWN_DEFAULTS.get(_name, {}))(_ours(_name))
