"""The experiment, stage by stage: each reads what the ones before it left in the run directory and leaves its own.

runs/NAME/
    config.yaml                     the resolved experiment
    generator/  teacher/  synthetic/
    students/ARM/seed-N/            model.safetensors, model.json, stage.json
    metrics.jsonl  metrics.json  report.html
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from rich.console import Console
from torch import nn

from gankd import api, provenance
from gankd.artifacts import Stage, fingerprint
from gankd.config import ArmConfig, ExperimentConfig, dump_config
from gankd.data.readers import load_data
from gankd.data.sets import ImageSet
from gankd.describe import header
from gankd.evaluation import evaluate
from gankd.models import ModelConfig, build_model, load_weights
from gankd.models.store import load_model, save_model
from gankd.synthesis.stage import Synthesis
from gankd.synthesis.store import load_store
from gankd.tasks import Classification, task_of
from gankd.teacher import Normalize, Teacher
from gankd.training import TrainingConfig
from generators.checkpoints import replace_whole
from generators.interface import ConditionalGenerator
from generators.pretrained import load_generator
from generators.training import build_networks
from generators.training import train as train_generator

STAGES = ("generator", "teacher", "synthesis", "students", "report")
IRRELEVANT = {"log_every", "checkpoint_every", "workers", "memory_budget", "title"}  # settings that change no result


class Run:
    """One experiment in its directory. `run()` does all of it; every stage is skipped when it is done.

    Args:
        replace: make stages that other settings left there again, instead of stopping.
    """

    def __init__(self, config: ExperimentConfig, accelerator: Accelerator, *, replace: bool = False):
        self.config, self.accelerator, self.replace = config, accelerator, replace
        self.directory = config.directory
        self.console = Console(stderr=True, quiet=not accelerator.is_main_process)
        self.data = load_data(config.data, kind=config.task.kind, seed=config.seed)
        train = self.data.train
        self.task = task_of(
            train, label_min=config.task.label_min, label_max=config.task.label_max, unit=config.task.unit
        )
        for split in (self.data.train, self.data.validation, self.data.test):
            self.task.check(split.labels, split.name)
        self.num_classes = self.task.num_classes if isinstance(self.task, Classification) else None
        self.label_range = None if self.num_classes else (self.task.label_min, self.task.label_max)
        self.normalize = Normalize.of(train.images).to(accelerator.device)
        self.check_networks()

    def run(self, until: str = STAGES[-1]) -> dict | None:
        """Run the stages up to `until`; returns what `metrics.json` holds when the report was made."""
        self.start()
        generator = self.generator()
        if until == "generator":
            return None
        teacher = self.teacher()
        if until == "teacher":
            return None
        synthetic = self.synthesis(generator, teacher)
        if until == "synthesis":
            return None
        self.students(teacher, synthetic)
        if until == "students":
            return None
        return self.report()

    def start(self) -> None:
        """Print the header and save the resolved configuration."""
        for line in header(self):
            self.console.print(line, highlight=False, soft_wrap=True)
        if self.accelerator.is_main_process:
            with replace_whole(self.directory / "config.yaml") as temporary:
                temporary.write_text(dump_config(self.config))
        self.accelerator.wait_for_everyone()

    # --- stages -------------------------------------------------------------------------------------------------------

    def generator_stage(self) -> Stage:
        return self.stage(
            "generator",
            {
                "config": self.relevant(self.config.generator),
                "seed": self.config.seed,
                "train": fingerprint(self.part(self.config.generator.train_on)),
                "task": [self.num_classes, self.label_range],
            },
        )

    def generator(self) -> ConditionalGenerator:
        """Train the generator on the training split, or take the user's."""
        config, device = self.config.generator, self.accelerator.device
        if config.checkpoint is not None:
            generator = load_generator(config.checkpoint, device=device)
            self.check_loaded_generator(generator)
            return generator
        stage = self.generator_stage()
        if not self.open(stage):
            started = time.perf_counter()
            train = self.part(config.train_on)
            train_generator(
                train.images,
                train.labels,
                num_classes=self.num_classes,
                label_range=self.label_range,
                config=config,
                directory=stage.directory,
                seed=self.config.seed,
                accelerator=self.accelerator,
                log=self.log,
            )
            stage.finish(self.accelerator, seconds=time.perf_counter() - started)
        return load_generator(stage.directory, device=device)

    def teacher_stage(self) -> Stage:
        config = self.config.teacher
        inputs = {
            "config": self.relevant(config),
            "seed": self.config.seed,
            "train": fingerprint(self.part(config.train_on)),
            "mixed_precision": self.config.runtime.mixed_precision,
        }
        if config.model.checkpoint is not None and config.model.checkpoint.exists():
            inputs["weights"] = provenance.file_hash(config.model.checkpoint)
        return self.stage("teacher", inputs)

    def teacher(self) -> Teacher:
        """Train the teacher on the training split, or take the user's; its validation metrics are kept with it."""
        config, stage = self.config.teacher, self.teacher_stage()
        if not self.open(stage):
            started = time.perf_counter()
            model = self.build(config.model, self.config.seed)
            normalize = self.normalize
            if config.mean is not None:
                normalize = Normalize(torch.tensor(config.mean), torch.tensor(config.std)).to(self.accelerator.device)
            if config.train:
                model = self.train(
                    "teacher",
                    model,
                    None,
                    ArmConfig(),
                    config,
                    self.config.seed,
                    stage.directory,
                    real=self.part(config.train_on),
                    normalize=normalize,
                )
            self.save(stage, model, config.model, normalize, started)
        model, normalize = load_model(stage.directory)
        return Teacher(model, normalize, device=self.accelerator.device, feature_path=config.features)

    def synthesis_stage(self, generator: ConditionalGenerator, teacher: Teacher) -> Stage:
        inputs = {
            "config": self.relevant(self.config.synthesis),
            "seed": self.config.seed,
            "train": fingerprint(self.data.train),
            "generator": fingerprint(generator),
            "teacher": fingerprint(teacher.module),
        }
        if self.config.synthesis.rho == "validation":
            inputs["student"] = self.relevant(self.config.student)
        return self.stage("synthetic", inputs)

    def synthesis(self, generator: ConditionalGenerator, teacher: Teacher) -> ImageSet:
        """Draw, select and relabel synthetic samples (cGAN-KD), into a store."""
        stage = self.synthesis_stage(generator, teacher)
        if not self.open(stage):
            started = time.perf_counter()
            Synthesis(
                generator,
                teacher,
                self.task,
                self.data.train,
                self.config.synthesis,
                directory=stage.directory,
                seed=self.config.seed,
                accelerator=self.accelerator,
                provenance={"inputs": stage.inputs},
                validation_error=lambda synthetic: self.validation_error(teacher, synthetic),
                log=self.log,
            ).run()
            stage.finish(self.accelerator, seconds=time.perf_counter() - started)
        return load_store(stage.directory)

    def student_stage(self, arm: str, seed: int, teacher: Teacher, synthetic: ImageSet) -> Stage:
        config = self.config.student
        inputs = {
            "config": self.relevant(config, {"arms", "seeds"}),
            "arm": self.relevant(config.arms[arm]),
            "seed": seed,
            "train": fingerprint(self.data.train),
            "teacher": fingerprint(teacher.module),
            "synthetic": fingerprint(synthetic) if config.arms[arm].synthetic else None,
            "mixed_precision": self.config.runtime.mixed_precision,
        }
        return self.stage(f"students/{arm}/seed-{seed}", inputs)

    def students(self, teacher: Teacher, synthetic: ImageSet) -> None:
        """Train every arm once a seed; validation metrics are kept with each student."""
        config = self.config.student
        for seed in config.seeds:
            for name, arm in config.arms.items():
                stage = self.student_stage(name, seed, teacher, synthetic)
                if not self.open(stage):
                    started = time.perf_counter()
                    model = self.build(config.model, seed)
                    label = f"student {name} seed {seed}"
                    model = self.train(label, model, teacher, arm, config, seed, stage.directory, synthetic=synthetic)
                    self.save(stage, model, config.model, self.normalize, started)

    def report(self) -> dict:
        """Read the test split, once, for every finished network; write metrics.json and report.html."""
        from gankd.report import write_report
        from gankd.report.tables import print_table, summarize

        metrics = summarize(self)
        if self.accelerator.is_main_process:
            with replace_whole(self.directory / "metrics.json") as temporary:
                temporary.write_text(json.dumps(metrics, indent=2))
            print_table(metrics)
            write_report(self.directory, self.data, metrics)
        self.accelerator.wait_for_everyone()
        return metrics

    # --- what the stages share ----------------------------------------------------------------------------------------

    def stage(self, name: str, inputs: dict[str, Any]) -> Stage:
        return Stage(self.directory / name, inputs, replace=self.replace)

    def open(self, stage: Stage) -> bool:
        finished = stage.open(self.accelerator)
        name = stage.directory.relative_to(self.directory)
        self.console.print(
            f"[bold]{name}[/bold]: {'done before, skipped' if finished else 'running'}", highlight=False, soft_wrap=True
        )
        return finished

    def relevant(self, settings, without: set[str] = frozenset()) -> dict:
        """Settings as JSON, without those that change no result."""
        return settings.model_dump(mode="json", exclude=IRRELEVANT | without)

    def build(self, model: ModelConfig, seed: int) -> nn.Module:
        """A network for this task and these images, its initial weights a function of `seed`."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            network = build_model(model.name, self.task.num_outputs, self.data.train.image_shape[0], **model.options)
        return load_weights(network, model.checkpoint) if model.checkpoint else network

    def train(
        self,
        name: str,
        model: nn.Module,
        teacher: Teacher | None,
        arm: ArmConfig,
        training: TrainingConfig,
        seed: int,
        directory: Path | None,
        *,
        real: ImageSet | None = None,
        synthetic: ImageSet | None = None,
        normalize: Normalize | None = None,
    ) -> nn.Module:
        """Train one network as an arm says, on `real` (None: the training split) and `synthetic` samples."""
        fraction = None if arm.synthetic == "union" else arm.synthetic
        real = real if real is not None else self.data.train
        settings = {key: getattr(training, key) for key in TrainingConfig.model_fields}
        settings |= {"steps": self.num_steps(training, real), "epochs": None}
        return api.distill(
            model,
            teacher,
            real=real if fraction != 1 else None,
            synthetic=synthetic if fraction != 0 else None,
            method=arm.method,
            synthetic_fraction=fraction if fraction not in (0, 1) else None,
            training=TrainingConfig(**settings),
            task=self.task,
            normalize=normalize or self.normalize,
            seed=seed,
            directory=directory,
            accelerator=self.accelerator,
            memory_budget=self.config.data.memory_budget << 20,
            workers=self.config.data.workers,
            name=name,
            log=self.log,
        )

    def save(self, stage: Stage, model: nn.Module, config: ModelConfig, normalize: Normalize, started: float) -> None:
        """Save a trained network with its validation metrics and finish its stage."""
        metrics = evaluate(model, normalize, self.task, self.data.validation, accelerator=self.accelerator)
        if self.accelerator.is_main_process:
            save_model(
                stage.directory,
                model,
                config,
                normalize,
                num_outputs=self.task.num_outputs,
                image_shape=self.data.train.image_shape,
                task=self.task,
            )
        stage.finish(self.accelerator, validation=metrics, seconds=time.perf_counter() - started)

    def validation_error(self, teacher: Teacher, synthetic: ImageSet) -> float:
        """Validation error of a plain student on real + `synthetic`, for choosing rho."""
        config = self.config.student
        shares = [arm.synthetic for arm in config.arms.values() if arm.synthetic]
        arm = ArmConfig(synthetic=shares[0] if shares else "union")
        model = self.build(config.model, config.seeds[0])
        model = self.train("student for rho", model, teacher, arm, config, config.seeds[0], None, synthetic=synthetic)
        value = evaluate(model, self.normalize, self.task, self.data.validation, accelerator=self.accelerator)[
            self.task.metric
        ]
        return -value if self.task.higher_is_better else value

    def log(self, values: dict[str, Any]) -> None:
        """Append one line to metrics.jsonl (main process), and send it to the tracker if there is one."""
        if self.accelerator.is_main_process:
            with open(self.directory / "metrics.jsonl", "a") as file:
                file.write(json.dumps({"time": round(time.time(), 3), **values}) + "\n")
        numbers = {f"{values['stage']}/{key}": value for key, value in values.items() if isinstance(value, int | float)}
        self.accelerator.log(numbers, step=values.get("step"))

    def num_steps(self, training: TrainingConfig, real: ImageSet) -> int:
        """Optimiser steps of a training; an epoch is a pass over the real data, whatever an arm adds to it."""
        return training.num_steps(-(-len(real) // training.batch_size))

    def part(self, name: str) -> ImageSet:
        return self.data.pool if name == "pool" else self.data.train

    def recorded(self) -> dict[str, dict]:
        """What every finished stage left in its stage.json, by its path in the run directory."""
        files = sorted(self.directory.rglob("stage.json"))
        return {str(file.parent.relative_to(self.directory)): json.loads(file.read_text())["results"] for file in files}

    # --- before anything runs -----------------------------------------------------------------------------------------

    def check_networks(self) -> None:
        """Build every network once, on no data, so that a configuration that cannot work stops here.

        Raises:
            ValueError: an image size or a channel count that a network cannot take, an unknown network or option.
        """
        if self.config.generator.checkpoint is None:
            build_networks(self.config.generator, self.data.train.image_shape, self.num_classes, self.label_range)
        for model in (self.config.teacher.model, self.config.student.model):
            network = build_model(model.name, self.task.num_outputs, self.data.train.image_shape[0], **model.options)
            try:
                with torch.no_grad():
                    network.eval()(torch.zeros(1, *self.data.train.image_shape))
            except RuntimeError as error:
                shape = "x".join(map(str, self.data.train.image_shape))
                raise ValueError(
                    f"network {model.name} cannot take images of {shape} (data.image_size): {error}"
                ) from error

    def check_loaded_generator(self, generator: ConditionalGenerator) -> None:
        """Raise a ValueError unless a user's generator makes images and takes labels of this experiment's kind."""
        shape = (generator.config.image_channels, generator.config.resolution, generator.config.resolution)
        if shape != self.data.train.image_shape:
            raise ValueError(
                f"generator.checkpoint makes images of {shape}, the data has {self.data.train.image_shape}: set "
                "data.image_size and data.channels to the generator's."
            )
        generator.condition(self.data.train.labels.unique())
