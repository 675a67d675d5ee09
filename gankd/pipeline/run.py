"""The experiment, stage by stage: each reads what the ones before it left in the run directory and leaves its own.

runs/NAME/
    config.yaml                     the resolved experiment
    generator/  teacher/  synthetic/
    judge/  judged/                 a backbone that the generator is judged by; what the report's judge finds
    generated/                      samples with the generator's features, for backbones
    representation/ARM/seed-N/      backbones: model.safetensors, model.json, stage.json
    students/ARM/seed-N/            the same
    metrics.jsonl  metrics.json  report.html
"""

import functools
import itertools
import json
import time
from collections import Counter
from typing import Any

from accelerate import Accelerator
from rich.console import Console
from rich.markup import escape

from gankd.experiment import provenance
from gankd.experiment.config import ExperimentConfig, dump_config
from gankd.experiment.experiment import Experiment
from gankd.experiment.lock import locked
from gankd.pipeline.backbones import BackboneStage, FeatureSetStage, LiveFeatureSetStage
from gankd.pipeline.generator import GeneratorStage, LoadedGeneratorStage
from gankd.pipeline.judge import JudgedStage, JudgeStage
from gankd.pipeline.rehearsal import rehearse
from gankd.pipeline.report import make_report
from gankd.pipeline.stage import Stage, everything_read
from gankd.pipeline.students import StudentStage
from gankd.pipeline.synthesis import SyntheticStage
from gankd.pipeline.teacher import TeacherStage
from gankd.pipeline.time_left import TimeLeft
from generators.checkpoints import replace_whole

STAGES = ("judge", "generator", "teacher", "representation", "synthesis", "students", "report")
DONE = ("done", "there", "drawn live")
"""States of stages that have nothing to make."""


class Run(Experiment):
    """An experiment being run: `run()` is the table of contents; a stage that is done is skipped.

    replace: make stages that other settings left there again, instead of stopping.
    Raises ValueError: what could not work, before anything is made: see `rehearse`.
    """

    def __init__(self, config: ExperimentConfig, accelerator: Accelerator, *, replace: bool = False):
        super().__init__(config, accelerator)
        self.replace, self.console = replace, Console(stderr=True, quiet=not accelerator.is_main_process)
        self.generator = LoadedGeneratorStage(self) if config.generator.checkpoint else GeneratorStage(self)
        self.teacher, self.synthetic = TeacherStage(self), SyntheticStage(self)
        self.judge, self.judged = JudgeStage(self), JudgedStage(self)
        self.generated = LiveFeatureSetStage(self) if config.representation.live else FeatureSetStage(self)
        self.backbones = [
            BackboneStage(self, arm, seed) for seed in config.representation.seeds for arm in config.representation.arms
        ]
        self.students = [StudentStage(self, arm, seed) for seed in config.student.seeds for arm in config.student.arms]

    def run(self, until: str = STAGES[-1]) -> dict | None:
        """Make what the stages up to `until` need; returns what `metrics.json` holds when the report was made."""
        rehearse(self)
        stages = self.stages(until)
        self.agree(stages)
        with locked(self.directory, self.accelerator):
            self.start()
            self.make(stages)
            return make_report(self) if until == "report" else None

    def stages(self, until: str = STAGES[-1]) -> list[Stage]:
        """What is to be made, in order: what the arms read of the stages up to `until`, and that one itself."""
        wanted = self.read_by_arms
        if until == "report" and self.judged.is_asked and self.generator in wanted:
            wanted = {*wanted, *everything_read(self.judged)}
        everything = [self.judge, self.generator, self.teacher, self.generated, *self.backbones, self.synthetic]
        everything, kinds = [*everything, *self.students, self.judged], STAGES[: STAGES.index(until) + 1]
        unnamed = (self.generated, self.judged)  # made for those that read them, whatever is asked for by name
        return [
            stage
            for stage in everything
            if stage.kind in kinds and (stage in wanted or (stage.kind == until and stage not in unnamed))
        ]

    @property
    def read_by_arms(self) -> set[Stage]:
        """Backbones, students and whatever they read."""
        return {read for arm in (*self.backbones, *self.students) for read in everything_read(arm)}

    def make(self, stages: list[Stage]) -> None:
        """Make the stages in order. One that fails stops those that read it, and the run after the others."""
        failures: dict[Stage, ValueError] = {}
        left, time_left = [stage for stage in stages if stage.state() not in DONE], TimeLeft(self)
        if left:
            self.say(time_left.line(left))
        for stage in stages:
            if not failures.keys() & set(everything_read(stage)):
                try:
                    time_left.note(stage)  # which asks for it, so that it is made
                except ValueError as error:
                    failures[stage] = error
                    self.say(f"[bold]{stage.name}[/bold]: [red]{escape(str(error))}[/red]")
            left = [one for one in left if one is not stage and not failures.keys() & set(everything_read(one))]
            if left and stage.made:
                self.say(time_left.line(left))
        for error in failures.values():
            raise error

    def agree(self, stages: list[Stage]) -> None:
        """Raise a ValueError, before anything is written, when one of the stages would refuse to begin."""
        for stage in stages:
            if sentence := stage.refusal():
                raise ValueError(sentence)

    def start(self) -> None:
        """Print the header and save the resolved configuration."""
        for line in header(self):
            self.say(line)
        if self.accelerator.is_main_process:
            with replace_whole(self.directory / "config.yaml") as temporary:
                temporary.write_text(dump_config(self.config), encoding="utf-8")
        self.accelerator.wait_for_everyone()

    def plan(self, until: str = STAGES[-1]) -> list[str]:
        """The header, and every stage with its amount of work and what will become of it. Touches nothing."""
        rehearse(self)
        lines = header(self)
        for _, group in itertools.groupby(self.stages(until), key=type):
            stages = list(group)
            states = Counter(stage.state() for stage in stages)
            refusals = [state for state in states if state.startswith("will refuse")]
            counts = [f"{count} {state}" if len(stages) > 1 else state for state, count in states.items()]
            state = escape(", ".join(counts if not refusals else refusals[:1]))
            lines.append(f"  [bold]{stages[0].title}[/bold]: {escape(stages[0].plan())} ({state})")
        return lines

    # --- what the stages share ----------------------------------------------------------------------------------------

    def backbone_of(self, arm: str, seed: int) -> BackboneStage:
        """The backbone of an arm of `representation` with one seed."""
        return next(stage for stage in self.backbones if stage.name == f"representation/{arm}/seed-{seed}")

    @functools.cached_property
    def training_place(self) -> dict[str, Any]:
        """Where and how networks are trained, as `gankd.distill` takes it."""
        data = self.config.data
        place = {"accelerator": self.accelerator, "log": self.log}
        return {**place, "memory_budget": data.memory_budget << 20, "workers": data.workers}

    def say(self, line: str) -> None:
        """One line to the terminal, from the main process; rich markup."""
        self.console.print(line, highlight=False, soft_wrap=True)

    def log(self, values: dict[str, Any]) -> None:
        """Append one line to metrics.jsonl (main process), and send it to the tracker if there is one."""
        if self.accelerator.is_main_process:
            with open(self.directory / "metrics.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps({"time": round(time.time(), 3), **values}) + "\n")
        numbers = {f"{values['stage']}/{key}": value for key, value in values.items() if isinstance(value, int | float)}
        self.accelerator.log(numbers, step=values.get("step"))


def header(run: Run) -> list[str]:
    """What will run, where, on what; rich markup."""
    config, data = run.config, run.data
    shape = "x".join(map(str, run.image_shape))
    sizes = f"{len(data.train)} train, {len(data.validation)} validation, {len(data.test)} test"
    code = f"configuration {provenance.config_hash(config)}, commit {provenance.commit()}"
    return [
        f"[bold]{config.name}[/bold]  {escape(config.title)}",
        f"  {provenance.describe_processes(run.accelerator, config.runtime.processes)}",
        f"  {run.task.kind}, images {shape}: {sizes}",
        f"  run directory {escape(str(run.directory))}, {code}",
    ]
