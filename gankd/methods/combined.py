"""Terms at work: one term beside the task's loss, or several combined, in one pass through either network."""

from typing import Annotated, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from gankd.data.loader import Batch, BatchSource
from gankd.data.views import Views, view_of
from gankd.methods.base import EVERY_TASK, METHODS, Distiller, MethodConfig, MethodSetting
from gankd.methods.setup import Outputs, Setup
from gankd.methods.terms import Term
from gankd.models.state import preserve_state
from gankd.models.taps import Taps
from generators.settings import Settings, Weight


class CombinedConfig(MethodConfig):
    """task_weight * task loss + the weighted terms of other methods (their own task_weight does not count)."""

    name: Literal["combined"] = "combined"
    """The method's name."""
    task_weight: Weight = 1.0
    """Weight of the labels' loss."""
    terms: Annotated[tuple[MethodSetting, ...], Field(min_length=1)]
    """Methods with their settings, each a term between student and teacher: [{name: kd, alpha: 1}, {name: sp}]."""

    @field_validator("terms")
    @classmethod
    def _are_terms(cls, terms):
        for term in terms:
            if not issubclass(term.method, Term):
                known = ", ".join(name for name, method in METHODS.items() if issubclass(method, Term))
                raise ValueError(f"method {term.name} is no term that goes beside others; combine {known}")
        owners = [term.name for term in terms if term.method.own_label_loss]
        if len(owners) > 1:
            raise ValueError(f"{' and '.join(owners)} each bring a loss on the labels of their own; keep one of them")
        return terms

    @property
    def parts(self) -> tuple[MethodConfig, ...]:
        return self.terms

    @property
    def uses_teacher(self) -> bool:
        return any(term.uses_teacher for term in self.terms)


class Distillation(Distiller):
    """The task's loss and any number of terms: the method `combined`, and what trains a term that is an arm's only method.

    A term of weight 0 is not there at all: no heads, no forward passes.
    """

    tasks = EVERY_TASK
    needs_teacher = False  # its terms say what they need
    repeats_views = True

    Config = CombinedConfig

    def __init__(self, config: MethodConfig, setup: Setup):
        super().__init__(config, setup)
        self.setup = setup
        names = [part.name for part in config.parts]
        labels = [name if names.count(name) == 1 else f"{name}_{index}" for index, name in enumerate(names)]
        parts = {label: part for label, part in zip(labels, config.parts, strict=True) if part.weight > 0}
        self.weights = {label: part.weight for label, part in parts.items()}
        self.terms = nn.ModuleDict({label: part.method(part, setup) for label, part in parts.items()})
        if config.task_weight == 0 and not any(term.factor for term in self.terms.values()):
            raise ValueError("nothing is left to train on: neither task_weight nor the weight of a term is above 0.")
        self._enter_main_stage()

    def _enter_main_stage(self) -> None:
        for term in self.terms.values():
            if term.first_stage_share > 0:
                term.enter_stage(first=False)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        weights = {name: weight * self.terms[name].factor for name, weight in self.weights.items()}
        active = {name: self.terms[name] for name, weight in weights.items() if weight > 0}
        outputs = self.outputs(batch, active)
        losses = {name: term(outputs) for name, term in active.items()}
        total = sum(weights[name] * loss for name, loss in losses.items())
        if self.config.task_weight > 0:
            losses["task"] = self.label_loss(outputs)
            total = total + self.config.task_weight * losses["task"]
        metrics = {f"{name}_{key}": value for name, term in active.items() for key, value in term.metrics().items()}
        return {"loss": total, **losses, **metrics}

    def label_loss(self, outputs: Outputs) -> Tensor:
        """The task's, or that of the term which brings its own."""
        for term in self.terms.values():
            if term.own_label_loss:
                return term.label_loss(outputs)
        return self.task.loss(outputs.student, outputs.batch.labels)

    def outputs(self, batch: Batch, terms: dict[str, Term], *, with_student: bool = True) -> Outputs:
        """One view of the batch through the student, and through the teacher if a term asks for it."""
        view = view_of(self.augment, batch)  # [N, C, H, W]
        student_taps = list(dict.fromkeys(path for term in terms.values() for path in term.student_taps))
        teacher_taps = list(dict.fromkeys(path for term in terms.values() for path in term.teacher_taps))
        student, student_features = None, []
        if with_student:
            student, student_features = Taps(self.student, student_taps)(self.normalize(view))
        teacher, teacher_features = None, []
        reads_outputs = any(term.reads_teacher_outputs for term in terms.values())
        if reads_outputs and not teacher_taps and isinstance(self.augment, Views) and self.augment.training:
            teacher = self.augment.answers(batch)
        elif reads_outputs or teacher_taps:
            teacher, teacher_features = self.teacher.outputs_and_taps(view, teacher_taps)
        return Outputs(
            batch,
            student,
            dict(zip(student_taps, student_features, strict=True)) if with_student else {},
            teacher,
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
        else:  # the loop looks at it, but it is no module of this one: nothing of it is trained
            self.__dict__["student"] = main.student
        self.terms = nn.ModuleDict(terms)
        self.read = lambda batch: main.outputs(batch, terms, with_student=with_student)
        for term in terms.values():
            term.enter_stage(first=True)
        self.out_of_reach = self._out_of_reach(main.setup.data) if with_student else []

    def _out_of_reach(self, data: BatchSource) -> list[nn.Parameter]:
        """The student's parameters that no such loss reaches (its last layer), as a pass of one sample tells."""
        parameters = [parameter for parameter in self.student.parameters() if parameter.requires_grad]
        with preserve_state(self), torch.random.fork_rng(), torch.enable_grad():
            self.eval()
            outputs = self.read(next(data.in_order(1)))
            loss = sum(term.first_stage_loss(outputs) for term in self.terms.values())
            gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        return [parameter for parameter, found in zip(parameters, gradients, strict=True) if found is None]

    def parameter_groups(self) -> list[dict]:
        """What is not trained yet does not decay either."""
        return [{"params": self.out_of_reach, "rate": 1.0, "weight_decay": 0.0}] if self.out_of_reach else []

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        outputs = self.read(batch)
        losses = {name: term.first_stage_loss(outputs) for name, term in self.terms.items()}
        total = sum(losses.values())
        if outputs.student is not None:
            # No such loss reaches the last layer, and processes wait for the gradient of every parameter: let it be 0.
            total = total + 0 * outputs.student.float().sum()
        return {"loss": total, **losses}
