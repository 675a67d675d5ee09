"""Regularisers of the predicted distribution, which distillation without a teacher is compared with.

label_smoothing: Szegedy, Vanhoucke, Ioffe, Shlens, Wojna, CVPR 2016, arXiv 1512.00567
focal: Lin, Goyal, Girshick, He, Dollar, ICCV 2017, arXiv 1708.02002
max_entropy: Pereyra, Tucker, Chorowski, Kaiser, Hinton, ICLR workshop 2017, arXiv 1701.06548
virtual_softmax: Chen, Deng, Shen, NeurIPS 2018, arXiv 1811.12611
"""

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from gankd.losses import confidence_penalty, focal_loss, label_smoothing_loss, virtual_softmax_logits
from gankd.methods.branches import output_layer
from gankd.methods.setup import Outputs, Setup
from gankd.methods.terms import Term, TermConfig
from gankd.models.taps import INPUT
from generators.settings import Weight

CLASSES = frozenset({"classification"})


class ReplacingConfig(TermConfig):
    """A loss in place of the cross-entropy."""

    task_weight: Weight = 0.0
    """Weight of the cross-entropy, in whose place the term is."""


class LabelSmoothingConfig(ReplacingConfig):
    """Cross-entropy to 1 - smoothing on the label and smoothing / (K - 1) on every other class."""

    name: Literal["label_smoothing"] = "label_smoothing"
    """The method's name."""
    smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Probability taken from the label; 0 is the cross-entropy."""


class LabelSmoothing(Term):
    """L = -1/N sum_n sum_k q_nk log softmax(s_n)_k, q_y = 1 - smoothing.

    >>> student = gankd.distill(student, real=train, method="label_smoothing", steps=2)

    Loss: losses.smoothing.label_smoothing_loss
    """

    Config = LabelSmoothingConfig
    tasks = CLASSES
    needs_teacher = False
    hint = (
        "label_smoothing spreads probability over wrong classes; this task has a scalar target. Use supervised with "
        "task.head: bins, whose labels are smoothed to distributions, or a classification task."
    )

    def forward(self, outputs: Outputs) -> Tensor:
        return label_smoothing_loss(
            student_logits=outputs.student, labels=outputs.batch.labels, smoothing=self.config.smoothing
        )


class FocalConfig(ReplacingConfig):
    """Cross-entropy in which a sample counts less the better it is classified."""

    name: Literal["focal"] = "focal"
    """The method's name."""
    gamma: Weight = 2.0
    """Power of the error; 0 is the cross-entropy."""


class Focal(Term):
    """L = -1/N sum_n (1 - p_n)^gamma log p_n, p the label's probability.

    >>> student = gankd.distill(student, real=train, method="focal", steps=2)

    Loss: losses.smoothing.focal_loss
    """

    Config = FocalConfig
    tasks = CLASSES
    needs_teacher = False
    hint = "focal weighs samples by the probability of their class; this task has a scalar target. Use supervised."

    def forward(self, outputs: Outputs) -> Tensor:
        return focal_loss(student_logits=outputs.student, labels=outputs.batch.labels, gamma=self.config.gamma)


class MaxEntropyConfig(TermConfig):
    """CE + weight * mean of p log p."""

    name: Literal["max_entropy"] = "max_entropy"
    """The method's name."""
    weight: Weight = 0.5
    """Weight of the term, whose mean is over samples and classes: with more classes the same weight does less."""


class MaxEntropy(Term):
    """The negative entropy of the predictions, 1/(N K) sum_n sum_k p_nk log p_nk.

    >>> student = gankd.distill(student, real=train, method="max_entropy", steps=2)

    Loss: losses.smoothing.confidence_penalty
    """

    Config = MaxEntropyConfig
    tasks = CLASSES
    needs_teacher = False
    hint = "max_entropy is about class probabilities; this task has a scalar target. Use supervised."

    def forward(self, outputs: Outputs) -> Tensor:
        return confidence_penalty(student_logits=outputs.student)


class VirtualSoftmaxConfig(ReplacingConfig):
    """Cross-entropy with one more class, which every embedding fits perfectly."""

    name: Literal["virtual_softmax"] = "virtual_softmax"
    """The method's name."""


class VirtualSoftmax(Term):
    """L = CE of [s, |w_y| |x|], x the input of the last layer and w_y its row of the label.

    The paper's layer has no bias. One that has is the same on embeddings with a 1 behind them.

    >>> student = gankd.distill(student, real=train, method="virtual_softmax", steps=2)

    Loss: losses.smoothing.virtual_softmax_logits
    """

    Config = VirtualSoftmaxConfig
    tasks = CLASSES
    needs_teacher = False
    hint = "virtual_softmax adds a class; this task has a scalar target. Use supervised."

    def __init__(self, config: VirtualSoftmaxConfig, setup: Setup):
        super().__init__(config, setup)
        self.setup = setup
        self.student_taps = [output_layer(setup, config.name)[0]]

    def forward(self, outputs: Outputs) -> Tensor:
        (path,) = self.student_taps
        classifier = self.setup.student.get_submodule(path.removesuffix(INPUT))
        embeddings, weight = outputs.student_features[path], classifier.weight
        if classifier.bias is not None:
            embeddings = F.pad(embeddings, (0, 1), value=1.0)  # [N, D + 1]
            weight = torch.cat([weight, classifier.bias[:, None]], dim=1)  # [K, D + 1]
        logits = virtual_softmax_logits(
            logits=outputs.student, embeddings=embeddings, classifier_weight=weight, labels=outputs.batch.labels
        )
        return self.task.loss(logits, outputs.batch.labels)
