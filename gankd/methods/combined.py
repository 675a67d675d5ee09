"""Several methods at once: any list of terms with their weights, beside one task loss.

method: {name: combined, terms: [{name: kd, alpha: 1}, {name: sp, weight: 3000}]}
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from gankd.methods.base import MethodConfig
from generators.settings import Weight


class CombinedConfig(MethodConfig):
    """task_weight * task loss + the weighted terms of other methods (their own task_weight does not count)."""

    name: Literal["combined"] = "combined"
    """The method."""
    task_weight: Weight = 1.0
    """Weight of the labels' loss."""
    terms: Annotated[tuple[Any, ...], Field(min_length=1)]
    """Methods with their settings, each a term between student and teacher."""

    @field_validator("terms")
    @classmethod
    def _settings_of_terms(cls, values):
        from gankd.methods import METHODS, term_config  # the list of methods, this one among them

        terms = tuple(term_config(value) for value in values)
        owners = [term.name for term in terms if METHODS[term.name].own_label_loss]
        if len(owners) > 1:
            raise ValueError(f"{' and '.join(owners)} each bring a loss on the labels of their own; keep one of them")
        return terms
