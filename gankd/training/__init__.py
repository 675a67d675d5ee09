"""The one training loop, its settings and its optimisers."""

from gankd.training.config import TrainingConfig, rate_factor
from gankd.training.context import RunContext
from gankd.training.loop import fit
from gankd.training.optimizers import OPTIMIZERS, build_optimizer

__all__ = ["OPTIMIZERS", "RunContext", "TrainingConfig", "build_optimizer", "fit", "rate_factor"]
