"""How far a long loop has come: a bar in a terminal or notebook, a plain line now and then in a log.

with Progress(range(steps), title="generator", every=50) as progress:
    for step in progress:
        progress.note(loss=0.3)
"""

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import Generic, TypeVar

T = TypeVar("T")


class Progress(Generic[T]):
    """Iterates over `steps`, and shows elapsed and remaining time and what was noted last.

    title: what is going on, one or two words.
    total: steps in all, those before `first` included; None: `first` and the length of `steps`.
    first: steps that an earlier run has done.
    every: steps between two lines where there is no terminal.
    shown: False for the processes that stay silent.
    """

    def __init__(
        self,
        steps: Iterable[T],
        *,
        title: str,
        total: int | None = None,
        first: int = 0,
        every: int = 50,
        unit: str = "step",
        shown: bool = True,
    ):
        if total is None and isinstance(steps, Sized):
            total = first + len(steps)
        self.steps, self.title, self.total, self.done, self.first = steps, title, total, first, first
        self.every, self.unit, self.notes, self.started = every, unit, "", time.monotonic()
        self.lines, self.bar = shown, None
        if shown and has_bar():
            from tqdm.auto import tqdm

            self.lines = False
            self.bar = tqdm(total=total, desc=title, initial=first, unit=unit, dynamic_ncols=True)

    def __iter__(self) -> Iterator[T]:
        for step in self.steps:
            yield step
            self.done += 1
            if self.bar is not None:
                self.bar.update()
            elif self.lines and (self.done % self.every == 0 or self.done == self.total):
                print(self.line(), file=sys.stderr, flush=True)
        self.close()

    def note(self, **values: float | str) -> None:
        """Show these values beside the steps from now on; numbers with two decimals."""
        words = {name: value if isinstance(value, str) else f"{value:.2f}" for name, value in values.items()}
        self.notes = ", ".join(f"{name} {word}" for name, word in words.items())
        if self.bar is not None:
            self.bar.set_postfix_str(self.notes)

    def line(self) -> str:
        """The state as one line: "generator: 150/2000 steps, loss 0.30, 0:00:12 elapsed, 0:02:30 left"."""
        elapsed = time.monotonic() - self.started
        of = "" if self.total is None else f"/{self.total}"
        parts = [f"{self.title}: {self.done}{of} {self.unit}s", self.notes, f"{clock(elapsed)} elapsed"]
        if self.total is not None and self.done > self.first:
            parts.append(f"{clock(elapsed / (self.done - self.first) * (self.total - self.done))} left")
        return ", ".join(filter(None, parts))

    def close(self) -> None:
        """Leave the bar as it is."""
        if self.bar is not None:
            self.bar.close()

    def __enter__(self) -> "Progress[T]":
        return self

    def __exit__(self, *_) -> None:
        self.close()


def has_bar() -> bool:
    """Whether something that can draw a bar is looking: a terminal, or a notebook."""
    if sys.stderr.isatty():
        return True
    if "IPython" not in sys.modules:
        return False
    from tqdm import auto, std

    return auto.notebook_tqdm is not std.tqdm


def clock(seconds: float) -> str:
    """Hours, minutes and seconds, "1:02:03"."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"
