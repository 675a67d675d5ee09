"""What the tests of the distillation methods share: tasks, tiny networks, a batch, and a method built from them."""

from __future__ import annotations

import dataclasses

import torch
from torch import nn

from gankd.data.augment import Augment, AugmentationConfig
from gankd.data.loader import Batch, BatchSource
from gankd.data.sets import ImageSet
from gankd.methods import (
    METHODS,
    Distiller,
    MethodConfig,
    build_distiller,
    check_method,
    method_config,
    sampling_of,
)
from gankd.models import SmallResNet
from gankd.models.inputs import Normalize
from gankd.models.teacher import Teacher
from gankd.tasks import Classification, Regression, Representation, Task
from tests.commands import SERVER

TASKS: dict[str, Task] = {
    "classification": Classification(class_names=("a", "b", "c")),
    "regression": Regression(label_min=0, label_max=4, mean=2, std=1.5, unit="years"),
}


def defined(name: str, kind: str, head: str = "scalar") -> bool:
    """Whether a method with the paper's settings is defined for a task."""
    try:
        check_method(METHODS[name].Config(), kind, has_teacher=True, head=head)
    except ValueError:
        return False
    return True


KINDS = (*TASKS, "representation")
CASES = [(name, kind) for name in METHODS for kind in KINDS if defined(name, kind)]
"""Every method with every task that it does, scalar heads; for `pytest.mark.parametrize(("name", "kind"), CASES)`."""
HEAD_CASES = [(name, head) for name in METHODS for head in ("bins", "gaussian") if defined(name, "regression", head)]
"""Every method with every other regression head that it is defined for; for parametrize(("name", "head"), HEAD_CASES)."""
STUDENT, TEACHER = (4, 8, 8), (8, 16, 16)  # widths of the stages, maps of 8, 4 and 2 pixels
NARROW = {
    "squeeze_and_span": {"embedding_width": 16, "squeeze_width": 16},
    "vicreg": {"embedding_width": 16, "projector_width": 16},
    "simsiam": {"embedding_width": 16, "predictor_width": 8},
}
"""Settings of methods whose published layers are 2048 wide."""
FEATURE_WIDTHS = (5, 3)
"""Of the generator that the synthetic half of a batch is from."""


def task_like(kind: str, *, num_classes: int = 3, head: str = "scalar") -> Task:
    """A task of `TASKS`, with another number of classes or another regression head."""
    if kind == "classification":
        return Classification(class_names=tuple("abcdefghij"[:num_classes]))
    if kind == "representation":
        return Representation()
    return TASKS[kind] if head == "scalar" else dataclasses.replace(TASKS[kind], head=head)


def network(task: Task | str, seed: int, widths: tuple[int, ...] = STUDENT, channels: int = 1) -> nn.Module:
    """A small residual network for a task or for a kind of it, the same one for the same seed."""
    task = task_like(task) if isinstance(task, str) else task
    num_outputs = 3 if isinstance(task, Representation) else task.num_outputs
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return SmallResNet(num_outputs, in_channels=channels, widths=widths)


def fixed_batch(kind: str, size: int = 12, *, channels: int = 1, num_classes: int = 3, pixels: int = 8) -> Batch:
    """`size` random images [size, channels, pixels, pixels], the second half of them synthetic.

    Classes are 0, 1, 2, 0, ... in the first half and the same again in the second, as if drawn in pairs of one class; of
    scalar labels, the first two are the ends of the range.
    """
    generator = torch.Generator().manual_seed(0)
    half = torch.arange(size // 2) % num_classes
    labels = torch.cat([half, half, half[: size % 2]])
    if kind == "regression":
        labels = torch.arange(size) % num_classes * (4.0 / (num_classes - 1))
    return Batch(
        images=torch.randint(256, (size, channels, pixels, pixels), generator=generator, dtype=torch.uint8),
        labels=labels,
        indices=torch.arange(size),
        is_synthetic=torch.arange(size) >= size // 2,
        generator_features=torch.randn(size - size // 2, sum(FEATURE_WIDTHS), generator=generator),
    )


def image_sets(batch: Batch) -> tuple[ImageSet, ImageSet]:
    """The batch as a real and a synthetic set, whose union has the samples at the batch's indices."""
    real, synthetic = ~batch.is_synthetic, batch.is_synthetic
    return (
        ImageSet(batch.images[real], batch.labels[real], name="real"),
        ImageSet(
            batch.images[synthetic],
            batch.labels[synthetic],
            generator_features=batch.generator_features,
            feature_widths=() if batch.generator_features is None else FEATURE_WIDTHS,
            is_synthetic=True,
            name="synthetic",
        ),
    )


def source_of(batch: Batch, kind: str, config: MethodConfig, batch_size: int, **processes: int) -> BatchSource:
    """The batch as training data, drawn as a method asks for it. processes: `rank` and `world_size`."""
    fraction = 0.5 if config.method.needs_generator_features else None
    return BatchSource(
        *image_sets(batch),
        batch_size=batch_size,
        synthetic_fraction=fraction,
        sampling=sampling_of(config, kind),
        **processes,
    )


def make(
    name: str,
    kind: str,
    config: MethodConfig | dict | None = None,
    *,
    head: str = "scalar",
    augmentation: AugmentationConfig | None = None,
    student_widths: tuple[int, ...] = STUDENT,
    teacher_widths: tuple[int, ...] | None = None,
    teacher_seed: int = 1,
    channels: int = 1,
    num_classes: int = 3,
    pixels: int = 8,
    data: Batch | None = None,
    **processes: int,
) -> tuple[Distiller, Teacher]:
    """The distiller of a method, in training mode, and the teacher that it has if it takes one.

    Args:
        name: a method of `METHODS`, or `combined`.
        config: its settings, or some of them; None: the paper's, but `NARROW`.
        teacher_widths: None: twice the student's, where the method allows it.
        data: the training data; None: `fixed_batch(kind)` of the same channels, classes and pixels.
        processes: `rank` and `world_size`.
    """
    if not isinstance(config, MethodConfig):
        config = method_config({"name": name, **NARROW.get(name, {}), **(config or {})})
    task = task_like(kind, num_classes=num_classes, head=head)
    batch = fixed_batch(kind, channels=channels, num_classes=num_classes, pixels=pixels) if data is None else data
    normalize = Normalize.of(batch.images)
    teacher_widths = teacher_widths or (STUDENT if config.method.needs_equal_widths else TEACHER)
    teacher = Teacher(network(task, teacher_seed, teacher_widths, channels), normalize)
    distiller = build_distiller(
        network(task, 0, student_widths, channels),
        teacher if config.uses_teacher else None,
        task,
        config,
        augment=Augment(augmentation or AugmentationConfig()),
        normalize=normalize,
        data=source_of(batch, kind, config, batch_size=len(batch.labels), **processes),
    )
    return distiller, teacher


def found_by_two_processes(main, directory) -> list:
    """What `main(rank, directory)`, run by two processes, has left in `directory`/RANK.pt of each."""
    torch.multiprocessing.start_processes(main, args=(directory,), nprocs=2, start_method=SERVER.get_start_method())
    return [torch.load(directory / f"{rank}.pt", weights_only=True) for rank in range(2)]
