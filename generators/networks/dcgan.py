"""DCGAN, 8 to 128 pixels, for class ids or a scalar label: the smallest pair that works, to read first.

Generator: latents and label code, joined -> 4x4 -> one transposed convolution per doubling -> image. Discriminator: one
strided convolution per halving down to 4x4, then a projection of the label's code. No residual block, no attention.
Sources: Radford et al., ICLR 2016; spectral norm and projection of Miyato et al., ICLR 2018, in place of the
discriminator's batch norm, so that it can be trained on real and fake images in one pass.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn

from generators.conditioning import LabelInput, code_length, label_encoder
from generators.layers import SIZES, SNConv2d, SNLinear, check_size, initialize_normal
from generators.model import GeneratorModel, register_to_config


def widths_of(resolution: int, channels: int) -> list[int]:
    """Channels at resolution / 2, resolution / 4, ... and 4 pixels: they double as the image halves, up to 8 `channels`."""
    check_size("dcgan", resolution, SIZES)
    return [channels * min(2**index, 8) for index in range(SIZES.index(resolution) + 1)]


class DCGANGenerator(GeneratorModel):
    """`forward(z, y)`: z [N, latent_dim], y [N] -> image [N, C, H, W] in [-1, 1]."""

    @register_to_config
    def __init__(
        self,
        resolution: int = 32,
        image_channels: int = 3,
        channels: int = 64,
        latent_dim: int = 128,
        label_dim: int = 128,
        num_classes: int | None = None,
        label_range: tuple[float, float] | None = None,
        label_input: LabelInput = "embedding",
    ):
        super().__init__()
        widths = widths_of(resolution, channels)[::-1]
        self.dense = nn.Linear(latent_dim + code_length(label_input, label_dim), widths[0] * 16, bias=False)
        self.norm = nn.BatchNorm2d(widths[0])
        self.blocks = nn.ModuleList()
        for wide, narrow in pairwise(widths):
            convolution = nn.ConvTranspose2d(wide, narrow, 4, stride=2, padding=1, bias=False)
            self.blocks.append(nn.Sequential(convolution, nn.BatchNorm2d(narrow), nn.ReLU()))
        self.to_image = nn.ConvTranspose2d(widths[-1], image_channels, 4, stride=2, padding=1)
        self.feature_names = tuple(f"blocks.{index}" for index in range(len(self.blocks)))
        initialize_normal(self)
        self.encoder = label_encoder(label_input, label_dim, num_classes)

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        h = self.dense(torch.cat([z, self.label_code(y)], dim=1)).unflatten(1, (-1, 4, 4))
        h = torch.relu(self.norm(h))
        for block in self.blocks:
            h = block(h)
        return torch.tanh(self.to_image(h))


class DCGANDiscriminator(nn.Module):
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
        widths = [image_channels, *widths_of(resolution, channels)]
        layers = []
        for narrow, wide in pairwise(widths):
            layers += [SNConv2d(narrow, wide, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.Flatten())
        self.linear = SNLinear(widths[-1] * 16, 1)
        self.project = SNLinear(code_length(label_input, label_dim), widths[-1] * 16)  # its bias serves a code of 0
        initialize_normal(self)
        self.encoder = label_encoder(label_input, label_dim, num_classes)

    def forward(self, images: Tensor, y: Tensor) -> Tensor:
        h = self.layers(images)  # [N, C * 16]
        return self.linear(h).squeeze(1) + (self.project(self.encoder(y)) * h).sum(dim=1)
