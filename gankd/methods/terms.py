"""Distillation terms: what most methods are, one loss between a student and a teacher beside the task's own loss.

    loss = task_weight * task loss(student(view), labels) + sum over terms of weight * term

`combined.Distillation` makes one pass through either network for all of its terms, which read outputs and tapped features.
"""

from typing import TYPE_CHECKING, ClassVar

from torch import Tensor, nn

from gankd.distributed.processes import gather, gather_with_gradient
from gankd.methods.base import EVERY_TASK, Method, MethodConfig
from gankd.methods.setup import Outputs, Setup
from generators.settings import Weight


class TermConfig(MethodConfig):
    """task_weight * task loss + weight * distillation term."""

    weight: Weight = 1.0
    """Weight of the term."""
    task_weight: Weight = 1.0
    """Weight of the labels' loss."""


class BlendedConfig(MethodConfig):
    """(1 - alpha) task loss + alpha distillation term, alpha a setting of the method."""

    if TYPE_CHECKING:
        alpha: float = 0.0

    @property
    def weight(self) -> float:
        """Weight of the term."""
        return self.alpha

    @property
    def task_weight(self) -> float:
        """Weight of the labels' loss."""
        return 1 - self.alpha


class FeatureTermConfig(TermConfig):
    """A term on features."""

    student_taps: tuple[str, ...] | None = None
    """Module paths of the student's features (`layer3`, `fc:input`). Null: those of the method."""
    teacher_taps: tuple[str, ...] | None = None
    """Module paths of the teacher's features, one for each of the student's."""


class Term(Method, nn.Module):
    """One distillation loss with its heads: `forward(outputs)` returns it, a scalar before its weight.

    A subclass names what it reads: `student_taps` and `teacher_taps` (module paths) and `reads_teacher_outputs`.
    """

    Config: ClassVar[type[TermConfig]]
    tasks = EVERY_TASK
    repeats_views = True
    reads_teacher_outputs: bool = False

    def __init__(self, config: TermConfig, setup: Setup):
        super().__init__()
        self.config, self.task = config, setup.task
        self.student_taps: list[str] = []
        self.teacher_taps: list[str] = []
        self.factor = 1.0
        """On the weight, now: `start_step` may change it."""

    def forward(self, outputs: Outputs) -> Tensor:
        raise NotImplementedError

    own_label_loss: ClassVar[bool] = False

    def label_loss(self, outputs: Outputs) -> Tensor:
        """In place of the task's loss, of a method with `own_label_loss`."""
        raise NotImplementedError

    def metrics(self) -> dict[str, Tensor]:
        """Scalars for the log besides the loss, of the last batch, without gradient."""
        return {}

    def features(self, outputs: Outputs) -> tuple[list[Tensor], list[Tensor]]:
        """The student's and the teacher's tapped features, in the order of the taps."""
        student = [outputs.student_features[path] for path in self.student_taps]
        return student, [outputs.teacher_features[path] for path in self.teacher_taps]

    def gathered_features(self, outputs: Outputs) -> tuple[list[Tensor], list[Tensor]]:
        """As `features`, of the samples of all processes: for losses on the relations between samples."""
        student, teacher = self.features(outputs)
        return [gather_with_gradient(feature) for feature in student], [gather(feature) for feature in teacher]

    # --- hooks, as those of `Distiller` -------------------------------------------------------------------------------

    first_stage_share: float = 0.0
    """Optimiser steps in which `first_stage_loss` is minimised before the training begins, as a share of its steps."""
    first_stage_trains_student: ClassVar[bool] = True
    first_stage_modules: ClassVar[tuple[str, ...]] = ()
    """Names of the modules that only the first stage trains; the others are trained only after it."""

    def enter_stage(self, *, first: bool) -> None:
        """Freeze the modules of the other stage: every parameter that is not frozen is expected to get a gradient."""
        for name, module in self.named_children():
            module.requires_grad_((name in self.first_stage_modules) == first)

    def first_stage_loss(self, outputs: Outputs) -> Tensor:
        raise NotImplementedError

    def prepare(self, setup: Setup) -> None:
        """Once before the first step of a fresh run."""

    def parameter_groups(self) -> list[dict]:
        return []

    def start_step(self, step: int, num_steps: int, steps_per_epoch: int) -> None:
        """Before every step: settings with a `warmup` raise the weight linearly over this share of the run.

        From 1, as the papers count their epochs: a weight of 0 would leave the term out of the step.
        """
        if warmup := getattr(self.config, "warmup", 0):
            self.factor = min((step + 1) / max(warmup * num_steps, 1), 1.0)
