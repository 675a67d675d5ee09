"""gankd: generative knowledge distillation.

    import gankd

    student = gankd.distill(student, teacher, real=train, synthetic=synthetic, method="kd", steps=2000)

Train or load a conditional generator (package `generators`), synthesise data that a teacher has selected and corrected,
and train a small student on real + synthetic data, for classification and for regression. The names load on first use:
importing the package costs no more than torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gankd.api import distill, distiller, evaluate, feature_set, load_data, pretrain, probe, synthesize
    from gankd.data.sets import ImageSet
    from gankd.methods import method
    from gankd.models import build_model
    from gankd.models.inputs import Normalize
    from gankd.models.store import load_model
    from gankd.models.teacher import Teacher
    from gankd.plugins import load_plugins, register
    from gankd.synthesis.store import load_store
    from gankd.tasks import task_of
    from gankd.teacher_assistant import distill_chain

__all__ = [
    "ImageSet",
    "Normalize",
    "Teacher",
    "build_model",
    "distill",
    "distill_chain",
    "distiller",
    "evaluate",
    "feature_set",
    "load_data",
    "load_model",
    "load_plugins",
    "load_store",
    "method",
    "pretrain",
    "probe",
    "register",
    "synthesize",
    "task_of",
]
__version__ = "0.1.0"
_HOMES = {
    "ImageSet": "data.sets",
    "Normalize": "models.inputs",
    "Teacher": "models.teacher",
    "build_model": "models",
    "distill": "api",
    "distill_chain": "teacher_assistant",
    "evaluate": "api",
    "distiller": "api",
    "feature_set": "api",
    "load_data": "api",
    "load_model": "models.store",
    "load_plugins": "plugins",
    "load_store": "synthesis.store",
    "method": "methods",
    "pretrain": "api",
    "probe": "api",
    "register": "plugins",
    "synthesize": "api",
    "task_of": "tasks",
}


def _load(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'gankd' has no attribute '{name}'")
    return getattr(importlib.import_module(f"gankd.{_HOMES[name]}"), name)


if not TYPE_CHECKING:  # to whom every name would be one
    __getattr__ = _load


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
