"""Distillation losses: pure functions of tensors, one file a family, all importable from here.

Arguments are keywords; batches come first in every shape. A loss is computed in float32 (float64 inputs stay float64),
also inside autocast, and carries gradients to the student only: whatever comes from the teacher is detached, unless its
docstring says otherwise. What a loss returns is a scalar, and arguments whose shapes do not belong together raise a
ValueError that shows them; a docstring speaks of either only where there is more to say.
"""
# ruff: noqa: F403

from .activations import *
from .contrastive import *
from .curriculum import *
from .distributions import *
from .features import *
from .logits import *
from .mixing import *
from .mixskd import *
from .mutual_contrastive import *
from .online import *
from .regression import *
from .regression_without_teacher import *
from .rotations import *
from .self_distillation import *
from .similarity import *
from .simreg import *
from .smoothing import *
from .squeeze import *
from .zipf import *

__all__ = [name for name, thing in vars().items() if getattr(thing, "__module__", "").startswith(f"{__name__}.")]
