"""The experiment, stage by stage: each reads what the ones before it left in the run directory and leaves its own.

runs/NAME/
    config.yaml                     the resolved experiment
    generator/  teacher/  synthetic/
    generated/                      samples with the generator's features, for backbones
    representation/ARM/seed-N/      backbones: model.safetensors, model.json, stage.json
    students/ARM/seed-N/            the same
    metrics.jsonl  metrics.json  report.html
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gankd import api
from gankd.data.live import live_set
from gankd.data.sets import ImageSet
from gankd.evaluation import evaluate
from gankd.experiment.artifacts import Stage, fingerprint
from gankd.experiment.config import ArmConfig, dump_config
from gankd.experiment.experiment import Experiment
from gankd.methods.label_free.simreg import SimRegConfig
from gankd.models import ModelConfig, load_checkpoint
from gankd.models.store import load_model, save_model
from gankd.models.teacher import Normalize, Teacher
from gankd.pipeline.describe import header
from gankd.synthesis.generated import write_generated
from gankd.synthesis.stage import Synthesis, check_generator
from gankd.synthesis.store import load_store
from gankd.tasks import SCALAR, Regression, Task
from gankd.training import TrainingConfig
from generators.checkpoints import replace_whole
from generators.interface import ConditionalGenerator
from generators.pretrained import load_generator
from generators.training import train as train_generator

STAGES = ("generator", "teacher", "representation", "synthesis", "students", "report")


class Run(Experiment):
    """An experiment being run: `run()` is the table of contents; a stage that is done is skipped."""

    def run(self, until: str = STAGES[-1]) -> dict | None:
        """Run the stages up to `until`; returns what `metrics.json` holds when the report was made."""
        self.start()
        generator = self.generator()
        if until == "generator":
            return None
        teacher = self.teacher()
        if until == "teacher":
            return None
        if self.config.representation.arms:
            self.representations(generator, teacher)
        if until == "representation":
            return None
        if self.config.student.arms:
            synthetic = self.synthesis(generator, teacher)
            if until == "synthesis":
                return None
            self.students(teacher, synthetic)
        if until in ("synthesis", "students"):
            return None
        return self.report(generator, teacher)

    def start(self) -> None:
        """Print the header and save the resolved configuration."""
        for line in header(self):
            self.say(line)
        if self.accelerator.is_main_process:
            with replace_whole(self.directory / "config.yaml") as temporary:
                temporary.write_text(dump_config(self.config))
        self.accelerator.wait_for_everyone()

    # --- stages -------------------------------------------------------------------------------------------------------

    def generator(self) -> ConditionalGenerator:
        """Train the generator on the training split, or take the user's."""
        config, device = self.config.generator, self.accelerator.device
        if config.checkpoint is not None:
            generator = load_generator(config.checkpoint, device=device)
            check_generator(generator, self.task, self.data.train)
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
                score=self.generator_score() if config.score_every else None,
                log=self.log,
            )
            stage.finish(self.accelerator, seconds=time.perf_counter() - started)
        return load_generator(stage.directory, device=device)

    def generator_score(self) -> Callable[[ConditionalGenerator], float]:
        """What the generator is watched by while it trains: its Frechet distance to the validation images."""
        from gankd.fidelity.extractors import inception_extractor, teacher_extractor
        from gankd.fidelity.scores import frechet_scorer

        config = self.config.generator
        if config.score_extractor is not None:
            extractor = inception_extractor(config.score_extractor, device=self.accelerator.device)
        else:
            extractor = teacher_extractor(self.teacher())
        return frechet_scorer(extractor, self.data.validation, num_samples=config.score_samples, seed=self.config.seed)

    def teacher(self) -> Teacher:
        """Train the teacher on the training split, or take the user's; its validation metrics are kept with it."""
        config, stage = self.config.teacher, self.teacher_stage()
        if not self.open(stage):
            started = time.perf_counter()
            model = self.build(config.model, self.config.seed, self.teacher_task)
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
                    task=self.teacher_task,
                )
            self.save(stage, model, config.model, normalize, started, self.teacher_task)
        model, normalize = load_model(stage.directory)
        task = self.teacher_task
        if isinstance(task, Regression) and task.head == SCALAR != self.task.head:  # as widely as it errs, it teaches
            task = dataclasses.replace(task, sigma=stage.results["validation"]["rmse"] / task.std or None)
        device = self.accelerator.device
        return Teacher(model, normalize, device=device, feature_path=config.features, task=task).speak(self.task)

    def generated(self, generator: ConditionalGenerator) -> ImageSet:
        """The generator's samples with its features of them: live, or in a store."""
        config = self.config.representation
        live = live_set(generator, config.num_generated, seed=self.config.seed)
        if config.live:
            return live
        stage = self.stage("generated", {"generated": fingerprint(live)})
        if not self.open(stage):
            started, inputs = time.perf_counter(), {"inputs": stage.inputs}
            write_generated(live.images, stage.directory, accelerator=self.accelerator, provenance=inputs)
            stage.finish(self.accelerator, seconds=time.perf_counter() - started)
        return load_store(stage.directory)

    def representations(self, generator: ConditionalGenerator, teacher: Teacher) -> None:
        """Train every backbone without labels, once a seed; what probes find on the validation split is kept with each."""
        config, real = self.config.representation, self.unlabelled
        generated = self.generated(generator) if any(arm.synthetic for arm in config.arms.values()) else None
        for seed in config.seeds:
            for name, arm in config.arms.items():
                stage = self.representation_stage(name, seed, real, generated, teacher)
                if self.open(stage):
                    continue
                started = time.perf_counter()
                settings = {key: getattr(config, key) for key in TrainingConfig.model_fields}
                training = TrainingConfig(**settings | {"steps": self.num_steps(config, real), "epochs": None})
                needs_teacher = isinstance(arm.method, SimRegConfig) and not arm.method.teachers
                model = api.pretrain(
                    self.build(self.backbone, seed),
                    teacher if needs_teacher else None,
                    real=real if arm.synthetic < 1 else None,
                    synthetic=generated if arm.synthetic else None,
                    method=arm.method,
                    synthetic_fraction=arm.synthetic if 0 < arm.synthetic < 1 else None,
                    online_probe=config.online_probe and arm.synthetic < 1,
                    training=training,
                    normalize=self.normalize,
                    seed=seed,
                    directory=stage.directory,
                    accelerator=self.accelerator,
                    memory_budget=self.config.data.memory_budget << 20,
                    workers=self.config.data.workers,
                    name=f"backbone {name} seed {seed}",
                    log=self.log,
                )
                self.write(stage, model, self.backbone, self.normalize)
                results = self.probe(model, self.data.validation)
                validation = {key: result.value for key, result in results.items()}
                stage.finish(self.accelerator, validation=validation, seconds=time.perf_counter() - started)

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

    def students(self, teacher: Teacher, synthetic: ImageSet) -> None:
        """Train every arm once a seed; validation metrics are kept with each student."""
        config = self.config.student
        for seed in config.seeds:
            for name, arm in config.arms.items():
                stage = self.student_stage(name, seed, teacher, synthetic)
                if not self.open(stage):
                    started = time.perf_counter()
                    model = self.build(config.model, seed)
                    if arm.initial:
                        load_checkpoint(
                            model, self.directory / f"representation/{arm.initial}/seed-{seed}/model.safetensors"
                        )
                    label = f"student {name} seed {seed}"
                    model = self.train(label, model, teacher, arm, config, seed, stage.directory, synthetic=synthetic)
                    self.save(stage, model, config.model, self.normalize, started)

    def report(self, generator: ConditionalGenerator, teacher: Teacher) -> dict:
        """Read the test split, once, for every finished network; write metrics.json and report.html."""
        from gankd.fidelity.scores import quick_scores, score_rows
        from gankd.report import write_report
        from gankd.report.tables import print_tables, summarize

        metrics = summarize(self)
        if self.accelerator.is_main_process:
            # against validation: a teacher knows its training images too well to compare others with them
            task = self.task.plain()
            scores = quick_scores(generator, teacher.speak(task), task, self.data.validation, seed=self.config.seed)
            metrics["generator"] |= {"scores": scores, "score_rows": score_rows([scores], task)}
            with replace_whole(self.directory / "metrics.json") as temporary:
                temporary.write_text(json.dumps(metrics, indent=2))
            print_tables(metrics)
            write_report(self.directory, self.data, metrics)
        self.accelerator.wait_for_everyone()
        return metrics

    # --- what the stages share ----------------------------------------------------------------------------------------

    def open(self, stage: Stage) -> bool:
        finished = stage.open(self.accelerator)
        name = stage.directory.relative_to(self.directory)
        self.console.print(
            f"[bold]{name}[/bold]: {'done before, skipped' if finished else 'running'}", highlight=False, soft_wrap=True
        )
        return finished

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
        task: Task | None = None,
    ) -> nn.Module:
        """Train one network as an arm says, on `real` (None: the training split) and `synthetic` samples, for `task` (None:
        the student's)."""
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
            task=task or self.task,
            normalize=normalize or self.normalize,
            seed=seed,
            directory=directory,
            accelerator=self.accelerator,
            memory_budget=self.config.data.memory_budget << 20,
            workers=self.config.data.workers,
            name=name,
            log=self.log,
        )

    def save(
        self,
        stage: Stage,
        model: nn.Module,
        config: ModelConfig,
        normalize: Normalize,
        started: float,
        task: Task | None = None,
    ) -> None:
        """Save a trained network for `task` (None: the student's) with its validation metrics and finish its stage."""
        task = task or self.task
        metrics = evaluate(model, normalize, task, self.data.validation, accelerator=self.accelerator)
        self.write(stage, model, config, normalize, task)
        stage.finish(self.accelerator, validation=metrics, seconds=time.perf_counter() - started)

    def write(
        self, stage: Stage, model: nn.Module, config: ModelConfig, normalize: Normalize, task: Task | None = None
    ) -> None:
        """A network into its stage's directory; a backbone has no task."""
        if self.accelerator.is_main_process:
            save_model(
                stage.directory,
                model,
                config,
                normalize,
                num_outputs=(task or self.task).num_outputs,
                image_shape=self.image_shape,
                task=task,
            )

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
