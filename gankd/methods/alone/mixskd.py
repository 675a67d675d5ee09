"""MixSKD: what a network says about a mixed image equals the mixture of what it says about the images.

Yang, An, Zhou, Cai, Zhi, Wu, Xu, Zhang, "MixSKD: Self-Knowledge Distillation from Mixup for Image Recognition",
ECCV 2022, arXiv 2208.05768.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from gankd.data.loader import Batch
from gankd.losses import gradient_reversal, mixskd_discriminator_loss, mixskd_loss, mixup_batch
from gankd.losses.mixskd import interpolation_and_mixture
from gankd.losses.precision import full_precision
from gankd.methods.alone.mixing import draw_mixing
from gankd.methods.base import EVERY_TASK, Distiller, MethodConfig
from gankd.methods.branches import stage_taps
from gankd.methods.setup import Setup
from gankd.models.tail import NetworkTail, reinitialize
from gankd.models.taps import Taps
from generators.settings import Positive, Weight


class MixSKDConfig(MethodConfig):
    """Clean loss + mixed_weight mixed loss + kd_weight KL + feature_weight MSE + adversarial_weight BCE."""

    name: Literal["mixskd"] = "mixskd"
    """The method's name."""
    alpha: Weight = 0.4
    """The images' shares are drawn from Beta(alpha, alpha), one a batch; 0.4 on CIFAR-100, 0.2 on ImageNet; 0 does not
    mix."""
    temperature: Positive = 3.0
    """Temperature that softens both distributions of classes."""
    mixed_weight: Weight = 1.0
    """Weight of the labels' loss on mixtures, which alone trains the self-teacher."""
    kd_weight: Weight = 1.0
    """Weight of the divergences between mixtures of predictions and predictions on mixtures."""
    feature_weight: Weight = 1.0
    """Weight of the distances between mixtures of maps and maps of mixtures."""
    adversarial_weight: Weight = 1.0
    """Weight of the discriminators that tell the two apart, and of the network's effort to deceive them."""
    as_released: bool = False
    """As the authors' CIFAR script: no labels' loss on mixtures, so that the self-teacher stays as it is initialised, and
    discriminators that are never trained and that the network helps instead of deceiving them."""
    student_taps: tuple[str, ...] | None = None
    """Module paths of the stages' maps, shallow to deep. Null: every stage."""


class MixSKD(Distiller):
    """One forward pass of N images x and of their N mixtures, lambda x + (1 - lambda) x[perm]. Of any output o,
    I(o) = lambda o(x) + (1 - lambda) o(x)[perm] and M(o) = o(mixture). Heads z_1..z_B: a copy of the remaining
    stages on each stage but the last, and the network's own; F_b the maps before pooling; h the self-teacher on all maps.

        clean     sum_b CE(z_b, y)
        mixed     sum_b mixup CE(M(z_b)) + mixup CE(h(I(F))) + mixup CE(h(M(F)))
        kd        sum_{b<B} [ KL(I(z_b), [M(z_b)]) + KL(M(z_b), [I(z_b)]) ] + KL(I(z_B), [h(M(F))]) + KL(M(z_B), [h(I(F))])
        features  sum_b mean (I(F_b) - M(F_b))^2
        adversarial  BCE of a discriminator a stage between I(F_b) and M(F_b), its gradient reversed for the network

    Scalars: squared errors to blended labels, squared differences for the KL. All but the network is for training only.

    >>> student = gankd.distill(student, real=train, method="mixskd", steps=2)

    Loss: losses.mixskd.mixskd_loss
    """

    Config = MixSKDConfig
    tasks = EVERY_TASK
    heads = frozenset({"scalar"})
    hint = "mixskd mixes predictions. Use task.head: scalar."
    needs_teacher = False

    def __init__(self, config: MixSKDConfig, setup: Setup):
        super().__init__(config, setup)
        self.taps, shapes = stage_taps(setup, config.name, config.student_taps)
        channels = shapes[-1][0]
        self.branches = nn.ModuleList(
            NetworkTail(setup.student, path, setup.data.image_shape) for path in self.taps[:-1]
        )
        reinitialize(self.branches)
        self.fusion = nn.Conv2d(len(shapes) * channels, channels, 1, bias=False)
        self.self_teacher_head = nn.Linear(channels, setup.task.num_outputs)
        self.discriminators = nn.ModuleList()
        if config.adversarial_weight > 0:
            self.discriminators.extend(Discriminator(channels) for _ in shapes)
        self.mixed_weight = 0.0 if config.as_released else config.mixed_weight
        if config.as_released:
            self.discriminators.requires_grad_(False)
        if self.mixed_weight == 0:  # without it nothing trains the self-teacher
            self.fusion.requires_grad_(False)
            self.self_teacher_head.requires_grad_(False)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        config, labels = self.config, batch.labels
        view = self.augment(batch.images)  # [N, C, H, W]
        permutation, mixing = draw_mixing(view, config.alpha if self.training else 0)
        mixture = mixup_batch(images=view, permutation=permutation, mixing=mixing)
        images = self.normalize(torch.cat([view, mixture]))
        outputs, (*features, last) = Taps(self.student, self.taps)(images)
        found = [
            Taps(branch, [f"network.{self.taps[-1]}"])(feature, images)
            for branch, feature in zip(self.branches, features, strict=True)
        ]
        outputs, maps = zip(*((each, map_) for each, (map_,) in found), (outputs, last), strict=True)
        # B of [2 N, K], the network's own last, and B of [2 N, C, H, W]

        pairs = [interpolation_and_mixture(map_, permutation, mixing) for map_ in maps]
        interpolated_maps, mixture_maps = zip(*pairs, strict=True)  # B of [N, C, H, W] each
        _, *terms = mixskd_loss(
            logits=outputs,
            features=maps,
            interpolated_teacher_logits=self.self_teacher(interpolated_maps),
            mixup_teacher_logits=self.self_teacher(mixture_maps),
            labels=labels,
            permutation=permutation,
            mixing=mixing,
            temperature=config.temperature,
            task=self.task,
        )
        losses = dict(zip(("clean", "mixed", "divergence", "features"), terms, strict=True))
        weights = {
            "clean": 1.0,
            "mixed": self.mixed_weight,
            "divergence": config.kd_weight,
            "features": config.feature_weight,
        }
        if self.discriminators:
            losses["adversarial"] = self.adversarial_loss(interpolated_maps, mixture_maps)
            weights["adversarial"] = config.adversarial_weight
        return {"loss": sum(weights[name] * loss for name, loss in losses.items() if weights[name] > 0), **losses}

    def self_teacher(self, maps: Sequence[Tensor]) -> Tensor:
        """B maps [N, C, H, W] to outputs [N, K]."""
        return self.self_teacher_head(self.fusion(torch.cat(maps, dim=1)).mean(dim=(2, 3)))

    def adversarial_loss(self, interpolated: list[Tensor], mixture: list[Tensor]) -> Tensor:
        """How badly the discriminators tell I(F_b) from M(F_b); what is in front of them climbs it."""

        def scores(maps: list[Tensor]) -> list[Tensor]:
            if not self.config.as_released:
                maps = [gradient_reversal(input=feature, strength=1.0) for feature in maps]
            return [judge(feature) for judge, feature in zip(self.discriminators, maps, strict=True)]

        return mixskd_discriminator_loss(interpolated_scores=scores(interpolated), mixup_scores=scores(mixture))


class Discriminator(nn.Module):
    """A map [N, C, H, W] to scores [N, 2] of being interpolated and of being of a mixture, in full precision."""

    def __init__(self, channels: int, width: int = 128):
        super().__init__()
        self.hidden, self.output = nn.Linear(channels, width), nn.Linear(width, 2)

    def forward(self, feature: Tensor) -> Tensor:
        with torch.autocast(feature.device.type, enabled=False):
            pooled = full_precision(feature).mean(dim=(2, 3))  # [N, C]
            return self.output(self.hidden(pooled).relu())
