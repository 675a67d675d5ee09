"""Diffusion models of the diffusers library as generators: pixel or latent, of a class or of nothing.

    generator = load_generator("pipeline", num_steps=50)        # a DDPM, DDIM, LDM or DiT pipeline's folder
    images = generator.sample(torch.tensor([3, 1, 4]))          # an unconditional one knows the class 0 alone

Sampling is DDIM without noise between the steps, so that an image is a function of label and latents, as from a GAN.
Source: Song et al., "Denoising Diffusion Implicit Models", ICLR 2021; guidance: Ho and Salimans, 2022.
"""

import math
from pathlib import Path

import torch
from diffusers import DDIMScheduler, DiffusionPipeline, DiTTransformer2DModel, UNet2DModel
from torch import Tensor, nn

from generators.model import GeneratorModel, register_to_config


class DiffusionGenerator(GeneratorModel):
    """`forward(z, y)`: z [N, latent_dim], the noise at the first step; y int64 [N] -> image [N, C, H, W] in [-1, 1].

    Features are those of the last step, when the image is all but noise-free: outputs of the decoding blocks of a UNet, or
    of four transformer blocks, whose tokens are laid out as maps [N, C, H, W].

    denoiser: predicts noise (or what the scheduler's `prediction_type` says) from image, time and class.
    scheduler: the noise levels.
    decoder: makes the image from what was denoised; without it that is the image.
    num_steps: evaluations of the denoiser an image.
    guidance: weight of the class over no class, 1 for none; needs a denoiser that was trained with a null class.
    """

    ignore_for_config = ["denoiser", "scheduler", "decoder"]

    @register_to_config
    def __init__(
        self,
        *,
        denoiser: UNet2DModel | DiTTransformer2DModel,
        scheduler: DDIMScheduler,
        decoder: nn.Module | None = None,
        resolution: int,
        image_channels: int,
        latent_dim: int,
        num_classes: int,
        num_steps: int = 50,
        guidance: float = 1.0,
    ):
        super().__init__()
        self.denoiser, self.scheduler, self.decoder = denoiser, scheduler, decoder
        self.takes_classes = denoiser.config.get("num_class_embeds", num_classes) is not None
        if isinstance(denoiser, UNet2DModel):
            middle = () if denoiser.mid_block is None else ("denoiser.mid_block",)
            self.feature_names = (*middle, *(f"denoiser.up_blocks.{i}" for i in range(len(denoiser.up_blocks))))
        else:
            depth = len(denoiser.transformer_blocks)
            chosen = sorted({math.ceil(depth * quarter / 4) - 1 for quarter in (1, 2, 3, 4)})
            self.feature_names = tuple(f"denoiser.transformer_blocks.{i}" for i in chosen)

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        channels = self.denoiser.config.in_channels
        size = math.isqrt(self.config.latent_dim // channels)
        x = z.unflatten(1, (channels, size, size))
        self.scheduler.set_timesteps(self.config.num_steps)
        for time in self.scheduler.timesteps:
            x = self.scheduler.step(self.predict(x, time, y), time, x).prev_sample
        if self.decoder is not None:
            x = self.decoder.decode(x / self.decoder.config.scaling_factor).sample
        return x.clamp(-1, 1)

    def predict(self, x: Tensor, time: Tensor, y: Tensor) -> Tensor:
        """The denoiser's prediction [N, C, H, W] at one step, guided by the class."""
        guided = self.config.guidance != 1
        if guided:
            null = torch.full_like(y, self.config.num_classes)
            x, y = x.repeat(2, 1, 1, 1), torch.cat([y, null])
        classes = {"class_labels": y} if self.takes_classes else {}
        output = self.denoiser(x, time.to(x.device).expand(len(x)), **classes).sample
        output = output[:, : x.shape[1]]  # the rest predicts a variance, which a sampler without noise does not use
        if not guided:
            return output
        of_class, of_none = output.chunk(2)
        return of_none + self.config.guidance * (of_class - of_none)

    def sample_with_features(self, labels: Tensor, latents: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        images, features = super().sample_with_features(labels, latents)
        return images, {name: as_map(values[: len(images)]) for name, values in features.items()}

    def save_pretrained(self, *args, **kwargs) -> None:
        raise ValueError("a diffusion generator is saved as its pipeline; keep the folder it was loaded from.")


def as_map(tokens: Tensor) -> Tensor:
    """Tokens [N, H * W, C] of a square image as [N, C, H, W]; what is a map already stays."""
    if tokens.ndim == 4:
        return tokens
    side = math.isqrt(tokens.shape[1])
    return tokens.transpose(1, 2).unflatten(2, (side, side))


def load_pipeline(path: Path, *, num_steps: int = 50, guidance: float = 1.0) -> DiffusionGenerator:
    """The pipeline that `save_pretrained` of diffusers wrote to the folder `path`.

    Raises ValueError: a pipeline that is incomplete or holds pickled objects, or of a kind that is not known here: only
    images from a class (`DiTTransformer2DModel`, `UNet2DModel` with class embeddings) or from nothing.
    """
    try:
        parts = DiffusionPipeline.from_pretrained(path).components  # reads .bin files with weights_only
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as a diffusers pipeline ({error}).") from error
    denoiser = parts.get("unet") or parts.get("transformer")
    if not isinstance(denoiser, (UNet2DModel, DiTTransformer2DModel)):
        raise ValueError(
            f"{path} denoises with {type(denoiser).__name__}; known: UNet2DModel and DiTTransformer2DModel, which make "
            "images from a class or from nothing."
        )
    scheduler = parts["scheduler"]
    if DDIMScheduler not in scheduler.compatibles:
        raise ValueError(f"{path} has a {type(scheduler).__name__}, whose noise levels DDIM cannot follow.")
    config = denoiser.config
    if not isinstance(config.sample_size, int):
        raise ValueError(f"{path} makes images of the size {config.sample_size}; only square ones are known.")
    if isinstance(denoiser, DiTTransformer2DModel):
        num_classes = config.num_embeds_ada_norm
    elif guidance != 1:
        raise ValueError(
            f"guidance {guidance} needs a null class, which the {type(denoiser).__name__} in {path} lacks."
        )
    else:
        num_classes = config.num_class_embeds or 1
    size, decoder = config.sample_size, parts.get("vae") or parts.get("vqvae")
    factor = 1 if decoder is None else 2 ** (len(decoder.config.block_out_channels) - 1)
    parts = {"denoiser": denoiser, "scheduler": DDIMScheduler.from_config(scheduler.config), "decoder": decoder}
    channels = (denoiser if decoder is None else decoder).config.out_channels
    shape = {"resolution": size * factor, "image_channels": channels, "latent_dim": config.in_channels * size**2}
    return DiffusionGenerator(**parts, **shape, num_classes=num_classes, num_steps=num_steps, guidance=guidance)
