"""What the user says about who judges the generator; whoever helps it to train does not."""

import math
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from gankd.data.augment import AugmentationConfig
from gankd.methods import AnyMethodConfig, check_method, check_two_views, check_views
from gankd.methods.label_free.two_views import VICRegConfig
from gankd.models.config import ModelConfig
from gankd.tasks import REPRESENTATION
from gankd.training import TrainingConfig
from generators.settings import Count, Positive, Settings


class JudgeStudentConfig(TrainingConfig):
    """The little network that learns from generated images alone, with their labels, and is asked about real ones."""

    model: ModelConfig | None = None
    """The network that is trained. Null: a small_resnet that costs little (see `little_network`)."""
    num_samples: Count = 3200
    """Generated images that it is trained on."""
    steps: Count = 400
    """Optimiser steps of one score."""
    learning_rate: Positive | None = 0.01
    """The peak of the learning rate. Null: the optimiser's own."""
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Share of the steps in which the learning rate first rises linearly."""
    log_every: Count = 400
    """Steps between two lines on its progress."""


class JudgeBackboneConfig(TrainingConfig):
    """The network that learns from the generator's real images without their labels, and in whose features it is judged."""

    model: ModelConfig | None = None
    """The network that is trained. Null: a small_resnet that costs little (see `little_network`)."""
    method: AnyMethodConfig = VICRegConfig(embedding_width=256, projector_width=256)
    """A method without labels and teachers, with its settings: vicreg or simsiam."""
    steps: Count = 1000
    """Optimiser steps, about two minutes of one core at 32 pixels."""
    batch_size: Count = 128
    """Images that an optimiser step sees, each in two views."""
    augmentation: AugmentationConfig | None = None
    """Random changes of the images; photographs want horizontal_flip too. Null: those of the method, without flips."""

    @model_validator(mode="after")
    def _learns_from_real_images_alone(self):
        if self.method.method.needs_generator_features:
            raise ValueError(f"method: {self.method.name} learns from generated images; the judge sees real ones alone")
        if self.method.uses_teacher:
            raise ValueError(f"method: {self.method.name} asks a teacher, of which the judge must be independent")
        check_method(self.method, REPRESENTATION, has_teacher=False)
        check_views(self.method, self.views)
        check_two_views(self.method, self.views_of, has_real=True)
        return self

    @property
    def views_of(self) -> AugmentationConfig:
        """The augmentation that its two views are drawn with."""
        return self.augmentation or self.method.method.backbone_augmentation


class JudgeConfig(Settings):
    """Who scores the generator while it trains (`score_every`), and what the report says of it when it is finished."""

    by: Literal["student", "backbone", "inception", "teacher"] = "student"
    """What a score is, lower is better. The error on real validation images of a little student that learnt from generated
    ones alone (100 - top-1, or mean absolute error), to which collapse_ratio does not apply; or the Frechet distance to the
    validation images in the features of a backbone that learnt without labels, of Inception, or of the teacher."""
    inception: Path | None = None
    """A file with torch-fidelity's Inception weights, for `by: inception` and for the report in the backbone's place."""
    student: JudgeStudentConfig = JudgeStudentConfig()
    """The little student of `by: student` and of the report."""
    backbone: JudgeBackboneConfig = JudgeBackboneConfig()
    """The backbone of `by: backbone` and of the report."""
    report: bool | None = None
    """Whether the report judges the finished generator. Null: where it was scored while it trained, or helped."""

    @model_validator(mode="after")
    def _inception_is_there(self):
        if self.by == "inception" and self.inception is None:
            raise ValueError("by: inception needs its weights; name their file in `inception`")
        return self


def little_network(image_shape: tuple[int, int, int]) -> ModelConfig:
    """A small_resnet of at most ten million multiplications an image, whatever its size up to 128 pixels."""
    size = max(image_shape[1:])
    if size <= 16:
        return ModelConfig(options={"widths": [16, 32]})
    num_stages = 3 + max(0, math.ceil(math.log2(size / 32)))
    widths = [max(8, 64 >> later) for later in reversed(range(num_stages))]
    return ModelConfig(options={"widths": widths, "stem_stride": 2})
