"""The experiment, stage by stage."""

from gankd.pipeline.run import Run

__all__ = ["Run"]
