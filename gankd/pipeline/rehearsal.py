"""Before anything runs: every file is loaded, every network makes a step, every method is built, as far as an arm reads it.

What cannot work stops here, with a ValueError and its key, and not after hours. Nothing is written or downloaded.
"""

import dataclasses

import torch
from torch import nn

from gankd.data.augment import Augment
from gankd.data.loader import BatchSource
from gankd.data.sets import ImageSet, LazyImages
from gankd.evaluation import check_probes
from gankd.methods import build_distiller, sampling_of
from gankd.models import ModelConfig, load_checkpoint
from gankd.models.rehearsal import check_trainable
from gankd.models.teacher import Teacher
from gankd.pipeline.helpers import check_help
from gankd.pipeline.stage import with_key
from gankd.tasks import SCALAR, Regression, Task
from generators.images import to_unit_range
from generators.networks import build_networks


def rehearse(run) -> None:
    """Check everything that the stages of a `Run` are going to need."""
    stages = run.stages()
    check_data(run)
    if run.generator in stages:
        check_generator_settings(run)
        check_judge(run)
    models = [("teacher.model", run.config.teacher.model, run.teacher_task)] if run.teacher in stages else []
    models += [("student.model", run.config.student.model, run.task)] if run.students else []
    models += [("representation.model", run.backbone, run.task)] if run.backbones else []
    judges, scored = "generator.judge", run.generator in stages and run.generator.scored_by == "student"
    models += [(f"{judges}.backbone.model", run.judge.model, run.task)] if run.judge in stages else []
    models += [(f"{judges}.student.model", *run.judged.training[:2])] if scored or run.judged in stages else []
    for key, model, task in models:
        check_network(run, key, model, task)
    check_arms(run)
    for group, arms in (("representation", run.config.representation.arms), ("student", run.config.student.arms)):
        for name, arm in arms.items():
            for part in arm.method.parts:
                with_key(f"{group}.arms.{name}", part.check_networks, run.task.num_outputs, run.image_shape[0])
    if run.backbones:
        run.unlabelled  # noqa: B018 (a folder that is missing)
        key, settings = "representation.probe_on", run.config
        with_key(key, lambda: check_probes(run.part(settings.representation.probe_on), seed=settings.seed))


def check_data(run) -> None:
    """Raise a ValueError for data on which nothing can be learnt or measured."""
    if run.num_classes == 1:
        raise ValueError(
            f"data: all images are of one class, '{run.task.class_names[0]}'; classification needs two or more."
        )
    validation, teacher, task = run.config.data.validation, run.teacher_task, run.task
    for split in ("train", "validation", "test"):
        if len(getattr(run.data, split)) < 2 and (split != "validation" or validation):
            key = "test" if split == "test" else "validation"
            raise ValueError(
                f"data.{key}: {split} has a single image, which measures nothing; change the split or add images."
            )
    if not validation and isinstance(teacher, Regression) and teacher.head == SCALAR != task.head:
        raise ValueError(
            f"data.validation: 0 leaves nothing to measure by how much the teacher errs, which a student with task.head: "
            f"{task.head} learns from a teacher with head: scalar; set validation above 0, or teacher.head: {task.head}."
        )


def check_generator_settings(run) -> None:
    """Build or load the generator, and read what scores it while it trains."""
    config = run.config.generator
    if config.checkpoint is not None:
        with_key("generator.checkpoint", lambda: run.generator.result)
        return
    build_networks(config, run.image_shape, run.num_classes, run.label_range)
    check_help(run)


def check_judge(run) -> None:
    """Raise a ValueError when the generator would be scored by what helps it to train; read what judges it."""
    config, key = run.config.generator, "generator.judge"
    for helped_by, helper in run.generator.helpers.items():
        if helper in run.generator.judges:
            by = config.judge.by
            raise ValueError(
                f"{key}.by: {by} would be pleased by what {helped_by} asks of the generator, as both are one network; let "
                "another score it, e.g. by: student."
            )
    if config.judge.inception is not None:
        from gankd.fidelity.extractors import inception_extractor

        with_key(f"{key}.inception", inception_extractor, config.judge.inception)
    if run.judged in run.stages():
        with_key(f"{key}.report", lambda: check_probes(run.judge.images, seed=run.config.seed))


def check_network(run, key: str, model: ModelConfig, task: Task) -> None:
    """Build a network, load its weights, and let two real images pass through it and back, as in training."""
    device = run.accelerator.device
    network = run.network(model, task)
    if model.checkpoint is not None:
        with_key(f"{key}.checkpoint", load_checkpoint, network, model.checkpoint)
    images = run.normalize(to_unit_range(run.data.train.images[torch.arange(2)].to(device)))
    with run.accelerator.autocast():
        check_trainable(network.to(device), images, task.num_outputs, f"{key}: {model.name}")


def check_arms(run) -> None:
    """Build every arm's method and its batches once, so that features it cannot use or a share that no batch can hold stop
    here; generated images are stood in for by their number."""
    config, built = run.config.student, []
    for name, arm in config.arms.items():
        if (arm.method, arm.synthetic) in built:
            continue
        built.append((arm.method, arm.synthetic))
        with_key(f"student.arms.{name}", build_arm, run, arm)


def build_arm(run, arm) -> nn.Module:
    """The distiller of an arm on networks without training."""
    config, fraction = run.config.student, None if arm.synthetic == "union" else arm.synthetic
    network = run.network(run.config.teacher.model, run.teacher_task)
    teacher = Teacher(network, run.normalize, device=run.accelerator.device, task=run.teacher_task)
    synthetic = stand_in(run.data.train, run.config.synthesis.num_samples) if fraction != 0 else None
    data = BatchSource(
        run.data.train if fraction != 1 else None,
        synthetic,
        batch_size=config.batch_size,
        synthetic_fraction=fraction if fraction not in (0, 1) else None,
        memory_budget=0,  # nothing is read here
        world_size=run.accelerator.num_processes,
        sampling=sampling_of(arm.method, run.task.kind),
    )
    return build_distiller(
        run.network(config.model),
        teacher.for_task(run.task),
        run.task,
        arm.method,
        augment=Augment(config.augmentation),
        normalize=run.normalize,
        data=data,
    )


def stand_in(real: ImageSet, num_samples: int) -> ImageSet:
    """A set like the synthetic one that is still to be made, with no image to read."""
    labels = real.labels[torch.arange(num_samples) % len(real)]
    return dataclasses.replace(
        real,
        images=LazyImages(real.images.__getitem__, (num_samples, *real.image_shape)),
        labels=labels,
        groups=None,
        is_synthetic=True,
        name="synthetic",
    )
