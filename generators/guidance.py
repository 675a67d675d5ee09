"""What else the images of a generator should please beside its discriminators: somebody who knows what the labels mean.

generators.train(images, labels, num_classes=10, guide=guide, config=GeneratorConfig(guidance={"weight": 0.5}))

def guide(images, labels):  # [N, C, H, W] in [-1, 1], [N] in the user's units
    return F.cross_entropy(classifier(images), labels, reduction="none")
"""

from typing import Protocol

import torch
from accelerate import Accelerator
from torch import Tensor

from generators.augment import random_diff_augment
from generators.config import GuidanceConfig
from generators.interface import ConditionalGenerator

MEMORY = 0.98  # of the running mean of the guide's losses: about the last 50 steps


class Guide(Protocol):
    """Images [N, C, H, W] in [-1, 1] and labels [N] in the user's units to losses [N] or their mean [].

    It may have a number `enough`, the mean loss of good images: while generated ones do as well, it has no say.
    """

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor: ...


class Guidance:
    """A guide and how much it counts at a step: `loss(images, y, progress)`.

    generator: says how the labels that it takes become those of the user.
    """

    def __init__(self, guide: Guide, config: GuidanceConfig, generator: ConditionalGenerator, accelerator: Accelerator):
        self.guide, self.config, self.generator, self.accelerator = guide, config, generator, accelerator
        self.level = torch.full((), torch.nan)
        """Running mean of the guide's losses."""

    def loss(self, images: Tensor, y: Tensor, progress: float) -> Tensor:
        """The weighted loss [] of images for labels y as the generator takes them; `progress` in [0, 1) of the training."""
        labels = y
        if not self.generator.is_class_conditional:
            low, high = self.generator.config.label_range
            labels = low + y * (high - low)
        losses = self.guide(random_diff_augment(images, self.config.augment), labels).mean()
        now, level = self.accelerator.reduce(losses.detach().clone(), "mean"), self.level.to(losses.device)
        self.level = torch.where(level.isnan(), now, level.lerp(now, 1 - MEMORY))
        weight = self.weight(progress)
        if (enough := getattr(self.guide, "enough", None)) is not None:
            weight = weight * (self.level > enough)
        return weight * losses

    def weight(self, progress: float) -> float:
        """It rises linearly over the share `warmup` of the training and falls over the share `decay` at its end."""
        config, rise, fall = self.config, 1.0, 1.0
        if config.warmup:
            rise = min(1.0, progress / config.warmup)
        if config.decay:
            fall = min(1.0, (1 - progress) / config.decay)
        return config.weight * min(rise, fall)
