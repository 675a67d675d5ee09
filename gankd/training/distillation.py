"""What `gankd.distill` and `gankd.pretrain` do: batches, views and a method are made of what a user lends, and trained."""

import contextlib
import dataclasses
import warnings
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from gankd.data.augment import Augment
from gankd.data.inputs import as_image_set, as_unlabelled
from gankd.data.loader import BatchSource
from gankd.data.sets import ImageSet, match_classes
from gankd.data.views import Views
from gankd.fingerprints import fingerprint
from gankd.methods import (
    Distiller,
    MethodConfig,
    build_distiller,
    check_method,
    check_two_views,
    check_views,
    method_config,
    sampling_of,
)
from gankd.models.inputs import Normalize, normalization_for, normalization_of, remember
from gankd.models.outputs import outputs_of, plain_outputs
from gankd.models.rehearsal import check_trainable
from gankd.models.state import preserve_state
from gankd.models.teacher import Teacher
from gankd.tasks import Representation, Task, task_of
from gankd.training.config import TrainingConfig
from gankd.training.context import RunContext
from gankd.training.loop import fit
from generators.images import to_unit_range
from generators.settings import nearest


@dataclasses.dataclass(frozen=True)
class Lesson:
    """What is learned, from which images, and how."""

    real: ImageSet | None
    synthetic: ImageSet | None
    synthetic_fraction: float | None
    task: Task
    method: MethodConfig
    training: TrainingConfig
    normalize: Normalize

    @property
    def reference(self) -> ImageSet:
        """The images that the student is fitted for."""
        return self.real if self.real is not None else self.synthetic

    def two_images(self, device) -> Tensor:
        """Two of them, normalised."""
        rows = torch.arange(2) % len(self.reference)
        return self.normalize(to_unit_range(self.reference.images[rows]).to(device))


def lesson_of(
    real: Dataset | None,
    synthetic: Dataset | None,
    synthetic_fraction: float | None,
    *,
    method: Any,
    training: TrainingConfig | None,
    task: Task | None,
    normalize: Normalize | None,
    settings: dict[str, Any],
    device: torch.device,
) -> Lesson:
    """What a caller of `gankd.distill` asks for, checked as far as it can be without its networks."""
    real = as_image_set(real, "real") if real is not None else None
    synthetic = as_image_set(synthetic, "synthetic") if synthetic is not None else None
    reference = real if real is not None else synthetic
    if reference is None:
        raise ValueError("distill needs data: give real, synthetic or both.")
    task = asked_task(task, reference)
    real, synthetic = (None if part is None else in_task(part, task) for part in (real, synthetic))
    training, config = settings_of(training or TrainingConfig(), method, settings)
    check_views(config, training.views)
    normalize = (asked_normalization(normalize) or Normalize.of(reference.images)).to(device)
    return Lesson(real, synthetic, synthetic_fraction, task, config, training, normalize)


def learn(student: nn.Module, teacher: nn.Module | Teacher | None, lesson: Lesson, context: RunContext) -> nn.Module:
    """See `gankd.distill`."""
    check_networks(student, teacher)
    with _lent(student, teacher), plain_outputs(student):
        known = _checked(student, teacher, lesson, context)
        distiller, source = build(student, known, lesson, context)
        fit(distiller, source, lesson.training, _identified(context, student, known, lesson))
        trained = distiller.deployable()
    remember(trained, lesson.normalize, lesson.task)
    return trained.eval()


def prepare(
    student: nn.Module, teacher: nn.Module | Teacher | None, lesson: Lesson, context: RunContext
) -> tuple[Distiller, BatchSource]:
    """See `gankd.distiller`."""
    if lesson.training.views:
        raise ValueError("views that repeat are gankd.distill's; leave `views` null in a loop of your own.")
    check_networks(student, teacher)
    known = _checked(student, teacher, lesson, context)
    student.register_forward_hook(lambda _, __, outputs: outputs_of(outputs))
    return build(student, known, lesson, context)


def _checked(student, teacher, lesson: Lesson, context: RunContext) -> Teacher | None:
    """The teacher that answers for the lesson's task, once both networks were tried."""
    device = context.accelerator.device
    check_trainable(student.to(device), lesson.two_images(device), lesson.task.num_outputs, "the student")
    known = as_teacher(teacher, lesson.normalize, device, lesson.task)
    if isinstance(teacher, nn.Module) and lesson.real is not None:
        warn_near_chance(known, lesson.task, lesson.real)
    return known


def learn_without_labels(
    student: nn.Module,
    teacher: nn.Module | Teacher | list[nn.Module | Teacher] | None,
    *,
    real: Tensor | Dataset | None,
    synthetic: Tensor | Dataset | None,
    method: Any,
    synthetic_fraction: float | None,
    online_probe: bool,
    training: TrainingConfig | None,
    normalize: Normalize | None,
    context: RunContext,
    settings: dict[str, Any],
) -> nn.Module:
    """See `gankd.pretrain`."""
    device = context.accelerator.device
    if online_probe and (real is None or isinstance(real, Tensor)):
        raise ValueError("online_probe reads the labels of real images; give real as a data set of (image, label).")
    if real is not None:
        real = as_image_set(real, "real") if online_probe else as_unlabelled(real, "real").without_labels()
    synthetic = as_unlabelled(synthetic, "synthetic") if synthetic is not None else None
    reference = real if real is not None else synthetic
    if reference is None:
        raise ValueError("pretrain needs images: give real, synthetic or both.")
    task = Representation(task_of(real) if online_probe else None)
    if synthetic is not None:
        synthetic = synthetic.without_labels(torch.int64 if real is None else real.labels.dtype)
    default = TrainingConfig(augmentation=method_config(method).method.backbone_augmentation)
    training, config = settings_of(training or default, method, settings)
    normalize = (asked_normalization(normalize) or Normalize.of(reference.images)).to(device)
    check_method(config, task.kind, has_teacher=teacher is not None)
    check_views(config, training.views)
    check_two_views(config, training.augmentation, has_real=real is not None)
    teachers = teacher if isinstance(teacher, list) else [] if teacher is None else [teacher]
    check_networks(student, *teachers)
    with _lent(student, *teachers), plain_outputs(student):
        known = [as_teacher(each, normalize, device, None) for each in teachers] or None
        lesson = Lesson(real, synthetic, synthetic_fraction, task, config, training, normalize)
        distiller, source = build(student.to(device).train(), known, lesson, context)
        fit(distiller, source, training, _identified(context, student, known, lesson))
    remember(student, normalize)
    return student.eval()


def build(
    student: nn.Module, teacher: Teacher | list[Teacher] | None, lesson: Lesson, context: RunContext
) -> tuple[Distiller, BatchSource]:
    """The distiller of a lesson and the batches that it takes; the student's modes stay as they are."""
    training = lesson.training
    source = BatchSource(
        lesson.real,
        lesson.synthetic,
        batch_size=training.batch_size,
        synthetic_fraction=lesson.synthetic_fraction,
        sampling=sampling_of(lesson.method, lesson.task.kind),
        **context.source,
    )
    augment = Augment(training.augmentation)
    if training.views:
        augment = Views(augment, training.views, source, teacher=teacher, seed=context.seed)
    modes = [(part, part.training) for part in student.modules()]
    settings = {"augment": augment, "normalize": lesson.normalize, "data": source, "seed": context.seed}
    distiller = build_distiller(student, teacher, lesson.task, lesson.method, **settings)
    for part, mode in modes:  # whatever looked at the student's features meanwhile
        part.training = mode
    return distiller, source


def _identified(context: RunContext, student, teacher, lesson: Lesson) -> RunContext:
    """The context with the fingerprints of everything that is read, where a checkpoint is to be compared with them."""
    if context.directory is None:
        return context
    read = {"real": lesson.real, "synthetic": lesson.synthetic, "student": student, "teacher": teacher}
    identity = {name: None if value is None else _identity(value) for name, value in read.items()}
    identity |= {
        "normalize": _identity(lesson.normalize.mean) + _identity(lesson.normalize.std),
        "task": str(lesson.task),
    }
    return dataclasses.replace(context, identity={**identity, **context.identity})


def _identity(value) -> str:
    return " ".join(map(fingerprint, value)) if isinstance(value, list) else fingerprint(value)


def _lent(*networks) -> contextlib.ExitStack:
    """Those of them that are modules come back as they were lent: modes, and what is trainable."""
    stack = contextlib.ExitStack()
    for network in networks:
        if isinstance(network, nn.Module):
            stack.enter_context(preserve_state(network))
    return stack


def settings_of(training: TrainingConfig, method: Any, settings: dict[str, Any]) -> tuple[TrainingConfig, MethodConfig]:
    """The settings of the training and of the method, single ones replaced by those that a call names.
    Raises ValueError: a name that neither of them has."""
    config = method_config(method)
    own = {key: value for key, value in settings.items() if key in TrainingConfig.model_fields}
    others = {key: value for key, value in settings.items() if key not in own}
    fields = set(type(config).model_fields) - {"name"}
    for key in others:
        if key not in fields:
            raise ValueError(f"unknown setting '{key}'{nearest(key, fields | set(TrainingConfig.model_fields))}")
    return training.replace(**own), config.replace(**others) if others else config


def as_teacher(teacher: nn.Module | Teacher | None, normalize: Normalize, device, task: Task | None) -> Teacher | None:
    """A `Teacher` that answers in the units of `task` (None: those of its own, only its features matter).

    A module is normalised as it says itself (see `normalization_of`), else by `normalize`, with a warning.
    """
    if isinstance(teacher, nn.Module):
        teacher = Teacher(teacher, normalization_for(teacher, normalize, "the teacher"), device=device)
    if teacher is None or task is None:
        return teacher
    return teacher.for_task(task, device)


def check_networks(student: nn.Module, *teachers: nn.Module | Teacher | None) -> None:
    """Raise a ValueError for what is no network, or for a teacher that would change with the student."""
    if not isinstance(student, nn.Module):
        raise ValueError(f"student is a {type(student).__name__}; give the network itself, a torch.nn.Module.")
    if isinstance(student, torch.jit.ScriptModule):
        raise ValueError(
            "student is a scripted program, which is trained no further; give the network before scripting."
        )
    if any(map(nn.parameter.is_lazy, student.parameters())):
        raise ValueError("the student's lazy layers do not know their inputs: let it look at a batch of images first.")
    own = {id(parameter) for parameter in student.parameters()}
    for teacher in teachers:
        if isinstance(teacher, list | tuple):
            raise ValueError(
                "distill takes one teacher: give a module that averages the answers of several; pretrain with method simreg "
                "takes a list."
            )
        if not isinstance(teacher, nn.Module | Teacher | None):
            raise ValueError(
                f"teacher is a {type(teacher).__name__}; give a torch.nn.Module or a Teacher (of a run's directory: "
                "gankd.load_model(directory)[0])."
            )
        module = teacher.module if isinstance(teacher, Teacher) else teacher
        if module is not None and any(id(parameter) in own for parameter in module.parameters()):
            raise ValueError(
                "student and teacher share parameters: what trains the one would change the other; give a copy of one of "
                "them (copy.deepcopy)."
            )


def asked_task(task: Task | str | None, dataset: ImageSet) -> Task:
    """The task that a caller names: one, its kind as a word, or None for what the labels of `dataset` say."""
    if task is not None and not isinstance(task, Task | str):
        raise ValueError(f"task is a {type(task).__name__}; give gankd.task_of(train), or leave it out.")
    if isinstance(task, Task):
        return task
    found = task_of(dataset)
    if task not in (None, found.kind):
        raise ValueError(
            f"task '{task}': the labels of {dataset.name} are {dataset.labels.dtype}, which pose a {found.kind}: give class "
            "ids as whole numbers for a classification, scalars as floats for a regression."
        )
    return found


def asked_normalization(given: Any) -> Normalize | None:
    """What a caller gives as `normalize`: a `Normalize`, means and standard deviations, or what `normalization_of` reads."""
    if given is None or isinstance(given, nn.Module):
        return given
    if isinstance(given, tuple | list) and len(given) == 2:
        return normalization_of(SimpleNamespace(input_normalization=given))
    if (found := normalization_of(given)) is None:
        raise ValueError(
            f"normalize is a {type(given).__name__}; give Normalize(mean, std), per channel of images in [0, 1]."
        )
    return found


def in_task(dataset: ImageSet, task: Task) -> ImageSet:
    """`dataset` with its classes numbered as the task numbers them. Raises ValueError for labels that are none of its."""
    dataset = match_classes(dataset, getattr(task, "class_names", None), "the task")
    task.check(dataset.labels, dataset.name)
    return dataset


def warn_near_chance(teacher: Teacher, task: Task, real: ImageSet, sample: int = 1000) -> None:
    """Warn when a teacher knows hardly more than nothing about real images, of which an even sample is asked."""
    rows = torch.linspace(0, len(real) - 1, min(sample, len(real))).long()
    if len(rows) < 2:
        return
    outputs, metrics = teacher.map(real.images[rows], teacher), task.metrics()
    if outputs.numel() != len(rows) * task.num_outputs:  # of a teacher whose features alone are asked for
        return
    metrics.update(task.to_metric(outputs), real.labels[rows])
    values = task.in_units({name: value.item() for name, value in metrics.compute().items()})
    if sentence := near_chance(values, task, "real"):
        warnings.warn(sentence, stacklevel=4)


def near_chance(metrics: dict[str, float], task: Task, images: str) -> str | None:
    """The sentence about a teacher whose metrics on real images are near chance; None for others."""
    if task.metric == "top1":
        chance = 100 / task.num_classes
        found = f"is right on {metrics['top1']:.1f} % of the {images} images (chance: {chance:.1f} %)"
        is_near = metrics["top1"] < chance + 0.1 * (100 - chance)
    else:
        found = f"explains hardly any of the {images} labels' variance (R2 {metrics['r2']:.2f})"
        is_near = metrics["r2"] < 0.1
    remedy = "check its weights, the mean and std of its inputs, and what its outputs mean (order of classes, units)."
    return f"the teacher {found}: {remedy}" if is_near else None
