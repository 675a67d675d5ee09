"""gankd: generative knowledge distillation.

    import gankd

    student = gankd.distill(student, teacher, real=train, synthetic=synthetic, method="kd", steps=2000)

Train or load a conditional generator (package `generators`), synthesise data that a teacher has selected and corrected,
and train a small student on real + synthetic data, for classification and for regression. The names load on first use:
importing the package costs no more than torch.
"""

from __future__ import annotations

import importlib

_HOMES = {
    "ImageSet": "gankd.data.sets",
    "Normalize": "gankd.models.teacher",
    "Teacher": "gankd.models.teacher",
    "build_model": "gankd.models",
    "distill": "gankd.api",
    "distill_chain": "gankd.teacher_assistant",
    "evaluate": "gankd.api",
    "generated": "gankd.api",
    "load_data": "gankd.api",
    "load_model": "gankd.models.store",
    "load_store": "gankd.synthesis.store",
    "pretrain": "gankd.api",
    "probe": "gankd.api",
    "synthesize": "gankd.api",
    "task_of": "gankd.tasks",
}
__all__ = sorted(_HOMES)
__version__ = "0.1.0"


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module 'gankd' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)
