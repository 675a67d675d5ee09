"""Discriminators on frozen features: small heads that look at what another network, trained on much, makes of the images.

    generators.train(images, labels, num_classes=10, features=network_maps, config=GeneratorConfig(features={...}))

Source: Sauer, Chitta, Müller, Geiger, "Projected GANs Converge Faster", NeurIPS 2021, arXiv 2111.01007.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from generators.conditioning import code_length, label_encoder
from generators.config import FeatureHeadsConfig
from generators.layers import torch_sn_conv2d, torch_sn_linear

FeatureMaps = Callable[[Tensor], Sequence[Tensor]]
"""Images [N, C, H, W] in [-1, 1] to maps [N, C_l, H_l, W_l] of a frozen network, finest first, differentiable."""

LABEL_DIM = 64  # length of a scalar label's code


class FeatureHeads(nn.Module):
    """A discriminator for every map of a frozen network. `forward(maps, y)` -> logits [L, N].

    Every map first passes a fixed random mixing of its channels (and, with `mix_scales`, receives the coarser ones), so
    that a discriminator cannot look at the few channels alone in which real and generated images are told apart at once.

    shapes: [C_l, H_l, W_l] of each map.
    num_classes: for class ids; None for scalars in [0, 1].
    """

    def __init__(self, shapes: Sequence[tuple[int, int, int]], config: FeatureHeadsConfig, num_classes: int | None):
        super().__init__()
        wide = config.channels
        self.mixings = nn.ModuleList(frozen_mixing(channels, wide) for channels, _, _ in shapes)
        coarser = len(shapes) - 1 if config.mix_scales else 0
        self.scale_mixings = nn.ModuleList(frozen_mixing(wide, wide) for _ in range(coarser))
        self.heads = nn.ModuleList(FeatureHead(wide, min(shape[1:]), num_classes) for shape in shapes)

    @classmethod
    def on(cls, maps_of: FeatureMaps, generator: Any, config: FeatureHeadsConfig, device: torch.device) -> FeatureHeads:
        """The heads for the maps that `maps_of` makes of a generator's images (its `config` says which those are).
        Raises ValueError: `maps_of` returns no maps, cannot take such images, or passes no gradient to them."""
        size = generator.resolution
        images = torch.zeros(2, generator.image_channels, size, size, device=device, requires_grad=True)
        maps = list(maps_of(images))
        shapes = [tuple(each.shape[1:]) for each in maps]
        if not maps or any(len(shape) != 3 for shape in shapes):
            raise ValueError(
                f"features returns {shapes or 'nothing'}; it should return maps [N, C, H, W], one or more."
            )
        if not all(each.requires_grad for each in maps):
            raise ValueError("features passes no gradient to its images: call the network outside of torch.no_grad.")
        return cls(shapes, config, generator.num_classes)

    def forward(self, maps: Sequence[Tensor], y: Tensor) -> Tensor:
        mixed = [mixing(each) for mixing, each in zip(self.mixings, maps, strict=True)]
        for index in reversed(range(len(self.scale_mixings))):  # from the coarsest to the finest
            coarser = self.scale_mixings[index](mixed[index + 1])
            enlarged = F.interpolate(coarser, size=mixed[index].shape[2:], mode="bilinear", align_corners=False)
            mixed[index] = (mixed[index] + enlarged) / 2**0.5
        return torch.stack([head(each, y) for head, each in zip(self.heads, mixed, strict=True)])


class FeatureHead(nn.Module):
    """Convolutions down to 4x4 positions, a sum over them, a linear map and the projection of the label. -> logits [N]."""

    def __init__(self, channels: int, size: int, num_classes: int | None):
        super().__init__()
        halvings = max(0, (size // 4).bit_length() - 1)
        strides = [2] * halvings + [1]
        self.convolutions = nn.ModuleList(
            torch_sn_conv2d(channels, channels, 3, stride=stride, padding=1) for stride in strides
        )
        self.linear = torch_sn_linear(channels, 1)
        if num_classes is not None:
            self.encoder = nn.Identity()
            self.project = spectral_norm(nn.Embedding(num_classes, channels))
        else:
            self.encoder = label_encoder("fourier", LABEL_DIM, None)
            self.project = torch_sn_linear(code_length("fourier", LABEL_DIM), channels, bias=False)

    def forward(self, h: Tensor, y: Tensor) -> Tensor:
        for convolution in self.convolutions:
            h = F.leaky_relu(convolution(h), 0.2)
        h = h.sum(dim=(2, 3))
        return self.linear(h).squeeze(1) + (self.project(self.encoder(y)) * h).sum(dim=1)


def frozen_mixing(channels: int, out: int) -> nn.Conv2d:
    """A 1x1 convolution with fixed random weights that keeps the size of its inputs."""
    mixing = nn.Conv2d(channels, out, 1, bias=False).requires_grad_(False)
    nn.init.normal_(mixing.weight, std=channels**-0.5)
    return mixing
