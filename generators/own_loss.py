"""A generator that is trained by a loss of its own: no discriminator, one update on one batch of real images a step.

Such a generator has `training_loss(images, y)`: images [N, C, H, W] in [-1, 1], y [N] (class ids, or scalars in [0, 1]) to a
loss []. What it draws from torch's default generators is the same again when a step is repeated.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from generators.augment import random_mirror
from generators.game import Player
from generators.images import to_generator_range

if TYPE_CHECKING:
    from generators.config import GeneratorConfig
    from generators.labels import Plan

LONGEST_GRADIENT = 1.0  # its norm; longer ones are cut
OF_A_GAME = ("loss", "vicinity", "mode_seeking", "r1", "r1_every", "orthogonal", "features", "guidance", "cutout")
OF_A_GAME += ("augment", "augment_target", "augment_images", "discriminator_steps", "discriminator_learning_rate")


class OwnLoss:
    """What `Game` is to two networks to a generator alone: the network with its optimiser, and one update."""

    shown = {"loss": "loss"}

    def __init__(self, generator: nn.Module, plan: Plan, config: GeneratorConfig, accelerator: Accelerator):
        self.generator, self.plan, self.config = generator, plan, config
        self.accelerator, self.device = accelerator, accelerator.device
        self.player = Player(generator, config.learning_rate, config, accelerator)
        self.player.longest_gradient = LONGEST_GRADIENT
        self.networks, self.players = [generator], [self.player]

    def step(self, batches: list[dict[str, Tensor]], y: Tensor) -> tuple[dict[str, Tensor], None]:
        """One update on the only batch, whose real images are seen under their targets; no images are drawn for labels y."""
        (batch,) = batches
        passes = self.config.accumulate
        images, y = (batch[name].to(self.device, non_blocking=True) for name in ("images", "real_y"))
        total = torch.zeros((), device=self.device)
        for part, part_y in zip(images.chunk(passes), y.chunk(passes), strict=True):
            real = to_generator_range(part)
            if self.config.horizontal_flip:
                real = random_mirror(real)
            with self.accelerator.autocast():
                loss = self.generator.training_loss(real, part_y)
            self.player.backward(loss / passes)
            total += loss.detach() / passes
        self.player.step()
        return {"loss": total}, None

    def state_dict(self) -> dict:
        return self.player.state_dict()

    def load_state_dict(self, state: dict) -> None:
        self.player.load_state_dict(state)


def check_own_loss(generator: nn.Module, config: Any) -> None:
    """Raise a ValueError unless a generator without a discriminator has a loss, and settings that have a meaning for it."""
    network = f"the generator network '{config.network}'"
    if not callable(getattr(generator, "training_loss", None)):
        raise ValueError(
            f"{network} returns no discriminator, and its {type(generator).__name__} has no training_loss(images, y) to be "
            "trained by; define one, or return a discriminator."
        )
    for name in OF_A_GAME:
        if getattr(config, name) != type(config).model_fields[name].default:
            raise ValueError(f"{name} is for a game with a discriminator, and {network} has none; leave {name} out.")
