"""The distillation methods, by the name that a configuration calls them.

A method is defined by its class alone (see `base`); importing this package defines ours.
"""

import importlib
import pkgutil
from typing import Any

import torch
from torch import nn

from gankd.data.augment import AugmentationConfig
from gankd.data.loader import SAMPLINGS, BatchSource
from gankd.methods import alone, label_free, peers, teacher
from gankd.methods.base import METHODS, AnyMethodConfig, Distiller, Method, MethodConfig
from gankd.methods.combined import CombinedConfig, Distillation
from gankd.methods.function import method, method_config, method_of
from gankd.methods.setup import Outputs, Setup
from gankd.methods.terms import FeatureTermConfig, Term, TermConfig
from gankd.models.teacher import Teacher
from gankd.tasks import CLASSIFICATION, Task
from generators.randomness import mix

for _group in (alone, label_free, peers, teacher):
    for _file in pkgutil.iter_modules(_group.__path__, f"{_group.__name__}."):
        importlib.import_module(_file.name)

__all__ = [
    "METHODS",
    "AnyMethodConfig",
    "CombinedConfig",
    "Distiller",
    "FeatureTermConfig",
    "Method",
    "MethodConfig",
    "Outputs",
    "Setup",
    "Term",
    "TermConfig",
    "build_distiller",
    "check_method",
    "check_two_views",
    "check_views",
    "method",
    "method_config",
    "method_of",
    "sampling_of",
]


def check_method(config: MethodConfig, task_kind: str, *, has_teacher: bool, head: str = "scalar") -> None:
    """Raise a ValueError when a method, or a term of it, is not defined for the task or lacks its teacher."""
    for part in config.parts:
        part.method.check(task_kind, has_teacher, head)
        part.check_task(task_kind, head)


def sampling_of(config: MethodConfig, task_kind: str) -> str:
    """How the batches of a method are drawn (see `BatchSource`): in the largest groups that one of its terms asks for."""
    drawn = [part.sampling for part in config.parts if task_kind == CLASSIFICATION and getattr(part, "weight", 1) > 0]
    return max(drawn, key=SAMPLINGS.__getitem__, default="uniform")


def check_views(config: MethodConfig, views: int | None) -> None:
    """Raise a ValueError when views are to repeat (`views`) in a method that draws fresh ones."""
    for part in (config, *config.parts):
        if views and not part.method.repeats_views:
            raise ValueError(f"method {part.name} draws fresh views in every step; leave `views` null.")


def check_two_views(config: MethodConfig, augmentation: AugmentationConfig, *, has_real: bool) -> None:
    """Raise a ValueError when a method without labels compares two views that would be the same."""
    compared = config.method.compared_views
    if augmentation == AugmentationConfig() and (compared == "all" or (compared == "real" and has_real)):
        raise ValueError(
            f"{config.name} learns from two views of an image, and without augmentation they are the same; set "
            "augmentation, e.g. {resized_crop: [0.2, 1], brightness: 0.4}."
        )


def build_distiller(
    student: nn.Module,
    teacher: Teacher | None,
    task: Task,
    config: MethodConfig,
    *,
    augment: Any,
    normalize: nn.Module,
    data: BatchSource,
    seed: int = 0,
) -> Distiller:
    """The distiller of a method. Its heads and banks are a function of `seed`; the other arguments are those of `Setup`.
    Raises ValueError: a task that the method is not defined for, no teacher where it needs one, features it cannot use."""
    check_method(config, task.kind, has_teacher=teacher is not None, head=getattr(task, "head", "scalar"))
    kind = Distillation if issubclass(config.method, Term) else config.method
    with torch.random.fork_rng():
        torch.manual_seed(mix(seed, "distiller"))
        return kind(config, Setup(student, teacher, task, data, augment, normalize))
