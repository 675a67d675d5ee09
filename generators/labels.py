"""Which labels and which real images a step of adversarial training uses.

For class ids every sample counts alike. For scalars, real images near a target label stand for it: the vicinal sampling of
Ding et al., CcGAN, T-PAMI 2023 (rules and sizes in `vicinity`).
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from generators.config import GeneratorConfig
from generators.vicinity import LabelIndex, kappa_rule_of_thumb, normalize_labels, sample_vicinity, sigma_rule_of_thumb

NUM_TRIES = 50  # noise draws for a target label before the nearest real label is taken


class ClassLabels:
    """Labels are class ids int64 [N]; `balanced` draws every class that occurs equally often."""

    def __init__(self, labels: Tensor, balanced: bool = False):
        self.labels = labels
        self.by_class = [torch.nonzero(labels == label).flatten() for label in labels.unique()] if balanced else None

    def draw(self, size: int, random: torch.Generator) -> Tensor:
        """Indices [size] of samples."""
        if self.by_class is None:
            return torch.randint(len(self.labels), (size,), generator=random)
        counts = torch.tensor([len(members) for members in self.by_class])
        kinds = torch.randint(len(counts), (size,), generator=random)
        places = (torch.rand(size, generator=random, dtype=torch.float64) * counts[kinds]).long()
        return torch.cat(self.by_class)[counts.cumsum(0)[kinds] - counts[kinds] + places]

    def discriminator_batch(self, size: int, random: torch.Generator) -> dict[str, Tensor]:
        """`indices` of real images, the label `real_y` and `fake_y` under which the discriminator sees real and fake
        images, and `fake_input`, the label from which the fake is made; all [size]."""
        real, fake = self.draw(2 * size, random).view(2, size)
        fake_y = self.labels[fake]
        return {"indices": real, "real_y": self.labels[real], "fake_y": fake_y, "fake_input": fake_y}

    def generator_batch(self, size: int, random: torch.Generator) -> Tensor:
        """Labels [size] for a generator update."""
        return self.labels[self.draw(size, random)]


class ScalarLabels:
    """Labels are scalars [N] in the user's units, conditioned on as numbers in [0, 1]."""

    def __init__(self, labels: Tensor, label_range: tuple[float, float], config: GeneratorConfig):
        low, high = label_range
        self.labels = normalize_labels(labels=labels.double(), label_min=low, label_max=high)
        self.index, self.distinct = LabelIndex(self.labels), self.labels.unique()
        self.vicinity = config.vicinity
        self.sigma = config.sigma / (high - low) if config.sigma else sigma_rule_of_thumb(labels=self.labels)
        if not config.sigma and self.sigma > 0.1:
            warnings.warn(
                f"the rule of thumb for sigma gives {self.sigma * (high - low):.3g}, over a tenth of the label range: "
                "labels will blur. Set generator.sigma (label units) yourself.",
                stacklevel=2,
            )
        if config.kappa:
            width = config.kappa / (high - low)
            self.kappa = width if config.vicinity == "hard" else 1 / width**2
        else:
            self.kappa = kappa_rule_of_thumb(labels=self.labels, multiplier=5.0, vicinity=config.vicinity)

    def targets(self, size: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
        """Centres [size] among the distinct labels (a rare label counts as much as a common one), noise [size, tries]."""
        centres = self.distinct[torch.randint(len(self.distinct), (size,), generator=random)]
        return centres, torch.randn(size, NUM_TRIES, generator=random, dtype=torch.float64)

    def discriminator_batch(self, size: int, random: torch.Generator) -> dict[str, Tensor]:
        """As for classes; both kinds of image are seen under the target. `real_labels` are those of the real images."""
        centres, noise = self.targets(size, random)
        pick, place = torch.rand(2, size, generator=random, dtype=torch.float64)
        target, real, fake, _ = sample_vicinity(
            train_labels=self.index,
            centres=centres,
            noise=noise,
            pick=pick,
            place=place,
            kappa=self.kappa,
            vicinity=self.vicinity,
            sigma=self.sigma,
        )
        target, fake = target.float(), fake.float()
        batch = {"indices": real, "real_y": target, "fake_y": target, "fake_input": fake}
        return batch | {"real_labels": self.labels[real].float()}

    def generator_batch(self, size: int, random: torch.Generator) -> Tensor:
        """Target labels [size] for a generator update."""
        centres, noise = self.targets(size, random)
        return (centres + self.sigma * noise[:, 0]).clamp(0, 1).float()


def check_labels(labels: Tensor, num_classes: int | None, label_range: tuple[float, float] | None) -> None:
    """Raise a ValueError unless the labels are of the one kind that was declared, and within its range."""
    if (num_classes is None) == (label_range is None):
        raise ValueError("give exactly one of num_classes (class ids) and label_range (scalar labels).")
    if num_classes is not None and labels.dtype.is_floating_point:
        raise ValueError(
            f"labels are {labels.dtype} where class ids (int64) are expected; for scalars give label_range."
        )
    low, high = label_range or (0, num_classes - 1)
    if not low < high:
        raise ValueError(f"labels span [{low}, {high}]; a conditional generator needs at least two different labels.")
    outside = ~((labels >= low) & (labels <= high))  # so that NaN is outside
    if outside.any():
        index = int(outside.nonzero()[0])
        raise ValueError(f"label {labels[index].item():g} of sample {index} lies outside [{low:g}, {high:g}].")
