"""The base of every settings model: typed, frozen, strict, and helpful about a misspelt key."""

from __future__ import annotations

import difflib
from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator


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

    def replace(self, **changes: Any):
        """Return a copy with `changes`, validated like any other settings."""
        return type(self).model_validate({**self.model_dump(), **changes})
