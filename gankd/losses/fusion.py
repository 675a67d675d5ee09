"""The blocks that turn the last feature maps of several students into one fused classifier, as functions of weights.

fused_logits: Kim, Hyun, Chung, Kwak, "Feature Fusion for Online Mutual Knowledge Distillation", ICPR 2020,
    arXiv 1904.09058
multi_scale_features, channel_attention, spatial_attention, dual_attention: Zou, Teng, Niu, "Multi-scale Feature
    Extraction and Fusion for Online Knowledge Distillation", 2022, arXiv 2206.08224. A reconstruction from the published
    description: its details are those of Gao et al., "Res2Net", TPAMI 2021, arXiv 1904.01169 (the recursion between
    groups) and of Woo et al., "CBAM", ECCV 2018, arXiv 1807.06521 (the attention).

These are network layers and not losses: gradients reach every argument, and under autocast they compute in its dtype.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def multi_scale_features(
    *,
    feature_map: Tensor,  # [N, C, H, W]
    kernels: Sequence[Tensor],  # s - 1 of [C/s, C/s, k, k], k odd
) -> Tensor:
    """Channel groups that see further and further around each position.

    x_1, ..., x_s = equal groups of channels;  y_1 = x_1;  y_2 = K_2 x_2;  y_g = K_g (x_g + y_{g-1}) for g = 3..s

    With 3 x 3 kernels the receptive fields are 1, 3, 5, ...; convolutions keep the size. Returns [y_1, ..., y_s] as
    [N, C, H, W]. Raises ValueError when s does not divide C or a kernel is even.
    """
    num_groups, num_channels = len(kernels) + 1, feature_map.shape[1]
    if num_channels % num_groups:
        raise ValueError(f"{num_channels} channels do not split into {num_groups} equal groups: choose a divisor")
    first, *rest = feature_map.chunk(num_groups, dim=1)
    outputs = [first]
    for group, kernel in zip(rest, kernels, strict=True):
        mixed = group if len(outputs) == 1 else group + outputs[-1]  # y_1 is x_1 itself and enters no convolution
        outputs.append(F.conv2d(mixed, kernel, padding=_same_padding(kernel)))
    return torch.cat(outputs, dim=1)


def channel_attention(
    *,
    feature_map: Tensor,  # [N, C, H, W]
    reduce_weight: Tensor,  # V [C/r, C]
    expand_weight: Tensor,  # U [C, C/r]
) -> Tensor:
    """How much each channel counts: sigmoid( U relu(V avg) + U relu(V max) ), pooled over positions. [N, C, 1, 1]."""
    pooled = torch.stack([feature_map.mean((2, 3)), feature_map.amax((2, 3))])  # [2, N, C]
    scores = F.linear(F.relu(F.linear(pooled, reduce_weight)), expand_weight).sum(0)  # [N, C]
    return scores.sigmoid()[:, :, None, None]


def spatial_attention(
    *,
    feature_map: Tensor,  # [N, C, H, W]
    kernel: Tensor,  # [1, 2, k, k], k odd
) -> Tensor:
    """How much each position counts: sigmoid( kernel * [mean_c ; max_c] ), pooled over channels. [N, 1, H, W].

    Raises ValueError when the kernel is even.
    """
    pooled = torch.cat([feature_map.mean(1, keepdim=True), feature_map.amax(1, keepdim=True)], dim=1)  # [N, 2, H, W]
    return F.conv2d(pooled, kernel, padding=_same_padding(kernel)).sigmoid()


def dual_attention(
    *,
    feature_map: Tensor,  # [N, C, H, W]
    reduce_weight: Tensor,  # [C/r, C]
    expand_weight: Tensor,  # [C, C/r]
    spatial_kernel: Tensor,  # [1, 2, k, k], k odd
) -> Tensor:
    """The map times its channel attention, then times the spatial attention of that product. [N, C, H, W]."""
    weighted = feature_map * channel_attention(
        feature_map=feature_map, reduce_weight=reduce_weight, expand_weight=expand_weight
    )
    return weighted * spatial_attention(feature_map=weighted, kernel=spatial_kernel)


def fused_logits(
    *,
    feature_maps: Sequence[Tensor],  # m of [N, C, H, W]
    depthwise_weight: Tensor,  # [mC, 1, 3, 3]
    depthwise_norm_weight: Tensor,  # [mC]
    depthwise_norm_bias: Tensor,  # [mC]
    pointwise_weight: Tensor,  # [C, mC, 1, 1]
    pointwise_norm_weight: Tensor,  # [C]
    pointwise_norm_bias: Tensor,  # [C]
    classifier_weight: Tensor,  # [K, C]
    classifier_bias: Tensor,  # [K]
) -> Tensor:
    """One classifier on the last maps of m students (the fusion module of the paper).

    concatenate -> depthwise 3 x 3 -> batch norm -> ReLU -> 1 x 1 -> batch norm -> ReLU -> global average -> linear

    Batch norm uses the batch's statistics (biased variance, eps 1e-5). Returns [N, K].
    Raises ValueError when the maps differ in batch or size: pool them to the smallest first.
    """
    if len({(len(feature_map), *feature_map.shape[2:]) for feature_map in feature_maps}) != 1:
        shapes = ", ".join(str(list(feature_map.shape)) for feature_map in feature_maps)
        raise ValueError(f"feature maps to fuse need the same N, H and W, found {shapes}: pool them to the smallest")
    joined = torch.cat(list(feature_maps), dim=1)  # [N, mC, H, W]
    spread = F.conv2d(joined, depthwise_weight, padding=1, groups=joined.shape[1])
    spread = F.relu(_batch_norm(spread, depthwise_norm_weight, depthwise_norm_bias))
    mixed = F.conv2d(spread, pointwise_weight)  # [N, C, H, W]
    mixed = F.relu(_batch_norm(mixed, pointwise_norm_weight, pointwise_norm_bias))
    return F.linear(mixed.mean((2, 3)), classifier_weight, classifier_bias)


def _batch_norm(feature_map: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.batch_norm(feature_map, None, None, weight, bias, training=True, eps=1e-5)


def _same_padding(kernel: Tensor) -> int:
    size = kernel.shape[-1]
    if size % 2 == 0 or kernel.shape[-2] != size:
        raise ValueError(f"a kernel of {kernel.shape[-2]} x {size} cannot keep the map's size: use a square odd one")
    return size // 2
