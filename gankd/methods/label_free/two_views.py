"""Learning from two views of an image and nothing else: what distilled representations are compared with.

VICReg: Bardes, Ponce, LeCun, "VICReg: Variance-Invariance-Covariance Regularization for Self-Supervised Learning", ICLR
2022, arXiv 2105.04906. SimSiam: Chen and He, "Exploring Simple Siamese Representation Learning", CVPR 2021, arXiv
2011.10566.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from gankd.data.loader import Batch
from gankd.distributed.processes import gather_with_gradient
from gankd.losses import simreg_loss, span_loss
from gankd.methods.label_free.base import LabelFree, LabelFreeConfig, Projector
from gankd.methods.label_free.squeeze_and_span import VarianceSettings
from gankd.methods.setup import Setup
from generators.settings import Count


class VICRegConfig(VarianceSettings):
    """lambda invariance + mu variances + nu covariances of two views."""

    name: Literal["vicreg"] = "vicreg"
    """The method."""
    projector_layers: Count = 3
    """Linear layers between backbone and embedding; dropped after training."""
    projector_width: Count | None = 2048
    """Of its hidden layers (8192 on ImageNet, as the embeddings there). Null: the backbone's feature width."""


class VICReg(LabelFree):
    """L = lambda inv(z, z') + mu [var(z) + var(z')] + nu [cov(z) + cov(z')] of the embeddings of two views, see
    losses.span_loss. Reads the pooled feature."""

    Config = VICRegConfig
    compared_views = "all"

    def __init__(self, config: VICRegConfig, setup: Setup):
        super().__init__(config, setup)
        hidden = config.projector_width or self.width
        self.projector = Projector(self.width, hidden, config.embedding_width, config.projector_layers)

    def learn(self, batch: Batch) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        answers = [self.look(self.augment(batch.images)) for _ in range(2)]
        a, b = (gather_with_gradient(self.projector(pooled)) for _, pooled in answers)
        loss, *terms = span_loss(student_embedding_a=a, student_embedding_b=b, **self.config.weights)
        return {"loss": loss, **dict(zip(("invariance", "variance", "covariance"), terms, strict=True))}, *answers[0]


class SimSiamConfig(LabelFreeConfig):
    """Each view's predicted embedding follows the other view's."""

    name: Literal["simsiam"] = "simsiam"
    """The method."""
    embedding_width: Count = 2048
    """Of the embeddings and of the projector's hidden layers."""
    predictor_width: Count = 512
    """Of the predictor's hidden layer, a bottleneck."""
    projector_layers: Annotated[int, Field(ge=2)] = 3
    """Linear layers between backbone and embedding (2 on CIFAR)."""


class SimSiam(LabelFree):
    """L = -1/2 mean { cos(q(z), [z']) + cos(q(z'), [z]) },  z = BatchNorm(projector(feature)), q the predictor

    Logged is `spread`, the mean deviation of the normalised embeddings' dimensions times sqrt(D): near 1 where they spread
    out, 0 where they have collapsed. Reads the pooled feature.
    """

    Config = SimSiamConfig
    compared_views = "all"

    def __init__(self, config: SimSiamConfig, setup: Setup):
        super().__init__(config, setup)
        width = config.embedding_width
        self.projector = nn.Sequential(
            Projector(self.width, width, width, config.projector_layers), nn.BatchNorm1d(width, affine=False)
        )
        self.predictor = nn.Sequential(
            nn.Linear(width, config.predictor_width, bias=False),
            nn.BatchNorm1d(config.predictor_width),
            nn.ReLU(),
            nn.Linear(config.predictor_width, width),
        )

    def learn(self, batch: Batch) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        answers = [self.look(self.augment(batch.images)) for _ in range(2)]
        a, b = (self.projector(pooled) for _, pooled in answers)
        # simreg_loss is 2 - 2 cos with the second argument detached
        distances = [
            simreg_loss(student_feature=self.predictor(one), teacher_feature=other) for one, other in ((a, b), (b, a))
        ]
        directions = torch.nn.functional.normalize(a.detach().float(), dim=1)
        spread = directions.std(dim=0).mean() * self.config.embedding_width**0.5
        return {"loss": sum(distances) / 4 - 1, "spread": spread}, *answers[0]
