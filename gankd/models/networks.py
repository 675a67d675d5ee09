"""The door for networks: ours by name, those of torchvision and timm, and a user's own.

@NETWORKS.register("tiny")
class Tiny(nn.Module):
    def __init__(self, num_outputs: int, in_channels: int, *, width: Count = 8): ...

build_model("tiny", num_classes=10, in_channels=1, width=16)
build_model(Tiny, num_classes=10, in_channels=1)
"""

from collections.abc import Callable
from typing import Any

from torch import nn

from gankd.models.inputs import carry
from generators.registry import Registry, options_of
from generators.settings import nearest

NETWORKS: Registry[Callable[..., nn.Module]] = Registry("network")
"""Called with the number of outputs, the number of channels, and options by keyword."""
LIBRARIES = ("torchvision", "timm")


def sized(network: type[nn.Module], *arguments: Any) -> Callable[..., nn.Module]:
    """The member of a family of networks that `arguments`, the first of its constructor, describe."""

    def build(num_outputs: int, in_channels: int) -> nn.Module:
        return network(*arguments, num_classes=num_outputs, in_channels=in_channels)

    build.__doc__ = network.__doc__
    return build


def build_model(
    name: str | Callable[..., nn.Module], num_classes: int = 100, in_channels: int = 3, **options: Any
) -> nn.Module:
    """A fresh network with `num_classes` outputs (1 for a scalar target) for images [N, in_channels, H, W].

    name: a key of `NETWORKS`, `torchvision:NAME`, `timm:NAME` (needs the extra `timm`), or a class or function that
        takes the number of outputs, the number of channels and, by keyword only, its options.
    options: keyword arguments of that network's constructor.
    Raises ValueError: an unknown name or option; a channel count that the network cannot take.
    """
    if callable(name):
        return name(num_classes, in_channels, **checked_options(name, options))
    library, _, model = name.rpartition(":")
    if library == "torchvision":
        return _torchvision_model(model, num_classes, in_channels, options)
    if library == "timm":
        return _timm_model(model, num_classes, in_channels, options)
    check_name(name)
    return carry(NETWORKS[name](num_classes, in_channels, **checked_options(name, options)))


def check_name(name: str) -> None:
    """Raise a ValueError with the nearest name unless there may be such a network; torchvision and timm are not asked."""
    if name not in NETWORKS and name.rpartition(":")[0] not in LIBRARIES:
        choices = [*NETWORKS, *(f"{library}:NAME" for library in LIBRARIES)]
        raise ValueError(f"unknown network '{name}'{nearest(name, choices)}")


def checked_options(network: str | Callable[..., nn.Module], options: dict[str, Any]) -> dict[str, Any]:
    """The options of a network that is registered or given, validated.
    Raises ValueError: an option that it does not have, with the nearest, or a value that it cannot have."""
    builder = NETWORKS.find(network) if isinstance(network, str) else network
    settings, name = options_of(builder), network if isinstance(network, str) else builder.__name__
    for option in options:
        if option not in settings.model_fields:
            known = settings.model_fields
            raise ValueError(
                f"'{option}' is no option of {name}{nearest(option, known) if known else ', which has none.'}"
            )
    values = settings.of(options)
    return {option: getattr(values, option) for option in options}


def _torchvision_model(name: str, num_classes: int, in_channels: int, options: dict[str, Any]) -> nn.Module:
    import torchvision

    names = torchvision.models.list_models(module=torchvision.models)
    if name not in names:
        raise ValueError(f"torchvision has no classifier '{name}'{nearest(name, names)}")
    if in_channels != 3:
        raise ValueError(f"torchvision:{name} takes colour images; set data.channels: 3 (grey images are repeated).")
    if name in ("googlenet", "inception_v3"):  # torch's own scheme; theirs draws for minutes and warns
        options = {"init_weights": False, **options}
    try:
        return torchvision.models.get_model(name, weights=None, num_classes=num_classes, **options)
    except TypeError as error:
        raise ValueError(f"torchvision:{name} does not take the options {sorted(options)}: {error}") from error


def _timm_model(name: str, num_classes: int, in_channels: int, options: dict[str, Any]) -> nn.Module:
    try:
        import timm
    except ImportError as error:
        raise ValueError(f"network 'timm:{name}' needs timm: pip install 'gankd[timm]'.") from error
    if not timm.is_model(name.partition(".")[0]):
        raise ValueError(f"timm has no network '{name}'{nearest(name, timm.list_models())}")
    try:
        return timm.create_model(name, num_classes=num_classes, in_chans=in_channels, **options)
    except TypeError as error:
        raise ValueError(f"timm:{name} does not take the options {sorted(options)}: {error}") from error
