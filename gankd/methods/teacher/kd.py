"""Knowledge distillation by outputs: what the teacher says of a sample is its target.

kd: Hinton et al., "Distilling the Knowledge in a Neural Network", 2015, arXiv 1503.02531
ctkd: Li et al., "Curriculum Temperature for Knowledge Distillation", AAAI 2023, arXiv 2211.16231; kd with a learned one
dkd: Zhao et al., "Decoupled Knowledge Distillation", CVPR 2022, arXiv 2203.08679; how sure of the label, and which of the
    other classes, follow the teacher separately
dist: Huang et al., "Knowledge Distillation from A Stronger Teacher", NeurIPS 2022, arXiv 2205.10536; probabilities relate
    like the teacher's instead of equalling them
"""

from typing import Literal

from torch import Tensor

from gankd.distributed.processes import gather, gather_with_gradient
from gankd.losses import dist_loss, dkd_loss, gaussian_kd_loss, kd_loss, regression_kd_loss
from gankd.methods.setup import Outputs
from gankd.methods.temperature import LearnedTemperature, TemperatureSetting, TemperatureTerm
from gankd.methods.terms import BlendedConfig, Term, TermConfig
from gankd.tasks import CLASSIFICATION, REGRESSION
from generators.settings import Positive, Share, Weight

NEEDS_BINS = "ctkd learns a softmax temperature; set task.head: bins."


class KDConfig(BlendedConfig):
    """(1 - alpha) task loss + alpha distillation loss."""

    name: Literal["kd"] = "kd"
    """The method's name."""
    alpha: Share = 0.9
    """Weight of the teacher against the labels."""
    temperature: TemperatureSetting = 4.0
    """What the logits of both are divided by, for classes and bins. A number, or one that is learned: {learn: global}."""
    loss: Literal["l2", "l1", "huber"] = "l2"
    """Distance of a scalar to the teacher's prediction, in standardised units. l2 beside the labels' squared error is no
    more than a blend of both targets; the others add something."""
    delta: Positive = 1.0
    """Where `huber` turns linear, in standard deviations of the labels."""

    def check_task(self, task_kind: str, head: str = "scalar") -> None:
        if isinstance(self.temperature, LearnedTemperature) and task_kind == REGRESSION and head != "bins":
            raise ValueError(NEEDS_BINS)


class KD(TemperatureTerm):
    """Classes: (1 - alpha) CE(s, y) + alpha T^2 KL(softmax(t/T) || softmax(s/T)).

    Regression: the task's loss for CE, and for the divergence, by the kind of output: of a scalar l(s - t), of bins the
    same as for classes, of a Gaussian KL(N_t || N_s). To bins a scalar teacher says what a label would.

    >>> student = gankd.distill(student, teacher, real=train, method={"name": "kd", "temperature": 2})

    Loss: losses.logits.kd_loss, losses.regression.regression_kd_loss, losses.distributions.gaussian_kd_loss
    """

    Config = KDConfig

    def forward(self, outputs: Outputs) -> Tensor:
        student, teacher = outputs.student, outputs.teacher
        if self.task.kind == CLASSIFICATION or self.task.head == "bins":
            temperature = self.temperature(student, teacher)
            return kd_loss(student_logits=student, teacher_logits=teacher, temperature=temperature)
        if self.task.head == "gaussian":
            return gaussian_kd_loss(
                student_mean=student[:, 0],
                student_log_variance=student[:, 1],
                teacher_mean=teacher[:, 0],
                teacher_log_variance=teacher[:, 1],
            )
        return regression_kd_loss(
            student_predictions=student.flatten(),
            teacher_predictions=teacher.flatten(),
            loss=self.config.loss,
            delta=self.config.delta,
        )


class CTKDConfig(KDConfig):
    """(1 - alpha) task loss + alpha distillation loss at a temperature that is learned."""

    name: Literal["ctkd"] = "ctkd"
    """The method's name."""
    temperature: LearnedTemperature = LearnedTemperature()
    """How the temperature is learned. `kd` and `dkd` take the same settings as their temperature."""


class CTKD(KD):
    """min over the student, max over theta: (1 - alpha) CE(s, y) + alpha T^2 KL(softmax(t/T) || softmax(s/T)), T(theta).

    >>> student = gankd.distill(student, teacher, real=train, method={"name": "ctkd", "alpha": 0.5})

    Loss: losses.logits.kd_loss at losses.curriculum.ctkd_temperature
    """

    Config = CTKDConfig
    heads = frozenset({"bins"})
    hint = NEEDS_BINS


class DKDConfig(TermConfig):
    """task loss + weight (alpha TCKD + beta NCKD), the weight rising in the warm-up."""

    name: Literal["dkd"] = "dkd"
    """The method's name."""
    alpha: Weight = 1.0
    """Weight of the label against all other classes together."""
    beta: Weight = 8.0
    """Weight of the other classes among each other. CIFAR-100: 8; 2 for thin residual networks (resnet56 to resnet20), 6 for
    vgg13 and wrn_40_2 as the teacher of their kind. ImageNet: 0.5."""
    temperature: TemperatureSetting = 4.0
    """What the logits of both are divided by (ImageNet: 1). A number, or one that is learned: {learn: global}."""
    warmup: Share = 20 / 240
    """Share of the run in which the term's weight rises linearly (ImageNet: 1 / 100)."""


class DKD(TemperatureTerm):
    """alpha T^2 KL(b_t || b_s) + beta T^2 KL(q_t || q_s): b is (label, rest), q the distribution over the rest.

    The labels are those of the batch: of a synthetic image, the class that it was drawn for or given.

    >>> student = gankd.distill(student, teacher, real=train, method={"name": "dkd", "beta": 2})

    Loss: losses.logits.dkd_loss
    """

    Config = DKDConfig
    tasks = frozenset({CLASSIFICATION})
    hint = "It needs a target class; use method kd, or dist on task.head: bins."

    def forward(self, outputs: Outputs) -> Tensor:
        student, teacher = outputs.student, outputs.teacher
        return dkd_loss(
            student_logits=student,
            teacher_logits=teacher,
            labels=outputs.batch.labels,
            alpha=self.config.alpha,
            beta=self.config.beta,
            temperature=self.temperature(student, teacher),
        )


class DISTConfig(TermConfig):
    """task loss + weight T^2 (beta inter + gamma intra)."""

    name: Literal["dist"] = "dist"
    """The method's name."""
    weight: Weight = 2.0
    """Weight of the term."""
    beta: Weight = 1.0
    """Weight of the relations between the classes of a sample."""
    gamma: Weight = 1.0
    """Weight of the relations between the samples of a class; they take at least three samples a batch."""
    temperature: Positive = 4.0
    """What the logits of both are divided by (CIFAR-100: 4, ImageNet: 1). A number, as a column mixes all samples."""


class DIST(Term):
    """inter = 1 - mean over samples, intra = 1 - mean over classes, of Pearson's correlation of the probabilities.

    >>> student = gankd.distill(student, teacher, real=train, method={"name": "dist", "temperature": 1})

    Loss: losses.logits.dist_loss
    """

    Config = DISTConfig
    heads = frozenset({"bins"})
    hint = "It correlates probabilities; set task.head: bins."
    reads_teacher_outputs = True

    def forward(self, outputs: Outputs) -> Tensor:
        return dist_loss(
            student_logits=gather_with_gradient(outputs.student),
            teacher_logits=gather(outputs.teacher),
            beta=self.config.beta,
            gamma=self.config.gamma,
            temperature=self.config.temperature,
        )
