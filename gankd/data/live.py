"""A generator as a set of samples: images with the generator's own features of them, drawn when they are asked for.

Sample i depends on (seed, i) alone, whichever samples are drawn with it. So a live set and the same set written to disk hold
the same samples, up to the rounding of a generator whose arithmetic depends on the batch.
"""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from gankd.data.sets import ImageSet, LazyImages
from gankd.losses import pool_generator_features
from generators.images import from_generator_range
from generators.interface import ConditionalGenerator
from generators.randomness import mix, seeded

BATCH = 250  # samples that are drawn together where the caller does not say how many


class LiveSamples:
    """`num_samples` images of a generator that index like a uint8 tensor [N, C, H, W], and `draw` their features too.

    Classes come in turn, scalar labels are uniform in the generator's range. A generator that adds fresh noise in every
    layer gives the same samples only for the same indices asked together.
    Raises ValueError: no samples, or a generator whose features are not known.
    """

    def __init__(self, generator: ConditionalGenerator, num_samples: int, *, seed: int = 0):
        if num_samples < 1:
            raise ValueError(f"num_samples is {num_samples}; a generator has to give one sample at least.")
        if not generator.feature_names:
            raise ValueError(
                f"{type(generator).__name__} has no feature_names: which modules' outputs are its features is not known; "
                "name them (generators.wrap takes feature_names)."
            )
        self.generator, self.seed = generator.eval(), seed
        config = generator.config
        self.shape = (num_samples, config.image_channels, config.resolution, config.resolution)
        if generator.is_class_conditional:
            self.labels = torch.arange(num_samples) % config.num_classes
        else:
            low, high = config.label_range
            self.labels = low + (high - low) * torch.rand(num_samples, generator=seeded(seed, "generated labels"))
            self.labels = self.labels.clamp(low, high)
        with torch.no_grad(), _own_randomness(0):
            _, features = generator.sample_with_features(self.labels[:1], self.latents(torch.zeros(1).long()))
        self.feature_widths = tuple(pool_generator_features(generator_features=[f]).shape[1] for f in features.values())

    def __len__(self) -> int:
        return self.shape[0]

    def latents(self, indices: Tensor) -> Tensor:
        """Latents [N, latent_dim] of the samples at `indices` (on the CPU)."""
        size = self.generator.config.latent_dim
        streams = (seeded(self.seed, "generated", index) for index in indices.tolist())
        return torch.stack([torch.randn(size, generator=stream) for stream in streams])

    @torch.no_grad()
    def draw(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Images uint8 [N, C, H, W] and pooled features float16 [N, D] of the samples at `indices` (int64 [N] on the CPU),
        on the generator's device."""
        with _own_randomness(mix(self.seed, "generated noise", *indices[:1].tolist())):
            images, features = self.generator.sample_with_features(self.labels[indices], self.latents(indices))
        return from_generator_range(images), pool_generator_features(generator_features=[*features.values()]).half()

    def read(self, index: int) -> Tensor:
        """One image, uint8 [C, H, W] on the CPU."""
        return self.draw(torch.tensor([index]))[0][0].cpu()

    def __getitem__(self, indices: int | Tensor) -> Tensor:
        """uint8 images on the CPU."""
        if isinstance(indices, int):
            return self.read(indices)
        return torch.cat([self.draw(chunk)[0].cpu() for chunk in indices.cpu().split(BATCH)])

    def subset(self, indices: Tensor) -> LazyImages:
        """The images at `indices` (int64 [M]), in that order."""
        return LazyImages(self.read, self.shape, threads=1).subset(indices)


def live_set(generator: ConditionalGenerator, num_samples: int, *, seed: int = 0) -> ImageSet:
    """A set of samples that a generator makes when they are asked for."""
    images = LiveSamples(generator, num_samples, seed=seed)
    widths = images.feature_widths
    return ImageSet(images, images.labels, feature_widths=widths, is_synthetic=True, name="generated")


@contextlib.contextmanager
def _own_randomness(seed: int) -> Iterator[None]:
    """What a generator draws itself depends on nothing but `seed`, and the caller's random state is not touched."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield
