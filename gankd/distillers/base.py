"""What a distillation method is: a module that owns everything one run trains, and the step that trains it."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from torch import Tensor, nn

from gankd.data.loader import Batch
from gankd.tasks import Task
from gankd.teacher import Teacher
from generators.settings import Settings


class MethodConfig(Settings):
    """Base of the methods' settings. A method's config has a `name: Literal[...]` and the paper's defaults."""


class Distiller(nn.Module):
    """Base of the methods. `forward(batch)` returns named loss terms, `"loss"` being the total.

    Args:
        student: the network to train; takes images normalised by `normalize`.
        teacher: None for methods without one.
        augment: uint8 images [N, C, H, W] to a view, float [N, C, H, W] in [0, 1].
        normalize: a view to what the student takes. The teacher normalises views itself.

    Raises:
        ValueError: a task that the method is not defined for, or no teacher where it needs one.
    """

    Config: ClassVar[type[MethodConfig]]
    tasks: ClassVar[frozenset[str]]
    needs_teacher: ClassVar[bool] = True

    def __init__(
        self,
        student: nn.Module,
        teacher: Teacher | None,
        task: Task,
        config: MethodConfig,
        *,
        augment: Callable[[Tensor], Tensor],
        normalize: nn.Module,
    ):
        super().__init__()
        self.check(task.kind, teacher is not None)
        self.student, self.teacher, self.task, self.config = student, teacher, task, config
        self.augment, self.normalize = augment, normalize

    @classmethod
    def check(cls, task_kind: str, has_teacher: bool) -> None:
        """Raise a ValueError when the method cannot do what it is asked; called at configuration time too."""
        name = cls.Config.model_fields["name"].default
        if task_kind not in cls.tasks:
            raise ValueError(
                f"method {name} is not defined for {task_kind}; it does {' and '.join(sorted(cls.tasks))}."
            )
        if cls.needs_teacher and not has_teacher:
            raise ValueError(f"method {name} needs a teacher; give one, or use method supervised.")

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        raise NotImplementedError

    def deployable(self) -> nn.Module:
        """The student alone, without anything that only training needs."""
        return self.student
