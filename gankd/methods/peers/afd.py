"""Online adversarial distillation: students exchange their outputs, and each makes feature maps like the next one's.

Chung, Park, Kim, Kwak, "Feature-map-level Online Adversarial Knowledge Distillation", ICML 2020, arXiv 2002.01775.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from gankd.data.loader import Batch
from gankd.losses import afd_discriminator_loss, afd_generator_loss, dml_loss
from gankd.methods.peers.base import Online, PeersConfig
from gankd.methods.peers.ffl import Align
from gankd.methods.setup import Setup
from generators.settings import Positive, Weight


class AFDConfig(PeersConfig):
    """sum over students of the task's loss + weight * mutual learning + feature_weight * fooling the discriminators."""

    name: Literal["afd"] = "afd"
    """The method's name."""
    weight: Weight = 1.0
    """Weight of what the students learn from one another's outputs."""
    temperature: Positive = 3.0
    """Temperature that softens both distributions of classes."""
    feature_weight: Weight = 1.0
    """Weight of the adversarial loss on the last maps."""
    discriminator_rate: Positive = 1.0
    """The discriminators' learning rate, as a share of the students'."""
    discriminator_weight_decay: Weight = 0.0
    """Weight decay of the discriminators."""


class AFD(Online):
    """t_i = T_i(F_i): the last map through a transfer layer (1x1 convolution and batch norm);  next(i) = i + 1 in a cycle
    students        L_G = sum_i mean (1 - D_i(t_i))^2, which does not move D
    discriminators  L_D = sum_i mean (1 - D_i([t_next(i)]))^2 + mean D_i([t_i])^2, which moves D alone
    L = mutual learning at temperature T + feature_weight L_G + L_D

    As the two losses move different parameters, one backward pass takes the step of both. The equations and T = 3 are
    those of the literature; the discriminator's two convolutions are a choice of this implementation.

    >>> student = gankd.distill(student, real=train, method="afd", steps=2)

    Loss: losses.online.dml_loss, afd_generator_loss, afd_discriminator_loss
    """

    Config = AFDConfig
    reads = ("map",)

    def __init__(self, config: AFDConfig, setup: Setup):
        super().__init__(config, setup)
        self.transfer = Align(self.shapes("map"), always=True)
        self.discriminators = nn.ModuleList(discriminator(self.transfer.channels) for _ in range(config.peers))

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        config = self.config
        answers, batch = self.answers_to(batch)
        loss, labels, mutual = dml_loss(
            student_logits=answers.outputs,
            labels=batch.labels,
            temperature=config.temperature,
            kd_weight=config.weight,
            task=self.task,
        )
        fooling, telling = self.adversarial_losses(self.transfer(answers.maps))
        loss = loss + config.feature_weight * fooling + telling
        return {"loss": loss, "task": labels, "mutual": mutual, "afd": fooling, "discriminators": telling}

    def adversarial_losses(self, maps: list[Tensor]) -> tuple[Tensor, Tensor]:
        """(L_G, L_D) of the transferred maps, each the sum over students."""
        fooling, telling = [], []
        for index, (judge, own) in enumerate(zip(self.discriminators, maps, strict=True)):
            other = maps[(index + 1) % len(maps)]
            frozen = {name: parameter.detach() for name, parameter in judge.named_parameters()}
            fooling.append(afd_generator_loss(own_scores=functional_call(judge, frozen, (own,))))
            scores = {"own_scores": judge(own.detach()), "other_scores": judge(other.detach())}
            telling.append(afd_discriminator_loss(**scores))
        return torch.stack(fooling).sum(), torch.stack(telling).sum()

    def parameter_groups(self) -> list[dict]:
        settings = {"rate": self.config.discriminator_rate, "weight_decay": self.config.discriminator_weight_decay}
        return [{"params": list(self.discriminators.parameters()), **settings}]


def discriminator(channels: int) -> nn.Module:
    """A map [N, C, H, W] to the share of "the next student's" at every position, [N, 1, H, W]."""
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, padding=1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(channels, 1, 3, padding=1),
        nn.Sigmoid(),
    )
