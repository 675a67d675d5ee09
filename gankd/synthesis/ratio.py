"""The density ratio as the synthesis uses it: images and labels in, ratios out, whatever features it looks at."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from gankd.data.sets import ImageSet
from gankd.models.teacher import Teacher
from gankd.synthesis.config import SubsamplingConfig
from gankd.synthesis.density_ratio import DensityRatio, train_density_ratio
from gankd.synthesis.extractors import SparseAutoencoder, WideClassifier, train_extractor
from gankd.synthesis.store import read_tensors, write_tensors
from gankd.tasks import Classification, Task
from generators.images import from_generator_range, to_generator_range
from generators.interface import ConditionalGenerator


class TeacherFeatures(nn.Module):
    """The teacher's features of images in [-1, 1], [N, C, H, W] -> [N, D]. Nothing to train, nothing to store."""

    def __init__(self, teacher: Teacher):
        super().__init__()
        self.teacher = teacher

    def forward(self, images: Tensor) -> Tensor:
        return self.teacher.outputs_and_features((images + 1) / 2)[1].float()


def even_frequencies(labels: Tensor, num_groups: int) -> Tensor:
    """How often each sample is to be drawn, [N], so that labels come evenly over their range, as those of candidates do.

    A value stands for that part of the range which is nearer to it than to any other, but for no more than the width of a
    label group: one image in a wide gap must not fill the batches. Samples of one value share its part.
    """
    values, inverse, counts = labels.cpu().double().unique(return_inverse=True, return_counts=True)
    borders = torch.cat([values[:1], (values[1:] + values[:-1]) / 2, values[-1:]])
    parts = borders.diff().clamp(max=(values[-1] - values[0]) / num_groups)
    return (parts / counts)[inverse]


class RatioModel:
    """r(x|y) of uint8 images: a feature extractor and a ratio network, trained together or read from a file.
    Raises ValueError: an extractor that does not fit the task."""

    def __init__(
        self, generator: ConditionalGenerator, teacher: Teacher, task: Task, real: ImageSet, config: SubsamplingConfig
    ):
        self.generator, self.task, self.real, self.config = generator, task, real, config
        self.device = teacher.device
        self.is_classification = isinstance(task, Classification)
        if config.features == "teacher":
            self.extractor: nn.Module = TeacherFeatures(teacher)
        elif config.features == "autoencoder":
            self.extractor = SparseAutoencoder(real.image_shape)
        elif self.is_classification:
            self.extractor = WideClassifier(real.image_shape, task.num_classes)
        else:
            raise ValueError("synthesis.subsample.features: classifier needs classes; use autoencoder or teacher.")
        self.extractor.to(self.device).eval()
        feature_dim = self.features(real.images[torch.arange(1)]).shape[1]
        code_dim = task.num_classes if self.is_classification else self.code(real.labels[:1].to(self.device)).shape[1]
        options = {"num_classes": task.num_classes if self.is_classification else None, "dropout": config.dropout}
        self.network = DensityRatio(feature_dim, code_dim, config.widths, **options).to(self.device)

    @torch.no_grad()
    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        """Ratios [N] of uint8 images [N, C, H, W] under labels [N] (class ids, or scalars in the user's units)."""
        return self.network(self.features(images), self.code(labels))

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """Features [N, D] of uint8 images [N, C, H, W]; real and generated ones take the same way."""
        return self.extractor(to_generator_range(images.to(self.device)))

    @torch.no_grad()
    def code(self, labels: Tensor) -> Tensor:
        """What the ratio network takes beside features: class ids, or the generator's code of a scalar."""
        if self.is_classification:
            return labels
        return self.generator.label_code(self.generator.condition(labels))

    def fit(self, log: Callable[[dict], None]) -> None:
        """Train the extractor, where there is one to train, then the ratio network against fresh generated images."""
        config, real = self.config, self.real
        if not isinstance(self.extractor, TeacherFeatures):
            labels = real.labels
            if not self.is_classification:
                labels = (labels - self.task.label_min) / (self.task.label_max - self.task.label_min)
            elif self.config.features == "autoencoder":
                labels = labels / max(1, self.task.num_classes - 1)
            settings = {"steps": config.extractor_steps, "device": self.device, "log": log}
            train_extractor(self.extractor, real.images, labels, **settings)
        chunks = torch.arange(len(real)).split(512)
        frequencies = None
        if not self.is_classification:
            frequencies = even_frequencies(real.labels, config.label_bins).to(self.device)
        train_density_ratio(
            self.network,
            config,
            real_features=torch.cat([self.features(real.images[chunk]) for chunk in chunks]),
            real_labels=real.labels.to(self.device),
            frequencies=frequencies,
            fake_features=lambda labels: self.features(from_generator_range(self.generator.sample(labels))),
            encode=self.code,
            log=log,
        )

    @property
    def parts(self) -> nn.ModuleDict:
        """What is stored."""
        return nn.ModuleDict({"extractor": self.extractor, "network": self.network})

    def save(self, file: Path) -> None:
        """Write extractor and network to one safetensors file."""
        write_tensors(file, self.parts.state_dict())

    def load(self, file: Path) -> None:
        """Read what `save` wrote."""
        parts = self.parts.eval().requires_grad_(False)
        parts.load_state_dict(read_tensors(file))
