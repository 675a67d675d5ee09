"""What a method is built from, and what it is given of a step."""

import dataclasses
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from gankd.data.loader import Batch, BatchSource
from gankd.models.taps import default_taps, feature_shapes
from gankd.models.teacher import Teacher
from gankd.tasks import Classification, Regression


@dataclasses.dataclass(frozen=True)
class Setup:
    """What a method is built from, whether it is a whole `Distiller` or a `Term`."""

    student: nn.Module
    """The network to train; takes images normalised by `normalize`."""
    teacher: Teacher | Any
    """None for methods without one. A backbone may learn from a list of them."""
    task: Classification | Regression | Any
    """What labels mean; a `Representation` where a backbone is trained without them."""
    data: BatchSource
    """What batches will come from: its `labels`, `num_samples` and `image_shape` size banks and heads."""
    augment: Callable[[Tensor], Tensor]
    """uint8 images [N, C, H, W] to a view, float [N, C, H, W] in [0, 1]."""
    normalize: nn.Module
    """A view to what the student takes. The teacher normalises views itself."""

    def shapes(self, student_taps: list[str], teacher_taps: list[str]) -> tuple[list, list]:
        """Shapes without the batch dimension of the student's and of the teacher's features."""
        image_shape = self.data.image_shape
        return (
            feature_shapes(self.student, image_shape, student_taps),
            feature_shapes(self.teacher.module, image_shape, teacher_taps),
        )

    def taps(self, config, choose: Callable[[list[str]], list[str]], *, preact: bool = False):
        """The tapped paths of student and teacher: those that `choose` takes of [f0, ..., fL, pooled], or the user's.

        Where the networks have unlike numbers of stages, the last ones are paired.

        config: a `FeatureTermConfig`.
        Raises ValueError: unlike numbers of taps; a network whose default taps are not known, or none of them fits.
        """
        image_shape = self.data.image_shape
        pairs = []
        for paths, model in ((config.student_taps, self.student), (config.teacher_taps, self.teacher.module)):
            pairs.append(list(paths or choose(default_taps(model, preact=preact, image_shape=image_shape))))
            if not pairs[-1]:
                raise ValueError(
                    f"{config.name} compares feature maps, and {type(model).__name__} has none between its images and its "
                    "pooled features; name modules in student_taps and teacher_taps."
                )
        if (config.student_taps or config.teacher_taps) and len(pairs[0]) != len(pairs[1]):
            raise ValueError(
                f"{len(pairs[0])} student_taps and {len(pairs[1])} teacher_taps; give as many of the one as of the other."
            )
        fewest = min(map(len, pairs))
        return pairs[0][-fewest:], pairs[1][-fewest:]


@dataclasses.dataclass(frozen=True)
class Outputs:
    """What student and teacher made of one view of a batch: all that a loss between them needs."""

    batch: Batch
    student: Tensor | Any
    """The student's outputs [N, K]; None in a first stage without the student."""
    student_features: dict[str, Tensor]
    """By module path."""
    teacher: Tensor | Any
    """The teacher's outputs [N, K'], without gradient; None where no term reads them."""
    teacher_features: dict[str, Tensor]
    """By module path, without gradient."""

    @property
    def labels(self) -> Tensor:
        """Class ids or scalars [N]."""
        return self.batch.labels
