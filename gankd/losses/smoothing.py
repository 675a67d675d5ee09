"""Label smoothing and its relatives: regularisers of the class distribution, and the label arithmetic losses share.

label_smoothing_loss: Szegedy, Vanhoucke, Ioffe, Shlens, Wojna, "Rethinking the Inception Architecture for Computer
Vision", CVPR 2016, arXiv 1512.00567
tf_kd_regularization_loss, tf_kd_self_loss: Yuan, Tay, Li, Wang, Feng, "Revisiting Knowledge Distillation via Label
Smoothing Regularization", CVPR 2020, arXiv 1909.11723
focal_loss: Lin, Goyal, Girshick, He, Dollar, "Focal Loss for Dense Object Detection", ICCV 2017, arXiv 1708.02002
confidence_penalty: Pereyra, Tucker, Chorowski, Kaiser, Hinton, "Regularizing Neural Networks by Penalizing Confident
Output Distributions", ICLR workshop 2017, arXiv 1701.06548
virtual_softmax_logits: Chen, Deng, Shen, "Virtual Class Enhanced Discriminative Embedding Learning", NeurIPS 2018,
arXiv 1811.12611
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .logits import kd_loss
from .precision import full_precision


def label_smoothing_loss(
    *,
    student_logits: Tensor,  # [N, K]
    labels: Tensor,  # [N], class ids
    smoothing: float = 0.1,  # probability taken from the true class
    temperature: float = 1.0,
) -> Tensor:
    """Cross-entropy to a target that leaves a little probability to every wrong class.

    q_y = 1 - smoothing,  q_k = smoothing / (K - 1) for k != y;  L = -1 / (N T) * sum_n sum_k q_nk log softmax(s_n / T)_k

    torch's label_smoothing spreads its e over all K classes: e = smoothing K / (K - 1) is the same loss. T = 20 is what
    some libraries run under the name of teacher-free distillation (tf_kd_regularization_loss is the published one).
    Raises ValueError when the labels are not class ids [N] or there is one class only.
    """
    targets = smoothed_one_hot(student_logits, labels, correct_probability=1 - smoothing)
    return F.cross_entropy(full_precision(student_logits) / temperature, targets) / temperature


def tf_kd_regularization_loss(
    *,
    student_logits: Tensor,  # [N, K]
    labels: Tensor,  # [N], class ids
    temperature: float = 20.0,
    correct_probability: float = 0.99,
    multiplier: float = 100.0,
) -> Tensor:
    """Distillation from a teacher made by hand: always right, equally unsure about every wrong class.

    u_y = correct_probability, u_k = (1 - correct_probability) / (K - 1);  q = softmax(u / T)
    L = multiplier / (N K) * sum_n KL( q_n || softmax(s_n) )

    As in the paper's code the probabilities u serve as logits, so q is nearly uniform (at K = 100 the label has .0105),
    the student is at temperature 1, and the mean over classes is what the multiplier makes up for.
    Returns a scalar, the regulariser alone.
    Raises ValueError when the labels are not class ids [N] or there is one class only.
    """
    virtual = smoothed_one_hot(student_logits, labels, correct_probability)
    log_targets = F.log_softmax(virtual / temperature, dim=1)
    log_student = F.log_softmax(full_precision(student_logits), dim=1)
    return multiplier * F.kl_div(log_student, log_targets, reduction="none", log_target=True).mean()


def tf_kd_self_loss(
    *,
    student_logits: Tensor,  # [N, K]
    teacher_logits: Tensor,  # [N, K], of the same architecture trained before, detached
    temperature: float,
    multiplier: float = 1.0,
) -> Tensor:
    """Distillation from an earlier training of the same network: multiplier / K * KL(s, t).

    The paper's code takes the mean over classes as well; hence its multipliers, 1 to 100.
    """
    divergence = kd_loss(student_logits=student_logits, teacher_logits=teacher_logits, temperature=temperature)
    return multiplier * divergence / student_logits.shape[1]


def focal_loss(
    *,
    student_logits: Tensor,  # [N, K]
    labels: Tensor,  # [N], class ids
    gamma: float = 2.0,  # 0 is the cross-entropy
) -> Tensor:
    """Cross-entropy in which a sample counts less the better it is classified.

    L = -1 / N * sum_n (1 - p_n)^gamma log p_n,  p_n = softmax(s_n) at the label

    Taken from log p, so that a vanishing p costs its finite logarithm.
    """
    check_class_ids(student_logits, labels)
    log_probabilities = F.log_softmax(full_precision(student_logits), dim=1)
    log_correct = log_probabilities.gather(1, labels[:, None]).squeeze(1)  # [N]
    # the slope of x^gamma at x = 0 is infinite for gamma < 1, and infinity times log 1 is not a number
    error = -torch.expm1(log_correct).clamp(max=-torch.finfo(log_correct.dtype).tiny)
    return -(error.pow(gamma) * log_correct).mean()


def confidence_penalty(
    *,
    student_logits: Tensor,  # [N, K]
) -> Tensor:
    """The negative entropy of the predictions, to be added to the cross-entropy: confident predictions cost more.

    L = 1 / (N K) * sum_n sum_k p_nk log p_nk,  p_n = softmax(s_n)

    Between -log(K) / K, uniform, and 0: the mean is over classes too, so the same weight does less the more classes
    there are. Returns a scalar.
    """
    log_probabilities = F.log_softmax(full_precision(student_logits), dim=1)
    return (log_probabilities.exp() * log_probabilities).mean()


def virtual_softmax_logits(
    *,
    logits: Tensor,  # [N, K], of a classifier without bias
    embeddings: Tensor,  # [N, D], what that classifier saw
    classifier_weight: Tensor,  # [K, D]
    labels: Tensor,  # [N], class ids
) -> Tensor:
    """The logits and one more, of a virtual class that every embedding fits perfectly; for a cross-entropy in training.

    s_virtual = |w_y| |x|, the largest logit an embedding of this length could reach on its own class

    Gradients flow into all three. Returns [N, K + 1], the virtual class last.
    """
    check_class_ids(logits, labels)
    num_samples, num_classes = logits.shape
    if len(embeddings) != num_samples or classifier_weight.shape != (num_classes, embeddings.shape[1]):
        raise ValueError(
            f"logits {list(logits.shape)}, embeddings {list(embeddings.shape)} and classifier weight "
            f"{list(classifier_weight.shape)} do not belong together: [N, K], [N, D] and [K, D] are needed"
        )
    weights = full_precision(classifier_weight)[labels]  # [N, D]
    virtual = torch.linalg.vector_norm(weights, dim=1) * torch.linalg.vector_norm(full_precision(embeddings), dim=1)
    return torch.cat([full_precision(logits), virtual[:, None]], dim=1)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """The mean cross-entropy of logits [N, K] and class ids [N], in full precision."""
    check_class_ids(logits, labels)
    return F.cross_entropy(full_precision(logits), labels)


def smoothed_one_hot(logits: Tensor, labels: Tensor, correct_probability: float) -> Tensor:
    """[N, K]: correct_probability at the label, the rest shared by the K - 1 other classes."""
    check_class_ids(logits, labels)
    num_classes = logits.shape[1]
    if num_classes < 2:
        raise ValueError("smoothing labels needs at least 2 classes; these logits have 1")
    others = torch.full_like(full_precision(logits.detach()), (1 - correct_probability) / (num_classes - 1))
    return others.scatter(1, labels[:, None], correct_probability)


def check_class_ids(logits: Tensor, labels: Tensor) -> None:
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or labels.dtype != torch.int64:
        raise ValueError(
            f"logits {list(logits.shape)} and {labels.dtype} labels {list(labels.shape)} do not fit: "
            "logits are [N, K], labels int64 class ids [N]"
        )
