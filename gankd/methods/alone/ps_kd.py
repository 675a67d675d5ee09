"""PS-KD: labels are refined by what the network itself said of the sample in the last epoch.

Kim, Ji, Yoon, Hwang, "Self-Knowledge Distillation with Progressive Refinement of Targets", ICCV 2021, arXiv 2006.12000.
"""

from typing import Literal

import torch
from torch import Tensor

from gankd.losses import ps_kd_loss
from gankd.methods.base import MethodConfig
from gankd.methods.memory_bank import MemoryBank
from gankd.methods.setup import Outputs, Setup
from gankd.methods.terms import Term
from generators.settings import Share


class PSKDConfig(MethodConfig):
    """Loss to (1 - a) label + a last prediction, with a = alpha (e + 1) / E in epoch e = 0, 1, .. of E."""

    name: Literal["ps_kd"] = "ps_kd"
    """The method's name."""
    alpha: Share = 0.8
    """Weight of the last predictions at the end; 0 is training on the labels."""

    @property
    def weight(self) -> float:
        """Of the term."""
        return 1.0

    @property
    def task_weight(self) -> float:
        """Of the labels' loss, which is in the term."""
        return 0.0


class PSKD(Term):
    """Classes: CE to (1 - a) one_hot(y) + a p_last. Scalars: mean (s - ((1 - a) y + a s_last))^2.

    The last prediction on a sample is that of the view then seen, in training mode; before the first one it is the label.
    One row a sample, real and synthetic: 2 bytes times the number of classes, and it goes into the checkpoint.

    >>> student = gankd.distill(student, real=train, method="ps_kd", steps=2)

    Loss: losses.self_distillation.ps_kd_loss
    """

    Config = PSKDConfig
    heads = frozenset({"scalar"})
    hint = "ps_kd blends a label with a prediction. Use task.head: scalar."
    needs_teacher = False

    def __init__(self, config: PSKDConfig, setup: Setup):
        super().__init__(config, setup)
        labels = setup.data.labels
        # Half precision: probabilities below 6e-8 are as good as 0, and the table is half as large.
        history = setup.task.soften(labels, setup.task.num_outputs, torch.float16)
        self.last_predictions = MemoryBank(history)
        self.share = 0.0
        """Of the last prediction in the target, now."""

    def start_step(self, step: int, num_steps: int, steps_per_epoch: int) -> None:
        num_epochs = -(-num_steps // steps_per_epoch)
        self.share = self.config.alpha * (step // steps_per_epoch + 1) / num_epochs

    def forward(self, outputs: Outputs) -> Tensor:
        student, batch = outputs.student, outputs.batch
        loss = ps_kd_loss(
            student_logits=student,
            labels=batch.labels,
            previous_probabilities=self.last_predictions.rows[batch.indices],
            alpha=self.share,
            task=self.task,
        )
        if self.training:
            self.last_predictions.write(batch.indices, self.task.soft_labels(student.detach()))
        return loss
