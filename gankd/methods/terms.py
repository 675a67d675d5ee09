"""Distillation terms: what most methods are, one loss between a student and a teacher beside the task's own loss.

    loss = task_weight * task loss(student(view), labels) + sum over terms of weight * term

`Distillation` makes one pass through either network for all of its terms, which read outputs and tapped features from it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import ClassVar

from torch import Tensor, nn

from gankd.data.loader import Batch, BatchSource
from gankd.data.views import Views, view_of
from gankd.methods.base import EVERY_TASK, Distiller, Method, MethodConfig
from gankd.models.taps import Taps, default_taps, feature_shapes
from gankd.models.teacher import Teacher
from gankd.tasks import Task
from generators.settings import Settings, Weight


class TermConfig(MethodConfig):
    """task_weight * task loss + weight * distillation term."""

    weight: Weight = 1.0
    """Weight of the term."""
    task_weight: Weight = 1.0
    """Weight of the labels' loss."""


class FeatureTermConfig(TermConfig):
    """A term on features."""

    student_taps: tuple[str, ...] | None = None
    """Module paths of the student's features (`layer3`, `fc:input`). Null: those of the method."""
    teacher_taps: tuple[str, ...] | None = None
    """Module paths of the teacher's features, one for each of the student's."""


@dataclasses.dataclass(frozen=True)
class Setup:
    """What a term is built from."""

    student: nn.Module
    teacher: Teacher | None
    task: Task
    data: BatchSource

    def shapes(self, student_taps: list[str], teacher_taps: list[str]) -> tuple[list, list]:
        """Shapes without the batch dimension of the student's and of the teacher's features."""
        image_shape = self.data.image_shape
        return (
            feature_shapes(self.student, image_shape, student_taps),
            feature_shapes(self.teacher.module, image_shape, teacher_taps),
        )

    def taps(self, config: FeatureTermConfig, choose: Callable[[list[str]], list[str]], *, preact: bool = False):
        """The tapped paths of student and teacher, those that `choose` takes of [f0, ..., fL, pooled], or the user's.

        Of networks with unlike numbers of stages the last ones are paired.

        Raises:
            ValueError: unlike numbers of taps; a network whose default taps are not known, or none of them fits.
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
        if config.student_taps or config.teacher_taps:
            if len(pairs[0]) != len(pairs[1]):
                raise ValueError(
                    f"{len(pairs[0])} student_taps and {len(pairs[1])} teacher_taps; give as many of the one as of the "
                    "other."
                )
        fewest = min(map(len, pairs))
        return pairs[0][-fewest:], pairs[1][-fewest:]


@dataclasses.dataclass(frozen=True)
class Passes:
    """What student and teacher made of one view of a batch."""

    batch: Batch
    student_outputs: Tensor | None
    """[N, K]; None in a first stage without the student."""
    student_features: dict[str, Tensor]
    """By module path."""
    teacher_outputs: Tensor | None
    """[N, K'], without gradient."""
    teacher_features: dict[str, Tensor]
    """By module path, without gradient."""


class Term(Method, nn.Module):
    """One distillation loss with its heads: `forward(passes)` returns it, a scalar before its weight.

    A subclass names what it reads: `student_taps` and `teacher_taps` (module paths) and `reads_teacher_outputs`.
    """

    Config: ClassVar[type[TermConfig]]
    tasks = EVERY_TASK
    reads_teacher_outputs: ClassVar[bool] = False
    buffers_stay_equal: ClassVar[bool] = False
    """Whether every process keeps the same buffers (banks), so that they need not be sent to all before each step."""

    def __init__(self, config: TermConfig, setup: Setup):
        super().__init__()
        self.config, self.task = config, setup.task
        self.student_taps: list[str] = []
        self.teacher_taps: list[str] = []
        self.factor = 1.0
        """On the weight, now: `start_step` may change it."""

    def forward(self, passes: Passes) -> Tensor:
        raise NotImplementedError

    own_label_loss: ClassVar[bool] = False

    def label_loss(self, passes: Passes) -> Tensor:
        """In place of the task's loss, of a method with `own_label_loss`."""
        raise NotImplementedError

    def watched(self) -> dict[str, Tensor]:
        """Scalars for the log besides the loss, of the last batch, without gradient."""
        return {}

    def features(self, passes: Passes) -> tuple[list[Tensor], list[Tensor]]:
        """The student's and the teacher's tapped features, in the order of the taps."""
        student = [passes.student_features[path] for path in self.student_taps]
        return student, [passes.teacher_features[path] for path in self.teacher_taps]

    # --- hooks, as those of `Distiller` -------------------------------------------------------------------------------

    first_stage_share: float = 0.0
    """Optimiser steps in which `first_stage_loss` is minimised before the training begins, as a share of its steps."""
    first_stage_trains_student: ClassVar[bool] = True
    first_stage_modules: ClassVar[tuple[str, ...]] = ()
    """Names of those of its modules that the first stage trains and the training after it does not; the others are trained
    only after it."""

    def enter_stage(self, *, first: bool) -> None:
        """Freeze the modules of the other stage: optimisers and processes expect a gradient for whatever is not."""
        for name, module in self.named_children():
            module.requires_grad_((name in self.first_stage_modules) == first)

    def first_stage_loss(self, passes: Passes) -> Tensor:
        raise NotImplementedError

    def prepare(self, setup: Setup) -> None:
        """Once before the first step of a fresh run."""

    def parameter_groups(self) -> list[dict]:
        return []

    def start_step(self, step: int, num_steps: int, steps_per_epoch: int) -> None:
        """Before every step."""


class Distillation(Distiller):
    """The task's loss and any number of terms. A term of weight 0 is not there at all: no heads, no passes.

    Args:
        terms: by the names that the log calls them.
    """

    tasks = EVERY_TASK
    needs_teacher = False  # its terms say what they need

    def __init__(self, student, teacher, task, config, *, terms: dict[str, tuple[type[Term], TermConfig]], **others):
        super().__init__(student, teacher, task, config, **others)
        self.setup = Setup(student, teacher, task, others["data"])
        self.weights = {name: settings.weight for name, (_, settings) in terms.items() if settings.weight > 0}
        self.terms = nn.ModuleDict(
            {name: terms[name][0](terms[name][1], self.setup) for name in self.weights}  # name: kind(settings, setup)
        )
        if config.task_weight == 0 and not any(term.factor for term in self.terms.values()):
            raise ValueError("nothing is left to train on: neither task_weight nor the weight of a term is above 0.")
        self._enter_main_stage()

    def _enter_main_stage(self) -> None:
        for term in self.terms.values():
            if term.first_stage_share > 0:
                term.enter_stage(first=False)

    @property
    def _ddp_params_and_buffers_to_ignore(self) -> list[str]:
        """What `DistributedDataParallel` leaves alone."""
        terms = {name: term for name, term in self.terms.items() if term.buffers_stay_equal}
        return [f"terms.{name}.{buffer}" for name, term in terms.items() for buffer, _ in term.named_buffers()]

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        weights = {name: weight * self.terms[name].factor for name, weight in self.weights.items()}
        active = {name: self.terms[name] for name, weight in weights.items() if weight > 0}
        passes = self.passes(batch, active)
        losses = {name: term(passes) for name, term in active.items()}
        total = sum(weights[name] * loss for name, loss in losses.items())
        if self.config.task_weight > 0:
            losses["task"] = self.label_loss(passes)
            total = total + self.config.task_weight * losses["task"]
        watched = {f"{name}_{key}": value for name, term in active.items() for key, value in term.watched().items()}
        return {"loss": total, **losses, **watched}

    def label_loss(self, passes: Passes) -> Tensor:
        """The task's, or that of the term which brings its own."""
        for term in self.terms.values():
            if term.own_label_loss:
                return term.label_loss(passes)
        return self.task.loss(passes.student_outputs, passes.batch.labels)

    def passes(self, batch: Batch, terms: dict[str, Term], *, with_student: bool = True) -> Passes:
        """One view of the batch through the student, and through the teacher if a term asks for it."""
        view = view_of(self.augment, batch)  # [N, C, H, W]
        student_taps = list(dict.fromkeys(path for term in terms.values() for path in term.student_taps))
        teacher_taps = list(dict.fromkeys(path for term in terms.values() for path in term.teacher_taps))
        outputs, features = None, []
        if with_student:
            outputs, features = Taps(self.student, student_taps)(self.normalize(view))
        teacher_outputs, teacher_features = None, []
        reads_outputs = any(term.reads_teacher_outputs for term in terms.values())
        if reads_outputs and not teacher_taps and isinstance(self.augment, Views) and self.augment.training:
            teacher_outputs = self.augment.answers(batch)
        elif reads_outputs or teacher_taps:
            teacher_outputs, teacher_features = self.teacher.outputs_and_taps(view, teacher_taps)
        return Passes(
            batch,
            outputs,
            dict(zip(student_taps, features, strict=True)) if with_student else {},
            teacher_outputs,
            dict(zip(teacher_taps, teacher_features, strict=True)),
        )

    def first_stage(self, training: Settings) -> tuple[Distiller, Settings] | None:
        terms = {name: term for name, term in self.terms.items() if term.first_stage_share > 0}
        if not terms:
            return None
        share = max(term.first_stage_share for term in terms.values())
        steps = max(1, round(share * training.steps))
        return FirstStage(self, terms), training.replace(steps=steps, epochs=None, schedule="constant", warmup=0)

    def prepare(self, data: BatchSource) -> None:
        self._enter_main_stage()
        for term in self.terms.values():
            term.prepare(self.setup)

    def parameter_groups(self) -> list[dict]:
        return [group for term in self.terms.values() for group in term.parameter_groups()]

    def start_step(self, step: int, num_steps: int, steps_per_epoch: int) -> None:
        for term in self.terms.values():
            term.start_step(step, num_steps, steps_per_epoch)


class FirstStage(Distiller):
    """The first stage of some terms: their own losses alone, on the modules that they share with the training after it."""

    tasks = EVERY_TASK
    needs_teacher = False

    def __init__(self, main: Distillation, terms: dict[str, Term]):
        nn.Module.__init__(self)
        self.task, self.config, self.augment, self.normalize = main.task, main.config, main.augment, main.normalize
        self.teacher = main.teacher
        with_student = any(term.first_stage_trains_student for term in terms.values())
        if with_student:
            self.student = main.student
        self.terms = nn.ModuleDict(terms)
        self.read = lambda batch: main.passes(batch, terms, with_student=with_student)
        for term in terms.values():
            term.enter_stage(first=True)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        passes = self.read(batch)
        losses = {name: term.first_stage_loss(passes) for name, term in self.terms.items()}
        total = sum(losses.values())
        if passes.student_outputs is not None:
            # No such loss reaches the last layer, and processes wait for the gradient of every parameter: let it be 0.
            total = total + 0 * passes.student_outputs.float().sum()
        return {"loss": total, **losses}
