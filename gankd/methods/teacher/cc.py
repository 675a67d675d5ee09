"""Correlation congruence: correlations between the samples of a batch are the same for student and teacher.

Peng et al., "Correlation Congruence for Knowledge Distillation", ICCV 2019, arXiv 1904.01802.
"""

import math
from typing import Literal

from torch import Tensor, nn

from gankd.distributed.processes import gather_with_gradient
from gankd.losses import correlation_congruence_loss
from gankd.methods.setup import Outputs, Setup
from gankd.methods.taps import relation_taps
from gankd.methods.terms import FeatureTermConfig, Term
from generators.settings import Count, Weight


class CCConfig(FeatureTermConfig):
    """task loss + weight * congruence of the embedded pooled features."""

    name: Literal["cc"] = "cc"
    """The method."""
    weight: Weight = 0.02
    """Weight of the term; the default belongs to `form: neighbours`."""
    form: Literal["neighbours", "kernel"] = "neighbours"
    """neighbours: the form behind the published comparisons, errors of samples that follow each other multiplied, so that
    the order of the batch counts. kernel: the paper's, Gaussian kernel matrices compared."""
    dimensions: Count = 128
    """Width of both embeddings."""


class CC(Term):
    """e = linear map of the pooled feature; d = |e_s - e_t|, mean_i sum_k d_ik d_(i+1)k, or mean (C_s - C_t)^2 of kernel
    matrices C. Both embeddings are trained, so that a constant one is a free minimum; the low weight hides it.

    >>> student = gankd.distill(student, teacher, real=train, method={"name": "cc", "form": "kernel"})

    Loss: losses.similarity.correlation_congruence_loss
    """

    Config = CCConfig

    def __init__(self, config: CCConfig, setup: Setup):
        super().__init__(config, setup)
        self.student_taps, self.teacher_taps, *shapes = relation_taps(setup, config, lambda taps: taps[-1:])
        self.student_embeddings, self.teacher_embeddings = (
            nn.ModuleList(nn.Linear(math.prod(shape), config.dimensions) for shape in those) for those in shapes
        )

    def forward(self, outputs: Outputs) -> Tensor:
        student, teacher = self.features(outputs)
        return sum(
            correlation_congruence_loss(
                student_embedding=gather_with_gradient(embed_student(s.flatten(1))),
                teacher_embedding=gather_with_gradient(embed_teacher(t.flatten(1))),
                form=self.config.form,
            )
            for embed_student, embed_teacher, s, t in zip(
                self.student_embeddings, self.teacher_embeddings, student, teacher, strict=True
            )
        )
