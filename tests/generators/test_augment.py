"""DiffAugment: every image gets its own change, gradients pass, borders behave."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from generators.augment import (
    brightness,
    contrast,
    cutout,
    diff_augment,
    draw_diff_augment,
    random_diff_augment,
    saturation,
    translation,
)

EVERYTHING = "color,translation,cutout"
shapes = pytest.mark.parametrize("shape", [(4, 3, 8, 8), (4, 1, 8, 8), (3, 3, 7, 12), (2, 1, 5, 4)])


def images_and_draws(shape: tuple[int, ...], seed: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
    rng = torch.Generator().manual_seed(seed)
    images = torch.rand(shape, generator=rng, dtype=torch.float64) * 2 - 1
    return images, draw_diff_augment(shape[0], shape[2], shape[3], generator=rng)


@shapes
def test_translation_reads_at_the_shifted_place(shape: tuple[int, ...]) -> None:
    images, _ = images_and_draws(shape)
    num_images, _, height, width = shape
    shifts = torch.tensor([[1, -2], [-3, 0], [0, 1], [20, 0]])[:num_images]
    expected = torch.zeros_like(images)
    for n, (down, right) in enumerate(shifts.tolist()):
        for i in range(height):
            for j in range(width):
                if 0 <= i + down < height and 0 <= j + right < width:
                    expected[n, :, i, j] = images[n, :, i + down, j + right]
    torch.testing.assert_close(translation(images, shifts), expected, rtol=0, atol=0)


@shapes
@pytest.mark.parametrize("ratio", [0.25, 0.5, 1.0])
def test_cutout_zeroes_one_box(shape: tuple[int, ...], ratio: float) -> None:
    images, _ = images_and_draws(shape)
    num_images, _, height, width = shape
    box_height, box_width = int(height * ratio + 0.5), int(width * ratio + 0.5)
    offsets = torch.tensor([[0, 0], [height - 1, width - 1], [height // 2, 1], [2, width // 2]])[:num_images]
    expected = images.clone()
    for n, (row, column) in enumerate(offsets.tolist()):
        top, left = row - box_height // 2, column - box_width // 2
        expected[n, :, max(top, 0) : top + box_height, max(left, 0) : left + box_width] = 0
    torch.testing.assert_close(cutout(images, offsets, ratio), expected, rtol=0, atol=0)


@shapes
def test_color_changes_keep_what_they_should(shape: tuple[int, ...]) -> None:
    images, draws = images_and_draws(shape)
    uniforms = draws["color_uniforms"][0]
    per_image = uniforms.double()[:, None, None, None]
    torch.testing.assert_close(brightness(images, uniforms), images + per_image - 0.5)
    saturated, contrasted = saturation(images, uniforms), contrast(images, uniforms)
    torch.testing.assert_close(saturated.mean(dim=1), images.mean(dim=1))  # each pixel keeps its grey value
    torch.testing.assert_close(saturated.std(1, correction=0), images.std(1, correction=0) * 2 * per_image[:, 0])
    torch.testing.assert_close(contrasted.mean(dim=(1, 2, 3)), images.mean(dim=(1, 2, 3)))
    torch.testing.assert_close(contrasted.std(dim=(1, 2, 3)), images.std(dim=(1, 2, 3)) * (uniforms + 0.5).double())


def test_neutral_draws_change_nothing() -> None:
    images, _ = images_and_draws((4, 3, 8, 8))
    halves, still = torch.full((3, 4), 0.5), torch.zeros(4, 2, dtype=torch.int64)
    torch.testing.assert_close(diff_augment(images, halves, still, still, "color,translation"), images)


@shapes
def test_an_image_does_not_see_its_batch(shape: tuple[int, ...]) -> None:
    images, draws = images_and_draws(shape)
    together = diff_augment(images, policy=EVERYTHING, **draws)
    for n in range(shape[0]):
        alone = diff_augment(
            images[n : n + 1],
            draws["color_uniforms"][:, n : n + 1],
            draws["shifts"][n : n + 1],
            draws["offsets"][n : n + 1],
            EVERYTHING,
        )
        torch.testing.assert_close(alone, together[n : n + 1])


@pytest.mark.parametrize("shape", [(2, 3, 6, 6), (2, 1, 5, 8)])
def test_gradients(shape: tuple[int, ...]) -> None:
    images, draws = images_and_draws(shape)

    def augment(x: Tensor) -> Tensor:
        return diff_augment(x, policy=EVERYTHING, **draws)

    assert torch.autograd.gradcheck(augment, images.requires_grad_())
    assert torch.autograd.gradgradcheck(lambda x: augment(x).square(), images)  # R1 differentiates twice


def test_policy_words_select_changes_in_a_fixed_order() -> None:
    images, draws = images_and_draws((4, 3, 8, 8))
    by_hand = cutout(translation(images, draws["shifts"]), draws["offsets"])
    torch.testing.assert_close(diff_augment(images, policy="translation,cutout", **draws), by_hand)
    torch.testing.assert_close(diff_augment(images, policy="cutout, translation", **draws), by_hand)
    assert diff_augment(images, policy="", **draws) is images


def test_unknown_policy_names_the_valid_words() -> None:
    images, _ = images_and_draws((4, 3, 8, 8))
    with pytest.raises(ValueError, match="'colour' in policy 'colour,cutout': use any of color, translation, cutout"):
        random_diff_augment(images, "colour,cutout")


@pytest.mark.parametrize("ratio", [0.0, -0.5, 1.5])
def test_cutout_refuses_a_box_that_is_no_part_of_the_image(ratio: float) -> None:
    images, _ = images_and_draws((4, 3, 8, 8))
    with pytest.raises(ValueError, match=r"must lie in \(0, 1\]"):
        random_diff_augment(images, "cutout", cutout_ratio=ratio)


@pytest.mark.parametrize(
    ("side", "ratio", "largest_shift", "largest_offset"),
    [(16, 0.5, 2, 16), (16, 0.3, 2, 15), (32, 0.5, 4, 32), (5, 0.5, 1, 4), (8, 0.25, 1, 8)],
)
def test_draws_cover_their_whole_range(side: int, ratio: float, largest_shift: int, largest_offset: int) -> None:
    draws = draw_diff_augment(4000, side, side, cutout_ratio=ratio, generator=torch.Generator().manual_seed(0))
    assert draws["color_uniforms"].shape == (3, 4000)
    assert draws["color_uniforms"].min() >= 0 and draws["color_uniforms"].max() < 1
    for axis in range(2):
        assert set(draws["shifts"][:, axis].tolist()) == set(range(-largest_shift, largest_shift + 1))
        assert set(draws["offsets"][:, axis].tolist()) == set(range(largest_offset + 1))


def test_draws_follow_their_generator_and_the_image_sides() -> None:
    first, again = (draw_diff_augment(200, 8, 32, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    for name, values in first.items():
        torch.testing.assert_close(again[name], values, rtol=0, atol=0)
    assert first["shifts"].abs().amax(dim=0).tolist() == [1, 4]
    assert first["offsets"].amax(dim=0).tolist() == [8, 32]


def test_random_form_uses_the_default_generator_and_the_same_draws_for_any_policy() -> None:
    images, _ = images_and_draws((4, 3, 8, 8))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        draws = draw_diff_augment(4, 8, 8, cutout_ratio=0.25)
        for policy in ("", "cutout", EVERYTHING):
            torch.manual_seed(5)
            augmented = random_diff_augment(images, policy, cutout_ratio=0.25)
            torch.testing.assert_close(augmented, diff_augment(images, policy=policy, cutout_ratio=0.25, **draws))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_images_keep_their_precision(dtype: torch.dtype) -> None:
    images, draws = images_and_draws((4, 3, 8, 8))
    augmented = diff_augment(images.to(dtype), policy=EVERYTHING, **draws)
    assert augmented.dtype == dtype
    torch.testing.assert_close(augmented.double(), diff_augment(images, policy=EVERYTHING, **draws), rtol=0, atol=0.03)


def test_a_change_with_probability_zero_does_not_happen_and_with_one_always() -> None:
    images = torch.rand(6, 3, 8, 8) * 2 - 1
    draws = draw_diff_augment(6, 8, 8, generator=torch.Generator().manual_seed(0))
    policy = "color,translation,cutout"
    never, always = torch.zeros(3, 6, dtype=torch.bool), torch.ones(3, 6, dtype=torch.bool)
    assert torch.equal(diff_augment(images, policy=policy, applied=never, **draws), images)
    expected = diff_augment(images, policy=policy, **draws)
    assert torch.equal(diff_augment(images, policy=policy, applied=always, **draws), expected)
    some = always.clone()
    some[:, 2] = False
    changed = diff_augment(images, policy=policy, applied=some, **draws)
    assert torch.equal(changed[2], images[2]) and torch.equal(changed[3], expected[3])
