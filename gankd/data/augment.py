"""Augmentation of a whole batch on its device, with one random draw a sample.

`Augment` draws, then applies what was drawn, so that a draw can be kept and repeated (see `views`). Padded crop and flip
copy bytes of the uint8 images; everything else works on floats in [0, 1], in the pure functions of `transforms`.

Self-supervised methods compare strong views: resized crop, flip, colour jitter, greyscale and blur are those of SimCLR
(Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations", ICML 2020, arXiv 2002.05709),
with the colours changed in a fixed order.

A function of the user's joins by a name or as it is, behind ours:

    @AUGMENTATIONS.register("solarize")
    def solarize(images: Tensor, random: SampleRandom, *, probability: Share = 0.2) -> Tensor:
        chosen = random.uniform() < probability                     # [N], each sample's own draw
        return torch.where(chosen[:, None, None, None] & (images > 0.5), 1 - images, images)

    augmentation: {horizontal_flip: true, own: [{name: solarize, probability: 0.1}]}      # in a YAML, its file in `plugins`
    gankd.distill(..., augmentation={"own": [solarize]})                                # in the library
"""

import functools
import inspect
import math
from collections.abc import Callable
from typing import Annotated, Any

import torch
from pydantic import AfterValidator, Field, PlainSerializer, WithJsonSchema, field_validator, model_validator
from torch import Tensor, nn

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
from generators.registry import Registry
from generators.settings import Settings, Share

AUGMENTATIONS: Registry[Callable] = Registry("augmentation")
"""The user's own: functions of images, float32 [N, C, H, W] in [0, 1], and a `SampleRandom` to images of the same shape.
Keyword-only parameters are settings; of a class, those of its constructor, and its instance is the function."""


def _known_augmentation(entry: str | dict[str, Any] | Callable) -> dict[str, Any] | Callable:
    """A function as it is, anything else as {"name": ..., settings}, validated."""
    if callable(entry):
        try:
            inspect.signature(entry).bind(None, None)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{_function_name(entry)} has to take (images, random): {error}") from None
        return entry
    entry = {"name": entry} if isinstance(entry, str) else entry
    if not isinstance(entry.get("name"), str):
        raise ValueError(f"an augmentation of your own is a name, or a name with its settings; got {entry}")
    options = {key: value for key, value in entry.items() if key != "name"}
    checked = AUGMENTATIONS.options(entry["name"]).of(options)
    return {"name": entry["name"], **checked.model_dump(exclude_unset=True)}


def _function_name(entry: dict[str, Any] | Callable) -> dict[str, Any] | str:
    """How an entry stands in a record of the settings."""
    if isinstance(entry, dict):
        return entry
    return f"{entry.__module__}.{getattr(entry, '__qualname__', type(entry).__qualname__)}"


OwnAugmentation = Annotated[
    str | dict[str, Any] | Callable,
    AfterValidator(_known_augmentation),
    PlainSerializer(_function_name, when_used="json"),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "object", "required": ["name"]}]}),
]
PositiveShare = Annotated[float, Field(gt=0, le=1)]
Sigma = Annotated[float, Field(gt=0, le=100)]


class AugmentationConfig(Settings):
    """Random changes of the training images, drawn anew for every sample of every batch; all off by default."""

    crop_padding: Annotated[int, Field(ge=0, le=1024)] = 0
    """Pixels of black border added on each side before a random crop back to the original size (4 on CIFAR)."""
    resized_crop: tuple[PositiveShare, PositiveShare] | None = None
    """Smallest and largest share of the image's area, [0.2, 1] or [0.08, 1] for self-supervision: a box of a random share
    and place, its width over its height between 3/4 and 4/3, is enlarged to the image's size. In place of
    crop_padding."""
    horizontal_flip: bool = False
    """Mirror left and right with probability 1/2."""
    rotation: Annotated[float, Field(ge=0, le=180)] = 0
    """Degrees: the angle is uniform in [-rotation, rotation]."""
    translation: Annotated[float, Field(ge=0, lt=1)] = 0
    """Share of the width and of the height: both shifts are uniform in [-translation, translation]."""
    scale: Annotated[float, Field(ge=0, lt=1)] = 0
    """The magnification is uniform in [1 - scale, 1 + scale]."""
    cutout: Share = 0
    """Side of a black square at a random place, as a share of the shorter side of the image."""
    brightness: Share = 0
    """The factor on all pixels is uniform in [1 - brightness, 1 + brightness]."""
    contrast: Share = 0
    """The factor on the distance from the image's mean grey is uniform in [1 - contrast, 1 + contrast]."""
    saturation: Share = 0
    """The factor on the distance from the pixel's own grey is uniform in [1 - saturation, 1 + saturation]; grey images
    do not change."""
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0
    """Share of the colour circle: the shift of all colours along it is uniform in [-hue, hue]; grey images do not change."""
    jitter_probability: Share = 1.0
    """Brightness, contrast, saturation and hue change an image together with this probability, else none of them does
    (SimCLR: 0.8)."""
    greyscale: Share = 0
    """Probability that an image loses its colours (SimCLR: 0.2)."""
    blur: tuple[Sigma, Sigma] | None = None
    """Smallest and largest standard deviation of a Gaussian blur, in pixels (SimCLR: [0.1, 2] at 224 pixels, no blur on
    CIFAR)."""
    blur_probability: Share = 0.5
    """Probability that an image is blurred, where `blur` is set."""
    own: tuple[OwnAugmentation, ...] = ()
    """Augmentations that a plugin registers, applied after these in the order given: names, or {name: NAME, ...settings}; in
    the library functions (images, random) -> images too."""

    @model_validator(mode="before")
    @classmethod
    def _a_function_is_one_of_your_own(cls, values):
        return {"own": (values,)} if callable(values) else values

    @field_validator("resized_crop", "blur")
    @classmethod
    def _ranges_ascend(cls, ends):
        if ends is not None and ends[0] > ends[1]:
            raise ValueError(f"the smallest value comes first: [{ends[1]}, {ends[0]}], got {list(ends)}")
        return ends

    @model_validator(mode="after")
    def _crops_one_way(self):
        if self.crop_padding and self.resized_crop is not None:
            raise ValueError("crop_padding and resized_crop are two ways to crop: set only one of them")
        return self


CROPPED = AugmentationConfig(resized_crop=(0.2, 1))
"""The weak augmentation of methods without labels that ask a teacher, as SimReg has it, but for the flip."""
SELF_SUPERVISED = AugmentationConfig(
    resized_crop=(0.2, 1), brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, jitter_probability=0.8, greyscale=0.2
)
"""What methods without labels compare, as VICReg and Squeeze and Span do, but for the flip, which not all images bear."""


COLOUR_CHANGES = {
    "brightness": adjust_brightness,
    "contrast": adjust_contrast,
    "saturation": adjust_saturation,
    "hue": adjust_hue,
    "greys": greyscale,
}
"""In their order, by the names of their draws."""


class SampleRandom:
    """Random numbers for the samples of a batch: each sample's are a function of its own seed and of what was asked before.

    Counter-based (SplitMix64: Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014), so that
    a sample draws the same in any batch, on any device and in any view that repeats.

    seeds: int64 [N], on the device of the images.
    stream: draws of another stream are unrelated.
    """

    def __init__(self, seeds: Tensor, stream: int = 0):
        self.state = self._scrambled(seeds + stream)
        self.count = 0

    def uniform(self, *shape: int) -> Tensor:
        """float32 [N, *shape], uniform in [0, 1)."""
        size = math.prod(shape)
        numbers = torch.arange(self.count + 1, self.count + size + 1, device=self.state.device)
        self.count += size
        bits = self._scrambled(self.state[:, None] + numbers * -0x61C8864680B583EB)  # 2^64 over the golden ratio
        return (((bits >> 40) & 0xFFFFFF).float() / (1 << 24)).view(-1, *shape)

    def normal(self, *shape: int) -> Tensor:
        """float32 [N, *shape] of mean 0 and variance 1 (Box and Muller)."""
        radius, angle = self.uniform(2, *shape).unbind(dim=1)
        return (-2 * (1 - radius).log()).sqrt() * (2 * math.pi * angle).cos()

    @staticmethod
    def _scrambled(bits: Tensor) -> Tensor:
        for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):  # products wrap at 64 bits
            bits = (bits ^ ((bits >> shift) & ((1 << (64 - shift)) - 1))) * factor
        return bits ^ ((bits >> 31) & ((1 << 33) - 1))


class Augment(nn.Module):
    """uint8 [N, C, H, W] to float32 [N, C, H, W] in [0, 1]; random changes in training mode only.

    In the order crop, flip, one affine map (rotation, scale, translation), brightness, contrast, saturation, hue,
    greyscale, blur, cutout, then the user's own.
    Draws come from the default random generator of the images' device; what is off draws nothing and costs nothing.
    """

    def __init__(self, config: AugmentationConfig):
        super().__init__()
        self.config = config
        self.own = [_function(entry) for entry in config.own]

    def forward(self, images: Tensor) -> Tensor:
        if not self.training:
            return self.apply_draws(images, {})
        return self.apply_draws(images, self.draw(len(images), tuple(images.shape[2:]), device=images.device))

    def draw(
        self,
        num_images: int,
        size: tuple[int, int],  # height, width
        *,
        device: torch.device | str,
        generator: torch.Generator | None = None,  # None: the default one of the device
    ) -> dict[str, Tensor]:
        """What is random about `num_images` views: tensors by name, their row i belongs to image i; {} with all off."""
        config, draws = self.config, {}
        where = {"device": device, "generator": generator}

        def around(middle: float, spread: float, *shape: int) -> Tensor:
            """Uniform in middle +- spread, one draw (of `shape`) an image."""
            return middle + spread * (2 * torch.rand(num_images, *shape, **where) - 1)

        if config.crop_padding:
            draws["offsets"] = torch.randint(2 * config.crop_padding + 1, (num_images, 2), **where)
        if config.horizontal_flip:
            draws["flips"] = torch.rand(num_images, **where) < 0.5
        if config.rotation or config.translation or config.scale:
            draws["angles"], draws["shifts"] = around(0, config.rotation), around(0, config.translation, 2)
            draws["scales"] = around(1, config.scale)
        for name in ("brightness", "contrast", "saturation"):
            if spread := getattr(config, name):
                draws[name] = around(1, spread)
        if config.cutout:
            centres = [torch.randint(length, (num_images,), **where) for length in size]
            draws["centres"] = torch.stack(centres, dim=1)  # (row, column)
        # From here on not in the order of use, so that what is above is drawn the same with and without what is below.
        if config.resized_crop is not None:
            smallest, largest = config.resized_crop
            shares = around((smallest + largest) / 2, (largest - smallest) / 2)
            ratios = around(0, math.log(4 / 3)).exp()
            draws["boxes"] = crop_boxes(shares, ratios, torch.rand(num_images, 2, **where), size)
        if config.hue:
            draws["hue"] = around(0, config.hue)
        if config.jitter_probability < 1:
            jittered = torch.rand(num_images, **where) < config.jitter_probability
            for name, unchanged in {"brightness": 1, "contrast": 1, "saturation": 1, "hue": 0}.items():
                if name in draws:
                    draws[name] = torch.where(jittered, draws[name], unchanged)
        if config.greyscale:
            draws["greys"] = torch.rand(num_images, **where) < config.greyscale
        if config.blur is not None:
            smallest, largest = config.blur
            sigmas = around((smallest + largest) / 2, (largest - smallest) / 2)
            blurred = torch.rand(num_images, **where) < config.blur_probability
            draws["sigmas"] = torch.where(blurred, sigmas, 0)
        if self.own:
            draws["seeds"] = torch.randint((1 << 63) - 1, (num_images,), **where)
        return draws

    def apply_draws(self, images: Tensor, draws: dict[str, Tensor]) -> Tensor:
        """uint8 images [N, C, H, W] changed as `draw` says, float32 in [0, 1]; nothing here is random."""
        assert images.dtype == torch.uint8, f"images are {images.dtype}, expected uint8"
        if "offsets" in draws:
            images = random_crop(images, draws["offsets"], self.config.crop_padding)
        if "boxes" in draws:
            images = resized_crop(to_unit_range(images), draws["boxes"])
        if "flips" in draws:
            images = horizontal_flip(images, draws["flips"])
        if "boxes" not in draws:
            images = to_unit_range(images)
        if "angles" in draws:
            images = affine(images, draws["angles"], draws["shifts"], draws["scales"])
        for name, change in COLOUR_CHANGES.items():
            if name in draws:
                images = change(images, draws[name])
        if "sigmas" in draws:
            images = gaussian_blur(images, draws["sigmas"], math.ceil(2 * self.config.blur[1]))
        if "centres" in draws:
            size = max(1, round(self.config.cutout * min(images.shape[2:])))
            images = erase_square(images, draws["centres"], size)
        for number, function in enumerate(self.own if "seeds" in draws else ()):
            changed = function(images, SampleRandom(draws["seeds"], number))
            if not isinstance(changed, Tensor) or changed.shape != images.shape or not changed.is_floating_point():
                raise ValueError(
                    f"augmentation.own: {_function_name(self.config.own[number])} made {getattr(changed, 'shape', changed)} "
                    f"of images of shape {tuple(images.shape)}; it has to return floats of the same shape."
                )
            images = changed
        return images


def _function(entry: dict[str, Any] | Callable) -> Callable[[Tensor, SampleRandom], Tensor]:
    """What an entry of `own` calls."""
    if callable(entry):
        return entry
    function = AUGMENTATIONS.find(entry["name"])
    settings = {key: value for key, value in entry.items() if key != "name"}
    return function(**settings) if inspect.isclass(function) else functools.partial(function, **settings)
