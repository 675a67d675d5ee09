"""BigGAN, 32 to 256 pixels, for class ids: a generator and its discriminator.

Generator: latents -> 4x4 -> one residual block per doubling, self-attention at chosen sizes -> image. A class reaches every
batch norm, through a table of its own or through one shared embedding, beside a slice of the latents where hierarchical.
Discriminator: residual blocks, projection of the class onto the summed features. Spectral norm everywhere in both.
Source: Brock, Donahue and Simonyan, "Large Scale GAN Training for High Fidelity Natural Image Synthesis", ICLR 2019.
"""

import itertools
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from generators.conditioning import ConditionalBatchNorm
from generators.layers import (
    DiscriminatorBlock,
    GeneratorBlock,
    SelfAttention,
    SNConv2d,
    SNEmbedding,
    SNLinear,
    check_size,
    initialize_normal,
    torch_sn_conv2d,
    torch_sn_linear,
)
from generators.model import GeneratorModel, register_to_config

# widths in units of `channels`: at 4x4 and after every doubling; the table for 32 pixels is BigGAN-PyTorch's for CIFAR
GENERATOR_WIDTHS = {
    32: (4, 4, 4, 4),
    64: (16, 16, 8, 4, 2),
    128: (16, 16, 8, 4, 2, 1),
    256: (16, 16, 8, 8, 4, 2, 1),
}
# after every block of the discriminator (BigGAN-deep: the first convolution and every stage); how many blocks halve
DISCRIMINATOR_WIDTHS = {
    32: (4, 4, 4, 4),
    64: (1, 2, 4, 8, 16),
    128: (1, 2, 4, 8, 16, 16),
    256: (1, 2, 4, 8, 8, 16, 16),
}
HALVINGS = {32: 2, 64: 4, 128: 5, 256: 6}


def check_settings(resolution: int, num_classes: int | None, attention: tuple[int, ...]) -> None:
    """Raise a ValueError for an image size without a width table, a scalar label, or attention at a size never passed."""
    check_size("BigGAN", resolution, GENERATOR_WIDTHS)
    if num_classes is None:
        raise ValueError("BigGAN networks take class ids; for a scalar label use the network sngan, sagan or dcgan.")
    sizes = [8 * 2**index for index in range(len(GENERATOR_WIDTHS[resolution]) - 1)]
    if unknown := set(attention) - set(sizes):
        raise ValueError(f"attention at {unknown.pop()} pixels does not fit images of {resolution}; use {sizes}.")


class BigGANGenerator(GeneratorModel):
    """`forward(z, y)`: z [N, latent_dim], y int64 [N] -> image [N, C, H, W] in [-1, 1].

    Args as the fields of `GeneratorConfig`; the papers' `channels`: 64 for CIFAR, 96 for ImageNet. Hierarchical latents are
    cut into equal slices, the first for the 4x4 image, then one for each block.
    spectral_rule: `biggan`, or `torch` for weights trained under torch's own rule (see `layers`).
    """

    @register_to_config
    def __init__(
        self,
        resolution: int = 32,
        image_channels: int = 3,
        channels: int = 64,
        latent_dim: int = 128,
        label_dim: int = 128,
        num_classes: int | None = None,
        attention: tuple[int, ...] = (),
        shared_embedding: bool = False,
        hierarchical: bool = False,
        spectral_rule: Literal["biggan", "torch"] = "biggan",
    ):
        super().__init__()
        check_settings(resolution, num_classes, attention)
        widths = [channels * width for width in GENERATOR_WIDTHS[resolution]]
        if hierarchical and latent_dim < len(widths):
            raise ValueError(f"latent_dim {latent_dim} does not cut into {len(widths)} slices; give that many or more.")
        self.slice = latent_dim // len(widths) if hierarchical else latent_dim
        convolution, linear = (SNConv2d, SNLinear) if spectral_rule == "biggan" else (torch_sn_conv2d, torch_sn_linear)
        if shared_embedding:
            self.shared = nn.Embedding(num_classes, label_dim)
            code_dim, layer = label_dim + hierarchical * self.slice, partial(linear, bias=False)
        elif hierarchical:
            raise ValueError("hierarchical latents need shared_embedding: a table of gains has no place for a slice.")
        else:
            code_dim, layer = num_classes, nn.Embedding
        norm = partial(ConditionalBatchNorm, dim=code_dim, layer=layer)
        self.linear = linear(self.slice, widths[0] * 16)
        self.blocks = nn.ModuleList()
        for index, (wide, narrow) in enumerate(itertools.pairwise(widths)):
            stage = nn.ModuleList([GeneratorBlock(wide, narrow, norm, convolution)])
            if 8 * 2**index in attention:
                stage.append(SelfAttention(narrow, convolution))
            self.blocks.append(stage)
        self.output_layer = nn.Sequential(
            nn.BatchNorm2d(widths[-1]), nn.ReLU(), convolution(widths[-1], image_channels, 3, padding=1)
        )
        self.feature_names = tuple(f"blocks.{index}.{len(stage) - 1}" for index, stage in enumerate(self.blocks))
        if spectral_rule == "biggan":
            initialize_normal(self)

    def label_code(self, y: Tensor) -> Tensor:
        return self.shared(y) if self.config.shared_embedding else super().label_code(y)

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        code = self.shared(y) if self.config.shared_embedding else y  # [N, label_dim] or ids [N] for the tables
        h = self.linear(z[:, : self.slice]).unflatten(1, (-1, 4, 4))
        for index, (block, *attention) in enumerate(self.blocks, start=1):
            slice_ = z[:, index * self.slice : (index + 1) * self.slice]
            h = block(h, torch.cat([code, slice_], dim=1) if self.config.hierarchical else code)
            for module in attention:
                h = module(h)
        return torch.tanh(self.output_layer(h))


class BigGANDiscriminator(nn.Module):
    """`forward(images, y)`: images [N, C, H, W] in [-1, 1], y int64 [N] -> logits [N]."""

    def __init__(
        self, *, resolution: int, image_channels: int, channels: int, num_classes: int | None, attention: tuple = ()
    ):
        super().__init__()
        check_settings(resolution, num_classes, attention)
        widths = [image_channels, *(channels * width for width in DISCRIMINATOR_WIDTHS[resolution])]
        blocks, size = [], resolution
        for index, (narrow, wide) in enumerate(itertools.pairwise(widths)):
            halve = index < HALVINGS[resolution]
            size //= 1 + halve
            blocks.append(DiscriminatorBlock(narrow, wide, halve, first=index == 0, convolution=SNConv2d))
            if halve and size in attention:
                blocks.append(SelfAttention(wide))
        self.blocks = nn.Sequential(*blocks)
        self.linear = SNLinear(widths[-1], 1)
        self.embed = SNEmbedding(num_classes, widths[-1])
        initialize_normal(self)

    def forward(self, images: Tensor, y: Tensor) -> Tensor:
        h = F.relu(self.blocks(images)).sum(dim=(2, 3))  # [N, C]
        return self.linear(h).squeeze(1) + (self.embed(y) * h).sum(dim=1)
