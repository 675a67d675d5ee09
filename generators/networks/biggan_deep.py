"""BigGAN-deep, 32 to 256 pixels, for class ids: a generator and its discriminator of bottleneck blocks.

Generator: the class code and all latents, joined, make the 4x4 image and feed every batch norm; a stage is `depth` blocks,
the last of which doubles the image. Channels are dropped, or joined by new ones, instead of projected in the shortcuts.
Source: Brock, Donahue and Simonyan, ICLR 2019, appendix B (BigGAN-deep).
"""

import itertools
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from generators.conditioning import ConditionalBatchNorm, upsample
from generators.layers import SelfAttention, SNConv2d, SNEmbedding, SNLinear, initialize_normal
from generators.model import GeneratorModel, register_to_config
from generators.networks.biggan import DISCRIMINATOR_WIDTHS, GENERATOR_WIDTHS, HALVINGS, check_settings


class BottleneckUp(nn.Module):
    """1x1 down to in / 4 channels, two 3x3, 1x1 up to `out`, each after batch norm and ReLU; the shortcut keeps the first
    `out` channels of x. [N, in, H, W] -> [N, out, H, W], doubled when `double`."""

    def __init__(self, in_channels: int, out_channels: int, code_dim: int, double: bool):
        super().__init__()
        hidden = in_channels // 4
        norm = partial(ConditionalBatchNorm, dim=code_dim, layer=partial(SNLinear, bias=False))
        self.out_channels, self.doubles = out_channels, double
        self.bn1, self.bn2, self.bn3, self.bn4 = norm(in_channels), norm(hidden), norm(hidden), norm(hidden)
        self.conv1 = SNConv2d(in_channels, hidden, 1)
        self.conv2 = SNConv2d(hidden, hidden, 3, padding=1)
        self.conv3 = SNConv2d(hidden, hidden, 3, padding=1)
        self.conv4 = SNConv2d(hidden, out_channels, 1)

    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        h = self.conv1(F.relu(self.bn1(x, code)))
        h, x = F.relu(self.bn2(h, code)), x[:, : self.out_channels]
        if self.doubles:
            h, x = upsample(h), upsample(x)
        h = self.conv2(h)
        h = self.conv3(F.relu(self.bn3(h, code)))
        return self.conv4(F.relu(self.bn4(h, code))) + x


class BigGANDeepGenerator(GeneratorModel):
    """`forward(z, y)`: z [N, latent_dim], y int64 [N] -> image [N, C, H, W] in [-1, 1].

    Args as the fields of `GeneratorConfig`; the paper's `channels`: 128 for ImageNet. All batch norms share the class code.
    """

    @register_to_config
    def __init__(
        self,
        resolution: int = 128,
        image_channels: int = 3,
        channels: int = 128,
        latent_dim: int = 128,
        label_dim: int = 128,
        num_classes: int | None = None,
        attention: tuple[int, ...] = (),
        depth: int = 2,
    ):
        super().__init__()
        check_settings(resolution, num_classes, attention)
        widths = [channels * width for width in GENERATOR_WIDTHS[resolution]]
        code_dim = label_dim + latent_dim
        self.shared = nn.Embedding(num_classes, label_dim)
        self.linear = SNLinear(code_dim, widths[0] * 16)
        self.blocks, feature_names = nn.ModuleList(), []
        for index, (wide, narrow) in enumerate(itertools.pairwise(widths)):
            for inner in range(depth):
                last = inner == depth - 1
                self.blocks.append(nn.ModuleList([BottleneckUp(wide, narrow if last else wide, code_dim, last)]))
            if 8 * 2**index in attention:
                self.blocks[-1].append(SelfAttention(narrow))
            feature_names.append(f"blocks.{len(self.blocks) - 1}.{len(self.blocks[-1]) - 1}")
        self.feature_names = tuple(feature_names)
        self.output_layer = nn.Sequential(
            nn.BatchNorm2d(widths[-1]), nn.ReLU(), SNConv2d(widths[-1], image_channels, 3, padding=1)
        )
        initialize_normal(self)

    def label_code(self, y: Tensor) -> Tensor:
        return self.shared(y)

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        code = torch.cat([self.label_code(y), z], dim=1)  # [N, label_dim + latent_dim]
        h = self.linear(code).unflatten(1, (-1, 4, 4))
        for block, *attention in self.blocks:
            h = block(h, code)
            for module in attention:
                h = module(h)
        return torch.tanh(self.output_layer(h))


class BottleneckDown(nn.Module):
    """1x1 down to out / 4 channels, two 3x3, 1x1 up to `out`, each after a ReLU; a 1x1 of x makes the channels that the
    shortcut lacks. [N, in, H, W] -> [N, out, H, W], halved when `halve`."""

    def __init__(self, in_channels: int, out_channels: int, halve: bool):
        super().__init__()
        hidden = out_channels // 4
        self.halve = halve
        self.conv1 = SNConv2d(in_channels, hidden, 1)
        self.conv2 = SNConv2d(hidden, hidden, 3, padding=1)
        self.conv3 = SNConv2d(hidden, hidden, 3, padding=1)
        self.conv4 = SNConv2d(hidden, out_channels, 1)
        self.conv_sc = SNConv2d(in_channels, out_channels - in_channels, 1) if out_channels > in_channels else None

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv2(F.relu(self.conv1(F.relu(x))))
        h = F.relu(self.conv3(F.relu(h)))
        if self.halve:
            h, x = F.avg_pool2d(h, 2), F.avg_pool2d(x, 2)
        if self.conv_sc is not None:
            x = torch.cat([x, self.conv_sc(x)], dim=1)
        return self.conv4(h) + x


class BigGANDeepDiscriminator(nn.Module):
    """`forward(images, y)`: images [N, C, H, W] in [-1, 1], y int64 [N] -> logits [N]. The first block of a stage halves."""

    def __init__(
        self,
        *,
        resolution: int,
        image_channels: int,
        channels: int,
        num_classes: int | None,
        attention: tuple[int, ...] = (),
        depth: int = 2,
    ):
        super().__init__()
        check_settings(resolution, num_classes, attention)
        widths = [channels * width for width in DISCRIMINATOR_WIDTHS[resolution]]
        blocks, size = [SNConv2d(image_channels, widths[0], 3, padding=1)], resolution
        for index, (narrow, wide) in enumerate(itertools.pairwise(widths)):
            halve = index < HALVINGS[resolution]
            size //= 1 + halve
            for inner in range(depth):
                blocks.append(BottleneckDown(wide if inner else narrow, wide, halve and inner == 0))
            if halve and size in attention:
                blocks.append(SelfAttention(wide))
        self.blocks = nn.Sequential(*blocks)
        self.linear = SNLinear(widths[-1], 1)
        self.embed = SNEmbedding(num_classes, widths[-1])
        initialize_normal(self)

    def forward(self, images: Tensor, y: Tensor) -> Tensor:
        h = F.relu(self.blocks(images)).sum(dim=(2, 3))  # [N, C]
        return self.linear(h).squeeze(1) + (self.embed(y) * h).sum(dim=1)
