"""Losses of students that train together, without a trained teacher.

dml_loss: Zhang, Xiang, Hospedales, Lu, "Deep Mutual Learning", CVPR 2018, arXiv 1706.00384
one_loss: Lan, Zhu, Gong, "Knowledge Distillation by On-the-Fly Native Ensemble", NeurIPS 2018,
    arXiv 1806.04606
okddip_loss: Chen, Mei, Wang, Feng, Chen, "Online Knowledge Distillation with Diverse Peers", AAAI 2020,
    arXiv 1912.00350
kdcl_loss, kdcl_general_weights: Guo et al., "Online Knowledge Distillation via Collaborative Learning", CVPR 2020
ffl_loss: Kim, Hyun, Chung, Kwak, "Feature Fusion for Online Mutual Knowledge Distillation", ICPR 2020,
    arXiv 1904.09058
mfef_loss: Zou, Teng, Niu, "Multi-scale Feature Extraction and Fusion for Online Knowledge Distillation", 2022,
    arXiv 2206.08224; a reconstruction from the published description, with the loss of FFL
afd_discriminator_loss, afd_generator_loss: Chung, Park, Kim, Kwak, "Feature-map-level Online Adversarial Knowledge
    Distillation", ICML 2020, arXiv 2002.01775
rampup_weight: Laine, Aila, "Temporal Ensembling for Semi-Supervised Learning", ICLR 2017, arXiv 1610.02242

Throughout  KL_T(t -> s) = T^2 / N * sum_n KL( softmax(t_n / T) || softmax(s_n / T) ),  CE is the mean cross-entropy,
z_i are the logits of student i of m and [t] is a detached target. Terms are sums over students, never means. Tuples
start with the total. Another `task` puts its own loss for CE and its own divergence for KL_T, and z_i are its outputs.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from .checks import shapes
from .classes import CLASSES, Equations
from .precision import full_precision
from .regression_without_teacher import regression_ensemble_weights


def dml_loss(
    *,
    student_logits: Sequence[Tensor],  # m of [N, K]
    labels: Tensor,  # [N]
    temperature: float = 1.0,
    kd_weight: float = 1.0,
    target: str = "peers",  # "peers" or "ensemble"
    detach_targets: bool = True,
    task: Equations = CLASSES,
) -> tuple[Tensor, Tensor, Tensor]:
    """Deep mutual learning: every student follows the labels and the other students.

    L = sum_i { CE(z_i) + w * 1/(m-1) sum_{j != i} KL_T(z_j -> z_i) }              target "peers"
    L = sum_i { CE(z_i) + w * KL_T( 1/(m-1) sum_{j != i} z_j -> z_i ) }            target "ensemble"

    All students take one simultaneous step; the authors' code updates them in turn, with fresh predictions. Attached
    targets are pulled towards the students that follow them. Returns (total, CE, unweighted KL).
    Raises ValueError with fewer than two students, different shapes or an unknown target.
    """
    outputs = stack_members(student_logits, "student logits")  # [m, N, K]
    if len(outputs) < 2:
        raise ValueError(f"mutual learning needs at least 2 students, got {len(outputs)}")
    if target not in ("peers", "ensemble"):
        raise ValueError(f"unknown target {target!r}: use 'peers' or 'ensemble'")
    divergences = []
    for index, student in enumerate(outputs):
        others = torch.cat([outputs[:index], outputs[index + 1 :]])  # [m - 1, N, K]
        if detach_targets:
            others = others.detach()
        targets = others.mean(0, keepdim=True) if target == "ensemble" else others
        divergences += [task.divergence(student, each, temperature=temperature) / len(targets) for each in targets]
    label_loss, divergence = label_losses(outputs, labels, task), torch.stack(divergences).sum()
    return label_loss + kd_weight * divergence, label_loss, divergence


def one_loss(
    *,
    branch_logits: Sequence[Tensor],  # m of [N, K]
    gates: Tensor,  # [N, m]
    labels: Tensor,  # [N]
    temperature: float = 3.0,
    kd_weight: float = 1.0,
    task: Equations = CLASSES,
) -> tuple[Tensor, Tensor, Tensor]:
    """On-the-fly native ensemble: the branches of one network follow their gated sum.

    z_e = sum_i g_i z_i;   L = sum_i CE(z_i) + CE(z_e) + w sum_i KL_T([z_e] -> z_i)

    The gates learn from CE(z_e) alone. Returns (total, CE of branches and ensemble, w KL).
    """
    outputs = stack_members(branch_logits, "branch logits")  # [m, N, K]
    if gates.shape != outputs.shape[1::-1]:
        raise ValueError(f"gates should be {[outputs.shape[1], len(outputs)]}, found {list(gates.shape)}")
    ensemble = (outputs * full_precision(gates).T[:, :, None]).sum(0)  # [N, K]
    label_loss = label_losses(outputs, labels, task) + task.loss(ensemble, labels)
    weighted = kd_weight * divergences_to(ensemble, outputs, temperature, task)
    return label_loss + weighted, label_loss, weighted


def okddip_attention(
    *,
    queries: Tensor,  # [N, m - 1, D], W_q times each peer's pooled features
    keys: Tensor,  # [N, m - 1, D], W_k times the same
) -> Tensor:
    """How much peer a listens to peer b: A = softmax over b of q_a . k_b. Returns [N, m - 1, m - 1]."""
    with torch.autocast(queries.device.type, enabled=False):
        return torch.einsum("nad,nbd->nab", full_precision(queries), full_precision(keys)).softmax(dim=2)


def okddip_divergence(
    *,
    peer_logits: Sequence[Tensor],  # m - 1 of [N, K]
    leader_logits: Tensor,  # [N, K]
    attention: Tensor,  # A [N, m - 1, m - 1]
    temperature: float = 3.0,
    task: Equations = CLASSES,
) -> Tensor:
    """t_a = sum_b A_ab z_b;  sum_a KL_T(t_a -> z_a) + KL_T(mean_a z_a -> z_L). A scalar.

    Targets are attached: nothing else trains the attention. It can win by A = identity, so watch its diagonal.
    """
    *peers, leader = stack_members([*peer_logits, leader_logits], "peer and leader logits")
    peers = torch.stack(peers)  # [m - 1, N, K]
    with torch.autocast(leader.device.type, enabled=False):
        targets = torch.einsum("nab,bnk->ank", attention, peers)  # [m - 1, N, K]
    pairs = zip((*peers, leader), (*targets, peers.mean(0)), strict=True)
    return torch.stack([task.divergence(each, target, temperature=temperature) for each, target in pairs]).sum()


def okddip_loss(
    *,
    peer_logits: Sequence[Tensor],  # m - 1 of [N, K]
    leader_logits: Tensor,  # [N, K]
    queries: Tensor,  # [N, m - 1, D]
    keys: Tensor,  # [N, m - 1, D]
    labels: Tensor,  # [N]
    temperature: float = 3.0,
    kd_weight: float = 1.0,
    task: Equations = CLASSES,
) -> tuple[Tensor, Tensor, Tensor]:
    """Diverse peers: each follows its own attention-weighted mixture of all peers, a leader follows their mean.

    L = sum_a CE(z_a) + CE(z_L) + w okddip_divergence(A),  A = okddip_attention(queries, keys)

    Returns (total, CE, w KL). Raises ValueError when shapes do not fit.
    """
    fitting = (len(leader_logits), len(peer_logits))
    if queries.shape != keys.shape or queries.shape[:2] != fitting:
        raise ValueError(f"queries and keys should both be {list(fitting)} + [D], found {shapes(queries, keys)}")
    outputs = {"peer_logits": peer_logits, "leader_logits": leader_logits}
    attention = okddip_attention(queries=queries, keys=keys)
    weighted = kd_weight * okddip_divergence(**outputs, attention=attention, temperature=temperature, task=task)
    label_loss = label_losses([*peer_logits, leader_logits], labels, task)
    return label_loss + weighted, label_loss, weighted


def kdcl_loss(
    *,
    student_logits: Sequence[Tensor],  # m of [N, K], each from its student's own augmentation of the images
    labels: Tensor,  # [N]
    temperature: float = 2.0,
    ce_weight: float = 1.0,
    kd_weight: float = 1.0,
    ensemble: str = "mean",  # "mean", "best", "min_logit" or "weighted"
    weights: Tensor | None = None,  # [m], for "weighted": from kdcl_general_weights, for one
    task: Equations = CLASSES,
) -> tuple[Tensor, Tensor, Tensor]:
    """Collaborative learning: all students follow one target made of their logits.

    L = a sum_i CE(z_i) + w sum_i KL_T([z_t] -> z_i),  with the target of each sample
      mean       z_t = 1/m sum_i z_i
      best       the logits of the student whose error is lowest (the first of equals)
      min_logit  z_tk = min_i (z_ik - z_iy): no class comes closer to the label's logit than in any student
      weighted   z_t = sum_i a_i z_i

    Returns (total, CE, KL), the last two unweighted.
    Raises ValueError when students differ in shape, the ensemble is unknown, or weights are missing, unused or not [m].
    """
    outputs = stack_members(student_logits, "student logits")  # [m, N, K]
    if (weights is None) == (ensemble == "weighted"):
        raise ValueError(f"weights belong to the ensemble 'weighted' and to no other, here it is {ensemble!r}")
    detached = outputs.detach()
    if ensemble == "mean":
        target = detached.mean(0)
    elif ensemble == "best":
        errors = torch.stack([task.error(student, labels) for student in detached])  # [m, N]
        target = detached[errors.argmin(0), torch.arange(len(labels), device=labels.device)]
    elif ensemble == "min_logit":
        label_logits = detached.gather(2, labels.expand(len(outputs), -1)[:, :, None])  # [m, N, 1]
        target = (detached - label_logits).amin(0)
    elif ensemble == "weighted":
        if weights.shape != outputs.shape[:1]:
            raise ValueError(f"weights should be one for each of {len(outputs)} students, found {list(weights.shape)}")
        target = (weights.detach().to(detached)[:, None, None] * detached).sum(0)
    else:
        raise ValueError(f"unknown ensemble {ensemble!r}: use 'mean', 'best', 'min_logit' or 'weighted'")
    label_loss = label_losses(outputs, labels, task)
    divergence = divergences_to(target, outputs, temperature, task)
    return ce_weight * label_loss + kd_weight * divergence, label_loss, divergence


def kdcl_general_weights(
    *,
    predictions: Sequence[Tensor],  # m of [N, K] probabilities on held-out samples, detached
    labels: Tensor,  # [N]
) -> Tensor:
    """The weights with which the students' errors cancel best ("general" in the paper), renewed every epoch.

    a = C^-1 1 / (1' C^-1 1),  C_ij = mean_n sum_k (p_ink - y_nk)(p_jnk - y_nk) with one-hot y

    These are regression_ensemble_weights for errors in probability; what is said there about negative weights, equal
    students and training samples holds here. Returns [m]. Raises ValueError when the predictions differ in shape.
    """
    stacked = stack_members(predictions, "predictions")  # [m, N, K]
    return regression_ensemble_weights(predictions=list(stacked), labels=F.one_hot(labels, stacked.shape[2]))


def mfef_loss(
    *,
    student_logits: Sequence[Tensor],  # m of [N, K]
    fused_logits: Tensor,  # [N, K], of the classifier on the fused maps
    labels: Tensor,  # [N]
    temperature: float = 3.0,
    kd_weight: float = 1.0,
    task: Equations = CLASSES,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Students and the classifier on their fused maps teach each other.

    L = sum_i CE(z_i) + CE(z_f) + w { sum_i KL_T([z_f] -> z_i) + KL_T([1/m sum_i z_i] -> z_f) }

    Returns (total, CE, KL of the students, KL of the fused classifier), the KLs unweighted.
    """
    outputs = stack_members([*student_logits, fused_logits], "student and fused logits")
    students, fused = outputs[:-1], outputs[-1]  # [m, N, K], [N, K]
    label_loss = label_losses(outputs, labels, task)
    to_students = divergences_to(fused, students, temperature, task)
    to_fused = task.divergence(fused, students.mean(0).detach(), temperature=temperature)
    return label_loss + kd_weight * (to_students + to_fused), label_loss, to_students, to_fused


def ffl_loss(*, kd_weight: float = 1.0, **arguments) -> tuple[Tensor, Tensor, Tensor]:
    """Feature fusion learning: mfef_loss, which took it from here, as (total, CE, w KL); arguments as there."""
    total, label_loss, to_students, to_fused = mfef_loss(kd_weight=kd_weight, **arguments)
    return total, label_loss, kd_weight * (to_students + to_fused)


def afd_discriminator_loss(
    *,
    own_scores: Tensor,  # [N, ...], D_i of student i's transferred map: fake
    other_scores: Tensor,  # [N, ...], D_i of the next student's transferred map: real
) -> Tensor:
    """The discriminator of student i tells its maps from the next student's: mean (1 - D_other)^2 + mean D_own^2.

    The maps behind the scores should be detached: this loss trains the discriminator. Returns a scalar.
    """
    return (1 - full_precision(other_scores)).square().mean() + full_precision(own_scores).square().mean()


def afd_generator_loss(
    *,
    own_scores: Tensor,  # [N, ...], D_i of student i's transferred map
) -> Tensor:
    """Student i makes maps that pass for the next student's: mean (1 - D_own)^2. Returns a scalar."""
    return (1 - full_precision(own_scores)).square().mean()


def rampup_weight(
    epoch: float,  # from 0; fractions are fine
    num_epochs: float = 80,  # the length L of the ramp; 0 for none
) -> float:
    """The weight of students' opinions while these are still poor: exp(-5 (1 - min(max(epoch, 0), L) / L)^2)."""
    if num_epochs == 0:
        return 1.0
    progress = min(max(epoch, 0.0), num_epochs) / num_epochs
    return math.exp(-5 * (1 - progress) ** 2)


def stack_members(tensors: Sequence[Tensor], name: str) -> Tensor:
    """What each of the m peers has of one kind, as [m, ...] in full precision; ValueError when shapes differ."""
    if len({tensor.shape for tensor in tensors}) != 1:
        shapes = ", ".join(str(list(tensor.shape)) for tensor in tensors) or "none"
        raise ValueError(f"{name} need one shape, found {shapes}")
    return torch.stack([full_precision(tensor) for tensor in tensors])


def label_losses(outputs: Sequence[Tensor], labels: Tensor, task: Equations = CLASSES) -> Tensor:
    """The sum over members of the loss on the labels. A scalar."""
    return torch.stack([task.loss(output, labels) for output in outputs]).sum()


def divergences_to(target: Tensor, outputs: Sequence[Tensor], temperature: float, task: Equations = CLASSES) -> Tensor:
    """sum_i KL_T([target] -> outputs_i). A scalar."""
    target = target.detach()
    return torch.stack([task.divergence(output, target, temperature=temperature) for output in outputs]).sum()
