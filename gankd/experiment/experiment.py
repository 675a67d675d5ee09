"""An experiment before anything runs: its data, its task and its networks."""

import dataclasses
import functools
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from gankd.data.readers import read_data, read_images
from gankd.data.sets import ImageSet
from gankd.evaluation import ProbeResult, labelled_features, measure, network_metrics
from gankd.experiment.config import ExperimentConfig
from gankd.fingerprints import fingerprint
from gankd.models import ModelConfig, build_model, load_checkpoint
from gankd.models.checkpoints import read_card
from gankd.models.inputs import Normalize, normalization_for, recall
from gankd.tasks import BINS, REGRESSION, Classification, Task, task_from, task_of
from generators.recipes import suited_config

DOWNLOADS = frozenset({"pretrained", "weights"})
"""Options of timm and torchvision that fetch weights."""


class Experiment:
    """A configuration with its data, ready to be checked and run.
    Raises ValueError: data that is missing or does not fit the task."""

    def __init__(self, config: ExperimentConfig, accelerator: Accelerator):
        self.accelerator, self.directory = accelerator, config.directory
        self.data = read_data(config.data, kind=config.task.kind, seed=config.seed)
        self.image_shape = self.data.train.image_shape
        self.config = self.with_a_generator(config)
        self.task = self.task_with(config.task.head)
        self.teacher_task = self.task_of_the_teacher()
        for split in (self.data.pool, self.data.validation, self.data.test):
            if len(split):  # validation may be empty
                self.task.check(split.labels, split.name)
        self.num_classes = self.task.num_classes if isinstance(self.task, Classification) else None
        self.label_range = None if self.num_classes else (self.task.label_min, self.task.label_max)
        self.normalize = Normalize.of(self.data.train.images).to(accelerator.device)
        self.contents: dict[int, str] = {}

    def with_a_generator(self, config: ExperimentConfig) -> ExperimentConfig:
        """The configuration with a generator network that suits the data, where it names none and no settings of one."""
        if config.generator.checkpoint is not None:
            return config
        images = self.part(config.generator.train_on)
        facts = {"num_images": len(images), "image_size": max(self.image_shape[1:])}
        generator = suited_config(config.generator, **facts, scalars=config.task.kind == REGRESSION)
        return config.model_copy(update={"generator": generator})

    def task_with(self, head: str) -> Task:
        """The task that the training data and the configuration pose, its networks answering with `head`."""
        settings = self.config.task.model_dump(exclude={"kind", "head"})
        return task_of(self.data.train, **settings, head=head)

    def task_of_the_teacher(self) -> Task:
        """What the teacher's outputs mean: its own head, and a loaded regressor may answer in other units than gankd's."""
        config, task = self.config.teacher, self.task
        if not config.train and config.outputs == "standardized" and (card := self.teacher_card.get("output_task")):
            return task_from(card)  # trained by gankd, perhaps on other labels
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

    @functools.cached_property
    def teacher_card(self) -> dict[str, Any]:
        """What the weights of a loaded teacher say of its inputs and outputs."""
        path = self.config.teacher.model.checkpoint
        return read_card(path) if path is not None and path.is_file() else {}

    @functools.cached_property
    def teacher_normalize(self) -> Normalize:
        """How the teacher's inputs are normalised: as it says, or as the student's."""
        config = self.config.teacher
        if config.mean is None and config.train:
            return self.normalize
        if config.mean is None:
            network = self.network(config.model, self.teacher_task)
            recall(network, self.teacher_card)
            known = normalization_for(network, self.normalize, f"teacher.model: {config.model.name}")
            return known.to(self.accelerator.device)
        return Normalize(torch.tensor(config.mean), torch.tensor(config.std)).to(self.accelerator.device)

    @property
    def backbone(self) -> ModelConfig:
        """The network that is trained without labels."""
        return self.config.representation.model or self.config.student.model

    def part(self, name: str) -> ImageSet:
        """The samples that `train_on` names."""
        return self.data.pool if name == "pool" else self.data.train

    @functools.cached_property
    def unlabelled(self) -> ImageSet:
        """The real images that backbones are trained on: those of the folder that is named, or of the data."""
        config = self.config.representation
        if config.unlabelled is None:
            return self.part(config.train_on)
        channels, size, _ = self.image_shape
        budget = self.config.data.memory_budget
        return read_images(config.unlabelled, image_size=size, channels=channels, memory_budget=budget)

    def content(self, dataset: ImageSet) -> str:
        """The fingerprint of a data set of this experiment, computed once."""
        if id(dataset) not in self.contents:
            self.contents[id(dataset)] = fingerprint(dataset)
        return self.contents[id(dataset)]

    def validate(self, model: nn.Module, normalize: nn.Module, task: Task) -> dict[str, float] | None:
        """The metrics of a network on the validation split; None where `data.validation` is 0."""
        if not len(self.data.validation):
            return None
        return network_metrics(model, normalize, task, self.data.validation, accelerator=self.accelerator)

    def probe(self, model: nn.Module, on: ImageSet) -> dict[str, ProbeResult]:
        """What the features of a backbone know of the labels of `on`, by the labelled images that probes are fitted to."""
        parts = (self.part(self.config.representation.probe_on), on)
        place = {"normalize": self.normalize, "device": self.accelerator.device}
        return measure(*(labelled_features(model, part, **place) for part in parts), seed=self.config.seed)

    def network(self, model: ModelConfig, task: Task | None = None, **options: Any) -> nn.Module:
        """A fresh network for these images and `task` (None: the student's); nothing is downloaded."""
        options = without_downloads(model.options) | options
        return build_model(model.name, (task or self.task).num_outputs, self.image_shape[0], **options)

    def build(self, model: ModelConfig, seed: int, task: Task | None = None) -> nn.Module:
        """The same with its weights: those of its checkpoint, those that its options download, or a function of `seed`."""
        downloads = {key: value for key, value in model.options.items() if key in DOWNLOADS}
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            network = self.network(model, task, **downloads)
        return load_checkpoint(network, model.checkpoint) if model.checkpoint else network


def without_downloads(options: dict[str, Any]) -> dict[str, Any]:
    """The options of a network but for those that fetch weights."""
    return {key: value for key, value in options.items() if key not in DOWNLOADS}


def num_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
