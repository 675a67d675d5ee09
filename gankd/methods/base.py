"""What a distillation method is: a module that owns everything one run trains, and the step that trains it."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from torch import Tensor, nn

from gankd.data.loader import Batch, BatchSource
from gankd.models.teacher import Teacher
from gankd.tasks import CLASSIFICATION, REGRESSION, Task
from generators.settings import Settings

EVERY_TASK = frozenset({CLASSIFICATION, REGRESSION})


class MethodConfig(Settings):
    """Base of the methods' settings. A method's config has a `name: Literal[...]` and the paper's defaults."""

    def check_task(self, task_kind: str, head: str = "scalar") -> None:
        """Raise a ValueError when these settings are not defined for a task or head that the method itself does."""

    @property
    def sampling(self) -> str:
        """How batches of classes are drawn: uniform, or `class_pairs` or `class_fours`, where every sample has others of
        its class beside it."""
        return "uniform"

    @property
    def deploys_student(self) -> bool:
        """Whether what is trained is a network of the student's kind, which a run's folder can hold."""
        return True


class Method:
    """What every method declares, whether it is a whole `Distiller` or a `Term` beside the task's loss."""

    Config: ClassVar[type[MethodConfig]]
    tasks: ClassVar[frozenset[str]]
    heads: ClassVar[frozenset[str]] = frozenset({"scalar", "bins", "gaussian"})
    """For regression: the kinds of output that it is defined for."""
    needs_teacher: ClassVar[bool] = True
    compared_views: ClassVar[str | None] = None
    """Of which images it compares two views with each other: `all`, `real` ones, or none."""
    instead: ClassVar[str] = ""
    """A sentence for the user of a task or head that it is not defined for: what to do instead."""

    @classmethod
    def check(cls, task_kind: str, has_teacher: bool, head: str = "scalar") -> None:
        """Raise a ValueError when the method cannot do what it is asked; called at configuration time too."""
        name = cls.Config.model_fields["name"].default
        sentence = None
        if task_kind not in cls.tasks:
            sentence = f"method {name} is not defined for {task_kind}; it does {' and '.join(sorted(cls.tasks))}."
        elif task_kind == REGRESSION and head not in cls.heads:
            sentence = f"method {name} is not defined for task.head: {head}; it takes {' or '.join(sorted(cls.heads))}."
        if sentence:
            raise ValueError(f"{sentence} {cls.instead}".strip())
        if cls.needs_teacher and not has_teacher:
            raise ValueError(f"method {name} needs a teacher; give one, or use method supervised.")


class Distiller(Method, nn.Module):
    """Base of the methods. `forward(batch)` returns named loss terms, `"loss"` being the total.

    Args:
        student: the network to train; takes images normalised by `normalize`.
        teacher: None for methods without one.
        augment: uint8 images [N, C, H, W] to a view, float [N, C, H, W] in [0, 1].
        normalize: a view to what the student takes. The teacher normalises views itself.
        data: what batches will come from: its `labels`, `num_samples` and `image_shape` size banks and heads.

    Built by `build_distiller`, which checks that the method is defined for what it is asked.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: Teacher | None,
        task: Task,
        config: MethodConfig,
        *,
        augment: Callable[[Tensor], Tensor],
        normalize: nn.Module,
        data: BatchSource,
    ):
        super().__init__()
        self.student, self.teacher, self.task, self.config = student, teacher, task, config
        self.augment, self.normalize = augment, normalize

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        raise NotImplementedError

    def deployable(self) -> nn.Module:
        """The student alone, without anything that only training needs."""
        return self.student

    # --- hooks: the loop calls them, most methods leave them as they are ----------------------------------------------

    def first_stage(self, training: Settings) -> tuple[Distiller, Settings] | None:
        """What is trained before this, and how (a `TrainingConfig`): it leaves its result in modules that both share."""
        return None

    def prepare(self, data: BatchSource) -> None:
        """Once before the first step of a fresh run (error ranges, thresholds); keep results in buffers."""

    def parameter_groups(self) -> list[dict]:
        """Parameters that do not share the student's learning rate and decay: {"params", "rate": factor, "weight_decay"}."""
        return []

    def start_step(self, step: int, num_steps: int, steps_per_epoch: int) -> None:
        """Before every step: schedules and curricula, as functions of the step, so that a resumed run goes on."""

    def finish(self) -> None:
        """Once after the last step: write what the run leaves besides its student."""
