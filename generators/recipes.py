"""What to train where nobody has said: a network and its settings, by the number, size and kind of the images.

    config = generators.suited_config(num_images=len(images), image_size=32, scalars=False)
    generators.train(images, labels, num_classes=10, config=config)

Measured in docs/results.md: from thousands of images a flow learns the labels and varies, but it repeats a hundred images
one by one; there a small GAN with a mode-seeking term makes images that are worth more than the real ones.
"""

from typing import Any

from generators.config import GeneratorConfig
from generators.layers import SIZES

FEW = 2000  # images below which a flow would repeat them
PASSES, MOST_STEPS = 150, 6000  # of a flow: over its images, and steps however many they are
NEUTRAL = {"minutes", "steps", "horizontal_flip", "balanced", "sigma", "kappa", "accumulate", "memory_budget", "seed"}
NEUTRAL |= {"log_every", "sample_every", "score_every", "checkpoint_every", "collapse_ratio", "ema_decay"}
"""Settings that say nothing about the network and the way it is trained."""


def suited_config(
    config: GeneratorConfig | None = None, *, num_images: int, image_size: int, scalars: bool
) -> GeneratorConfig:
    """The config with a network and settings that suit the data, where it has none of its own; else as it is.

    config: what is said already, e.g. minutes or horizontal_flip, which stays; None: nothing.
    num_images, image_size: of the training images, which are square.
    scalars: whether their labels are numbers instead of classes.
    """
    config = config or GeneratorConfig()
    said = config.model_fields_set & GeneratorConfig.model_fields.keys()
    helped = config.features is not None or config.guidance is not None
    if said - NEUTRAL - {"features", "guidance"}:
        return config
    is_game = image_size in SIZES and (helped or num_images < FEW)
    settings = small_gan(image_size, scalars) if is_game else flow(num_images)
    if config.minutes is not None:
        settings.pop("steps")
    return config.replace(**{name: value for name, value in settings.items() if name not in said})


def flow(num_images: int) -> dict[str, Any]:
    """A flow, trained no longer than its images have something to tell."""
    return {"network": "unet", "steps": max(500, min(MOST_STEPS, PASSES * num_images // 64)), "ema_decay": 0.999}


def small_gan(image_size: int, scalars: bool) -> dict[str, Any]:
    """A light SNGAN that draws at half of the size, with what keeps few images from collapsing to prototypes."""
    doublings = max(1, SIZES.index(image_size))  # from 4 pixels to a half of the size, but 8
    return {
        "network": "sngan",
        "widths": (160, 128, 96, 64, 48)[-doublings - 1 :],
        "discriminator_widths": (16, 32, 64, 96, 128, 128)[: SIZES.index(image_size) + 2],
        "latent_dim": 64,
        "label_dim": 32 if image_size <= 16 else 64,
        "mode_seeking": 0.03 if scalars else 0.1,
        "augment": "translation" if scalars else "translation,cutout",
        "cutout": 0.25,
        "steps": 900 if image_size <= 16 else 2000,
        "discriminator_steps": 1 if image_size <= 16 else 2,
        "learning_rate": 4e-4 if image_size <= 16 else 2e-4,
        "discriminator_learning_rate": 4e-4,
        "ema_decay": 0.998,
    }
