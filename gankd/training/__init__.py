"""The one training loop, its settings and its optimisers."""

from gankd.training.loop import TrainingConfig, build_optimizer, fit, rate_factor

__all__ = ["TrainingConfig", "build_optimizer", "fit", "rate_factor"]
