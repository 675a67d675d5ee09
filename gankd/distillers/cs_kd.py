"""CS-KD: images of one class are predicted alike.

Yun, Park, Lee, Shin, "Regularizing Class-wise Predictions via Self-knowledge Distillation", CVPR 2020, arXiv 2003.13964.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from gankd.distillers.terms import Passes, Term, TermConfig, Weight
from gankd.losses import cs_kd_loss


class CSKDConfig(TermConfig):
    """CE + weight * T^2 KL to the prediction on another image of the class."""

    name: Literal["cs_kd"] = "cs_kd"
    """The method."""
    weight: Weight = 1.0
    """Of the term; 3 on fine-grained data sets."""
    temperature: Annotated[float, Field(gt=0)] = 4.0
    """Softens both distributions."""


class CSKD(Term):
    """L = mean_n T^2 KL(softmax([s_partner(n)] / T) || softmax(s_n / T)), [.] without gradient.

    Batches are drawn in pairs of a class, and both images of a pair go through the one forward pass, learn from their
    label and follow the other. The authors forward the partners a second time, for their predictions alone.
    """

    Config = CSKDConfig
    tasks = frozenset({"classification"})
    needs_teacher = False
    sampling = "class_pairs"
    instead = "cs_kd pairs images of a class; this task has a scalar target. Use ps_kd, or a classification task."

    def forward(self, passes: Passes) -> Tensor:
        logits, labels = passes.student_outputs, passes.batch.labels
        _, _, rest = cs_kd_loss(
            student_logits=logits,
            paired_logits=logits[next_of_class(labels)],
            labels=labels,
            temperature=self.config.temperature,
        )
        return rest


def next_of_class(labels: Tensor) -> Tensor:
    """For every sample of a batch the next one of its class, the first after the last; itself if it is alone. [N] to [N].

    Whatever is alone in its class follows itself, which has no gradient.
    """
    ordered, order = labels.sort(stable=True)
    place = torch.arange(len(labels), device=labels.device)
    first, end = torch.searchsorted(ordered, ordered), torch.searchsorted(ordered, ordered, right=True)
    following = torch.where(place + 1 == end, first, place + 1)
    return torch.empty_like(order).scatter_(0, order, order[following])
