"""What can be known to be wrong with a generator and a teacher before any work is done: one sentence each."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from gankd.data.sets import ImageSet
from gankd.models.teacher import Teacher
from gankd.tasks import CLASSIFICATION, Task, not_finite
from generators.images import from_generator_range, to_unit_range
from generators.interface import ConditionalGenerator
from generators.metrics import draw_images, evenly_spread
from generators.randomness import seeded

NUM_SAMPLES = 500  # images by which a generator is judged before it is used


def check_generator(generator: ConditionalGenerator, task: Task, real: ImageSet) -> None:
    """Raise a ValueError unless a generator makes images of the real data's shape and takes the labels of its task."""
    shape = (generator.config.image_channels, generator.config.resolution, generator.config.resolution)
    if shape != real.image_shape:
        raise ValueError(
            f"the generator makes images of {shape}, the data has {real.image_shape}: set data.image_size and "
            "data.channels to the generator's."
        )
    if generator.is_class_conditional != (task.kind == CLASSIFICATION):
        kind = "class ids" if generator.is_class_conditional else "a scalar"
        raise ValueError(f"the generator takes {kind}, which are not the labels of a {task.kind} task.")
    generator.condition(real.labels.unique())
    if generator.is_class_conditional:
        if generator.config.num_classes != task.num_classes:
            raise ValueError(
                f"the generator knows {generator.config.num_classes} classes, the data has {task.num_classes}: give a "
                "generator of these classes, whose numbers would mean others."
            )
        return
    low, high = generator.config.label_range
    if task.label_max - task.label_min < 0.1 * (high - low):
        warnings.warn(
            f"the generator knows labels in [{low:g}, {high:g}], the data has [{task.label_min:g}, {task.label_max:g}], "
            "less than a tenth of them: are both in the same unit?",
            stacklevel=1,  # said once, whoever asks
        )


def check_teacher(teacher: Teacher, task: Task, real: ImageSet) -> None:
    """Raise a ValueError unless a teacher answers real images for `task` with finite numbers, as many as it has outputs."""
    count = min(8, len(real))
    outputs = teacher(to_unit_range(real.images[torch.arange(count)].to(teacher.device)))
    expected = (count, task.num_outputs)
    if tuple(outputs.shape) != expected and not (task.num_outputs == 1 and tuple(outputs.shape) == (count,)):
        raise ValueError(
            f"the teacher answers {count} images with {list(outputs.shape)}, the task needs {list(expected)}: give a "
            f"teacher of this task's {'classes' if task.kind == CLASSIFICATION else 'label'}."
        )
    check_finite(outputs, task, "the teacher's outputs for real images")


def check_samples(
    generator: ConditionalGenerator,
    teacher: Teacher,
    task: Task,
    real: ImageSet,
    *,
    seed: int,
    force: bool,
    num_samples: int = NUM_SAMPLES,
) -> None:
    """Raise a ValueError for a generator whose images are none, lie in [0, 1], or show the teacher nothing of their labels.

    The last is allowed with `force`. A function of `seed`; a few images cannot show that a generator is at chance level.
    """
    labels = real.labels[evenly_spread(real.labels, num_samples)]
    images = draw_images(generator, labels, seed=seed)
    fakes = ImageSet(images, labels, is_synthetic=True, name="the generator")
    for oddity in oddities(fakes, real):
        raise ValueError(f"{oddity} Rescale its images x to 2 x - 1.")
    outputs = teacher.map(images, teacher)
    check_finite(outputs, task, "the teacher's outputs for generated images")
    if force or not at_chance_level(outputs, labels, task, seed=seed):
        return
    score, unit = task.label_score(outputs, labels), task.unit
    agreement = (
        f"agrees with {score:.1f} % of the" if task.kind == CLASSIFICATION else f"is off by {score:.3g} {unit} from"
    )
    raise ValueError(
        f"the teacher reads the generator at chance level (it {agreement} labels of {num_samples:,} images, as of shuffled "
        "ones): its images do not show their labels to it, and students would learn noise. Train the generator longer, look "
        "at its images, or go on all the same with synthesis.force=true."
    )


def at_chance_level(outputs: Tensor, labels: Tensor, task: Task, *, seed: int = 0) -> bool:
    """Whether labels fit a teacher's outputs [N, K] no better than shuffled ones, but for a twentieth.

    error = disagreement, or |prediction - label|;  mean(shuffled - error) + 2 standard errors < mean(shuffled) / 20
    """

    def error(labels: Tensor) -> Tensor:
        wrong = task.predict(outputs) != labels if task.kind == CLASSIFICATION else task.error(outputs, labels)
        return wrong.double()

    shuffled = error(labels[torch.randperm(len(labels), generator=seeded(seed, "chance level"))])
    gain = shuffled - error(labels)
    return bool(gain.mean() + 2 * gain.std() / len(labels) ** 0.5 < 0.05 * shuffled.mean())


def check_finite(outputs: Tensor, task: Task, name: str) -> None:
    """Raise a ValueError for outputs of which no prediction can be made."""
    if not_finite(outputs, task).any():
        raise ValueError(
            f"{name} are not finite: the network has diverged, or its input is not normalised as it expects."
        )


def as_images(drawn: Tensor, name: str) -> Tensor:
    """A generator's images in [-1, 1] as uint8; raises a ValueError for others, which clamping would hide."""
    low, high = (value.item() for value in drawn.aminmax())
    if not (low >= -1.01 and high <= 1.01):  # a NaN too
        raise ValueError(f"{name}: the generator draws values in [{low:.3g}, {high:.3g}]; images lie in [-1, 1].")
    return from_generator_range(drawn)


def oddities(fakes: ImageSet, real: ImageSet) -> list[str]:
    """Sentences about what is odd about the pixels of the fakes beside those of the real images.

    Raises:
        ValueError: images of unlike shapes, or 0..1 on one side and 0..255 on the other.
    """
    if fakes.image_shape != real.image_shape:
        raise ValueError(
            f"{fakes.name} holds images of {fakes.image_shape}, {real.name} of {real.image_shape}: bring both to one size "
            "and number of channels (data.image_size, data.channels) before comparing them."
        )
    (fake_low, fake_high), (real_low, real_high) = (
        torch.aminmax(dataset.images[torch.linspace(0, len(dataset) - 1, min(1000, len(dataset))).long()])
        for dataset in (fakes, real)
    )
    for dataset, high, other in ((fakes, fake_high, real_high), (real, real_high, fake_high)):
        if high == 1 < other:
            raise ValueError(
                f"{dataset.name} holds only the values 0 and 1, the other side goes up to {other}: images in [0, 1] must "
                "be multiplied by 255 before they become uint8."
            )
    if fake_low >= 127 and real_low < 64:
        return [
            f"{fakes.name}: no pixel is darker than {fake_low}, real ones go down to {real_low}: does the generator draw "
            "in [0, 1] where [-1, 1] is expected?"
        ]
    return []
