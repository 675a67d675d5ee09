"""The doors of the report: every part of its page is a section, a function of a finished run, ours and a user's alike.

    @SECTIONS.register("mistakes")
    def mistakes(run: FinishedRun) -> str:
        return as_section("Mistakes", as_table(["class", "taken for"], [["cat", "dog"]], (0, 1)))

They stand on the page in the order in which they were registered; one that returns "" has nothing to say.
"""

import dataclasses
import functools
import json
import warnings
from collections.abc import Callable, Iterator
from html import escape
from pathlib import Path

from gankd.data.splits import Splits
from generators.registry import Registry


@dataclasses.dataclass(frozen=True)
class FinishedRun:
    """What a section may read."""

    directory: Path
    """The directory of the run: config.yaml, metrics.jsonl, stores, networks."""
    data: Splits
    """The images; the numbers of the test split are in `metrics`."""
    metrics: dict
    """What `gankd.report.tables.summarize` made: the contents of metrics.json."""

    @functools.cached_property
    def log(self) -> list[dict]:
        """The lines of metrics.jsonl that count."""
        return read_log(self.directory / "metrics.jsonl")


SECTIONS: Registry[Callable[[FinishedRun], str]] = Registry("report section")


def drawn(run: FinishedRun) -> Iterator[str]:
    """All sections of a run as HTML; in the place of one that fails stands why."""
    for name, section in SECTIONS.items():
        try:
            html = section(run)
            if not isinstance(html, str):
                raise TypeError(f"it returned {type(html).__name__} in place of HTML (str)")
        except Exception as error:  # whatever it is, it must not cost the numbers of a whole run
            reason = f"The section “{name}” is not available: {type(error).__name__}: {error}"
            warnings.warn(reason, stacklevel=2)
            html = f'<section><p class="aside">{escape(reason)}</p></section>'
        yield html


def read_log(path: Path) -> list[dict]:
    """The lines of metrics.jsonl that count.

    A resumed or repeated stage writes steps again: the last writing counts, and what an earlier one wrote from that
    step on is dropped.
    """
    stages: dict[str, list[dict]] = {}
    for text in path.read_text().splitlines():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue  # a run that was killed leaves half a line
        written = stages.setdefault(line["stage"], [])
        while written and "step" in line and written[-1]["step"] >= line["step"]:
            written.pop()
        written.append(line)
    return [line for written in stages.values() for line in written]
