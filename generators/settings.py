"""The base of every settings model: typed, frozen, strict, and helpful about a misspelt key."""

import difflib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

# the vocabulary of settings: each of these words means one thing in every configuration
Positive = Annotated[float, Field(gt=0)]
Weight = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(gt=0)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]


def nearest(word: str, choices) -> str:
    """Return "; did you mean 'x'?" for the closest of `choices`, or the list of them when none is close."""
    choices = sorted(map(str, choices))
    close = difflib.get_close_matches(str(word), choices, n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else f"; valid: {', '.join(choices)}"


class Settings(BaseModel):
    """A frozen group of settings. The docstring under a field is its help text; an unknown key is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True)

    @model_validator(mode="before")
    @classmethod
    def _name_the_nearest_key(cls, values: Any) -> Any:
        if isinstance(values, dict):
            for key in values:
                if key not in cls.model_fields:
                    raise ValueError(f"unknown key '{key}'{nearest(key, cls.model_fields)}")
        return values

    @classmethod
    def of(cls, values: dict[str, Any]):
        """The settings that a dictionary holds.
        Raises ValueError: one line a problem: the key's dotted path, what is wrong with it, what was found."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise ValueError("\n".join(sentences(error, values))) from None

    def replace(self, **changes: Any):
        """A copy with `changes`, validated like any other settings; raises as `of` does. What was left to a default is left
        to it again, as that may depend on what changes."""
        given = {name: getattr(self, name) for name in self.model_fields_set}
        return type(self).of({**given, **changes})


def sentences(error: ValidationError, values: Any) -> list[str]:
    """A validation error as one sentence a problem, for a person who wrote `values`."""
    found = []
    for problem in error.errors():
        keys = _keys(problem, values)
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "union_tag_invalid":
            tag, tags = problem["ctx"]["tag"], problem["ctx"]["expected_tags"].replace("'", "").split(", ")
            message = f"unknown {keys[-1] if keys else 'name'} '{tag}'{nearest(tag, tags)}"
        elif problem["type"] not in ("value_error", "missing"):
            message = f"{message}, got {problem['input']!r}"
        sentence = f"{'.'.join(keys)}: {message}" if keys else message
        if sentence not in found:
            found.append(sentence)
    return found


def _keys(problem: Any, values: Any) -> list[str]:
    """The user's keys on pydantic's path to a problem; the members of a union (a method's name, `int`) are on it too."""
    keys = []
    for step in problem["loc"]:
        if (isinstance(values, dict) and step in values) or (
            isinstance(values, list | tuple) and isinstance(step, int)
        ):
            values = values[step]
        elif not (problem["type"] == "missing" and step == problem["loc"][-1]):
            continue
        keys.append(str(step))
    return keys


def paths_in(values: Any) -> Iterator[Path]:
    """The paths among settings, however deep they stand."""
    if isinstance(values, Path):
        yield values
    elif isinstance(values, BaseModel | dict):
        yield from paths_in(list(dict(values).values()))
    elif isinstance(values, list | tuple):
        for value in values:
            yield from paths_in(value)


UNESSENTIAL = frozenset({"log_every", "checkpoint_every", "sample_every", "workers", "memory_budget", "title", "force"})
"""Settings that change no result, wherever they stand."""


def fingerprint_settings(settings: BaseModel, without: Iterable[str] = ()) -> dict[str, Any]:
    """Settings as JSON, without those that change no result and those named in `without`."""
    return settings.model_dump(mode="json", exclude={*UNESSENTIAL, *without})
