"""Where and how a training happens: one object below the doors of the library."""

import dataclasses
import numbers
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate import Accelerator


def no_log(values: dict) -> None:
    """The log of a caller who wants none."""


@dataclasses.dataclass(frozen=True)
class RunContext:
    """What a training needs to know besides what is trained, on what, and how."""

    accelerator: Accelerator
    seed: int = 0
    """Of the order of samples, augmentation, heads and banks."""
    directory: Path | None = None
    """Where the checkpoint goes; one found there is resumed. None: nothing is written."""
    memory_budget: int = 2 << 30
    """Bytes of images that may stay on the device."""
    workers: int = 2
    """Processes that read images beyond it."""
    name: str = "training"
    """Names the training in the log, in the progress bar and in errors."""
    log: Callable[[dict], None] = no_log
    """Receives one flat dictionary every `log_every` steps."""
    identity: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Fingerprints of everything that the training reads, which a checkpoint in `directory` must share."""

    def __post_init__(self):
        if not isinstance(self.seed, numbers.Integral) or not 0 <= self.seed < 2**32:
            raise ValueError(f"seed {self.seed} is not a whole number from 0 to {2**32 - 1}, as NumPy takes them.")

    @property
    def source(self) -> dict[str, Any]:
        """The part of it that `BatchSource` takes."""
        return {
            "seed": self.seed,
            "device": self.accelerator.device,
            "memory_budget": self.memory_budget,
            "workers": self.workers,
            "rank": self.accelerator.process_index,
            "world_size": self.accelerator.num_processes,
        }
