"""What is trained where nobody has said what to train."""

from __future__ import annotations

import pytest
import torch

import generators
from generators.config import GeneratorConfig
from generators.networks import build_networks
from generators.recipes import FEW, suited_config


@pytest.mark.parametrize("size", [8, 16, 20, 28, 32, 64, 128])
@pytest.mark.parametrize("num_images", [100, 50_000])
@pytest.mark.parametrize("scalars", [False, True])
def test_every_data_set_has_networks(size: int, num_images: int, scalars: bool) -> None:
    config = suited_config(num_images=num_images, image_size=size, scalars=scalars)
    kind = (None, (0.0, 1.0)) if scalars else (10, None)
    generator, discriminator = build_networks(config, (1, size, size), *kind)
    is_flow = num_images >= FEW or size in (20, 28)  # which an SNGAN cannot double to
    assert (discriminator is None) == is_flow and 0 < config.steps <= 6000
    assert generator.config.resolution == size


def test_what_is_said_stays() -> None:
    facts = {"num_images": 50_000, "image_size": 32, "scalars": False}
    said = GeneratorConfig(steps=70, horizontal_flip=True, ema_decay=0.99, score_every=10)
    config = suited_config(said, **facts)
    assert config.network == "unet"
    assert (config.steps, config.horizontal_flip, config.ema_decay, config.score_every) == (70, True, 0.99, 10)
    assert suited_config(GeneratorConfig(minutes=3), **facts).minutes == 3
    for own in ({"network": "sngan"}, {"widths": (8, 8)}, {"discriminator_steps": 2}, {"learning_rate": 1e-4}):
        assert suited_config(GeneratorConfig(**own), **facts) == GeneratorConfig(**own)


def test_help_asks_for_a_game() -> None:
    for group in ("features", "guidance"):
        config = suited_config(GeneratorConfig(**{group: {}}), num_images=50_000, image_size=32, scalars=False)
        assert config.network == "sngan"


def test_a_small_gan_of_few_images_trains() -> None:
    images, labels = torch.randint(256, (30, 1, 16, 16), dtype=torch.uint8), torch.arange(30) % 3
    config = suited_config(GeneratorConfig(steps=1), num_images=30, image_size=16, scalars=False)
    drawn = generators.train(images, labels, num_classes=3, config=config).sample(torch.tensor([0, 2]))
    assert drawn.shape == (2, 1, 16, 16) and drawn.abs().max() <= 1
