"""Images of one batch teach each other: those of the same class, or those that look alike.

cs_kd: Yun, Park, Lee, Shin, "Regularizing Class-wise Predictions via Self-knowledge Distillation", CVPR 2020, arXiv
    2003.13964
bake: Ge et al., "Self-distillation with Batch Knowledge Ensembling Improves ImageNet Classification", arXiv 2104.13298
"""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from gankd.distributed.processes import gather, own_rows
from gankd.losses.self_distillation import spread_over_batch
from gankd.methods.setup import Outputs, Setup
from gankd.methods.terms import Term, TermConfig
from gankd.models.taps import default_taps
from generators.settings import Positive, Weight


class CSKDConfig(TermConfig):
    """CE + weight * T^2 KL to the prediction on another image of the class."""

    name: Literal["cs_kd"] = "cs_kd"
    """The method's name."""
    weight: Weight = 1.0
    """Weight of the term; 3 on fine-grained data sets."""
    temperature: Positive = 4.0
    """Temperature that softens both distributions."""
    learners: Literal["first", "both"] = "first"
    """Who of a pair learns, from its label and from the other: the first, as in the paper, whose batches are twice as large
    for that, or both."""

    @property
    def sampling(self) -> str:
        return "class_pairs"


class CSKD(Term):
    """L = mean_n T^2 KL(softmax([s_partner(n)] / T) || softmax(s_n / T)), [.] without gradient, n over those who learn.

    Batches are drawn in pairs of a class, and both images of a pair go through one forward pass: they share the statistics
    of batch norm. The authors give the partners a pass of their own.

    >>> student = gankd.distill(student, real=train, method="cs_kd", steps=2)

    Loss: losses.self_distillation.cs_kd_loss
    """

    Config = CSKDConfig
    tasks = frozenset({"classification"})
    needs_teacher = False
    own_label_loss = True
    hint = "cs_kd pairs images of a class; this task has a scalar target. Use ps_kd, or a classification task."

    def forward(self, outputs: Outputs) -> Tensor:
        student, labels = outputs.student, outputs.batch.labels
        if self.config.learners == "both":
            learners, partners = student, gather(student)[next_of_class(gather(labels))[own_rows()]]
        else:
            first, second = self.pairs(labels)
            learners, partners = student[first], student[second].detach()
        return self.task.divergence(learners, partners, temperature=self.config.temperature)

    def label_loss(self, outputs: Outputs) -> Tensor:
        count = len(outputs.student) if self.config.learners == "both" else max(1, len(outputs.student) // 2)
        return self.task.loss(outputs.student[:count], outputs.batch.labels[:count])

    def pairs(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Rows of the first of each pair, and of whom they follow: themselves where the second is of another class."""
        first = torch.arange(max(1, len(labels) // 2), device=labels.device)
        second = (first + len(first)) % len(labels)  # where `BatchSource` puts the partners
        return first, torch.where(labels[first] == labels[second], second, first)


def next_of_class(labels: Tensor) -> Tensor:
    """For every sample of a batch the next one of its class, the first after the last; itself if it is alone. [N] to [N].

    Whatever is alone in its class follows itself, which has no gradient.
    """
    ordered, order = labels.sort(stable=True)
    place = torch.arange(len(labels), device=labels.device)
    first, end = torch.searchsorted(ordered, ordered), torch.searchsorted(ordered, ordered, right=True)
    following = torch.where(place + 1 == end, first, place + 1)
    return torch.empty_like(order).scatter_(0, order, order[following])


class BAKEConfig(TermConfig):
    """Task loss + weight * T^2 KL to the ensembled predictions."""

    name: Literal["bake"] = "bake"
    """The method's name."""
    weight: Weight = 1.0
    """Weight of the term."""
    temperature: Positive = 4.0
    """Classes: softens both distributions; the similarities have none."""
    omega: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Share of the other samples in a target; 0.9 on TinyImageNet and the fine-grained sets."""
    images_per_class: Literal[2, 4] = 4
    """Classes: images of one class that a batch has together; 2 on TinyImageNet and the fine-grained sets."""

    @property
    def sampling(self) -> str:
        return {2: "class_pairs", 4: "class_fours"}[self.images_per_class]


class BAKE(Term):
    """A = softmax over the other samples of the cosines of pooled features, Q = (1 - omega) (I - omega A)^-1 softmax(s/T),
    L = mean_n T^2 KL(Q_n || softmax(s_n / T)). Scalars: the predictions are spread likewise, mean (s - Q)^2.

    Batches of classes are drawn in groups of a class: of 128 images, 32 and 3 others of the class of each.

    >>> student = gankd.distill(student, real=train, method="bake", steps=2)

    Loss: losses.self_distillation.bake_loss
    """

    Config = BAKEConfig
    heads = frozenset({"scalar"})
    hint = "bake averages predictions of similar images. Use task.head: scalar."
    needs_teacher = False

    def __init__(self, config: BAKEConfig, setup: Setup):
        super().__init__(config, setup)
        self.student_taps = default_taps(setup.student, image_shape=setup.data.image_shape)[-1:]

    def forward(self, outputs: Outputs) -> Tensor:
        logits, embeddings = outputs.student, outputs.student_features[self.student_taps[0]]
        temperature, omega = self.config.temperature, self.config.omega
        predictions = self.task.soft_labels(logits, temperature=temperature)
        batch = {"embeddings": gather(embeddings), "values": gather(predictions)}  # of all processes
        targets = spread_over_batch(**batch, omega=omega)[own_rows()]
        return self.task.soft_divergence(logits, targets, temperature=temperature)
