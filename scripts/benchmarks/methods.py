"""Distillation methods: a training step against its floor, the passes that were seen in one of its steps, repeated."""

import contextlib
import dataclasses
import itertools
import re
import sys
from collections.abc import Callable

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.func import functional_call

from benchmarks.timing import NUM_CLASSES, NUM_IMAGES, Measurement, measure, update
from gankd.data.augment import Augment, AugmentationConfig
from gankd.data.loader import Batch, BatchSource
from gankd.data.sets import ImageSet
from gankd.methods import METHODS, Distiller, build_distiller, check_method, method_config, sampling_of
from gankd.models import ModelConfig, build_model
from gankd.models.inputs import Normalize
from gankd.models.teacher import Teacher
from gankd.tasks import CLASSIFICATION, REGRESSION, task_of
from gankd.training import TrainingConfig, build_optimizer
from generators.randomness import mix

TEACHER = ModelConfig(options={"widths": (64, 128, 256)})
STUDENT = ModelConfig(options={"widths": (32, 64, 128)})
COUNTED = re.compile(
    r"(.*\.)?(student|others|keys\.encoders|branches|fixed_branches|self_teacher|self_teacher_head|fusion|extractions"
    r"|transfer|discriminators)(\.\d+)?"
)
"""Modules of a distiller whose passes belong to the floor beside its teacher's: students, branches, what fuses or judges
them. Small heads that fit features to one another do not: they are what a method costs on top."""


@dataclasses.dataclass(frozen=True)
class Call:
    """One pass through a network, as a training step made it."""

    network: nn.Module
    inputs: tuple
    """Tensors, or lists of them."""
    with_gradient: bool
    weights: dict[str, Tensor] | None
    """In place of the network's own, of a network that is trained, but not by this pass."""

    def repeat(self) -> list[Tensor]:
        """Those of the outputs that a backward pass can start from."""
        inputs = on_leaves(self.inputs)
        with torch.set_grad_enabled(self.with_gradient):
            if self.weights is not None:
                outputs = functional_call(self.network, self.weights, inputs)
            else:
                outputs = self.network(*inputs)
        return [output for output in tensors_in(outputs) if output.requires_grad]


def on_leaves(inputs):
    """Nested tensors, cut off from what made them, maps [N, C, H, W] in the layout that the networks run in; those that want
    a gradient still do."""
    if isinstance(inputs, Tensor):
        layout = torch.channels_last if inputs.ndim == 4 else torch.contiguous_format
        return inputs.detach().contiguous(memory_format=layout).requires_grad_(inputs.requires_grad)
    return type(inputs)(map(on_leaves, inputs))


def tensors_in(outputs) -> list[Tensor]:
    """Of nested lists and tuples."""
    if isinstance(outputs, Tensor):
        return [outputs]
    return [tensor for part in outputs for tensor in tensors_in(part)]


def calls_of(distiller: Distiller, batch: Batch) -> list[Call]:
    """The passes that the method makes through its networks in one step; those within another pass belong to it."""
    networks = [module for name, module in distiller.named_modules() if COUNTED.fullmatch(name)]
    if distiller.teacher is not None:
        networks.append(distiller.teacher.module)
    trained = {network for network in networks if any(p.requires_grad for p in network.parameters())}
    calls, running = [], []

    def begin(network: nn.Module, inputs: tuple) -> None:
        if not running:
            weights = dict(network.named_parameters())  # discriminators may be lent frozen ones
            is_frozen = network in trained and not any(weight.requires_grad for weight in weights.values())
            calls.append(Call(network, on_leaves(inputs), torch.is_grad_enabled(), weights if is_frozen else None))
        running.append(network)

    def end(*_) -> None:
        running.pop()

    with contextlib.ExitStack() as hooks:
        for network in networks:
            hooks.callback(network.register_forward_pre_hook(begin).remove)
            hooks.callback(network.register_forward_hook(end).remove)
        distiller(batch)
    return calls


def num_images_of(name: str) -> int:
    """Images that a method trains on: NUM_IMAGES, or the 50,000 of CIFAR where it draws more negatives than those hold."""
    return 50_000 if getattr(method_config(name), "num_negatives", 0) > NUM_IMAGES else NUM_IMAGES


def measure_distiller(
    name: str, dataset: ImageSet, *, batch_size: int, accelerator: Accelerator, repeats: int, **networks: ModelConfig
) -> Measurement:
    """The training step of a method with its default settings; networks: see `fresh_distiller`."""
    augmentation = AugmentationConfig(crop_padding=4, horizontal_flip=True)
    training = TrainingConfig(batch_size=batch_size, augmentation=augmentation)
    drawn = sampling_of(method_config(name), task_of(dataset).kind)
    source = BatchSource(dataset, batch_size=batch_size, device=accelerator.device, sampling=drawn)
    distiller = fresh_distiller(name, dataset, source, training, **networks)
    alternatives = {
        "training step": distiller_step(distiller, source, training, accelerator),
        "floor": distiller_floor(distiller, source, training, accelerator),
    }
    common = {"images": batch_size, "repeats": repeats, "device": accelerator.device}
    return measure(f"{name} ({distiller.task.kind})", alternatives, target="<= 1.1", **common)


def fresh_distiller(
    name: str,
    dataset: ImageSet,
    source: BatchSource,
    training: TrainingConfig,
    *,
    teacher: ModelConfig = TEACHER,
    student: ModelConfig = STUDENT,
) -> Distiller:
    """A method that trains a fresh network, from another one where it needs a teacher, in training mode.

    It stands in the middle of its training, past first stages and warm-ups, which cost other times than most steps do.
    """
    task, normalize, device = task_of(dataset), Normalize.of(dataset.images).to(source.device), source.device
    if METHODS[name].needs_equal_widths:
        teacher = student
    teacher_network, student_network = (
        build_model(model.name, task.num_outputs, dataset.image_shape[0], **model.options).to(
            device, memory_format=torch.channels_last
        )
        for model in (teacher, student)
    )
    distiller = build_distiller(
        student_network,
        Teacher(teacher_network, normalize, device=device) if METHODS[name].needs_teacher else None,
        task,
        method_config(name),
        augment=Augment(training.augmentation),
        normalize=normalize,
        data=source,
    )
    distiller.to(device, memory_format=torch.channels_last).train()
    distiller.prepare(source)
    distiller.start_step(training.steps // 2, training.steps, source.steps_per_epoch)
    return distiller


def distiller_step(
    distiller: Distiller, source: BatchSource, training: TrainingConfig, accelerator: Accelerator
) -> Callable[[], object]:
    """One step of `gankd.training.fit`, as a function of no arguments."""
    optimizer = build_optimizer(distiller, training)
    batches, numbers = source.stream(0, sys.maxsize), itertools.count()

    def step() -> None:
        torch.manual_seed(mix(0, "training step", next(numbers), 0))
        batch = next(batches)
        with accelerator.autocast():
            losses = distiller(batch)
        optimizer.zero_grad(set_to_none=True)
        losses["loss"].backward()
        optimizer.step()
        torch.stack([term.detach().float() for term in losses.values()])

    return step


def distiller_floor(
    distiller: Distiller, source: BatchSource, training: TrainingConfig, accelerator: Accelerator
) -> Callable[[], object]:
    """What a step cannot do without: the passes through its networks, each with inputs that are ready, one backward pass
    through all of them, the optimiser's update."""
    optimizer = build_optimizer(distiller, training)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    with accelerator.autocast():
        calls = calls_of(distiller, source.batch(0))

    def floor() -> None:
        with accelerator.autocast():
            outputs = [output for call in calls for output in call.repeat()]
        update(outputs, optimizer)

    return floor


def kinds(name: str) -> list[str]:
    """The tasks that a method with its default settings is defined for, regression of a scalar among them."""
    defined = []
    for kind in (CLASSIFICATION, REGRESSION):
        with contextlib.suppress(ValueError):
            check_method(method_config(name), kind, has_teacher=True)
            defined.append(kind)
    return defined


def noise(kind: str, size: int, num_samples: int) -> ImageSet:
    """Random images with labels of either kind."""
    labels = torch.arange(num_samples) % NUM_CLASSES
    return ImageSet(
        images=torch.randint(256, (num_samples, 3, size, size), dtype=torch.uint8),
        labels=labels if kind == CLASSIFICATION else labels.float(),
        class_names=tuple(map(str, range(NUM_CLASSES))) if kind == CLASSIFICATION else None,
        name="noise",
    )
