"""What the user says about how a network is trained."""

import math
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from gankd.data.augment import AugmentationConfig
from gankd.training.optimizers import OPTIMIZERS
from generators.settings import Count, Positive, Settings, Weight


class TrainingConfig(Settings):
    """How a network is trained."""

    steps: Count = 1000
    """Optimiser steps. Every arm takes the same number, whatever its data."""
    epochs: Positive | None = None
    """Passes over the real training data, in place of `steps`."""
    batch_size: Count = 64
    """Images that an optimiser step sees, over all processes and accumulated passes."""
    optimizer: str = "adamw"
    """The optimiser: sgd, adamw, lars (which, for batches of thousands, adapts the rate of every matrix and kernel that is
    decayed), or one of a plugin."""
    optimizer_options: dict[str, Any] = {}
    """Further settings of that optimiser, e.g. {nesterov: false} of sgd or {betas: [0.9, 0.95]} of adamw."""
    learning_rate_per: Count | None = None
    """The batch size that `learning_rate` is for; the peak grows in proportion to `batch_size` (256 in Squeeze and Span,
    VICReg and SimSiam: learning_rate * batch_size / 256). Null: `learning_rate` is the peak whatever the batch."""
    learning_rate: Positive | None = None
    """The peak of the learning rate. Null: the optimiser's own (adamw 0.003, sgd 0.05, lars 0.3 for a batch of 256 and in
    proportion for others)."""
    weight_decay: Weight | None = None
    """Weight decay of matrices and kernels; of biases and normalisation parameters too with `decay_all`. Null: the
    optimiser's own (adamw 0.05, sgd 0.0005, lars 0.000001)."""
    decay_all: bool = False
    """Whether biases and normalisation parameters are decayed as well, as Squeeze and Span and SimReg train."""
    synchronize_batch_norm: bool = False
    """Whether batch norms take mean and variance over the images of all processes, as one process with the whole batch does,
    and not over those of their own."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Momentum of the optimisers that have one: sgd (Nesterov's) and lars (plain)."""
    schedule: Literal["cosine", "steps", "constant"] = "cosine"
    """How the learning rate falls: half a cosine to zero, tenfold at `milestones`, or not at all."""
    milestones: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = (0.625, 0.75, 0.875)
    """Where `schedule: steps` falls, as shares of the run (defaults: epochs 150, 180, 210 of 240)."""
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the run in which the learning rate first rises linearly."""
    augmentation: AugmentationConfig = AugmentationConfig()
    """Random changes of the training images."""
    views: Count | None = None
    """Every sample has this many augmented views, which repeat from pass to pass; the teacher answers each once, unless its
    features are read too, and its answers are kept. 1 without augmentation. Null: fresh views all the time."""
    log_every: Count = 50
    """Steps between two lines in the log."""
    checkpoint_every: Count = 500
    """Steps between two checkpoints."""

    @field_validator("learning_rate", "weight_decay")
    @classmethod
    def _null_means_the_optimizers_own(cls, value: float | None, known: ValidationInfo) -> float | None:
        settings, name = known.data, known.field_name
        if value is not None or not {"optimizer", "batch_size"} <= settings.keys():
            return value
        defaults = OPTIMIZERS.defaults(settings["optimizer"])
        if name == "learning_rate" and defaults["batch_size"] is not None:
            return (
                defaults[name] * (settings.get("learning_rate_per") or settings["batch_size"]) / defaults["batch_size"]
            )
        return defaults[name]

    @field_validator("optimizer")
    @classmethod
    def _it_is_known(cls, name: str) -> str:
        OPTIMIZERS.find(name)
        return name

    @field_validator("optimizer_options")
    @classmethod
    def _they_are_those_of_the_optimizer(cls, options: dict[str, Any], known: ValidationInfo) -> dict[str, Any]:
        if "optimizer" in known.data:
            OPTIMIZERS.options(known.data["optimizer"]).of(options)
        return options

    @property
    def peak_rate(self) -> float:
        """The highest learning rate of the run."""
        if self.learning_rate_per is None:
            return self.learning_rate
        return self.learning_rate * self.batch_size / self.learning_rate_per

    def num_steps(self, steps_per_epoch: int) -> int:
        return self.steps if self.epochs is None else max(1, round(self.epochs * steps_per_epoch))

    def resolved(self, num_real: int) -> "TrainingConfig":
        """These settings alone, without those of a subclass, `epochs` counted out in steps: an epoch is a pass over the
        `num_real` real images, whatever an arm adds to them."""
        settings = {name: getattr(self, name) for name in TrainingConfig.model_fields}
        return TrainingConfig(**settings | {"steps": self.steps_on(num_real), "epochs": None})

    def steps_on(self, num_real: int) -> int:
        """Optimiser steps of a training on so many real images."""
        return self.num_steps(math.ceil(num_real / self.batch_size))


def rate_factor(config: TrainingConfig, step: int, num_steps: int) -> float:
    """The learning rate of `step` as a share of its peak."""
    progress, warmup = step / num_steps, config.warmup
    if progress < warmup:
        return (step + 1) / (warmup * num_steps + 1)
    if config.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))
    if config.schedule == "steps":
        return 0.1 ** sum(progress >= milestone for milestone in config.milestones)
    return 1.0
