"""Each augmentation by itself against its definition, then all of them as the training loop uses them."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from gankd.data.augment import (
    Augment,
    AugmentationConfig,
    adjust_brightness,
    adjust_contrast,
    adjust_saturation,
    affine,
    cutout,
    horizontal_flip,
    random_crop,
)
from generators.images import to_unit_range

EVERYTHING = AugmentationConfig(
    crop_padding=2, horizontal_flip=True, rotation=30, translation=0.1, scale=0.2, cutout=0.25, brightness=0.4,
    contrast=0.4, saturation=0.4,
)  # fmt: skip
ONE_BY_ONE = [{name: value} for name, value in EVERYTHING.model_dump().items()]


def random_images(num_images=5, channels=3, height=8, width=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (num_images, channels, height, width), generator=generator, dtype=torch.uint8)


def random_floats(*shape, **keywords):
    return to_unit_range(random_images(*shape, **keywords))


def still(num_images, angles=0.0, shifts=(0.0, 0.0), scales=1.0):
    """The same draw for all images, in the form `affine` takes."""
    return (
        torch.full((num_images,), float(angles)),
        torch.tensor(shifts, dtype=torch.float32).expand(num_images, 2),
        torch.full((num_images,), float(scales)),
    )


sizes = st.tuples(st.integers(1, 4), st.sampled_from([1, 3]), st.integers(1, 9), st.integers(1, 9))


# crop and flip


@settings(max_examples=50, deadline=None)
@given(size=sizes, padding=st.integers(0, 4), seed=st.integers(0, 2**31))
def test_crop_is_a_slice_of_the_padded_image(size, padding, seed):
    images, (num_images, _, height, width) = random_images(*size, seed=seed), size
    offsets = torch.randint(2 * padding + 1, (num_images, 2), generator=torch.Generator().manual_seed(seed))
    padded = F.pad(images, (padding,) * 4)
    crops = random_crop(images, offsets, padding)
    assert crops.dtype == torch.uint8
    for crop, source, (top, left) in zip(crops, padded, offsets.tolist(), strict=True):
        assert torch.equal(crop, source[:, top : top + height, left : left + width])


def test_crop_accepts_any_memory_format():
    images, offsets = random_images(), torch.tensor([[0, 0], [0, 4], [4, 0], [2, 2], [1, 3]])
    channels_last = images.to(memory_format=torch.channels_last)
    assert torch.equal(random_crop(channels_last, offsets, 2), random_crop(images, offsets, 2))


@settings(max_examples=25, deadline=None)
@given(size=sizes, seed=st.integers(0, 2**31))
def test_flip_mirrors_the_masked_images_and_undoes_itself(size, seed):
    images = random_images(*size, seed=seed)
    mask = torch.rand(len(images), generator=torch.Generator().manual_seed(seed)) < 0.5
    flipped = horizontal_flip(images, mask)
    assert torch.equal(flipped[mask], images[mask].flip(-1))
    assert torch.equal(flipped[~mask], images[~mask])
    assert torch.equal(horizontal_flip(flipped, mask), images)


# the affine map


@pytest.mark.parametrize("height, width", [(8, 8), (7, 7), (6, 9)])
def test_affine_without_a_change_is_the_identity(height, width):
    images = random_floats(height=height, width=width)
    torch.testing.assert_close(affine(images, *still(5)), images, atol=1e-5, rtol=0)


@pytest.mark.parametrize("side", [7, 8])
@pytest.mark.parametrize("quarters", [-1, 1, 2, 3])
def test_positive_angles_turn_anticlockwise(side, quarters):
    images = random_floats(height=side, width=side)
    turned = affine(images, *still(5, angles=90 * quarters))
    torch.testing.assert_close(turned, images.rot90(quarters, dims=(2, 3)), atol=1e-5, rtol=0)


def test_four_quarter_turns_are_the_identity():
    images = turned = random_floats()
    for _ in range(4):
        turned = affine(turned, *still(5, angles=90))
    torch.testing.assert_close(turned, images, atol=1e-4, rtol=0)


def test_rotation_does_not_shear_images_that_are_not_square():
    images = random_floats(height=4, width=8)
    square = images[..., 2:6]
    turned = affine(images, *still(5, angles=90))
    torch.testing.assert_close(turned[..., 2:6], square.rot90(1, dims=(2, 3)), atol=1e-5, rtol=0)
    assert turned[..., :2].abs().max() < 1e-5 and turned[..., 6:].abs().max() < 1e-5  # black beside it


@pytest.mark.parametrize("right, down", [(0, 0), (2, 0), (0, 3), (-3, 1), (1, -2)])
def test_shifts_are_shares_of_width_and_height_to_the_right_and_down(right, down):
    images = random_floats(height=6, width=8)
    shifted = affine(images, *still(5, shifts=(right / 8, down / 6)))
    expected = F.pad(images, (3, 3, 3, 3))[:, :, 3 - down : 9 - down, 3 - right : 11 - right]
    torch.testing.assert_close(shifted, expected, atol=1e-5, rtol=0)


def test_scale_magnifies_about_the_centre():
    images = random_floats()
    enlarged = F.interpolate(images, scale_factor=2, mode="bilinear", align_corners=False)[..., 4:12, 4:12]
    torch.testing.assert_close(affine(images, *still(5, scales=2)), enlarged, atol=1e-5, rtol=0)
    halved = F.pad(F.avg_pool2d(images, 2), (2, 2, 2, 2))
    torch.testing.assert_close(affine(images, *still(5, scales=0.5)), halved, atol=1e-5, rtol=0)


def test_the_shift_comes_after_the_rotation():
    images = random_floats()
    moved = affine(images, *still(5, angles=90, shifts=(0.25, 0)))
    expected = F.pad(images.rot90(1, dims=(2, 3)), (2, 0))[..., :8]
    torch.testing.assert_close(moved, expected, atol=1e-5, rtol=0)


@settings(max_examples=25, deadline=None)
@given(angle=st.floats(-180, 180), scale=st.floats(0.5, 2), right=st.floats(-1, 1), down=st.floats(-1, 1))
def test_affine_stays_in_range_and_treats_every_image_by_its_own_draw(angle, scale, right, down):
    images = torch.cat([torch.ones(1, 3, 8, 8), random_floats(2)])
    first = still(1, angles=angle, shifts=(right, down), scales=scale)
    draws = [torch.cat([draw, other]) for draw, other in zip(first, still(2), strict=True)]
    moved = affine(images, *draws)
    assert moved.min() >= 0 and moved.max() <= 1
    torch.testing.assert_close(moved[:1], affine(images[:1], *first))
    torch.testing.assert_close(moved[1:], images[1:], atol=1e-5, rtol=0)


# cutout and colour


@settings(max_examples=50, deadline=None)
@given(row=st.integers(0, 6), column=st.integers(0, 8), size=st.integers(1, 9))
def test_cutout_zeroes_exactly_the_square(row, column, size):
    images = torch.ones(2, 3, 7, 9)
    cut = cutout(images, torch.tensor([[row, column], [0, 0]]), size)
    top, left = row - size // 2, column - size // 2
    expected = torch.ones(7, 9)
    expected[max(top, 0) : top + size, max(left, 0) : left + size] = 0
    assert torch.equal(cut[0], expected.expand(3, 7, 9))
    assert (cut[1, :, : size - size // 2, : size - size // 2] == 0).all()
    assert images.min() == 1  # the input is left alone


@pytest.mark.parametrize("adjust", [adjust_brightness, adjust_contrast, adjust_saturation])
@pytest.mark.parametrize("channels", [1, 3])
def test_factor_one_is_the_identity_and_every_image_has_its_own_factor(adjust, channels):
    images = random_floats(3, channels)
    changed = adjust(images, torch.tensor([1.0, 0.3, 2.0]))
    torch.testing.assert_close(changed[0], images[0], atol=1e-6, rtol=0)
    for index, factor in enumerate([1.0, 0.3, 2.0]):
        alone = adjust(images[index : index + 1], torch.tensor([factor]))
        torch.testing.assert_close(changed[index], alone[0])
    assert changed.min() >= 0 and changed.max() <= 1


def test_brightness_multiplies_and_clamps():
    images = torch.tensor([0.2, 0.8]).view(1, 1, 1, 2)
    torch.testing.assert_close(adjust_brightness(images, torch.tensor([1.5])).flatten(), torch.tensor([0.3, 1.0]))


def test_contrast_keeps_the_mean_and_scales_the_distance_to_it():
    images = torch.tensor([0.4, 0.6, 0.5, 0.5]).view(1, 1, 2, 2)
    changed = adjust_contrast(images, torch.tensor([2.0])).flatten()
    torch.testing.assert_close(changed, torch.tensor([0.3, 0.7, 0.5, 0.5]))
    flat = adjust_contrast(random_floats(2), torch.zeros(2))
    torch.testing.assert_close(flat, flat[:, :1, :1, :1].expand(2, 3, 8, 8))


def test_saturation_zero_is_grey_with_the_luma_of_the_colours():
    primaries = torch.eye(3).view(3, 3, 1, 1)  # one red, one green, one blue image
    grey = adjust_saturation(primaries, torch.zeros(3))
    torch.testing.assert_close(grey.view(3, 3), torch.tensor([0.299, 0.587, 0.114]).view(3, 1).expand(3, 3))


def test_saturation_leaves_grey_images_alone():
    images = random_floats(2, 1)
    assert torch.equal(adjust_saturation(images, torch.tensor([0.0, 1.7])), images)


# the module


@pytest.mark.parametrize("config", [*ONE_BY_ONE, EVERYTHING.model_dump()], ids=lambda config: ",".join(config))
@pytest.mark.parametrize("channels", [1, 3])
def test_training_mode_gives_floats_in_range_that_follow_the_default_generator(config, channels):
    augment, images = Augment(AugmentationConfig(**config)), random_images(6, channels)
    before = images.clone()
    torch.manual_seed(0)
    first, second = augment(images), augment(images)
    torch.manual_seed(0)
    assert torch.equal(augment(images), first)
    assert first.dtype == torch.float32 and first.shape == images.shape
    assert first.min() >= 0 and first.max() <= 1
    assert torch.equal(images, before)
    assert torch.equal(first, second) == (channels == 1 and list(config) == ["saturation"])


@pytest.mark.parametrize("config", ONE_BY_ONE, ids=lambda config: ",".join(config))
def test_every_image_of_a_batch_has_its_own_draw(config):
    augment, images = Augment(AugmentationConfig(**config)), random_images(1).expand(32, -1, -1, -1)
    torch.manual_seed(0)
    distinct = len(augment(images).flatten(1).unique(dim=0))
    assert distinct == 2 if "horizontal_flip" in config else distinct > 10


def test_eval_mode_only_converts_and_draws_nothing():
    augment, images = Augment(EVERYTHING).eval(), random_images()
    state = torch.get_rng_state()
    assert torch.equal(augment(images), to_unit_range(images))
    assert torch.equal(torch.get_rng_state(), state)


def test_with_everything_off_training_mode_only_converts_and_draws_nothing():
    augment, images = Augment(AugmentationConfig()), random_images()
    state = torch.get_rng_state()
    assert augment.training and torch.equal(augment(images), to_unit_range(images))
    assert torch.equal(torch.get_rng_state(), state)


def test_draws_reach_the_whole_range_and_not_beyond():
    white = torch.full((2000, 1, 9, 9), 100, dtype=torch.uint8)
    torch.manual_seed(0)
    factors = Augment(AugmentationConfig(brightness=0.5))(white)[:, 0, 0, 0] / (100 / 255)
    assert 0.5 <= factors.min() < 0.51 and 1.49 < factors.max() <= 1.5
    dots = torch.zeros(2000, 1, 9, 9, dtype=torch.uint8)
    dots[:, :, 4, 4] = 255
    shifted = Augment(AugmentationConfig(crop_padding=2))(dots)
    assert torch.equal((shifted.sum(dim=(0, 1)) > 0).nonzero().amin(0), torch.tensor([2, 2]))
    assert torch.equal((shifted.sum(dim=(0, 1)) > 0).nonzero().amax(0), torch.tensor([6, 6]))
    square = Augment(AugmentationConfig(cutout=1 / 3))(white)
    assert (square == 0).sum(dim=(1, 2, 3)).max() == 9


@pytest.mark.parametrize(
    "field, value",
    [("crop_padding", -1), ("rotation", 181), ("translation", 1), ("scale", 1), ("cutout", 1.1), ("brightness", -0.1),
     ("contrast", 1.1), ("saturation", float("nan"))],
)  # fmt: skip
def test_values_out_of_range_are_refused_by_name(field, value):
    with pytest.raises(ValueError, match=field):
        AugmentationConfig(**{field: value})
