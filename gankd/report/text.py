"""Numbers and names as a person reads them."""

from __future__ import annotations

import math
import re

METRIC_NAMES = {"top1": "top-1 accuracy", "mae": "mean absolute error"}  # those that choices are made by
SHORT_NAMES = {"top1": "top-1", "top5": "top-5", "mae": "MAE", "rmse": "RMSE", "r2": "R²"}
UNITLESS = ("r2",)


def num_decimals(metrics: dict, name: str) -> int:
    """Decimals for a metric: its largest spread to two digits up to 35, to one above; three digits where there is none.

    The rounding rule of the Particle Data Group, "Review of Particle Physics", introduction.
    """
    arms = metrics["arms"].values()
    spread = max(arm["test"][name]["std"] for arm in arms)
    if spread > 0:
        return num_digits(spread, 2 if spread / 10 ** math.floor(math.log10(spread)) < 3.55 else 1)
    return num_digits(max(abs(arm["test"][name]["mean"]) for arm in arms), 3)


def num_digits(value: float, digits: int) -> int:
    """Decimals that show a positive value with so many digits, at most 6."""
    return min(6, max(0, digits - 1 - math.floor(math.log10(value)))) if value > 0 else digits - 1


def with_spread(collected: dict, decimals: int, unit: str = "") -> str:
    """ "93.4 ± 0.4 %"; without the spread where there is one seed."""
    text = f"{collected['mean']:.{decimals}f}"
    if len(collected["values"]) > 1:
        text += f" ± {collected['std']:.{decimals}f}"
    return minus(f"{text} {unit}".strip())


def with_unit(value: float, decimals: int, unit: str) -> str:
    return minus(f"{value:.{decimals}f} {unit}".strip())


def in_unit(name: str, unit: str) -> str:
    return f"{name} [{unit}]" if unit else name


def capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def minus(text: str) -> str:
    """Numbers with a minus sign in place of the hyphen."""
    return re.sub(r"-(?=\d)", "−", text)


def share(synthetic: float | str) -> str:
    """An arm's share of synthetic samples in words."""
    return synthetic if isinstance(synthetic, str) else f"{100 * synthetic:g} %" if synthetic else "none"
