"""The distillation methods, by the name that a configuration calls them."""

from __future__ import annotations

from typing import Annotated, Any, Union

from pydantic import Field

from gankd.distillers.base import Distiller, MethodConfig
from gankd.distillers.kd import KD
from gankd.distillers.supervised import Supervised
from generators.settings import nearest

__all__ = ["KD", "METHODS", "AnyMethodConfig", "Distiller", "MethodConfig", "Supervised", "method_config"]

METHODS: dict[str, type[Distiller]] = {
    method.Config.model_fields["name"].default: method for method in (Supervised, KD)
}

AnyMethodConfig = Annotated[
    Union[tuple(method.Config for method in METHODS.values())], Field(discriminator="name")  # noqa: UP007
]


def method_config(method: str | dict[str, Any] | MethodConfig) -> MethodConfig:
    """A method's settings from its name, from a dictionary with `name`, or from settings.

    Raises:
        ValueError: an unknown method.
    """
    if isinstance(method, MethodConfig):
        return method
    values = {"name": method} if isinstance(method, str) else method
    if values.get("name") not in METHODS:
        raise ValueError(f"unknown method '{values.get('name')}'{nearest(values.get('name'), METHODS)}")
    return METHODS[values["name"]].Config.of(values)
