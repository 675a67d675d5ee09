"""SAGAN, 64 and 128 pixels, for class ids or a scalar label: a generator and its discriminator.

Generator: latents -> dense 4x4 -> one residual block per doubling, self-attention at 32x32 -> image. Discriminator: the
mirror image, its last features unrolled, with a projection of the label's code onto all of them. Torch's spectral norm
everywhere but in the maps from code to batch norm.
Sources: Zhang et al., "Self-Attention GANs", ICML 2019; in the form of Ding et al., CcGAN, T-PAMI 2023 (scalar labels).
"""

import itertools
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from generators.conditioning import ConditionalBatchNorm, LabelInput, PlainBatchNorm, code_length, label_encoder
from generators.layers import DiscriminatorBlock, GeneratorBlock, SelfAttention, check_size
from generators.model import GeneratorModel, register_to_config

# in units of `channels`: the generator at 4x4 and after every doubling; the discriminator after every halving to 4x4 and
# after a last block
GENERATOR_WIDTHS = {64: (16, 8, 4, 2, 1), 128: (16, 16, 8, 4, 2, 1)}
DISCRIMINATOR_WIDTHS = {64: (1, 2, 4, 8, 16), 128: (1, 2, 4, 8, 16, 16)}
ATTENTION = 32  # pixels


def xavier(layer: nn.Module) -> nn.Module:
    """The layer under torch's spectral norm, drawn as CcGAN's networks are: Xavier-uniform weight, zero bias."""
    nn.init.xavier_uniform_(layer.weight)
    if getattr(layer, "bias", None) is not None:
        nn.init.zeros_(layer.bias)
    return spectral_norm(layer)


def convolution(*args, **kwargs) -> nn.Module:
    return xavier(nn.Conv2d(*args, **kwargs))


class SAGANGenerator(GeneratorModel):
    """`forward(z, y)`: z [N, latent_dim], y [N] -> image [N, C, H, W] in [-1, 1].

    Args as the fields of `GeneratorConfig`; the `label_input` may be `code` too: y is then the code itself, [N, label_dim].
    """

    @register_to_config
    def __init__(
        self,
        resolution: int = 64,
        image_channels: int = 3,
        channels: int = 64,
        latent_dim: int = 128,
        label_dim: int = 128,
        num_classes: int | None = None,
        label_range: tuple[float, float] | None = None,
        label_input: LabelInput | Literal["code"] = "embedding",
    ):
        super().__init__()
        check_size("sagan", resolution, GENERATOR_WIDTHS)
        widths = [channels * width for width in GENERATOR_WIDTHS[resolution]]
        norm = PlainBatchNorm if label_input == "nli" else partial(ConditionalBatchNorm, dim=label_dim)
        self.encoder = label_encoder(label_input, label_dim, num_classes)
        self.dense = xavier(nn.Linear(latent_dim, widths[0] * 16))
        self.blocks, feature_names, size = nn.ModuleList(), [], 4
        for index, (wide, narrow) in enumerate(itertools.pairwise(widths)):
            self.blocks.append(GeneratorBlock(wide, narrow, norm, convolution))
            feature_names.append(f"blocks.{index}")
            size *= 2
            if size == ATTENTION:
                self.attention = SelfAttention(narrow, convolution, bias=True)
                feature_names[-1] = "attention"
        self.feature_names = tuple(feature_names)
        self.norm = nn.BatchNorm2d(widths[-1])
        self.to_image = convolution(widths[-1], image_channels, 3, padding=1)

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        code = self.label_code(y)
        h = self.dense(z)
        if self.config.label_input == "nli":
            h = h + code
        h = h.unflatten(1, (-1, 4, 4))
        for block in self.blocks:
            h = block(h, code)
            if h.shape[-1] == ATTENTION:
                h = self.attention(h)
        return torch.tanh(self.to_image(F.relu(self.norm(h))))


class SAGANDiscriminator(nn.Module):
    """`forward(images, y)`: images [N, C, H, W] in [-1, 1], y [N] -> logits [N]."""

    def __init__(
        self,
        *,
        resolution: int,
        image_channels: int,
        channels: int,
        label_dim: int,
        num_classes: int | None,
        label_input: LabelInput,
    ):
        super().__init__()
        check_size("sagan", resolution, GENERATOR_WIDTHS)
        self.label_input = label_input
        widths = [image_channels, *(channels * width for width in DISCRIMINATOR_WIDTHS[resolution])]
        blocks, size = [], resolution
        for index, (narrow, wide) in enumerate(itertools.pairwise(widths)):
            blocks.append(DiscriminatorBlock(narrow, wide, size > 4, first=index == 0, convolution=convolution))
            size = max(size // 2, 4)
            if size == ATTENTION:
                blocks.append(SelfAttention(wide, convolution, bias=True))
        self.blocks = nn.Sequential(*blocks)
        num_features = widths[-1] * 16  # at 4x4
        self.linear = xavier(nn.Linear(num_features, 1))
        self.encoder = label_encoder(label_input, label_dim, num_classes)
        self.project = xavier(nn.Linear(code_length(label_input, label_dim), num_features, bias=False))

    def forward(self, images: Tensor, y: Tensor) -> Tensor:
        h = F.relu(self.blocks(images)).flatten(1)  # [N, C * 16]
        code = self.encoder(y)
        if self.label_input == "nli":
            code = code + 1  # keeps the projection alive at y = 0
        return self.linear(h).squeeze(1) + (self.project(code) * h).sum(dim=1)
