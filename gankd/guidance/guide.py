"""Teachers that guide a generator: their loss on its images, for classes and scalars."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gankd.data.sets import ImageSet
from gankd.models.taps import INPUT, Taps
from gankd.models.teacher import Teacher
from gankd.synthesis.checks import at_chance_level, check_teacher
from gankd.tasks import CLASSIFICATION, Task
from generators.images import from_generator_to_unit, to_unit_range
from generators.metrics import evenly_spread

MOST = 1000  # real images that say how clear images can be


class TeacherGuide:
    """Images [N, C, H, W] in [-1, 1] and labels [N] to the teachers' mean loss []: a guide for `generators.train`.

    For classes the cross-entropy of logits / temperature, for scalars the task's loss in standardised units (bins: as
    their networks are trained). With `statistics` s > 0 joined by

        s * mean over teachers and batch norms of  mean_c (m_c - M_c)^2 / V_c + (sqrt(v_c / V_c) - 1)^2

    of the batch's mean m and variance v in channel c of a norm's input and those, M and V, that the norm learnt.

    real: labelled real images that no teacher was trained on; their loss is `enough`. None: the guidance never rests.
    Raises ValueError: a teacher of another task; one that reads the real images at chance level.

    Source: the statistics are those of Yin et al., "Dreaming to Distill", CVPR 2020, arXiv 1912.08795, made free of scale.
    """

    enough: float | None = None

    def __init__(
        self,
        teachers: Sequence[Teacher],
        task: Task,
        real: ImageSet | None = None,
        *,
        temperature: float = 1.0,
        statistics: float = 0.0,
    ):
        self.tasks = [task if task.kind == CLASSIFICATION else teacher.task or task for teacher in teachers]
        for teacher in teachers:
            teacher.for_task(task.plain())  # which refuses what does not compare
        self.teachers = [teacher.for_task(own) for teacher, own in zip(teachers, self.tasks, strict=True)]
        self.temperature, self.statistics = temperature, statistics
        self.norms = [batch_norms(teacher.module) if statistics else [] for teacher in teachers]
        if real is not None and len(real):
            self.enough = self.loss_of_real(real, task)

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        images = from_generator_to_unit(images)
        losses = [self.loss(index, images, labels) for index in range(len(self.teachers))]
        return torch.stack(losses).mean()

    def loss(self, index: int, images: Tensor, labels: Tensor) -> Tensor:
        """The loss [] of one of the teachers, for images in [0, 1]."""
        teacher, task, norms = self.teachers[index], self.tasks[index], self.norms[index]
        outputs, seen = Taps(teacher.module, [f"{path}{INPUT}" for path in norms])(teacher.inputs(images))
        outputs = teacher.translate(outputs.float())
        if task.kind == CLASSIFICATION:
            outputs = outputs / self.temperature
        loss = task.loss(outputs, labels)
        if norms:
            distances = [
                distance_to_norm(values, teacher.module.get_submodule(path))
                for values, path in zip(seen, norms, strict=True)
            ]
            loss = loss + self.statistics * torch.stack(distances).mean()
        return loss

    @torch.no_grad()
    def loss_of_real(self, real: ImageSet, task: Task) -> float:
        """The mean loss of real images.
        Raises ValueError: a teacher that reads them at chance level, or as the classes of others."""
        indices = evenly_spread(real.labels, min(MOST, len(real)))
        device = self.teachers[0].device
        for teacher, own in zip(self.teachers, self.tasks, strict=True):
            check_teacher(teacher, own, real)
            outputs = teacher.map(real.images[indices], teacher)
            if at_chance_level(outputs, real.labels[indices], own):
                raise ValueError(
                    f"a teacher ({type(teacher.module).__name__}) that is to guide the generator reads {real.name} at "
                    "chance level: check its weights, its normalisation (mean, std), the order of its classes or its units."
                )
        chunks = [
            (to_unit_range(real.images[part].to(device)), real.labels[part].to(device)) for part in indices.split(256)
        ]
        losses = [sum(self.loss(index, *chunk) for index in range(len(self.teachers))) for chunk in chunks]
        total = sum(float(loss) * len(labels) for loss, (_, labels) in zip(losses, chunks, strict=True))
        return total / len(indices) / len(self.teachers)


def batch_norms(network: nn.Module) -> list[str]:
    """Paths of the batch norms that have statistics.
    Raises ValueError: there is none."""
    paths = [
        path
        for path, module in network.named_modules()
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None
    ]
    if not paths:
        raise ValueError(
            f"{type(network).__name__} has no batch norms whose statistics images could match: statistics: 0."
        )
    return paths


def distance_to_norm(values: Tensor, norm: nn.BatchNorm2d) -> Tensor:
    """How far the statistics of values [N, C, H, W] are from those of a batch norm [], per channel and free of scale."""
    mean, variance = values.float().mean(dim=(0, 2, 3)), values.float().var(dim=(0, 2, 3), unbiased=False)
    known_mean, known = norm.running_mean.float(), norm.running_var.float() + norm.eps
    return ((mean - known_mean).square() / known + ((variance + norm.eps).div(known).sqrt() - 1).square()).mean()
