"""Multi-scale feature extraction and fusion: feature fusion on maps that see several scales, weighted by attention.

Zou, Teng, Niu, "Multi-scale Feature Extraction and Fusion for Online Knowledge Distillation", 2022, arXiv 2206.08224.
A reconstruction from the published description: no code of the authors is known. The details are those of its
relatives: Kim et al., arXiv 1904.09058 (fusion, losses, branches), Gao et al., "Res2Net", arXiv 1904.01169 (the recursion
between channel groups), Woo et al., "CBAM", arXiv 1807.06521 (the attention).
"""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from gankd.methods.peers.ffl import FFL, FusionConfig
from gankd.methods.setup import Setup
from generators.settings import Count


class MFEFConfig(FusionConfig):
    """sum over students and fused classifier of the task's loss + weight * w(step) * how far they are from their targets."""

    name: Literal["mfef"] = "mfef"
    """The method's name."""
    peers: Annotated[int, Field(ge=2)] = 3
    """Students that learn together, the one to be deployed among them."""
    scales: Annotated[int, Field(ge=2)] = 4
    """Channel groups of the multi-scale extraction; must divide the last map's channels."""
    reduction: Count = 16
    """How many times narrower the channel attention's hidden layer is than the map; it has at least 4 units."""
    extraction: bool = True
    """Whether maps are made multi-scale. False, as the two below, is for ablation; without this and the attention it is
    ffl."""
    attention: bool = True
    """Whether channels and positions are weighted."""
    fusion: bool = True
    """Whether the maps are fused by convolutions. False: a linear classifier on their mean."""


class MultiScale(nn.Module):
    """Channel groups that see further and further around each position: a map [N, C, H, W] to another.

    x_1, ..., x_s = equal groups of channels;  y_1 = x_1;  y_2 = K_2 x_2;  y_g = K_g (x_g + y_{g-1}) for g = 3..s

    With 3x3 kernels the receptive fields are 1, 3, 5, ... Raises ValueError when s does not divide C.
    """

    def __init__(self, channels: int, scales: int):
        super().__init__()
        if channels % scales:
            raise ValueError(
                f"mfef splits the last map's {channels} channels into {scales} equal groups; set scales to a divisor."
            )
        width = channels // scales
        self.kernels = nn.ModuleList(nn.Conv2d(width, width, 3, padding="same", bias=False) for _ in range(scales - 1))

    def forward(self, feature_map: Tensor) -> Tensor:
        first, *rest = feature_map.chunk(len(self.kernels) + 1, dim=1)
        outputs = [first]
        for group, kernel in zip(rest, self.kernels, strict=True):
            mixed = group if len(outputs) == 1 else group + outputs[-1]  # y_1 is x_1 itself and enters no convolution
            outputs.append(kernel(mixed))
        return torch.cat(outputs, dim=1)


class ChannelAttention(nn.Module):
    """How much each channel of [N, C, H, W] counts: sigmoid( U relu(V mean) + U relu(V max) ), [N, C, 1, 1]."""

    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.reduce, self.expand = nn.Linear(channels, hidden, bias=False), nn.Linear(hidden, channels, bias=False)

    def forward(self, feature_map: Tensor) -> Tensor:
        pooled = torch.stack([feature_map.mean((2, 3)), feature_map.amax((2, 3))])  # [2, N, C]
        return self.expand(self.reduce(pooled).relu()).sum(0).sigmoid()[:, :, None, None]


class SpatialAttention(nn.Module):
    """How much each position of [N, C, H, W] counts: sigmoid( kernel * [mean_c ; max_c] ), [N, 1, H, W]."""

    def __init__(self, size: int):
        super().__init__()
        self.kernel = nn.Conv2d(2, 1, size, padding="same", bias=False)

    def forward(self, feature_map: Tensor) -> Tensor:
        pooled = torch.cat([feature_map.mean(1, keepdim=True), feature_map.amax(1, keepdim=True)], dim=1)
        return self.kernel(pooled).sigmoid()  # from [N, 2, H, W]


class DualAttention(nn.Module):
    """A map [N, C, H, W] times its channel attention, then times the spatial attention of that product."""

    def __init__(self, channels: int, height: int, reduction: int):
        super().__init__()
        self.channel = ChannelAttention(channels, max(4, channels // reduction))
        self.spatial = SpatialAttention(3 if height < 7 else 7)

    def forward(self, feature_map: Tensor) -> Tensor:
        weighted = feature_map * self.channel(feature_map)
        return weighted * self.spatial(weighted)


class MeanFusion(nn.Module):
    """m maps [N, C, H, W] -> logits [N, K]: their mean, averaged over positions, through a linear layer."""

    def __init__(self, channels: int, num_outputs: int):
        super().__init__()
        self.classifier = nn.Linear(channels, num_outputs)

    def forward(self, maps: list[Tensor]) -> Tensor:
        return self.classifier(torch.stack(maps).mean(dim=(0, 3, 4)))


class MFEF(FFL):
    """A_i = attention(multi-scale features(F_i)) of the students' last maps,  z_f = Fusion(A_1, ..., A_m)
    L = sum_i CE(z_i) + CE(z_f) + weight w(step) { sum_i KL_T([z_f] -> z_i) + KL_T([mean_i z_i] -> z_f) }

    Scalars: squared differences for KL. The students' own outputs z_i do not go through the extra modules.

    >>> student = gankd.distill(student, real=train, method={"name": "mfef", "scales": 2}, steps=2)

    Loss: losses.online.mfef_loss
    """

    Config = MFEFConfig

    def __init__(self, config: MFEFConfig, setup: Setup):
        super().__init__(config, setup)
        channels, height = self.align.channels, min(self.align.size)
        self.extractions = nn.ModuleList()
        for _ in range(config.peers):
            steps = []
            if config.extraction:
                steps += [MultiScale(channels, config.scales), nn.BatchNorm2d(channels), nn.ReLU()]
            steps += [DualAttention(channels, height, config.reduction)] if config.attention else []
            self.extractions.append(nn.Sequential(*steps))
        if not config.fusion:
            self.fusion = MeanFusion(channels, setup.task.num_outputs)

    def fuse(self, maps: list[Tensor]) -> Tensor:
        aligned = self.align(maps)
        return self.fusion([extract(each) for extract, each in zip(self.extractions, aligned, strict=True)])

    def fusion_modules(self) -> list[nn.Module]:
        return [*super().fusion_modules(), self.extractions]
