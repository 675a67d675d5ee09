"""An experiment before anything runs: its data, its task, its networks checked, and what determines each of its stages."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from accelerate import Accelerator
from rich.console import Console
from torch import nn

from gankd.data.augment import Augment
from gankd.data.loader import BatchSource
from gankd.data.readers import load_data, read_images
from gankd.data.sets import ImageSet
from gankd.evaluation import ProbeResult, labelled_features, measure
from gankd.experiment import provenance
from gankd.experiment.artifacts import Stage, fingerprint
from gankd.experiment.config import ExperimentConfig
from gankd.methods import build_distiller, sampling_of
from gankd.methods.label_free.simreg import SimRegConfig, load_teacher
from gankd.models import ModelConfig, build_model, load_checkpoint
from gankd.models.teacher import Normalize, Teacher
from gankd.tasks import BINS, Classification, Task, task_of
from gankd.training import TrainingConfig
from generators.checkpoints import read_json
from generators.interface import ConditionalGenerator
from generators.networks import build_networks

# settings that change no result
IRRELEVANT = {"log_every", "checkpoint_every", "sample_every", "workers", "memory_budget", "title", "force"}


class Experiment:
    """A configuration with its data, ready to run.

    Args:
        replace: make stages that other settings left there again, instead of stopping.

    Raises:
        ValueError: data that is missing or does not fit the task, networks that cannot take the images.
    """

    def __init__(self, config: ExperimentConfig, accelerator: Accelerator, *, replace: bool = False):
        self.config, self.accelerator, self.replace = config, accelerator, replace
        self.directory = config.directory
        self.console = Console(stderr=True, quiet=not accelerator.is_main_process)
        self.data = load_data(config.data, kind=config.task.kind, seed=config.seed)
        self.image_shape = self.data.train.image_shape
        self.task = self.task_with(config.task.head)
        self.teacher_task = self.task_of_the_teacher()
        for split in (self.data.pool, self.data.validation, self.data.test):
            self.task.check(split.labels, split.name)
        self.num_classes = self.task.num_classes if isinstance(self.task, Classification) else None
        self.label_range = None if self.num_classes else (self.task.label_min, self.task.label_max)
        self.normalize = Normalize.of(self.data.train.images).to(accelerator.device)
        self.check_networks()
        self.check_arms()
        self.unlabelled = self.images_without_labels()
        """The real images that backbones are trained on."""
        self.check_teachers_of_backbones()

    def task_with(self, head: str) -> Task:
        """The task that the training data and the configuration pose, its networks answering with `head`."""
        settings = self.config.task.model_dump(exclude={"kind", "head"})
        return task_of(self.data.train, **settings, head=head)

    def task_of_the_teacher(self) -> Task:
        """What the teacher's outputs mean: its own head, and a loaded regressor may answer in other units than gankd's."""
        config, task = self.config.teacher, self.task
        if isinstance(task, Classification):
            return task
        task = self.task_with(config.head or task.head)
        if config.train or config.outputs == "standardized":
            return task
        if task.head == BINS:
            raise ValueError(f"teacher.outputs: {config.outputs} is for a number; set teacher.head: scalar.")
        if config.outputs == "raw":
            return dataclasses.replace(task, mean=0.0, std=1.0)
        return dataclasses.replace(task, mean=task.label_min, std=task.label_max - task.label_min)

    def say(self, line: str) -> None:
        """One line to the terminal, from the main process; rich markup."""
        self.console.print(line, highlight=False, soft_wrap=True)

    @property
    def backbone(self) -> ModelConfig:
        """The network that is trained without labels."""
        return self.config.representation.model or self.config.student.model

    def part(self, name: str) -> ImageSet:
        """The samples that `train_on` names."""
        return self.data.pool if name == "pool" else self.data.train

    def images_without_labels(self) -> ImageSet:
        """Those of the folder that `representation.unlabelled` names, or of the data."""
        config = self.config.representation
        if config.unlabelled is None:
            return self.part(config.train_on)
        channels, size, _ = self.image_shape
        budget = self.config.data.memory_budget
        return read_images(config.unlabelled, image_size=size, channels=channels, memory_budget=budget)

    def num_steps(self, training: TrainingConfig, real: ImageSet) -> int:
        """Optimiser steps of a training; an epoch is a pass over the real data, whatever an arm adds to it."""
        return training.num_steps(-(-len(real) // training.batch_size))

    def network(self, model: ModelConfig, task: Task | None = None) -> nn.Module:
        """A fresh network for these images and `task` (None: the student's)."""
        return build_model(model.name, (task or self.task).num_outputs, self.image_shape[0], **model.options)

    def build(self, model: ModelConfig, seed: int, task: Task | None = None) -> nn.Module:
        """The same with its weights: those of its checkpoint, or a function of `seed`."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            network = self.network(model, task)
        return load_checkpoint(network, model.checkpoint) if model.checkpoint else network

    def check_networks(self) -> None:
        """Build every network once, so that a configuration that cannot work stops here, with a ValueError."""
        if self.config.generator.checkpoint is None:
            build_networks(self.config.generator, self.image_shape, self.num_classes, self.label_range)
        pairs = [(self.config.teacher.model, self.teacher_task), (self.config.student.model, self.task)]
        pairs.append((self.backbone, self.task))
        for model, task in pairs:
            try:
                with torch.no_grad():
                    self.network(model, task).eval()(torch.zeros(1, *self.image_shape))
            except RuntimeError as error:
                shape = "x".join(map(str, self.image_shape))
                raise ValueError(
                    f"network {model.name} cannot take images of {shape} (data.image_size): {error}"
                ) from error

    def check_arms(self) -> None:
        """Build every method once, so that features it cannot use or a missing setting stop here, with a ValueError."""
        config, built = self.config.student, []
        for name, arm in config.arms.items():
            if arm.method in built:
                continue
            built.append(arm.method)
            network = self.network(self.config.teacher.model, self.teacher_task)
            teacher = Teacher(network, self.normalize, device=self.accelerator.device, task=self.teacher_task)
            try:
                data = BatchSource(
                    self.data.train,
                    batch_size=config.batch_size,
                    memory_budget=0,  # nothing is read here
                    sampling=sampling_of(arm.method, self.task.kind),
                )
                build_distiller(
                    self.network(config.model),
                    teacher.for_task(self.task),
                    self.task,
                    arm.method,
                    augment=Augment(config.augmentation),
                    normalize=self.normalize,
                    data=data,
                )
            except ValueError as error:
                raise ValueError(f"student.arms.{name}: {error}") from error

    def check_teachers_of_backbones(self) -> None:
        """Load the networks that simreg names once, so that a file that is missing or does not fit stops here."""
        for name, arm in self.config.representation.arms.items():
            if isinstance(arm.method, SimRegConfig):
                for model in arm.method.teachers:
                    try:
                        load_teacher(model, self.task.num_outputs, self.image_shape[0])
                    except ValueError as error:
                        raise ValueError(f"representation.arms.{name}: {error}") from error

    # --- what determines each stage -----------------------------------------------------------------------------------

    def stage(self, name: str, inputs: dict[str, Any]) -> Stage:
        precision = self.config.runtime.mixed_precision
        return Stage(self.directory / name, {**inputs, "mixed_precision": precision}, replace=self.replace)

    def generator_stage(self) -> Stage:
        config = self.config.generator
        inputs = {
            "config": relevant(config),
            "seed": self.config.seed,
            "train": fingerprint(self.part(config.train_on)),
        }
        if config.score_every:  # which generator is kept depends on whose features score it
            weights = provenance.file_hash(config.score_extractor)
            inputs["score"] = weights or self.teacher_stage().fingerprint
        return self.stage("generator", {**inputs, "labels": [self.num_classes, self.label_range]})

    def teacher_stage(self) -> Stage:
        config = self.config.teacher
        inputs = {
            "config": relevant(config),
            "seed": self.config.seed,
            "train": fingerprint(self.part(config.train_on)),
        }
        inputs |= {"weights": provenance.file_hash(config.model.checkpoint), "head": head_of(self.teacher_task)}
        return self.stage("teacher", inputs)

    def synthesis_stage(self, generator: ConditionalGenerator, teacher: Teacher) -> Stage:
        config = self.config.synthesis
        inputs = {
            "config": relevant(config),
            "seed": self.config.seed,
            "train": fingerprint(self.data.train),
            "generator": fingerprint(generator),
            "teacher": fingerprint(teacher),
            "student": relevant(self.config.student) if config.rho == "validation" else None,
        }
        return self.stage("synthetic", inputs)

    def student_stage(self, arm: str, seed: int, teacher: Teacher, synthetic: ImageSet) -> Stage:
        config = self.config.student
        inputs = {
            "config": relevant(config, {"arms", "seeds"}),
            "weights": provenance.file_hash(config.model.checkpoint),
            "arm": relevant(config.arms[arm]),
            "seed": seed,
            "train": fingerprint(self.data.train),
            "teacher": fingerprint(teacher),
            "synthetic": fingerprint(synthetic) if config.arms[arm].synthetic else None,
            "head": head_of(self.task),
        }
        if initial := config.arms[arm].initial:
            weights = self.directory / f"representation/{initial}/seed-{seed}/model.safetensors"
            inputs["initial"] = provenance.file_hash(weights)
        return self.stage(f"students/{arm}/seed-{seed}", inputs)

    def representation_stage(self, arm: str, seed: int, real: ImageSet, generated: ImageSet, teacher: Teacher) -> Stage:
        config = self.config.representation
        method = config.arms[arm].method
        inputs = {
            "config": relevant(config, {"arms", "seeds", "probe_on", "unlabelled", "live", "num_generated"}),
            "model": relevant(self.backbone),
            "weights": provenance.file_hash(self.backbone.checkpoint),
            "arm": relevant(config.arms[arm]),
            "seed": seed,
            "train": fingerprint(real),
            "normalize": [buffer.flatten().tolist() for buffer in self.normalize.buffers()],  # by the labelled images
            "generated": fingerprint(generated) if config.arms[arm].synthetic else None,
        }
        if isinstance(method, SimRegConfig):
            weights = [provenance.file_hash(model.checkpoint) for model in method.teachers]
            inputs["teachers"] = weights or fingerprint(teacher)
        return self.stage(f"representation/{arm}/seed-{seed}", inputs)

    def probe(self, model: nn.Module, on: ImageSet) -> dict[str, ProbeResult]:
        """What the features of a backbone know of the labels of `on`, by the labelled images that probes are fitted to."""
        return measure(
            *(
                labelled_features(model, part, normalize=self.normalize, device=self.accelerator.device)
                for part in (self.part(self.config.representation.probe_on), on)
            ),
            seed=self.config.seed,
        )

    def recorded(self) -> dict[str, dict]:
        """What every finished stage left in its stage.json, by its path in the run directory."""
        files = sorted(self.directory.rglob("stage.json"))
        return {str(file.parent.relative_to(self.directory)): read_json(file)["results"] for file in files}


def head_of(task: Task) -> list | None:
    """What networks answer a regression with, as JSON; None for classes."""
    return None if isinstance(task, Classification) else [task.head, task.num_outputs, task.sigma]


def relevant(settings, without: set[str] = frozenset()) -> dict:
    """Settings as JSON, without those that change no result."""
    return settings.model_dump(mode="json", exclude=IRRELEVANT | without)
