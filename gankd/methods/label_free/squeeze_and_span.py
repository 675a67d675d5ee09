"""Squeeze and span: what a generator knows of its images becomes a backbone's feature, without labels.

Yang, Cheng, Liu, Bilen, Ji, "Distilling Representations from GAN Generator via Squeeze and Span", NeurIPS 2022,
arXiv 2211.03000.
"""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from gankd.data.loader import Batch, BatchSource
from gankd.distributed.processes import gather_with_gradient
from gankd.losses import span_loss, squeeze_loss
from gankd.methods.label_free.base import LabelFree, LabelFreeConfig, Projector
from gankd.methods.setup import Setup
from generators.settings import Count, Weight


class VarianceSettings(LabelFreeConfig):
    """The three weights of VICReg, and the projector on whose output its terms are computed."""

    invariance_weight: Weight = 25.0
    """Weight of the squared distance between the two embeddings of an image (10 on CIFAR-100)."""
    variance_weight: Weight = 25.0
    """Weight of the term that makes every dimension vary over the batch (10 on CIFAR-100); without it, the embeddings of
    trained networks collapse to a point."""
    covariance_weight: Weight = 1.0
    """Weight of the squared covariances between the dimensions of the embeddings."""
    embedding_width: Count = 2048
    """Number of dimensions of the embeddings."""
    projector_layers: Count = 5
    """Number of linear layers between the backbone's feature and the embedding; they are dropped after training."""
    projector_width: Count | None = None
    """Width of the projector's hidden layers. Null: the width of the backbone's feature."""

    @property
    def weights(self) -> dict[str, float]:
        names = ("invariance_weight", "variance_weight", "covariance_weight")
        return {name: getattr(self, name) for name in names}


class SqueezeAndSpanConfig(VarianceSettings):
    """r * squeeze loss on synthetic images + (1 - r) * span loss on real ones; r is the share of synthetic samples."""

    name: Literal["squeeze_and_span"] = "squeeze_and_span"
    """The method. On synthetic images alone it is squeeze without span."""
    squeeze_width: Count = 2048
    """Width of the hidden layers of the network that squeezes the generator's features."""
    squeeze_depth: Annotated[int, Field(ge=0)] = 3
    """Number of linear layers of that network after the one that joins the generator's blocks. 0: there is no such network,
    the student follows the features as they are, and the embedding is as wide as they are (vanilla feature distillation,
    with the weights 1, 0, 0)."""
    regularize_squeezed: bool = True
    """Whether variance and covariance of the squeezed features are terms of the loss too: true in the paper, false in the
    authors' code."""
    standardize: bool = False
    """Whether the generator's features are standardised first, by their mean and deviation over up to 10,000 samples."""


class SqueezeAndSpan(LabelFree):
    """L = r { lambda inv(T(h), S(a(x_g))) + mu [var(S) + var(T)] + nu [cov(S) + cov(T)] }
        + (1 - r) { lambda inv(S(a(x_r)), S(a'(x_r))) + mu [var + var'] + nu [cov + cov'] }

    x_g = G(z) is a synthetic image and h its generator's features [N, sum C_l]; the network T squeezes them and is trained
    with the student S = projector(backbone). Synthetic images are augmented once and real ones twice, and the three batches
    go through the backbone one after the other. Reads the pooled feature.

    >>> method = {"name": "squeeze_and_span", "embedding_width": 64, "squeeze_width": 64}
    >>> sets = {"real": train, "synthetic": synthetic, "synthetic_fraction": 0.5}
    >>> backbone = gankd.pretrain(student, **sets, method=method, steps=2)

    Loss: losses.squeeze.squeeze_and_span_loss
    """

    Config = SqueezeAndSpanConfig
    needs_generator_features = True
    fewest_samples = 4  # real images are compared among themselves, and synthetic ones too
    compared_views = "real"

    def __init__(self, config: SqueezeAndSpanConfig, setup: Setup):
        super().__init__(config, setup)
        data: BatchSource = setup.data
        if not data.feature_widths or data.num_real_per_step is None:
            raise ValueError(
                "squeeze_and_span needs synthetic images with their generator's features, in a share of the batch that is "
                "fixed; make them with gankd.feature_set(generator, num_samples) and give synthetic_fraction. Real images "
                "alone have vicreg."
            )
        kinds = {"synthetic": data.batch_size - data.num_real_per_step, "real": data.num_real_per_step}
        for kind, count in kinds.items():
            if count == 1 or (count == 0 and kind == "synthetic"):
                raise ValueError(
                    f"squeeze_and_span compares the {kind} images of a batch, and of {data.batch_size} samples {count} "
                    f"{'is' if count == 1 else 'are'} {kind}; change batch_size or synthetic_fraction."
                )
            if count % data.world_size:
                raise ValueError(
                    f"squeeze_and_span compares the images of all processes, and {count} {kind} ones of a batch of "
                    f"{data.batch_size} do not split over {data.world_size}; change batch_size or synthetic_fraction."
                )
        width = config.embedding_width if config.squeeze_depth else sum(data.feature_widths)
        if config.squeeze_depth:
            self.squeeze = Squeeze(data.feature_widths, config.squeeze_width, width, config.squeeze_depth)
        else:
            self.squeeze = nn.Identity()
        hidden = config.projector_width or self.width
        self.projector = Projector(self.width, hidden, width, config.projector_layers)
        if config.standardize:
            self.register_buffer("feature_mean", torch.zeros(sum(data.feature_widths)))
            self.register_buffer("feature_std", torch.ones(sum(data.feature_widths)))

    def prepare(self, data: BatchSource) -> None:
        if self.config.standardize:
            features = data.some_generator_features(10_000)
            self.feature_mean.copy_(features.mean(dim=0))
            self.feature_std.copy_(features.std(dim=0).clamp(min=1e-6))

    def learn(self, batch: Batch) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        features, config = batch.generator_features, self.config
        num_real = len(batch.images) - len(features)
        share, losses, answers = len(features) / len(batch.images), {}, []
        if num_real > 0:
            real = batch.images[:num_real]
            answers = [self.outputs_and_pooled(self.augment(real)), self.outputs_and_pooled(self.augment(real))]
            a, b = (gather_with_gradient(self.projector(pooled)) for _, pooled in answers)
            losses["span"], *terms = span_loss(student_embedding_a=a, student_embedding_b=b, **config.weights)
            losses |= dict(zip(("span_invariance", "span_variance", "span_covariance"), terms, strict=True))
        answers = [*answers[:1], self.outputs_and_pooled(self.augment(batch.images[num_real:]))]
        if config.standardize:
            features = (features - self.feature_mean) / self.feature_std
        losses["squeeze"], *terms = squeeze_loss(
            student_embedding=gather_with_gradient(self.projector(answers[-1][1])),
            squeezed_embedding=gather_with_gradient(self.squeeze(features)),
            regularize_squeezed=config.regularize_squeezed and config.squeeze_depth > 0,
            **config.weights,
        )
        losses |= dict(zip(("squeeze_invariance", "squeeze_variance", "squeeze_covariance"), terms, strict=True))
        total = share * losses["squeeze"] + ((1 - share) * losses["span"] if num_real else 0)
        outputs, pooled = (torch.cat(parts) for parts in zip(*answers, strict=True))
        return {"loss": total, **losses}, outputs, pooled


class Squeeze(nn.Module):
    """The network T: pooled features of a generator's blocks, side by side [N, sum C_l] -> [N, out_width].

    u = sum_l (A_l h_l + b_l);  u <- ReLU(BatchNorm(W u)), depth - 1 times;  V u + c
    """

    def __init__(self, feature_widths: tuple[int, ...], width: int, out_width: int, depth: int):
        super().__init__()
        self.feature_widths = feature_widths
        self.fuse = nn.ModuleList(nn.Linear(each, width) for each in feature_widths)
        hidden = [
            nn.Sequential(nn.Linear(width, width, bias=False), nn.BatchNorm1d(width), nn.ReLU())
            for _ in range(depth - 1)
        ]
        self.hidden = nn.Sequential(*hidden)
        self.output = nn.Linear(width, out_width)

    def forward(self, features: Tensor) -> Tensor:
        blocks = features.split(self.feature_widths, dim=1)
        fused = sum(fuse(block) for fuse, block in zip(self.fuse, blocks, strict=True))
        return self.output(self.hidden(fused))
