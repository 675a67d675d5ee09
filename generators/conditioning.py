"""How a label enters a network: encoders from labels to codes, and the layers that use a code.

A class id goes through a learned table. A scalar, normalised to [0, 1], has three ways in:
`fourier` (fixed sines and cosines, then a learned linear map), `ili` (the improved label input of CcGAN: a small
network trained beforehand and frozen, see `label_network`) and `nli` (the naive label input of CcGAN: the number itself).
A generator that was trained elsewhere, and whose label network is not at hand, takes the code itself (`code`).
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LabelInput = Literal["embedding", "fourier", "ili", "nli"]
linear_map = partial(nn.Linear, bias=False)


class FourierEncoder(nn.Module):
    """Scalar y in [0, 1] to a code: Linear([sin, cos](k pi/2 (2y - 1)), k = 1..num_frequencies). [N] -> [N, dim].

    Low frequencies only: codes of neighbouring labels stay neighbours, which is what a vicinal loss relies on.
    """

    def __init__(self, dim: int, num_frequencies: int = 4):
        super().__init__()
        self.register_buffer("frequencies", torch.arange(1, num_frequencies + 1) * (math.pi / 2), persistent=False)
        self.linear = nn.Linear(2 * num_frequencies, dim)

    def forward(self, y: Tensor) -> Tensor:
        angles = (2 * y[:, None] - 1) * self.frequencies
        return self.linear(torch.cat([angles.sin(), angles.cos()], dim=1))


class LabelNetwork(nn.Module):
    """CcGAN's y2h: Linear 1 -> dim, then dim -> dim four times; GroupNorm(8) + ReLU between, ReLU last. [N] -> [N, dim].

    Source: Ding et al., CcGAN, T-PAMI 2023 (improved label input). Trained by `label_network.train_label_network`.
    """

    def __init__(self, dim: int):
        super().__init__()
        layers = []
        for index in range(5):
            layers.append(nn.Linear(1 if index == 0 else dim, dim))
            layers += [nn.GroupNorm(8, dim), nn.ReLU()] if index < 4 else [nn.ReLU()]
        self.main = nn.Sequential(*layers)

    def forward(self, y: Tensor) -> Tensor:
        return self.main(y[:, None] + 1e-8)


class NaiveEncoder(nn.Module):
    """The number itself as a code of length 1. [N] -> [N, 1]."""

    def forward(self, y: Tensor) -> Tensor:
        return y[:, None]


def code_length(label_input: LabelInput | Literal["code"], dim: int) -> int:
    """Columns of the code that `label_encoder` makes."""
    return 1 if label_input == "nli" else dim


def label_encoder(label_input: LabelInput | Literal["code"], dim: int, num_classes: int | None) -> nn.Module:
    """The encoder for a class id (`num_classes` given) or for a scalar in [0, 1]; its output has `dim` columns (nli: 1).
    Raises ValueError: a way in that does not fit the kind of label."""
    if (label_input == "embedding") != (num_classes is not None):
        valid = "'embedding' for classes" if num_classes else "'fourier', 'ili' or 'nli' for a scalar label"
        raise ValueError(f"label_input '{label_input}' does not fit these labels; use {valid}.")
    if label_input == "embedding":
        return nn.Embedding(num_classes, dim)
    if label_input == "fourier":
        return FourierEncoder(dim)
    if label_input == "ili":
        return LabelNetwork(dim).requires_grad_(False)
    return NaiveEncoder() if label_input == "nli" else nn.Identity()


class ConditionalBatchNorm(nn.Module):
    """Batch norm whose gain and bias come from a code: n * (1 + gain(code)) + bias(code). [N, C, H, W], [N, dim].

    `layer(dim, num_features)` makes the two maps: linear by default; with `nn.Embedding` the code is the class id [N] of
    `dim` classes. Source: de Vries et al., NeurIPS 2017; Miyato and Koyama, ICLR 2018.
    """

    def __init__(self, num_features: int, dim: int, layer: Callable[[int, int], nn.Module] = linear_map):
        super().__init__()
        self.bn = nn.BatchNorm2d(num_features, affine=False)
        self.gain, self.bias = layer(dim, num_features), layer(dim, num_features)

    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        gain, bias = self.gain(code), self.bias(code)
        return torch.addcmul(bias[:, :, None, None], self.bn(x), 1 + gain[:, :, None, None])


class PlainBatchNorm(nn.BatchNorm2d):
    """Batch norm that ignores the code (naive label input conditions elsewhere)."""

    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        return super().forward(x)


def upsample(x: Tensor) -> Tensor:
    """Nearest-neighbour doubling. [N, C, H, W] -> [N, C, 2H, 2W]."""
    return F.interpolate(x, scale_factor=2, mode="nearest")
