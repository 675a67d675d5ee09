"""What a stage is: what it reads, what it is about to do, and its work, in one place.

A stage is made when its `result` is asked for: first what it reads, then itself, unless that was done before. So whatever
nobody reads is never made.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from gankd.experiment.artifacts import PENDING, StageDirectory
from gankd.fingerprints import file_hash
from gankd.plugins import plugins_of

if TYPE_CHECKING:
    from gankd.models import ModelConfig
    from gankd.tasks import Task
    from gankd.training import TrainingConfig


class Stage:
    """One directory of a run and how it is made. `name` is its path in the run's directory."""

    name: str
    kind: ClassVar[str]
    """Which of the run's `STAGES` it belongs to."""
    made = False
    """Whether it was made in this run."""
    minutes: float | None = None
    """How long it takes, where the user says so."""

    def __init__(self, run: Any):
        self.run = run  # the `Run` that has the stages, which imports all of them

    @property
    def reads(self) -> list[Stage]:
        """The stages whose results this one reads."""
        return []

    def inputs(self) -> dict[str, Any]:
        """Everything else that its work reads, as JSON: settings, and fingerprints of contents."""
        raise NotImplementedError

    @property
    def title(self) -> str:
        """What a dry run calls it and those like it."""
        return self.kind

    def plan(self) -> str:
        """What it and those like it are about to do, in half a line."""
        raise NotImplementedError

    @property
    def training(self) -> tuple[ModelConfig, Task, TrainingConfig] | None:
        """The network that it trains, for what task and how; None where its work is another."""
        return None

    def make(self) -> dict[str, Any]:
        """Do the work in `path`; returns what is to be kept of it in stage.json."""
        raise NotImplementedError

    def load(self) -> Any:
        """What later stages read of the finished stage."""
        return None

    @property
    def path(self):
        return self.run.directory / self.name

    @property
    def directory(self) -> StageDirectory:
        run, inputs = self.run, self.inputs()
        inputs |= {"reads": {stage.name: stage.content for stage in self.reads}}
        inputs |= {"mixed_precision": run.accelerator.mixed_precision, **plugins_of(inputs)}
        if run.accelerator.gradient_accumulation_steps != 1:
            inputs["gradient_accumulation_steps"] = run.accelerator.gradient_accumulation_steps
        return StageDirectory(self.path, inputs, replace=run.replace)

    @property
    def content(self) -> str:
        """A hash of what it made, for those that read it."""
        return self.directory.content

    def refusal(self) -> str | None:
        """Why it could not begin, as far as that is known before the stages that it reads are made."""
        return self.directory.refusal()

    def state(self) -> str:
        """What will become of it, for a dry run; touches nothing."""
        directory = self.directory
        if (sentence := self.refusal()) is not None:
            return f"will refuse: {sentence}"
        state = directory.state()
        if state in ("other", "old"):
            return "will be made again (--replace)"
        if state in ("finished", "cut off") and PENDING in directory.inputs["reads"].values():
            missing = [name for name, content in directory.inputs["reads"].items() if content == PENDING]
            return f"is there; compared with {', '.join(missing)} once that is made"
        return {"new": "new", "cut off": "continues", "finished": "done"}[state]

    @functools.cached_property
    def results(self) -> dict[str, Any]:
        """What is kept of the finished stage; making it, and what it reads, where that is not done."""
        for stage in self.reads:
            stage.results  # noqa: B018 (what it reads is made first)
        directory = self.directory
        with directory.once(self.run.accelerator) as results:
            done = results is None
            self.run.say(f"[bold]{self.name}[/bold]: {'done before, skipped' if done else 'running'}")
            if not done:
                results |= self.make()
                self.made = True
        return directory.results

    @functools.cached_property
    def result(self) -> Any:
        """What it made, for those that read it."""
        self.results  # noqa: B018
        return self.load()


def everything_read(stage: Stage) -> Iterator[Stage]:
    """A stage and whatever is read on the way to it."""
    for read in stage.reads:
        yield from everything_read(read)
    yield stage


def file_inputs(files: Iterable[Path]) -> dict[str, str]:
    """The contents of files as JSON; PENDING for one that is still to be made."""
    return {str(path): file_hash(path) or PENDING for path in files}


def task_inputs(task: Task) -> dict[str, Any]:
    """A task as JSON: its kind, classes or range, statistics, unit, head, bins."""
    return {"kind": task.kind, **dataclasses.asdict(task)}


def normalize_inputs(normalize) -> list[list[float]]:
    """A normalisation as JSON."""
    return [normalize.mean.flatten().tolist(), normalize.std.flatten().tolist()]


def with_key(key: str, function: Callable, *arguments):
    """What the function returns; its ValueError with the key of the configuration before it."""
    try:
        return function(*arguments)
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from error
