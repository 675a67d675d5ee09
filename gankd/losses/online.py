"""Losses of students that train together, without a trained teacher.

dml_loss: Zhang, Xiang, Hospedales, Lu, "Deep Mutual Learning", CVPR 2018, arXiv 1706.00384
one_gates, one_loss: Lan, Zhu, Gong, "Knowledge Distillation by On-the-Fly Native Ensemble", NeurIPS 2018,
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
start with the total.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .logits import kd_loss
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
) -> tuple[Tensor, Tensor, Tensor]:
    """Deep mutual learning: every student follows the labels and the other students.

    L = sum_i { CE(z_i) + w * 1/(m-1) sum_{j != i} KL_T(z_j -> z_i) }              target "peers"
    L = sum_i { CE(z_i) + w * KL_T( 1/(m-1) sum_{j != i} z_j -> z_i ) }            target "ensemble"

    All students take one simultaneous step; the authors' code updates them in turn, with fresh predictions. Attached
    targets are pulled towards the students that follow them. Returns (total, CE, unweighted KL).
    Raises ValueError with fewer than two students, different shapes or an unknown target.
    """
    logits = stack_members(student_logits, "student logits")  # [m, N, K]
    if len(logits) < 2:
        raise ValueError(f"mutual learning needs at least 2 students, got {len(logits)}")
    if target not in ("peers", "ensemble"):
        raise ValueError(f"unknown target {target!r}: use 'peers' or 'ensemble'")
    divergence = logits.new_zeros(())
    for index, student in enumerate(logits):
        others = torch.cat([logits[:index], logits[index + 1 :]])  # [m - 1, N, K]
        if detach_targets:
            others = others.detach()
        targets = others.mean(0, keepdim=True) if target == "ensemble" else others
        divergence = divergence + softened_divergence(student, targets, temperature).mean()
    cross_entropy = _summed_cross_entropy(logits, labels)
    return cross_entropy + kd_weight * divergence, cross_entropy, divergence


def one_gates(
    *,
    feature_map: Tensor,  # [N, C, H, W], the trunk's
    weight: Tensor,  # [m, C]
    bias: Tensor,  # [m]
    norm_weight: Tensor,  # [m]
    norm_bias: Tensor,  # [m]
) -> Tensor:
    """How much each branch counts in ONE's ensemble: softmax(ReLU(BatchNorm(Linear(global average)))). [N, m].

    Batch norm uses the batch's statistics (biased variance, eps 1e-5).
    Raises ValueError for a batch of one image, which has no variance.
    """
    if len(feature_map) < 2:
        raise ValueError(f"the gates are normalised over the batch: it needs at least 2 images, got {len(feature_map)}")
    with torch.autocast(feature_map.device.type, enabled=False):
        pooled = full_precision(feature_map).mean((2, 3))  # [N, C]
        scores = F.linear(pooled, full_precision(weight), full_precision(bias))  # [N, m]
        scores = F.batch_norm(
            scores, None, None, full_precision(norm_weight), full_precision(norm_bias), training=True, eps=1e-5
        )
        return F.softmax(F.relu(scores), dim=1)


def one_loss(
    *,
    branch_logits: Sequence[Tensor],  # m of [N, K]
    gates: Tensor,  # [N, m]
    labels: Tensor,  # [N]
    temperature: float = 3.0,
    kd_weight: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """On-the-fly native ensemble: the branches of one network follow their gated sum.

    z_e = sum_i g_i z_i;   L = sum_i CE(z_i) + CE(z_e) + w sum_i KL_T([z_e] -> z_i)

    The gates learn from CE(z_e) alone. Returns (total, CE of branches and ensemble, w KL).
    Raises ValueError when the branches differ in shape or the gates do not fit.
    """
    logits = stack_members(branch_logits, "branch logits")  # [m, N, K]
    if gates.shape != logits.shape[1::-1]:
        raise ValueError(f"gates should be {[logits.shape[1], len(logits)]}, found {list(gates.shape)}")
    ensemble = (logits * full_precision(gates).T[:, :, None]).sum(0)  # [N, K]
    cross_entropy = _summed_cross_entropy(logits, labels) + F.cross_entropy(ensemble, labels)
    weighted = kd_weight * _divergence_to_all(logits, ensemble, temperature)
    return cross_entropy + weighted, cross_entropy, weighted


def okddip_loss(
    *,
    peer_logits: Sequence[Tensor],  # m - 1 of [N, K]
    leader_logits: Tensor,  # [N, K]
    queries: Tensor,  # [N, m - 1, D], W_q times each peer's pooled features
    keys: Tensor,  # [N, m - 1, D], W_k times the same
    labels: Tensor,  # [N]
    temperature: float = 3.0,
    kd_weight: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Diverse peers: each follows its own attention-weighted mixture of all peers, a leader follows their mean.

    A = softmax over b of q_a . k_b;   t_a = sum_b A_ab z_b
    L = sum_a CE(z_a) + CE(z_L) + w { sum_a KL_T(t_a -> z_a) + KL_T(mean_a z_a -> z_L) }

    Targets are attached: nothing else trains the attention. It can win by A = identity, so watch its diagonal.
    Returns (total, CE, w KL). Raises ValueError when shapes do not fit.
    """
    logits = stack_members([*peer_logits, leader_logits], "peer and leader logits")
    peers, leader = logits[:-1], logits[-1]  # [m - 1, N, K], [N, K]
    if queries.shape != keys.shape or queries.shape[:2] != peers.shape[1::-1]:
        raise ValueError(
            f"queries and keys should both be {[peers.shape[1], len(peers)]} + [D], "
            f"found {list(queries.shape)} and {list(keys.shape)}"
        )
    with torch.autocast(leader.device.type, enabled=False):
        scores = torch.einsum("nad,nbd->nab", full_precision(queries), full_precision(keys))
        targets = torch.einsum("nab,bnk->ank", F.softmax(scores, dim=2), peers)  # [m - 1, N, K]
    peer_divergence = softened_divergence(peers, targets, temperature).mean(1).sum()
    leader_divergence = softened_divergence(leader, peers.mean(0), temperature).mean()
    cross_entropy = _summed_cross_entropy(logits, labels)
    weighted = kd_weight * (peer_divergence + leader_divergence)
    return cross_entropy + weighted, cross_entropy, weighted


def kdcl_loss(
    *,
    student_logits: Sequence[Tensor],  # m of [N, K], each from its student's own augmentation of the images
    labels: Tensor,  # [N]
    temperature: float = 2.0,
    ce_weight: float = 1.0,
    kd_weight: float = 1.0,
    ensemble: str = "mean",  # "mean", "best", "min_logit" or "weighted"
    weights: Tensor | None = None,  # [m], for "weighted": from kdcl_general_weights, for one
) -> tuple[Tensor, Tensor, Tensor]:
    """Collaborative learning: all students follow one target made of their logits.

    L = a sum_i CE(z_i) + w sum_i KL_T([z_t] -> z_i),  with the target of each sample
      mean       z_t = 1/m sum_i z_i
      best       the logits of the student whose cross-entropy is lowest (the first of equals)
      min_logit  z_tk = min_i (z_ik - z_iy): no class comes closer to the label's logit than in any student
      weighted   z_t = sum_i a_i z_i

    Returns (total, CE, KL), the last two unweighted.
    Raises ValueError when students differ in shape, the ensemble is unknown, or weights are missing, unused or not [m].
    """
    logits = stack_members(student_logits, "student logits")  # [m, N, K]
    if (weights is None) == (ensemble == "weighted"):
        raise ValueError(f"weights belong to the ensemble 'weighted' and to no other, here it is {ensemble!r}")
    detached = logits.detach()
    if ensemble == "mean":
        target = detached.mean(0)
    elif ensemble == "best":
        errors = torch.stack([F.cross_entropy(student, labels, reduction="none") for student in detached])  # [m, N]
        target = detached[errors.argmin(0), torch.arange(len(labels), device=labels.device)]
    elif ensemble == "min_logit":
        label_logits = detached.gather(2, labels.expand(len(logits), -1)[:, :, None])  # [m, N, 1]
        target = (detached - label_logits).amin(0)
    elif ensemble == "weighted":
        if weights.shape != logits.shape[:1]:
            raise ValueError(f"weights should be one for each of {len(logits)} students, found {list(weights.shape)}")
        target = (weights.detach().to(detached)[:, None, None] * detached).sum(0)
    else:
        raise ValueError(f"unknown ensemble {ensemble!r}: use 'mean', 'best', 'min_logit' or 'weighted'")
    cross_entropy = _summed_cross_entropy(logits, labels)
    divergence = _divergence_to_all(logits, target, temperature)
    return ce_weight * cross_entropy + kd_weight * divergence, cross_entropy, divergence


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
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Students and the classifier on their fused maps teach each other.

    L = sum_i CE(z_i) + CE(z_f) + w { sum_i KL_T([z_f] -> z_i) + KL_T([1/m sum_i z_i] -> z_f) }

    Returns (total, CE, KL of the students, KL of the fused classifier), the KLs unweighted.
    Raises ValueError when shapes differ.
    """
    logits = stack_members([*student_logits, fused_logits], "student and fused logits")
    students, fused = logits[:-1], logits[-1]  # [m, N, K], [N, K]
    cross_entropy = _summed_cross_entropy(logits, labels)
    students_divergence = _divergence_to_all(students, fused, temperature)
    fused_divergence = kd_loss(student_logits=fused, teacher_logits=students.mean(0), temperature=temperature)
    total = cross_entropy + kd_weight * (students_divergence + fused_divergence)
    return total, cross_entropy, students_divergence, fused_divergence


def ffl_loss(
    *,
    student_logits: Sequence[Tensor],  # m of [N, K]
    fused_logits: Tensor,  # [N, K], of the classifier on the fused maps
    labels: Tensor,  # [N]
    temperature: float = 3.0,
    kd_weight: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Feature fusion learning: the loss of mfef_loss, which took it from here, as (total, CE, w KL)."""
    total, cross_entropy, students_divergence, fused_divergence = mfef_loss(
        student_logits=student_logits,
        fused_logits=fused_logits,
        labels=labels,
        temperature=temperature,
        kd_weight=kd_weight,
    )
    return total, cross_entropy, kd_weight * (students_divergence + fused_divergence)


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


def softened_divergence(logits: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """T^2 KL( softmax(targets / T) || softmax(logits / T) ) over the last axis; shapes broadcast, targets attached."""
    log_probabilities = F.log_softmax(logits / temperature, dim=-1)
    log_targets = F.log_softmax(targets / temperature, dim=-1)
    return temperature**2 * F.kl_div(log_probabilities, log_targets, reduction="none", log_target=True).sum(-1)


def _summed_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return torch.stack([F.cross_entropy(member, labels) for member in logits]).sum()


def _divergence_to_all(logits: Tensor, target: Tensor, temperature: float) -> Tensor:
    """sum_i KL_T([target] -> logits_i)"""
    return torch.stack(
        [kd_loss(student_logits=member, teacher_logits=target, temperature=temperature) for member in logits]
    ).sum()
