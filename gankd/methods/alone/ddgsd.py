"""DDGSD: two distortions of an image are predicted alike.

Xu, Liu, "Data-Distortion Guided Self-Distillation for Deep Neural Networks", AAAI 2019.
"""

from typing import Literal

import torch
from torch import Tensor

from gankd.data.loader import Batch
from gankd.losses.self_distillation import ddgsd_divergence
from gankd.methods.base import EVERY_TASK, Distiller
from gankd.methods.setup import Setup
from gankd.methods.terms import TermConfig
from gankd.models.taps import Taps, default_taps
from generators.settings import Positive, Weight


class DDGSDConfig(TermConfig):
    """task_weight * (mean task loss of the two views) / 2 + weight * (mutual divergence + mmd_weight MMD^2)."""

    name: Literal["ddgsd"] = "ddgsd"
    """The method's name."""
    temperature: Positive = 4.0
    """Temperature that softens both distributions of classes."""
    mmd_weight: Weight = 5e-4
    """Weight of the squared distance of the views' mean features."""
    mmd: Literal["vector", "scalar"] = "vector"
    """Mean feature vectors, as in the paper, or the means over all their entries, as some libraries have it."""


class DDGSD(Distiller):
    """rest = KL(s_a, s_b) + KL(s_b, s_a) + mmd_weight |mean f_a - mean f_b|^2, f the pooled features.

    Both views, drawn by the training's augmentation, go through one forward pass. Scalars: squares for the divergences.

    >>> student = gankd.distill(student, real=train, method="ddgsd", steps=2)

    Loss: losses.self_distillation.ddgsd_loss
    """

    Config = DDGSDConfig
    tasks = EVERY_TASK
    heads = frozenset({"scalar"})
    hint = "ddgsd compares predictions of two views. Use task.head: scalar."
    needs_teacher = False

    def __init__(self, config: DDGSDConfig, setup: Setup):
        super().__init__(config, setup)
        self.taps = default_taps(setup.student, image_shape=setup.data.image_shape)[-1:]

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        views = torch.cat([self.augment(batch.images), self.augment(batch.images)])  # [2 N, C, H, W]
        outputs, (features,) = Taps(self.student, self.taps)(self.normalize(views))
        outputs, features = outputs.chunk(2), features.flatten(1).chunk(2)
        task = sum(self.task.loss(view, batch.labels) for view in outputs) / 4
        rest = ddgsd_divergence(
            student_logits=outputs,
            embeddings=features,
            temperature=self.config.temperature,
            mmd_weight=self.config.mmd_weight,
            mmd=self.config.mmd,
            task=self.task,
        )
        return {"loss": self.config.task_weight * task + self.config.weight * rest, "task": task, "ddgsd": rest}
