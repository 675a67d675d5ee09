"""What the user says about the networks that help a generator while it trains."""

from typing import Literal

from pydantic import model_validator

from gankd.models.config import ModelConfig
from generators.config import FeatureHeadsConfig, GuidanceConfig
from generators.settings import Count, Positive, Weight


class FrozenNetworkConfig(ModelConfig):
    """A trained network that is only asked."""

    num_outputs: Count | None = None
    """Outputs of its last layer. Null: as many as the task needs."""
    mean: tuple[float, ...] | None = None
    """Normalisation of its inputs, one number a channel of images in [0, 1]. Null: what its weights or its network (timm)
    say, else the training data's, with a warning."""
    std: tuple[float, ...] | None = None
    """Deviation of each channel, as `mean`."""
    image_size: Count | None = None
    """Size to which images are enlarged for it. Null: as they are."""

    @model_validator(mode="after")
    def _is_trained(self):
        if self.checkpoint is None and not self.options.keys() & {"pretrained", "weights"}:
            raise ValueError(
                f"{self.name} has no checkpoint: a network without weights helps no generator; give the file, or "
                "options: {pretrained: true} (timm) or {weights: DEFAULT} (torchvision)"
            )
        if (self.mean is None) != (self.std is None):
            raise ValueError("give both mean and std, or neither")
        return self


class FeaturesConfig(FeatureHeadsConfig):
    """Discriminators of the generator that look at the maps of a frozen network."""

    network: Literal["teacher", "backbone"] | FrozenNetworkConfig = "teacher"
    """Whose maps: the run's teacher, the backbone that learns without labels from the same images, or any trained network
    by its settings."""
    taps: tuple[str, ...] = ()
    """Module paths of the maps, finest first. Empty: the last of every stage but the stem."""


class TeachersConfig(GuidanceConfig):
    """Teachers that tell the generator how well its images show their labels."""

    teachers: tuple[Literal["teacher"] | FrozenNetworkConfig, ...] = ("teacher",)
    """Who: the run's teacher, and other trained networks of the same task by their settings. The mean of their losses
    counts, so that no single one is fooled."""
    temperature: Positive = 1.0
    """Classes: the logits are divided by it; above 1 a sure teacher goes on asking for more."""
    statistics: Weight = 0.0
    """Weight of how far the images' statistics in the teachers' batch norms are from those of the real images."""
    until_real: bool = True
    """Whether the guidance rests while the teachers find generated images as clear as real validation images."""
