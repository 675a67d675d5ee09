"""cGAN-KD's synthesis: candidates from a generator, kept by density ratio (M1) and teacher error (M2), relabelled."""
# ruff: noqa: F403

from gankd.losses.teacher_labels import *
from gankd.synthesis.config import *
from gankd.synthesis.density_ratio import *
from gankd.synthesis.extractors import *
from gankd.synthesis.selection import *
from gankd.synthesis.store import *

__all__ = [name for name, thing in vars().items() if getattr(thing, "__module__", "").startswith("gankd.")]
