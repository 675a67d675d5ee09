"""Learning from two views of an image and nothing else: what distilled representations are compared with.

VICReg: Bardes, Ponce, LeCun, "VICReg: Variance-Invariance-Covariance Regularization for Self-Supervised Learning", ICLR
2022, arXiv 2105.04906. SimSiam: Chen and He, "Exploring Simple Siamese Representation Learning", CVPR 2021, arXiv
2011.10566.
"""

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
    """The method's name."""
    projector_layers: Count = 3
    """Number of linear layers between the backbone's feature and the embedding; they are dropped after training."""
    projector_width: Count | None = 2048
    """Width of the projector's hidden layers (8192 on ImageNet, as that of the embeddings). Null: the width of the
    backbone's feature."""


class VICReg(LabelFree):
    """L = lambda inv(z, z') + mu [var(z) + var(z')] + nu [cov(z) + cov(z')],  z and z' the embeddings [N, D] of two views

    Reads the pooled feature.

    >>> method = {"name": "vicreg", "embedding_width": 64, "projector_width": 64}
    >>> backbone = gankd.pretrain(student, real=train, method=method, steps=2)

    Loss: losses.squeeze.span_loss
    """

    Config = VICRegConfig
    compared_views = "all"

    def __init__(self, config: VICRegConfig, setup: Setup):
        super().__init__(config, setup)
        hidden = config.projector_width or self.width
        self.projector = Projector(self.width, hidden, config.embedding_width, config.projector_layers)

    def learn(self, batch: Batch) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        answers = [self.outputs_and_pooled(self.augment(batch.images)) for _ in range(2)]
        a, b = (gather_with_gradient(self.projector(pooled)) for _, pooled in answers)
        loss, *terms = span_loss(student_embedding_a=a, student_embedding_b=b, **self.config.weights)
        return {"loss": loss, **dict(zip(("invariance", "variance", "covariance"), terms, strict=True))}, *answers[0]


class SimSiamConfig(LabelFreeConfig):
    """-1/2 the cosines between each view's predicted embedding and the embedding of the other view."""

    name: Literal["simsiam"] = "simsiam"
    """The method's name."""
    embedding_width: Count = 2048
    """Width of the embeddings and of the projector's hidden layers."""
    predictor_width: Count = 512
    """Width of the predictor's hidden layer, a bottleneck."""
    projector_layers: Annotated[int, Field(ge=2)] = 3
    """Number of linear layers between the backbone's feature and the embedding (2 on CIFAR)."""


class SimSiam(LabelFree):
    """L = -1/2 mean { cos(q(z), [z']) + cos(q(z'), [z]) },  z = BatchNorm(projector(feature)), q the predictor

    z [N, D] is the embedding of one view and z' that of the other; [.] carries no gradient. The predictor's learning rate
    stays at its peak while that of the other layers falls, as in the paper. The log has `spread`, the mean deviation of the
    normalised embeddings' dimensions times sqrt(D): near 1 where they spread out, 0 where they have collapsed. Reads the
    pooled feature.

    >>> method = {"name": "simsiam", "embedding_width": 64, "predictor_width": 16}
    >>> backbone = gankd.pretrain(student, real=train, method=method, steps=2)

    Loss: losses.simreg.simreg_loss
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
        answers = [self.outputs_and_pooled(self.augment(batch.images)) for _ in range(2)]
        a, b = (self.projector(pooled) for _, pooled in answers)
        # simreg_loss is 2 - 2 cos with the second argument detached
        distances = [
            simreg_loss(student_feature=self.predictor(one), teacher_feature=other) for one, other in ((a, b), (b, a))
        ]
        directions = torch.nn.functional.normalize(a.detach().float(), dim=1)
        spread = directions.std(dim=0).mean() * self.config.embedding_width**0.5
        return {"loss": sum(distances) / 4 - 1, "spread": spread}, *answers[0]

    def parameter_groups(self) -> list[dict]:
        return [*super().parameter_groups(), {"params": list(self.predictor.parameters()), "constant": True}]
