"""Which labels and which real images a step of adversarial training uses.

For class ids every sample counts alike. For scalars, real images near a target label stand for it: the vicinal sampling of
Ding et al., CcGAN, T-PAMI 2023 (rules and sizes in `vicinity`).
"""

import math
import warnings

import torch
from torch import Tensor

from generators.config import GeneratorConfig
from generators.vicinity import LabelIndex, kappa_rule_of_thumb, normalize_labels, sample_vicinity, sigma_rule_of_thumb

NUM_TRIES = 50  # noise draws for a target label before the nearest real label is taken
KAPPA_GAPS = 5.0  # the paper's m_kappa
ISOLATED = 5.0  # a gap of so many usual ones separates a label from all others


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
        width = config.kappa / (high - low) if config.kappa else self.rule_of_thumb(high - low)
        self.kappa = width if config.vicinity == "hard" else 1 / width**2
        if (held := self.images_within(width)) > 2 / 3 * len(labels):
            warnings.warn(
                f"kappa {width * (high - low):.3g} makes {held} of the {len(labels)} real images stand for one label (the "
                "median): the generator will hardly follow its label. Set generator.kappa (label units) smaller.",
                stacklevel=2,
            )

    def rule_of_thumb(self, span: float) -> float:
        """Half-width of the vicinity, of labels in [0, 1]: the paper's rule, with a guard and a warning.

        A single label far from all others would make the paper's window as wide as all labels: gaps beyond ISOLATED times
        the 95th percentile are left out, and a window reaches a quarter of the range (`span`, in label units) at most.
        """
        paper = kappa_rule_of_thumb(labels=self.labels, multiplier=KAPPA_GAPS, vicinity="hard")
        gaps = self.distinct.diff().sort().values
        usual = gaps[int(0.95 * (len(gaps) - 1))]
        width = min(KAPPA_GAPS * gaps[gaps <= ISOLATED * usual].max().item(), 0.25)
        if width >= paper:
            return paper
        warnings.warn(
            f"the rule of thumb for kappa gives {paper * span:.3g}, as neighbouring labels are up to {gaps[-1] * span:.3g} "
            f"apart; {width * span:.3g} is used, and {self.images_within(width)} of the {len(self.labels)} real images "
            "stand for one label (the median). Set generator.kappa (label units) yourself.",
            stacklevel=3,
        )
        return width

    def images_within(self, width: float) -> int:
        """How many real images lie within `width` of a label: the median over the distinct labels."""
        starts, ends = self.index.windows(self.distinct, width)
        return int((ends - starts).median())

    def targets(self, size: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
        """Centres [size] among the distinct labels (a rare label counts as much as a common one), noise [size, tries]."""
        centres = self.distinct[torch.randint(len(self.distinct), (size,), generator=random)]
        return centres, torch.randn(size, NUM_TRIES, generator=random, dtype=torch.float64)

    def discriminator_batch(self, size: int, random: torch.Generator) -> dict[str, Tensor]:
        """As for classes; both kinds of image are seen under the target. `real_labels` are those of the real images."""
        centres, noise = self.targets(size, random)
        pick, place = torch.rand(2, size, generator=random, dtype=torch.float64)
        draws = {"centres": centres, "noise": noise, "pick": pick, "place": place}
        settings = {"kappa": self.kappa, "vicinity": self.vicinity, "sigma": self.sigma}
        target, real, fake, _ = sample_vicinity(train_labels=self.index, **draws, **settings)
        target, fake = target.float(), fake.float()
        batch = {"indices": real, "real_y": target, "fake_y": target, "fake_input": fake}
        return batch | {"real_labels": self.labels[real].float()}

    def generator_batch(self, size: int, random: torch.Generator) -> Tensor:
        """Target labels [size] for a generator update."""
        centres, noise = self.targets(size, random)
        return (centres + self.sigma * noise[:, 0]).clamp(0, 1).float()


Plan = ClassLabels | ScalarLabels


def check_labels(labels: Tensor, num_classes: int | None, label_range: tuple[float, float] | None) -> None:
    """Raise a ValueError unless the labels are of the one kind that was declared, and within its range."""
    if (num_classes is None) == (label_range is None):
        raise ValueError("give exactly one of num_classes (class ids) and label_range (scalar labels).")
    if num_classes is not None and labels.dtype.is_floating_point:
        raise ValueError(f"labels are {labels.dtype}, not class ids (int64); for scalars give label_range.")
    low, high = label_range or (0, num_classes - 1)
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"label_range ({low:g}, {high:g}) has an end that is not finite; give (min, max).")
    if low > high:
        raise ValueError(f"label_range ({low:g}, {high:g}) is upside down; give (min, max).")
    if low == high:
        raise ValueError(f"labels span [{low}, {high}]; a conditional generator needs at least two different labels.")
    outside = ~((labels >= low) & (labels <= high))  # so that NaN is outside
    if outside.any():
        index = int(outside.nonzero()[0])
        raise ValueError(f"label {labels[index].item():g} of sample {index} lies outside [{low:g}, {high:g}].")
    distinct = labels.unique()
    if label_range is not None:
        check_precision(distinct, low, high)
    if len(distinct) < 2:
        only = "no labels" if len(distinct) == 0 else f"all {len(labels)} labels are {distinct[0].item():g}"
        raise ValueError(f"{only}; a conditional generator needs at least two distinct labels.")


def check_precision(distinct: Tensor, low: float, high: float) -> None:
    """Raise a ValueError for labels that float32, in which networks see them, does not tell apart."""
    collapsed = len(distinct.float().unique())
    spacing = max(abs(low), abs(high)) * torch.finfo(torch.float32).eps
    if collapsed < 0.99 * len(distinct) or spacing > (high - low) / 1000:
        raise ValueError(
            f"labels in [{low:.10g}, {high:.10g}] are not told apart in float32, where such numbers lie {spacing:.3g} apart "
            f"({collapsed} of {len(distinct)} distinct labels remain); subtract a constant from them."
        )
