"""Relations between the samples of a batch: what is alike for the teacher is alike for the student.

sp: Tung and Mori, "Similarity-Preserving Knowledge Distillation", ICCV 2019, arXiv 1907.09682
pkt: Passalis and Tefas, "Learning Deep Representations with Probabilistic Knowledge Transfer", ECCV 2018, arXiv 1803.10837
rkd: Park et al., "Relational Knowledge Distillation", CVPR 2019, arXiv 1904.05068
cc: Peng et al., "Correlation Congruence for Knowledge Distillation", ICCV 2019, arXiv 1904.01802
"""

import math
from typing import Literal

from torch import Tensor, nn

from gankd.distributed.processes import gather_with_gradient
from gankd.losses import correlation_congruence_loss, pkt_loss, rkd_loss, similarity_preserving_loss
from gankd.methods.setup import Outputs, Setup
from gankd.methods.taps import RelationTerm
from gankd.methods.terms import FeatureTermConfig
from generators.settings import Count, Weight


class SPConfig(FeatureTermConfig):
    """task loss + weight |G_t - G_s|^2 / N^2 on the maps of the last stage."""

    name: Literal["sp"] = "sp"
    """The method's name."""
    weight: Weight = 3000.0
    """Weight of the term; it belongs to batches of 64, as the term shrinks like 1 / N."""


class SP(RelationTerm):
    """No heads: only the similarities of samples are compared, so widths and sizes may differ.

    >>> student = gankd.distill(student, teacher, real=train, method="sp")

    Loss: losses.similarity.similarity_preserving_loss
    """

    Config = SPConfig
    place = slice(-2, -1)  # the map of the last stage

    def compare(self, student: Tensor, teacher: Tensor) -> Tensor:
        return similarity_preserving_loss(student_feature=student, teacher_feature=teacher)


class PKTConfig(FeatureTermConfig):
    """task loss + weight mean P_t log(P_t / P_s) on the pooled features."""

    name: Literal["pkt"] = "pkt"
    """The method's name."""
    weight: Weight = 30000.0
    """Weight of the term; it belongs to batches of 64, as the term shrinks like 1 / N."""


class PKT(RelationTerm):
    """P: rows of (1 + cosine) / 2 between samples, divided by their sum; mean P_t log(P_t / P_s). No heads.

    >>> student = gankd.distill(student, teacher, real=train, method="pkt")

    Loss: losses.similarity.pkt_loss
    """

    Config = PKTConfig

    def compare(self, student: Tensor, teacher: Tensor) -> Tensor:
        return pkt_loss(student_feature=student.flatten(1), teacher_feature=teacher.flatten(1))


class RKDConfig(FeatureTermConfig):
    """task loss + weight (distance_weight * distance term + angle_weight * angle term) on the pooled features."""

    name: Literal["rkd"] = "rkd"
    """The method's name."""
    weight: Weight = 1.0
    """Weight of the term."""
    distance_weight: Weight = 25.0
    """Weight of the distances between two samples."""
    angle_weight: Weight = 50.0
    """Weight of the angles that two samples span at a third; their memory grows with the cube of the batch."""


class RKD(RelationTerm):
    """Smooth-L1 between D_s and D_t (distances over their mean) and between A_s and A_t (cosines of angles). No heads.

    >>> student = gankd.distill(student, teacher, real=train, method={"name": "rkd", "angle_weight": 0})

    Loss: losses.similarity.rkd_loss
    """

    Config = RKDConfig

    def compare(self, student: Tensor, teacher: Tensor) -> Tensor:
        weights = {"distance_weight": self.config.distance_weight, "angle_weight": self.config.angle_weight}
        return rkd_loss(student_feature=student, teacher_feature=teacher, **weights)


class CCConfig(FeatureTermConfig):
    """task loss + weight * congruence of the embedded pooled features."""

    name: Literal["cc"] = "cc"
    """The method's name."""
    weight: Weight = 0.02
    """Weight of the term; the default belongs to `form: neighbours`."""
    form: Literal["neighbours", "kernel"] = "neighbours"
    """How samples are compared. neighbours: as in the published comparisons, errors of samples that follow each other
    multiplied, so that the order of the batch counts. kernel: the paper's, Gaussian kernel matrices compared."""
    dimensions: Count = 128
    """Width of both embeddings."""


class CC(RelationTerm):
    """e = linear map of the pooled feature; d = |e_s - e_t|, mean_i sum_k d_ik d_(i+1)k, or mean (C_s - C_t)^2 of kernel
    matrices C. Both embeddings are trained, so that a constant one is a free minimum; the low weight hides it.

    >>> student = gankd.distill(student, teacher, real=train, method={"name": "cc", "form": "kernel"})

    Loss: losses.similarity.correlation_congruence_loss
    """

    Config = CCConfig

    def __init__(self, config: CCConfig, setup: Setup):
        super().__init__(config, setup)
        self.student_embeddings, self.teacher_embeddings = (
            nn.ModuleList(nn.Linear(math.prod(shape), config.dimensions) for shape in those) for those in self.shapes
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
