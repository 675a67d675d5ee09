"""Things that a configuration calls by name, ours and those of a user's own file.

NETWORKS = Registry("network")

@NETWORKS.register("tiny")
def tiny(num_outputs: int, in_channels: int, *, width: Count = 8) -> nn.Module: ...

NETWORKS.find("tinny")               # ValueError: unknown network 'tinny'; did you mean 'tiny'?
NETWORKS.options("tiny").of({...})   # the keyword arguments, validated
"""

import inspect
import typing
from collections.abc import Callable
from typing import Any, TypeVar

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler, create_model
from pydantic_core import core_schema

from generators.settings import Settings, nearest

T = TypeVar("T")


class Registry(dict[str, T]):
    """By name, in the order in which they were registered.

    kind: what they are, for sentences: "network".
    defaults: which settings, that stand beside the name, a thing may have defaults of its own for, and what they are else.
    """

    def __init__(self, kind: str, **defaults: Any):
        super().__init__()
        self.kind, self.common_defaults = kind, defaults
        self.own_defaults: dict[str, dict[str, Any]] = {}

    def register(self, name: str, **defaults: Any) -> Callable[[T], T]:
        """A decorator that enters a class or function under `name`, with its own `defaults`. Raises ValueError: another
        one has this name; an unknown default. The same file, imported again, replaces its own."""
        for key in defaults.keys() - self.common_defaults.keys():
            known = nearest(key, self.common_defaults) if self.common_defaults else "; it has none"
            raise ValueError(f"{self.kind} '{name}': unknown default '{key}'{known}")

        def enter(thing: T) -> T:
            known = self.get(name)
            if known is not None and _origin(known) != _origin(thing):
                raise ValueError(
                    f"{self.kind} '{name}' of {_origin(thing)} exists already, in {_origin(known)}; take another name."
                )
            self[name], self.own_defaults[name] = thing, defaults
            return thing

        return enter

    def find(self, name: str) -> T:
        """Raises a ValueError with the nearest name when there is none of `name`."""
        if name not in self:
            raise ValueError(f"unknown {self.kind} '{name}'{nearest(name, self)}")
        return self[name]

    def defaults(self, name: str) -> dict[str, Any]:
        """The defaults of the one called `name`."""
        return {**self.common_defaults, **self.own_defaults.get(name, {})}

    def options(self, name: str) -> type[Settings]:
        """The settings of the one called `name`; raises as `find` does."""
        return options_of(self.find(name))


class NameIn:
    """`Annotated[str, NameIn(NETWORKS)]`: a setting that is a name in a registry. The schema lists the names."""

    def __init__(self, registry: Registry):
        self.registry = registry

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        def check(name: str) -> str:
            self.registry.find(name)
            return name

        return core_schema.no_info_after_validator_function(check, handler(source))

    def __get_pydantic_json_schema__(self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler) -> dict:
        return {**handler(schema), "enum": list(self.registry)}


class OptionsIn(NameIn):
    """`Annotated[dict[str, Any], OptionsIn(NETWORKS)]`: the options of a thing that is named beside them. The schema shows
    those of every thing in the registry that has some; whoever knows the name validates them (`Registry.options`)."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return handler(source)

    def __get_pydantic_json_schema__(self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler) -> dict:
        options = {name: self.registry.options(name) for name in self.registry}
        known = [{**of.model_json_schema(), "title": name} for name, of in options.items() if of.model_fields]
        return {**handler(schema), **({"anyOf": [*known, {"maxProperties": 0}]} if known else {})}


class Options(Settings, use_attribute_docstrings=False):  # parameters have none; the search takes 15 ms in a notebook
    """The options of a thing in a registry."""


def options_of(function: Any) -> type[Options]:
    """The keyword-only parameters of a function (or of a class's constructor) as settings: validated, in the schema, with a
    suggestion for a misspelt one.

    Its first paragraph is their help; a parameter without annotation takes anything.
    """
    target = function
    if not inspect.isroutine(function):  # a class, or an object that can be called
        target = function.__init__ if inspect.isclass(function) else type(function).__call__
    hints = typing.get_type_hints(target, include_extras=True)
    fields: dict[str, Any] = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is parameter.KEYWORD_ONLY:
            default = ... if parameter.default is parameter.empty else parameter.default
            fields[name] = (hints.get(name, Any), default)
    name = getattr(function, "__name__", type(function).__name__)
    model = create_model(f"{name}Options", __base__=Options, __module__=function.__module__, **fields)
    model.__doc__ = (inspect.getdoc(function) or "").split("\n\n")[0]
    return model


def _origin(thing: Any) -> str:
    """Where a class or function was defined; the same after its module is imported again."""
    return f"{thing.__module__}.{thing.__qualname__}"
