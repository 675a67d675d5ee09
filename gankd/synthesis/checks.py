"""What can be known to be wrong with a generator and a teacher before any work is done: one sentence each."""

import warnings

import torch
from torch import Tensor

from gankd.data.sets import ImageSet
from gankd.models.teacher import Teacher
from gankd.tasks import CLASSIFICATION, Task, not_finite
from generators import checks
from generators.images import to_unit_range
from generators.interface import ConditionalGenerator
from generators.metrics import draw_images, evenly_spread

FEWEST, MOST = 200, 1000  # images by which a generator is judged before it is used


def check_generator_fits(generator: ConditionalGenerator, task: Task, real: ImageSet) -> None:
    """Raise a ValueError unless a generator makes images like the real ones and takes the labels of their task, see
    `generators.checks`."""
    num_classes, names = (task.num_classes, task.class_names) if task.kind == CLASSIFICATION else (None, None)
    checks.check_generator(generator, real.labels, num_classes=num_classes, class_names=names, real_images=real.images)
    low, high = (0, 0) if num_classes else generator.config.label_range
    if num_classes is None and task.label_max - task.label_min < 0.1 * (high - low):
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
    num_samples: int,
) -> None:
    """Raise a ValueError for a teacher that answers nothing to generated images, or reads them at chance level.

    The latter is allowed with `force`. A function of `seed`; as many images as are wanted, but `FEWEST` to `MOST`.
    """
    num_samples = max(FEWEST, min(num_samples, MOST))
    labels = real.labels[evenly_spread(real.labels, num_samples)]
    images = draw_images(generator, labels, seed=seed)
    outputs = teacher.map(images, teacher)
    check_finite(outputs, task, "the teacher's outputs for generated images")
    if force or not at_chance_level(outputs, labels, task):
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


def at_chance_level(outputs: Tensor, labels: Tensor, task: Task) -> bool:
    """Whether a teacher's outputs [N, K] fit the labels no better than those of other images, but for a tenth.

    error e_ij of prediction i under label j = disagreement, or |prediction - label|
    at chance where  mean_ij e - mean_i e_ii + standard error  <  mean_ij e / 10
    """
    predictions, labels = task.predict(outputs)[:, None], labels[None]
    wrong = predictions != labels if task.kind == CLASSIFICATION else (predictions.double() - labels).abs()
    wrong = wrong.double()
    own, chance = wrong.diagonal(), wrong.mean()
    return bool(chance - own.mean() + own.std() / len(own) ** 0.5 < 0.1 * chance)


def check_finite(outputs: Tensor, task: Task, name: str) -> None:
    """Raise a ValueError for outputs of which no prediction can be made."""
    if not_finite(outputs, task).any():
        raise ValueError(f"{name} are not finite: the network has diverged, or its input is normalised otherwise.")
