"""SNGAN-style residual networks, 8 to 128 pixels, for class ids or a scalar label: a generator and its discriminator.

Generator: latents -> dense 4x4 -> one residual block per doubling -> image. The label's code drives the batch norms.
Discriminator: spectral norm everywhere, residual blocks down to 4x4, projection of the code onto the pooled features.
Sources: Miyato et al. 2018 (spectral normalisation), Miyato and Koyama 2018 (projection), Ding et al. 2023 (scalar labels).
"""

from functools import partial
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from generators.conditioning import ConditionalBatchNorm, LabelInput, PlainBatchNorm, code_length, label_encoder
from generators.layers import SIZES, DiscriminatorBlock, GeneratorBlock, check_size, torch_sn_linear
from generators.model import GeneratorModel, register_to_config


def check_resolution(resolution: int, num_blocks: int) -> None:
    """Raise a ValueError unless `resolution` is one of SIZES that `num_blocks` doublings do not overshoot."""
    check_size("sngan", resolution, SIZES)
    if 4 * 2**num_blocks > resolution:
        raise ValueError(
            f"{num_blocks + 1} generator widths reach {4 * 2**num_blocks} pixels, beyond the image size {resolution}; "
            "give fewer widths."
        )


class SNGANGenerator(GeneratorModel):
    """Generator of residual blocks. `forward(z, y)`: z [N, latent_dim], y [N] -> image [N, C, H, W] in [-1, 1].

    Args as the fields of `GeneratorConfig`; the `label_input` may be `code` too: y is then the code itself, [N, label_dim].
    An image made small and enlarged, by few `widths`, is a strong, cheap prior for data that is smooth at the pixel level.
    """

    @register_to_config
    def __init__(
        self,
        resolution: int = 32,
        image_channels: int = 3,
        widths: tuple[int, ...] = (256, 256, 256, 256),
        latent_dim: int = 128,
        label_dim: int = 128,
        num_classes: int | None = None,
        label_range: tuple[float, float] | None = None,
        label_input: LabelInput | Literal["code"] = "embedding",
    ):
        super().__init__()
        check_resolution(resolution, len(widths) - 1)
        self.feature_names = tuple(f"blocks.{index}" for index in range(len(widths) - 1))
        self.encoder = label_encoder(label_input, label_dim, num_classes)
        norm = PlainBatchNorm if label_input == "nli" else partial(ConditionalBatchNorm, dim=label_dim)
        self.dense = nn.Linear(latent_dim, widths[0] * 16)
        self.blocks = nn.ModuleList(GeneratorBlock(wide, narrow, norm) for wide, narrow in pairwise(widths))
        self.norm = nn.BatchNorm2d(widths[-1])
        self.to_image = nn.Conv2d(widths[-1], image_channels, 3, padding=1)

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        code = self.label_code(y)
        h = self.dense(z)
        if self.config.label_input == "nli":
            h = h + code
        h = h.unflatten(1, (-1, 4, 4))
        for block in self.blocks:
            h = block(h, code)
        image = torch.tanh(self.to_image(F.relu(self.norm(h))))
        if image.shape[-1] != self.config.resolution:
            image = F.interpolate(image, size=self.config.resolution, mode="bilinear", align_corners=False)
        return image


class SNGANDiscriminator(nn.Module):
    """Projection discriminator. `forward(images, y)`: [N, C, H, W] in [-1, 1], y [N] -> logits [N].

    widths: channels after every halving down to 4x4, and of a last block at 4x4; one width means it everywhere.
    """

    def __init__(
        self,
        *,
        resolution: int,
        image_channels: int,
        widths: tuple[int, ...],
        label_dim: int,
        num_classes: int | None,
        label_input: LabelInput,
    ):
        super().__init__()
        check_resolution(resolution, 0)
        halvings = (resolution // 4).bit_length() - 1
        if len(widths) == 1:
            widths = widths * (halvings + 1)
        if len(widths) != halvings + 1:
            raise ValueError(
                f"{len(widths)} discriminator widths do not fit an image size of {resolution}; give 1 or {halvings + 1}."
            )
        self.label_input = label_input
        channels = enumerate(pairwise((image_channels, *widths)))
        blocks = [DiscriminatorBlock(*pair, index < halvings, first=index == 0) for index, pair in channels]
        self.blocks = nn.Sequential(*blocks)
        self.linear = torch_sn_linear(widths[-1], 1)
        if label_input == "embedding":
            self.encoder = nn.Identity()
            self.project = spectral_norm(nn.Embedding(num_classes, widths[-1]))
        else:
            self.encoder = label_encoder(label_input, label_dim, num_classes)
            self.project = torch_sn_linear(code_length(label_input, label_dim), widths[-1], bias=False)

    def forward(self, images: Tensor, y: Tensor) -> Tensor:
        h = F.relu(self.blocks(images)).sum(dim=(2, 3))
        code = self.encoder(y)
        if self.label_input == "nli":
            code = code + 1  # keeps the projection alive at y = 0
        return self.linear(h).squeeze(1) + (self.project(code) * h).sum(dim=1)
