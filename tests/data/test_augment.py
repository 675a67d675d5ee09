"""Each augmentation by itself against its definition, then all of them as the training loop uses them."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import functional as torchvision

from gankd.data.augment import Augment, AugmentationConfig
from gankd.data.transforms import (
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
    affine,
    crop_boxes,
    erase_square,
    gaussian_blur,
    greyscale,
    horizontal_flip,
    random_crop,
    resized_crop,
)
from generators.images import to_unit_range

SUPERVISED = AugmentationConfig(
    crop_padding=2, horizontal_flip=True, rotation=30, translation=0.1, scale=0.2, cutout=0.25, brightness=0.4,
    contrast=0.4, saturation=0.4,
)  # fmt: skip
SELF_SUPERVISED = AugmentationConfig(
    resized_crop=(0.2, 1), horizontal_flip=True, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1,
    jitter_probability=0.8, greyscale=0.2, blur=(0.1, 2),
)  # fmt: skip
ONE_BY_ONE = [
    *({name: value} for name, value in SUPERVISED.model_dump(exclude_unset=True).items()),
    {"resized_crop": (0.2, 1)},
    {"hue": 0.3},
    {"greyscale": 0.5},
    {"blur": (0.1, 2)},
    {"brightness": 0.4, "jitter_probability": 0.8},
]
ALL_AT_ONCE = [config.model_dump(exclude_unset=True) for config in (SUPERVISED, SELF_SUPERVISED)]


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


# crops and flip


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


@settings(max_examples=50, deadline=None)
@given(
    size=st.tuples(st.integers(1, 64), st.integers(1, 64)), share=st.floats(0.01, 1), ratio=st.floats(3 / 4, 4 / 3),
    down=st.floats(0, 1, exclude_max=True), right=st.floats(0, 1, exclude_max=True),
)  # fmt: skip
def test_boxes_are_those_of_torchvision_with_the_side_that_is_too_long_cut(size, share, ratio, down, right):
    shares, ratios, places = (torch.tensor([value], dtype=torch.float64) for value in (share, ratio, [down, right]))
    box_height = min(max(round(math.sqrt(size[0] * size[1] * share / ratio)), 1), size[0])
    box_width = min(max(round(math.sqrt(size[0] * size[1] * share * ratio)), 1), size[1])
    top, left = int(down * (size[0] - box_height + 1)), int(right * (size[1] - box_width + 1))
    assert crop_boxes(shares, ratios, places, size).tolist() == [[top, left, box_height, box_width]]


def test_drawn_boxes_lie_within_the_image_and_reach_its_borders():
    draws = Augment(AugmentationConfig(resized_crop=(0.25, 1))).draw(
        4000, (24, 32), device="cpu", generator=torch.Generator().manual_seed(0)
    )
    top, left, height, width = draws["boxes"].unbind(dim=1)
    assert draws["boxes"].dtype == torch.int64
    assert top.min() == 0 and left.min() == 0 and (top + height).max() == 24 and (left + width).max() == 32
    assert height.max() == 24 and width.max() == 32  # the whole image at most
    small = height * width < 24 * 32 / 3
    assert (height * width).min() > 0.9 * 24 * 32 / 4  # 0.9: sides are rounded to whole pixels
    assert 0.65 < (width / height)[small].min() < 0.8 and 1.25 < (width / height)[small].max() < 1.5


@pytest.mark.parametrize("height, width", [(8, 8), (6, 9)])
@pytest.mark.parametrize("channels", [1, 3])
def test_resized_crop_is_torchvisions(height, width, channels):
    boxes = [[0, 0, height, width], [1, 2, 3, 4], [height - 1, width - 1, 1, 1], [0, 3, height, 2], [2, 0, 4, width]]
    images = random_floats(len(boxes), channels, height, width)
    crops = resized_crop(images, torch.tensor(boxes))
    for crop, image, box in zip(crops, images, boxes, strict=True):
        expected = torchvision.resized_crop(image, *box, [height, width], antialias=True)
        torch.testing.assert_close(crop, expected, atol=1e-5, rtol=0)  # coordinates are rounded to 1e-6 pixels
    assert crops.min() >= 0 and crops.max() <= 1


def test_pixels_outside_the_box_have_no_influence():
    images = torch.ones(1, 3, 8, 8)
    images[..., 2:6, 3:7] = 0.25
    crop = resized_crop(images, torch.tensor([[2, 3, 4, 4]]))
    torch.testing.assert_close(crop, torch.full_like(crop, 0.25), atol=1e-5, rtol=0)


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
    cut = erase_square(images, torch.tensor([[row, column], [0, 0]]), size)
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


@pytest.mark.parametrize("channels", [2, 4])
def test_f22_images_of_other_channels_have_contrast_and_no_colours(channels):
    images = random_floats(3, channels)
    changed = adjust_contrast(images, torch.tensor([1.0, 0.5, 0.0]))
    torch.testing.assert_close(changed[0], images[0])
    assert torch.allclose(changed[2], images[2].mean())
    for setting in ("saturation", "hue", "greyscale"):
        augment = Augment(AugmentationConfig(**{setting: 0.4}))
        with pytest.raises(
            ValueError, match=f"images of {channels} channels have no colours; leave the augmentation's"
        ):
            augment((255 * images).to(torch.uint8))


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


def test_hue_is_torchvisions():
    shifts = [-0.5, -0.21, 0.0, 0.1, 0.5]
    images = random_floats(5)
    images[:, :, 0] = torch.eye(3)[torch.arange(8) % 3].T  # pure colours, where two channels are equal
    images[:, :, 1] = images[:, :1, 1]  # greys
    images[:, :, 2] = 1 - images[:, :, 0]
    changed = adjust_hue(images, torch.tensor(shifts))
    for index, shift in enumerate(shifts):
        torch.testing.assert_close(changed[index], torchvision.adjust_hue(images[index], shift), atol=1e-5, rtol=0)
    assert changed.min() >= 0 and changed.max() <= 1


@settings(max_examples=25, deadline=None)
@given(shift=st.floats(-0.5, 0.5), seed=st.integers(0, 2**31))
def test_hue_goes_round_a_circle_and_keeps_value_and_chroma(shift, seed):
    images = random_floats(2, seed=seed)
    shifts = torch.tensor([shift, 0.0])
    changed = adjust_hue(images, shifts)
    torch.testing.assert_close(changed[1], images[1], atol=1e-5, rtol=0)
    torch.testing.assert_close(changed.amax(1), images.amax(1), atol=1e-5, rtol=0)
    torch.testing.assert_close(changed.amin(1), images.amin(1), atol=1e-5, rtol=0)
    torch.testing.assert_close(adjust_hue(changed, -shifts), images, atol=1e-5, rtol=0)
    third = adjust_hue(images, torch.full((2,), 1 / 3))  # red becomes green, green blue, blue red
    torch.testing.assert_close(third, images.roll(1, dims=1), atol=1e-5, rtol=0)


def test_hue_leaves_grey_alone():
    grey = random_floats(2, 1)
    assert torch.equal(adjust_hue(grey, torch.tensor([0.3, -0.5])), grey)
    colours = torch.cat([grey.expand(2, 3, 8, 8), torch.zeros(2, 3, 8, 8), torch.ones(2, 3, 8, 8)])
    assert torch.equal(adjust_hue(colours, torch.full((6,), 0.3)), colours)


def test_greyscale_is_torchvisions_for_the_masked_images():
    images, mask = random_floats(4), torch.tensor([True, False, True, False])
    changed = greyscale(images, mask)
    assert torch.equal(changed[~mask], images[~mask])
    for image, grey in zip(images[mask], changed[mask], strict=True):
        # torchvision's luma has 0.2989 for red, this 0.299
        torch.testing.assert_close(grey, torchvision.rgb_to_grayscale(image, 3), atol=1.1e-4, rtol=0)
        assert torch.equal(grey, grey[:1].expand(3, 8, 8))
    single = random_floats(4, 1)
    assert torch.equal(greyscale(single, mask), single)


@pytest.mark.parametrize("height, width", [(12, 12), (7, 10)])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("radius", [1, 3])
def test_blur_is_torchvisions_with_the_border_repeated(height, width, channels, radius):
    sigmas = [0.1, 0.5, 1.3, 2.0]
    images = random_floats(4, channels, height, width)
    before = images.clone()
    blurred = gaussian_blur(images, torch.tensor(sigmas), radius)
    side, inner = 2 * radius + 1, (slice(None), slice(radius, -radius), slice(radius, -radius))
    for index, sigma in enumerate(sigmas):
        reflected = torchvision.gaussian_blur(images[index], [side, side], [sigma, sigma])
        torch.testing.assert_close(blurred[index][inner], reflected[inner], atol=1e-6, rtol=0)
        padded = F.pad(images[index : index + 1], (radius,) * 4, mode="replicate")[0]
        expected = torchvision.gaussian_blur(padded, [side, side], [sigma, sigma])[inner]
        torch.testing.assert_close(blurred[index], expected, atol=1e-6, rtol=0)
    assert torch.equal(images, before)


def test_blur_without_width_is_the_identity_and_flat_images_stay_flat():
    images = torch.cat([random_floats(2), torch.ones(2, 3, 8, 8)])
    blurred = gaussian_blur(images, torch.tensor([0.0, 0.001, 1.0, 5.0]), 4)
    assert torch.equal(blurred[:2], images[:2])
    torch.testing.assert_close(blurred[2:], images[2:], atol=1e-6, rtol=0)  # no dark borders
    assert blurred.max() <= 1
    dot = random_floats(1, 3, 1, 1)
    torch.testing.assert_close(gaussian_blur(dot, torch.tensor([2.0]), 4), dot)  # the radius may exceed the image


# the module


@pytest.mark.parametrize("config", [*ONE_BY_ONE, *ALL_AT_ONCE], ids=lambda config: ",".join(config))
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
    assert torch.equal(first, second) == (channels == 1 and list(config) in (["saturation"], ["hue"], ["greyscale"]))


@pytest.mark.parametrize("config", ONE_BY_ONE, ids=lambda config: ",".join(config))
def test_every_image_of_a_batch_has_its_own_draw(config):
    augment, images = Augment(AugmentationConfig(**config)), random_images(1).expand(32, -1, -1, -1)
    torch.manual_seed(0)
    distinct = len(augment(images).flatten(1).unique(dim=0))
    assert distinct == 2 if {"horizontal_flip", "greyscale"} & set(config) else distinct > 10


@pytest.mark.parametrize("config", ALL_AT_ONCE, ids=lambda config: ",".join(config))
@pytest.mark.parametrize("channels", [1, 3])
def test_the_rows_of_a_draw_are_independent(config, channels):
    augment, images = Augment(AugmentationConfig(**config)), random_images(7, channels)
    draws = augment.draw(7, (8, 8), device="cpu", generator=torch.Generator().manual_seed(0))
    assert all(len(rows) == 7 for rows in draws.values())
    together = augment.apply_draws(images, draws)
    assert torch.equal(augment.apply_draws(images, draws), together)  # nothing is random but the draw
    chosen = torch.tensor([5, 0, 3])
    some = augment.apply_draws(images[chosen], {name: rows[chosen] for name, rows in draws.items()})
    torch.testing.assert_close(some, together[chosen], atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "more",
    [{}, {"hue": 0.2}, {"greyscale": 0.5}, {"blur": (0.1, 1)}, {"hue": 0.2, "greyscale": 0.5, "blur": (0.1, 1)}],
    ids=lambda more: ",".join(more) or "nothing more",
)
def test_hue_greyscale_and_blur_leave_the_other_draws_as_they_were(more):
    random = torch.Generator().manual_seed(3)

    def uniform(*shape):
        return 2 * torch.rand(6, *shape, generator=random) - 1

    expected = {
        "offsets": torch.randint(5, (6, 2), generator=random),
        "flips": torch.rand(6, generator=random) < 0.5,
        "angles": 30 * uniform(),
        "shifts": 0.1 * uniform(2),
        "scales": 1 + 0.2 * uniform(),
        "brightness": 1 + 0.4 * uniform(),
        "contrast": 1 + 0.4 * uniform(),
        "saturation": 1 + 0.4 * uniform(),
        "centres": torch.stack([torch.randint(side, (6,), generator=random) for side in (8, 9)], dim=1),
    }
    state = random.get_state()
    augment = Augment(SUPERVISED.replace(**more))
    draws = augment.draw(6, (8, 9), device="cpu", generator=random.manual_seed(3))
    assert len(draws) == len(expected) + len(more)
    assert all(torch.equal(draws[name], rows) for name, rows in expected.items())
    assert torch.equal(random.get_state(), state) == (more == {})


def test_the_jitter_changes_all_colours_of_an_image_or_none():
    colours = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1}
    draws = Augment(AugmentationConfig(**colours, jitter_probability=0.8)).draw(
        4000, (8, 8), device="cpu", generator=torch.Generator().manual_seed(0)
    )
    assert draws.keys() == colours.keys()
    changed = torch.stack([draws[name] != (name != "hue") for name in colours])
    assert torch.equal(changed.all(dim=0), changed.any(dim=0))
    assert 0.77 < changed[0].double().mean() < 0.83
    always = Augment(AugmentationConfig(**colours)).draw(
        4000, (8, 8), device="cpu", generator=torch.Generator().manual_seed(0)
    )
    assert torch.equal(always["contrast"][changed[0]], draws["contrast"][changed[0]])
    never = Augment(AugmentationConfig(**colours, jitter_probability=0))
    images = random_images()
    torch.testing.assert_close(never(images), to_unit_range(images), atol=1e-5, rtol=0)


def test_images_are_blurred_and_lose_their_colours_as_often_as_asked():
    config = AugmentationConfig(greyscale=0.2, blur=(0.5, 1.5), blur_probability=0.7)
    draws = Augment(config).draw(4000, (8, 8), device="cpu", generator=torch.Generator().manual_seed(0))
    blurred = draws["sigmas"] > 0
    assert 0.17 < draws["greys"].double().mean() < 0.23 and 0.67 < blurred.double().mean() < 0.73
    assert 0.5 <= draws["sigmas"][blurred].min() < 0.51 and 1.49 < draws["sigmas"].max() <= 1.5


def test_the_order_is_crop_flip_colours_greyscale_blur_cutout():
    config = SELF_SUPERVISED.replace(cutout=0.25)
    augment, images = Augment(config), random_images(16)
    draws = augment.draw(16, (8, 8), device="cpu", generator=torch.Generator().manual_seed(0))
    expected = horizontal_flip(resized_crop(to_unit_range(images), draws["boxes"]), draws["flips"])
    for name, adjust in [("brightness", adjust_brightness), ("contrast", adjust_contrast),
                         ("saturation", adjust_saturation), ("hue", adjust_hue), ("greys", greyscale)]:  # fmt: skip
        expected = adjust(expected, draws[name])
    expected = erase_square(gaussian_blur(expected, draws["sigmas"], 4), draws["centres"], 2)  # 4 = 2 * largest sigma
    assert torch.equal(augment.apply_draws(images, draws), expected)


def test_eval_mode_only_converts_and_draws_nothing():
    augment, images = Augment(SUPERVISED).eval(), random_images()
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
     ("contrast", 1.1), ("saturation", float("nan")), ("hue", 0.6), ("jitter_probability", 1.1), ("greyscale", -0.1),
     ("blur", (0, 1)), ("blur", 1), ("blur_probability", 2), ("resized_crop", (0, 1)), ("resized_crop", (0.5, 1.5)),
     ("resized_crop", (1, 0.2))],
)  # fmt: skip
def test_values_out_of_range_are_refused_by_name(field, value):
    with pytest.raises(ValueError, match=field):
        AugmentationConfig(**{field: value})


def test_ranges_that_descend_and_two_ways_to_crop_are_refused_in_one_sentence():
    with pytest.raises(ValueError, match=r"^blur: the smallest value comes first: \[0.1, 2.0\], got \[2.0, 0.1\]$"):
        AugmentationConfig.of({"blur": [2, 0.1]})
    with pytest.raises(ValueError, match="^crop_padding and resized_crop are two ways to crop: set only one of them$"):
        AugmentationConfig.of({"crop_padding": 4, "resized_crop": [0.2, 1]})
