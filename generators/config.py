"""What the user says about the generator and its training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from generators.conditioning import LabelInput
from generators.settings import Settings

Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class GeneratorConfig(Settings):
    """A conditional GAN: its networks and the adversarial training. Defaults suit 32-pixel colour images."""

    checkpoint: Path | None = None
    """Use this trained generator (a folder written by `save_pretrained`) instead of training one."""
    train_on: Literal["train", "pool"] = "train"
    """The student's training samples, or all that there are when `data.labelled` leaves the student only some."""
    network: Literal["sngan"] = "sngan"
    """The architecture."""
    widths: tuple[Count, ...] = (256, 256, 256, 256)
    """Generator channels at 4x4 pixels and after every doubling; fewer doublings than the image needs end in a bilinear
    enlargement."""
    discriminator_widths: tuple[Count, ...] = (128,)
    """Discriminator channels after every halving down to 4x4 and of a last block; one number means it everywhere."""
    latent_dim: Count = 128
    """Length of the latent vector."""
    label_dim: Count = 128
    """Length of the label's code."""
    label_input: LabelInput | None = None
    """How the label enters: embedding (classes), fourier, ili or nli (scalars). Null: embedding or fourier."""

    loss: Literal["hinge", "nonsaturating"] = "hinge"
    """The adversarial loss."""
    vicinity: Literal["hard", "soft"] = "hard"
    """Scalar labels: which real images stand for a target label, those within kappa (hard) or all, weighted (soft)."""
    sigma: Positive | None = None
    """Scalar labels: noise added to target labels, in label units. Null: CcGAN's rule of thumb."""
    kappa: Positive | None = None
    """Scalar labels: half-width of the vicinity in label units (soft: the weight is exp(-(distance/kappa)^2)). Null: five
    times the largest gap between neighbouring labels."""
    mode_seeking: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the mode-seeking term, which rewards images that differ when their latents do. Few images need it."""
    augment: str = "translation,cutout"
    """DiffAugment: a comma-separated choice of color, translation, cutout; empty for none."""
    cutout: Share = 0.5
    """DiffAugment's cutout box as a share of the image side."""
    horizontal_flip: bool = False
    """Mirror half of the real images (only where that keeps the label)."""

    steps: Count = 20_000
    """Generator updates."""
    batch_size: Count = 64
    """Real images a discriminator update, over all processes."""
    discriminator_steps: Count = 1
    """Discriminator updates before every generator update."""
    learning_rate: Positive = 2e-4
    """Adam's, generator and discriminator alike."""
    betas: tuple[Share, Share] = (0.0, 0.9)
    """Adam's."""
    ema_decay: Share = 0.999
    """The generator that is kept averages its weights over about 1 / (1 - decay) steps."""
    memory_budget: Annotated[int, Field(ge=0)] = 2048
    """MiB of training images that may stay on the device; a larger set is read batch by batch."""
    log_every: Count = 50
    """Steps between two lines in the log and two checks for divergence."""
    checkpoint_every: Count = 500
    """Steps between two checkpoints."""

    @model_validator(mode="after")
    def _even_batch(self):
        if self.batch_size % 2:
            raise ValueError(f"batch_size {self.batch_size} is odd; use an even number (samples are drawn in pairs)")
        words = set(filter(None, (word.strip() for word in self.augment.split(","))))
        if unknown := words - {"color", "translation", "cutout"}:
            raise ValueError(f"augment names '{unknown.pop()}'; choose from color, translation, cutout")
        return self
