"""Numbers and names as a person reads them, in the page and in the terminal."""

import math
import re

from rich.console import Console

METRIC_NAMES = {"top1": "top-1 accuracy", "mae": "mean absolute error"}  # those that choices are made by
SHORT_NAMES = {"top1": "top-1", "top5": "top-5", "mae": "MAE", "rmse": "RMSE", "r2": "R²"}
UNITLESS = ("r2",)


def plain_console(**settings) -> Console:
    """A terminal in which text is text: titles, units, class names and paths of users hold no markup and no emoji codes."""
    return Console(markup=False, emoji=False, highlight=False, **settings)


def num_decimals(metrics: dict, name: str) -> int:
    """Decimals for a metric: its largest spread to two digits up to 35, to one above; three digits where there is none.

    The rounding rule of the Particle Data Group, "Review of Particle Physics", introduction.
    """
    arms = metrics["arms"].values()
    spread = max(arm["test"][name]["std"] or 0.0 for arm in arms)
    if spread > 0:
        return num_digits(spread, 2 if spread / 10 ** math.floor(math.log10(spread)) < 3.55 else 1)
    return num_digits(max(abs(arm["test"][name]["mean"]) for arm in arms), 3)


def num_digits(value: float, digits: int) -> int:
    """Decimals that show a positive value with so many digits, at most 6."""
    return min(6, max(0, digits - 1 - math.floor(math.log10(value)))) if value > 0 else digits - 1


def number(value: float, decimals: int, sign: str = "") -> str:
    """A number with so many decimals; as a power of ten where that would be zeros, or more digits than anybody reads."""
    extreme = value and (abs(value) >= 1e9 or abs(value) < 1e-5)
    return f"{value:{sign}.3g}" if extreme else f"{round(value, decimals) + 0.0:{sign}.{decimals}f}"  # + 0.0: never -0


def with_spread(collected: dict, decimals: int, unit: str = "") -> str:
    """ "93.4 ± 0.4 %"; without the spread where there is one seed."""
    text = number(collected["mean"], decimals)
    if len(collected["values"]) > 1:
        text += f" ± {number(collected['std'], decimals)}"
    return minus(f"{text} {unit}".strip())


def with_unit(value: float, decimals: int, unit: str) -> str:
    return minus(f"{number(value, decimals)} {unit}".strip())


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
