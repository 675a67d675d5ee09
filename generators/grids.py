"""Sheets of samples to look at: the first thing to do with a generator."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from generators.images import from_generator_range
from generators.interface import ConditionalGenerator, evaluating
from generators.randomness import seeded

if TYPE_CHECKING:
    from PIL import Image


def sample_grid(
    generator: ConditionalGenerator, labels: Tensor | None = None, *, rows: int = 8, columns: int = 10, seed: int = 0
) -> Image.Image:
    """A column a label, a row a latent vector: what changes along a row is the label's doing.

    labels: [L] in the user's units; None: at most `columns` classes, or as many scalars evenly over the label range.
    The generator draws in eval mode and is left in the mode in which it was.
    """
    if labels is None:
        labels = spread_labels(generator, columns)
    latents = generator.draw_latents(rows, generator=seeded(seed, "grid"))
    with evaluating(generator):
        images = torch.stack([generator.sample(labels, z.expand(len(labels), -1)) for z in latents])  # [R, L, C, H, W]
    return tile(from_generator_range(images).cpu())


def spread_labels(generator: ConditionalGenerator, count: int) -> Tensor:
    """At most `count` labels, evenly over those that a generator knows, in the user's units."""
    if generator.is_class_conditional:
        return torch.linspace(0, generator.config.num_classes - 1, min(count, generator.config.num_classes)).long()
    return torch.linspace(*generator.config.label_range, count)


def tile(images: Tensor) -> Image.Image:
    """Images uint8 [R, L, C, H, W], C 1 or 3, as one picture of R rows with white lines of two pixels between them."""
    from PIL import Image

    padded = torch.nn.functional.pad(images.float(), (1, 1, 1, 1), value=255).byte()
    rows, columns, channels, height, width = padded.shape
    sheet = padded.permute(0, 3, 1, 4, 2).reshape(rows * height, columns * width, channels)
    return Image.fromarray((sheet if channels == 3 else sheet.expand(-1, -1, 3)).numpy())
