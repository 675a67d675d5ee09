"""The door for a user's own file: what it registers can be called by name like what is ours.

# mine.py, named in a YAML by `plugins: [mine.py]`, or imported before a library call
import gankd

@gankd.register("network", "tiny")
def tiny(num_classes: int, in_channels: int, *, width: int = 8) -> nn.Module: ...
"""

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from generators.registry import Registry
from generators.settings import nearest

T = TypeVar("T")
REGISTRIES = {
    "reader": ("gankd.data.readers", "READERS"),
    "network": ("gankd.models", "NETWORKS"),
    "generator_network": ("generators.networks", "NETWORKS"),
    "augmentation": ("gankd.data.augment", "AUGMENTATIONS"),
    "optimizer": ("gankd.training", "OPTIMIZERS"),
    "report_section": ("gankd.report", "SECTIONS"),
    "method": ("gankd.methods", "METHODS"),
}
"""By kind: the module and the name of the registry. Methods enter theirs by being defined."""
PLUGINS: dict[str, ModuleType] = {}
"""The user's files that were loaded, by the name under which they are imported."""


def register(kind: str, name: str, **defaults: Any) -> Callable[[T], T]:
    """A decorator that enters a class or function under `name` among those of its kind.

    kind: reader, network, generator_network, augmentation, optimizer or report_section. A method needs none: a class
        with a `Config` registers itself.
    **defaults: of an optimizer: `learning_rate`, `weight_decay` and the `batch_size` that the rate is for, if any; of a
        generator_network: `learning_rate`, `betas`, `warmup`, `decay`.
    Raises ValueError: an unknown kind or default, or a name that is taken.
    """
    if kind == "method":
        raise ValueError("a method registers itself: derive it from gankd.methods.Term or Distiller, with a Config.")
    if kind not in REGISTRIES:
        raise ValueError(f"unknown kind '{kind}'{nearest(kind, set(REGISTRIES) - {'method'})}")
    return registry(kind).register(name, **defaults)


def registry(kind: str) -> Registry[Any]:
    """What there is of a kind, by name."""
    module, name = REGISTRIES[kind]
    return getattr(importlib.import_module(module), name)


def load_plugins(names: Iterable[str], *, beside: str | Path = ".") -> list[str]:
    """Import a user's files: modules by name, from `beside` or wherever Python finds them, or files by path, relative to
    `beside`. Returns their names, with absolute paths for files, under which they are found from anywhere.

    Raises ValueError: nothing of that name, or a file that raises.
    """
    return [_load(name, Path(beside)) for name in names]


def _load(name: str, beside: Path) -> str:
    path = beside / (name if name.endswith(".py") else f"{name.replace('.', '/')}.py")
    try:
        if path.is_file():
            _load_file(path.resolve())
            return str(path.resolve())
        if name.endswith(".py"):
            raise ValueError(f"plugins: there is no file {path}; paths are relative to the YAML.")
        sys.path.insert(0, str(beside.resolve()))
        try:
            PLUGINS[name] = importlib.import_module(name)
        finally:
            sys.path.remove(str(beside.resolve()))
    except ModuleNotFoundError as error:
        if path.is_file() or error.name != name.split(".")[0]:
            raise ValueError(f"plugins: {name} needs the module '{error.name}', which is not installed.") from error
        raise ValueError(f"plugins: there is no module '{name}', neither beside the YAML nor installed.") from error
    except (ValueError, OSError):
        raise
    except Exception as error:
        raise ValueError(f"plugins: {name} raises {type(error).__name__}: {error}") from error
    return name


def _load_file(path: Path) -> None:
    name = path.stem
    known = sys.modules.get(name)
    if known is not None and Path(getattr(known, "__file__", None) or "").resolve() != path and name not in PLUGINS:
        raise ValueError(f"plugins: {path} has the name of the module {name}, which is in use; rename the file.")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None, path  # it is a .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # so that what it defines can be pickled
    spec.loader.exec_module(module)
    PLUGINS[name] = module


def plugins_of(inputs: Any) -> dict[str, dict[str, str | None]]:
    """{"plugins": {name: hash of its content}} of those whose things are named in `inputs` (JSON values); {} without any."""
    from gankd.fingerprints import file_hash

    words = set(_words(inputs)) if PLUGINS else set()
    used = {
        name: file_hash(Path(str(module.__file__)))
        for name, module in PLUGINS.items()
        if words & set(_registered(module))
    }
    return {"plugins": used} if used else {}


def _registered(module: ModuleType) -> Iterator[str]:
    """The names under which a file has registered something."""
    for kind in REGISTRIES:
        for name, thing in registry(kind).items():
            if getattr(thing, "__module__", None) == module.__name__:
                yield name


def _words(values: Any) -> Iterator[str]:
    if isinstance(values, str):
        yield values
    elif isinstance(values, Mapping):
        for key, value in values.items():
            yield str(key)
            yield from _words(value)
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _words(value)
