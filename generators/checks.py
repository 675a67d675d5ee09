"""What a generator draws, looked at before anything is built on it."""

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from generators.images import Images
from generators.interface import ConditionalGenerator, evaluating
from generators.randomness import seeded


@torch.no_grad()
def check_generator(
    generator: ConditionalGenerator,
    labels: Tensor,
    *,
    num_classes: int | None = None,
    class_names: Sequence[str] | None = None,
    real_images: Images | None = None,
    num_samples: int = 64,
    seed: int = 0,
) -> None:
    """Draw a few images for some of the labels, and refuse a generator whose images or labels are not those of the data.

    labels: [N] in the user's units, those for which images are wanted.
    num_classes: of the data; None for scalar labels.
    class_names: of the data, in the order of their ids, compared with those of the generator where both have some.
    real_images: uint8 [N, C, H, W], a tensor or what indexes like one. Without them a generator that never draws a dark
        pixel is warned of instead of refused.

    The generator is left in the mode in which it was; torch's global random state is not touched.
    Raises ValueError: another kind or number of labels, another image size or number of channels, values that are not
    finite or outside [-1, 1], or all of them in [0, 1].
    """
    if generator.is_class_conditional != (num_classes is not None):
        kind = "class ids" if generator.is_class_conditional else "scalar labels"
        raise ValueError(f"the generator takes {kind}, and the data has the other kind of label.")
    if num_classes is not None and generator.config.num_classes != num_classes:
        raise ValueError(
            f"the generator knows {generator.config.num_classes} classes, the data has {num_classes}: the same number may "
            "mean another class; take a generator of these classes."
        )
    if (names := compared_names(class_names, generator.class_names)) is not None:
        raise ValueError(
            f"the generator knows the classes {', '.join(names[:10])}, the data has {', '.join(class_names[:10])}, in "
            "another order or of other names: number the data's classes as the generator does, or take one of these classes."
        )
    distinct = labels.unique()
    generator.condition(distinct)
    size = generator.config.resolution
    shape = (generator.config.image_channels, size, size)
    if real_images is not None and tuple(real_images.shape[1:]) != shape:
        raise ValueError(f"the generator makes images of {shape}, the data has {tuple(real_images.shape[1:])}.")
    chosen = distinct[torch.arange(num_samples) * len(distinct) // num_samples]
    with evaluating(generator), torch.random.fork_rng():
        images = generator.sample(chosen, generator.draw_latents(num_samples, generator=seeded(seed, "check"))).float()
    if tuple(images.shape[1:]) != shape:
        raise ValueError(f"the generator draws images of {tuple(images.shape[1:])}, and says that they are {shape}.")
    check_range(images, type(generator).__name__)
    if images.min() >= 0:
        sentence = (
            f"{type(generator).__name__} draws values in [{images.min().item():.3g}, {images.max().item():.3g}] and nothing "
            "below 0: an image in [0, 1] is not one in [-1, 1]. Return 2 * image - 1"
        )
        if real_images is None:
            warnings.warn(f"{sentence}, unless the images are meant to be this bright.", stacklevel=2)
        elif (real_images[torch.arange(min(num_samples, real_images.shape[0]))] < 120).float().mean() > 0.02:
            raise ValueError(f"{sentence}: the real images do have dark pixels.")


def check_range(images: Tensor, name: str) -> None:
    """Raise a ValueError for images that leave [-1, 1] (a NaN does), which a conversion to uint8 would hide."""
    if len(images) == 0:
        return
    low, high = images.min().item(), images.max().item()
    if not (low >= -1.01 and high <= 1.01):
        raise ValueError(
            f"{name} draws values in [{low:.3g}, {high:.3g}]; the images of a generator lie in [-1, 1]: end it with "
            "tanh, or wrap it in a function that rescales."
        )


def compared_names(own: Sequence[str] | None, others: Sequence[str] | None) -> list[str] | None:
    """The names of the classes of `others` where they must be compared with `own`; None where both are the same, or one of
    them has none: nothing, or the numbers 0..K-1, unless the other has numbers too."""
    own, others = ([name.strip() for name in names or ()] for names in (own, others))
    if not own or not others or own == others:
        return None
    unnamed = [names == [str(number) for number in range(len(names))] for names in (own, others)]
    return None if any(unnamed) and not set(own) & set(others) else others
