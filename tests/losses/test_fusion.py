"""The fusion blocks: what each of them can and cannot do to a feature map."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.golden.adapters import (
    channel_attention,
    dual_attention,
    fused_logits,
    multi_scale_features,
    spatial_attention,
)


@pytest.fixture
def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def normal(rng: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=rng, dtype=torch.float64)


# --- multi_scale_features ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 3, 5])
def test_groups_accumulate_from_the_second_on(rng: torch.Generator, size: int) -> None:
    feature_map = normal(rng, 2, 8, 4, 6)
    identity = torch.zeros(2, 2, size, size, dtype=torch.float64)
    identity[[0, 1], [0, 1], size // 2, size // 2] = 1
    outputs = multi_scale_features(feature_map=feature_map, kernels=[identity] * 3).chunk(4, dim=1)
    first, second, third, fourth = feature_map.chunk(4, dim=1)
    torch.testing.assert_close(outputs, (first, second, second + third, second + third + fourth))


def test_every_group_sees_one_pixel_further() -> None:
    impulse = torch.zeros(1, 4, 9, 9)
    impulse[:, :, 4, 4] = 1
    outputs = multi_scale_features(feature_map=impulse, kernels=[torch.ones(1, 1, 3, 3)] * 3)
    for group, output in enumerate(outputs[0]):
        inside = torch.zeros(9, 9, dtype=torch.bool)
        inside[4 - group : 5 + group, 4 - group : 5 + group] = True
        assert torch.equal(output > 0, inside)


def test_without_kernels_there_is_one_group_and_nothing_happens(rng: torch.Generator) -> None:
    feature_map = normal(rng, 1, 3, 2, 2)
    assert torch.equal(multi_scale_features(feature_map=feature_map, kernels=[]), feature_map)


def test_channels_that_do_not_split_are_refused() -> None:
    with pytest.raises(ValueError, match="342 channels into 4 equal groups"):
        multi_scale_features(feature_map=torch.zeros(1, 342, 1, 1), kernels=[torch.zeros(85, 85, 3, 3)] * 3)


@pytest.mark.parametrize("size", [(2, 2), (3, 5)])
def test_kernels_of_any_size_keep_that_of_the_map(size: tuple[int, int]) -> None:
    feature_map, kernels = torch.zeros(1, 4, 4, 4), [torch.zeros(2, 2, *size)]
    assert multi_scale_features(feature_map=feature_map, kernels=kernels).shape == feature_map.shape
    assert spatial_attention(feature_map=feature_map, kernel=torch.zeros(1, 2, *size)).shape == (1, 1, 4, 4)


# --- attention --------------------------------------------------------------------------------------------------------


def test_channel_attention_reads_mean_and_maximum_of_each_channel(rng: torch.Generator) -> None:
    feature_map, reduce, expand = normal(rng, 2, 4, 3, 3), normal(rng, 2, 4), normal(rng, 4, 2)
    attention = channel_attention(feature_map=feature_map, reduce_weight=reduce, expand_weight=expand)
    for image, weights in zip(feature_map, attention, strict=True):
        mean, peak = (torch.stack([pool(channel) for channel in image]) for pool in (torch.mean, torch.max))
        scores = expand @ (reduce @ mean).clamp(min=0) + expand @ (reduce @ peak).clamp(min=0)
        torch.testing.assert_close(weights, (1 / (1 + (-scores).exp()))[:, None, None])


def test_spatial_attention_reads_mean_and_maximum_of_each_position(rng: torch.Generator) -> None:
    feature_map = normal(rng, 2, 4, 3, 3)
    kernel = torch.zeros(1, 2, 7, 7, dtype=torch.float64)
    kernel[0, :, 3, 3] = torch.tensor([2.0, -1.0])
    expected = (2 * feature_map.mean(1) - feature_map.max(1).values).sigmoid()
    torch.testing.assert_close(spatial_attention(feature_map=feature_map, kernel=kernel)[:, 0], expected)


def test_attention_weighs_channels_first_and_positions_of_the_result(rng: torch.Generator) -> None:
    feature_map, kernel = normal(rng, 2, 4, 5, 5), normal(rng, 1, 2, 3, 3)
    reduce, expand = normal(rng, 2, 4), normal(rng, 4, 2)
    attended = dual_attention(
        feature_map=feature_map, reduce_weight=reduce, expand_weight=expand, spatial_kernel=kernel
    )
    weighted = feature_map * channel_attention(feature_map=feature_map, reduce_weight=reduce, expand_weight=expand)
    torch.testing.assert_close(attended, weighted * spatial_attention(feature_map=weighted, kernel=kernel))
    unaware = spatial_attention(feature_map=feature_map, kernel=kernel)
    assert not torch.allclose(attended, weighted * unaware)


def test_attention_without_weights_halves_twice(rng: torch.Generator) -> None:
    feature_map = normal(rng, 1, 4, 2, 2)
    attended = dual_attention(
        feature_map=feature_map,
        reduce_weight=feature_map.new_zeros(1, 4),
        expand_weight=feature_map.new_zeros(4, 1),
        spatial_kernel=feature_map.new_zeros(1, 2, 3, 3),
    )
    torch.testing.assert_close(attended, feature_map / 4)


# --- fused_logits -----------------------------------------------------------------------------------------------------


def fusion_weights(rng: torch.Generator, num_students: int, channels: int, num_classes: int) -> dict[str, Tensor]:
    joined = num_students * channels
    return {
        "depthwise_weight": normal(rng, joined, 1, 3, 3),
        "depthwise_norm_weight": normal(rng, joined),
        "depthwise_norm_bias": normal(rng, joined),
        "pointwise_weight": normal(rng, channels, joined, 1, 1),
        "pointwise_norm_weight": normal(rng, channels),
        "pointwise_norm_bias": normal(rng, channels),
        "classifier_weight": normal(rng, num_classes, channels),
        "classifier_bias": normal(rng, num_classes),
    }


def test_fusion_is_the_network_of_the_paper(rng: torch.Generator) -> None:
    feature_maps, weights = [normal(rng, 4, 3, 5, 5) for _ in range(2)], fusion_weights(rng, 2, 3, 6)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(6, 6, 3, padding=1, groups=6, bias=False),
        torch.nn.BatchNorm2d(6),
        torch.nn.ReLU(),
        torch.nn.Conv2d(6, 3, 1, bias=False),
        torch.nn.BatchNorm2d(3),
        torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(3, 6),
    ).double()
    for parameter, weight in zip(network.parameters(), weights.values(), strict=True):
        parameter.data = weight
    expected = network(torch.cat(feature_maps, dim=1))
    torch.testing.assert_close(fused_logits(feature_maps=feature_maps, **weights), expected)


def test_fusion_does_not_care_which_student_is_the_first(rng: torch.Generator) -> None:
    feature_maps, weights = [normal(rng, 4, 2, 3, 3) for _ in range(3)], fusion_weights(rng, 3, 2, 5)
    order = [4, 5, 0, 1, 2, 3]  # students 2, 0, 1, two channels each
    reordered = {name: weight[order] if name.startswith("depthwise") else weight for name, weight in weights.items()}
    reordered["pointwise_weight"] = weights["pointwise_weight"][:, order]
    logits = fused_logits(feature_maps=[feature_maps[2], *feature_maps[:2]], **reordered)
    torch.testing.assert_close(logits, fused_logits(feature_maps=feature_maps, **weights))


def test_fusion_teaches_its_inputs_and_all_its_weights(rng: torch.Generator) -> None:
    feature_maps, weights = [normal(rng, 2, 2, 3, 3) for _ in range(2)], fusion_weights(rng, 2, 2, 3)
    leaves = [leaf.requires_grad_() for leaf in [*feature_maps, *weights.values()]]
    loss = F.cross_entropy(fused_logits(feature_maps=feature_maps, **weights), torch.tensor([0, 2]))
    assert all(gradient.abs().sum() > 0 for gradient in torch.autograd.grad(loss, leaves))


def test_fusion_follows_autocast(rng: torch.Generator) -> None:
    feature_maps = [normal(rng, 4, 2, 3, 3).float() for _ in range(2)]
    weights = {name: weight.float() for name, weight in fusion_weights(rng, 2, 2, 3).items()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = fused_logits(feature_maps=feature_maps, **weights)
    assert logits.dtype == torch.bfloat16
    torch.testing.assert_close(logits.float(), fused_logits(feature_maps=feature_maps, **weights), rtol=0.1, atol=0.1)


def test_maps_of_different_sizes_are_refused() -> None:
    feature_maps = [torch.zeros(2, 4, 8, 8), torch.zeros(2, 4, 4, 4)]
    with pytest.raises(ValueError, match=r"\[2, 4, 8, 8\], \[2, 4, 4, 4\]: pool them to the smallest"):
        fused_logits(feature_maps=feature_maps, **fusion_weights(torch.Generator(), 2, 4, 2))
