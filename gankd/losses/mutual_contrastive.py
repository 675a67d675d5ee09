"""Mutual contrastive learning: peers that train together share what they find similar.

mcl_loss, mcl_memory_loss, mcl_queue_loss, ensemble_logit_loss: Yang, An, Cai, Xu, "Mutual Contrastive Learning for
    Visual Representation Learning", AAAI 2022, arXiv 2104.12565
layerwise_mcl_loss, layer_matching_weights: Yang, An, Zhou, Zhuang, Xu, Zhang, "Online Knowledge Distillation via Mutual
    Contrastive Learning for Visual Recognition", TPAMI 2023, arXiv 2207.11518

The three forms differ in what an anchor is compared with: the batch (labels), memory banks (labels) or queues (none).
With S_ij [N, M] the similarities, over tau, of peer i's embeddings to candidates embedded by peer j, all are made of

  NCE(S)  = - mean over anchors of the mean over positives of log softmax(S)
  KL(s,t) = T^2 times the mean over rows of KL( softmax(t / T) || softmax(s / T) ), t detached
  VCL     = sum_i NCE(S_ii)                     softVCL = sum_{i != j} KL(S_ii, S_jj)
  ICL     = sum_{i != j} NCE(S_ij)              softICL = sum_{i != j} KL(S_ij, S_ji)

Sums run over peers and ordered pairs and are not averaged: with P peers, ICL and the soft terms grow like P (P - 1).
Embeddings arrive with unit norm. Every loss returns (weighted total, VCL, softVCL, ICL, softICL).
"""

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .checks import shapes
from .classes import CLASSES, Equations, softened_divergence
from .contrastive import vicinal_positives
from .online import divergences_to, stack_members
from .precision import full_precision

MutualTerms = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]  # total, VCL, softVCL, ICL, softICL


def mcl_loss(
    *,
    embeddings: Sequence[Tensor],  # P of [N, D], unit rows
    labels: Tensor,  # [N] class ids, or scalars with kappa
    contrastive_temperature: float = 0.1,  # tau
    temperature: float = 3.0,  # T, on similarities that are already over tau
    vcl_weight: float = 0.1,
    soft_vcl_weight: float = 1.0,
    icl_weight: float = 0.1,
    soft_icl_weight: float = 1.0,
    include_self: bool = True,  # whether the KLs also run over an image's similarity to itself, as the authors' do
    kappa: float | None = None,  # positives: scalar labels that differ by at most kappa; None: equal labels
) -> MutualTerms:
    """Mutual contrastive learning within a labelled batch.

    S_ij = v_i v_j^T / tau; the candidates of an image are all others, its positives the others of its class. A scalar
    target has no classes: kappa takes their place, the hard vicinity of Ding et al., "CcGAN", ICLR 2021.

    An image whose class occurs once is no anchor of NCE (the authors' code divides 0 by 0 there); without any anchor
    VCL and ICL are 0. On the diagonal S_ii is 1 / tau for every peer, which dilutes softVCL: include_self=False leaves
    it out. Raises ValueError with fewer than two peers or shapes that do not fit.
    """
    members = _stack_peers(embeddings)  # [P, N, D]
    compared = _in_batch(members, labels, contrastive_temperature, include_self, kappa)
    term_weights = (vcl_weight, soft_vcl_weight, icl_weight, soft_icl_weight)
    return _mutual_terms(*compared, *_all_pairs(members), temperature, term_weights)


def layerwise_mcl_loss(
    *,
    embeddings: Sequence[Sequence[Tensor]],  # [peer][stage] of [N, D], unit rows
    labels: Tensor,  # [N] class ids
    matching_weights: Sequence[Tensor],  # of [N], in the order of layer_matching_weights; attached
    contrastive_temperature: float = 0.1,  # tau
    temperature: float = 3.0,  # T
    vcl_weight: float = 0.1,
    soft_vcl_weight: float = 1.0,
    icl_weight: float = 0.1,
    soft_icl_weight: float = 1.0,
    include_self: bool = True,  # as in mcl_loss
) -> MutualTerms:
    """Layer-wise mutual contrastive learning: every stage of a peer learns from every stage of the others.

    L = sum over ordered pairs of peers (a, b) and pairs of stages (k of a, z of b) of the four terms of mcl_loss for the
    two embeddings, the loss of each row n multiplied by w_n of that pair

    Each unordered pair of embeddings thus counts twice, and the VCL of a stage once for each partner, in both roles.
    Detach the matching weights to train the peers; the meta step of the paper differentiates through them.
    Raises ValueError with fewer than two peers, shapes that do not fit or a wrong number of matching weights.
    """
    first, second = _stage_pairs(embeddings)
    if len(matching_weights) != len(first):
        raise ValueError(f"{len(first)} pairs of stages need as many matching weights, got {len(matching_weights)}")
    members = stack_members([stage for peer in embeddings for stage in peer], "embeddings")  # [E, N, D]
    weights = members.new_zeros(len(members), *members.shape[:2])  # [E, E, N]
    weights = weights.index_put((first, second), stack_members(matching_weights, "matching weights").to(members))
    pair_weights = weights + weights.transpose(0, 1)  # a pair's terms are the same in both visits: form them once
    compared = _in_batch(members, labels, contrastive_temperature, include_self)
    term_weights = (vcl_weight, soft_vcl_weight, icl_weight, soft_icl_weight)
    return _mutual_terms(*compared, pair_weights.sum(1), pair_weights, temperature, term_weights)


def layer_matching_weights(
    *,
    projected_features: Sequence[Sequence[Tensor]],  # [peer][stage] of [N, E], by the meta network's linear layers
) -> list[Tensor]:
    """How well a stage of one peer matches a stage of another, for each sample: w = sigmoid(cosine similarity).

    Returns tensors [N] in the order: for peer a, for peer b != a, for stage of a, for stage of b.
    Raises ValueError with fewer than two peers or when the features differ in shape.
    """
    first, second = _stage_pairs(projected_features)
    features = stack_members([stage for peer in projected_features for stage in peer], "projected features")
    return list(F.cosine_similarity(features[first], features[second], dim=-1).sigmoid())


def mcl_memory_loss(
    *,
    embeddings: Sequence[Tensor],  # P of [N, D], unit rows
    banks: Sequence[Tensor],  # P of [num_samples, D], detached
    positive_indices: Tensor,  # [N, 1 + positives], column 0 the sample's own row
    negative_indices: Tensor,  # [N, negatives]
    contrastive_temperature: float = 0.07,  # tau
    temperature: float = 3.0,  # T
    vcl_weight: float = 0.1,
    soft_vcl_weight: float = 1.0,
    icl_weight: float = 0.1,
    soft_icl_weight: float = 1.0,
) -> MutualTerms:
    """Mutual contrastive learning against memory banks, for batches with few images of a class.

    S_ij = v_i bank_j^T / tau at the sample's indices. Between peers all columns are candidates and 1 + positives of them
    positive; within a peer (VCL, softVCL) the sample's own row is left out.

    Renew the banks once the loss is formed.
    Raises ValueError with fewer than two peers, shapes that do not fit or no positive besides the own row.
    """
    members, memories = _stack_peers(embeddings), [full_precision(bank.detach()) for bank in banks]
    if len(memories) != len(members):
        raise ValueError(f"each of {len(members)} peers needs its bank, got {len(memories)}")
    num_positives = positive_indices.shape[1]
    if num_positives < 2:
        raise ValueError("positive_indices needs the sample's own row and at least 1 positive, found 1 column")
    indices = torch.cat([positive_indices, negative_indices], dim=1)  # [N, M]
    with torch.autocast(members.device.type, enabled=False):
        # the whole product, then its columns: gathering rows of a bank would take D times the memory
        similarities = [(member @ memory.T).gather(1, indices) for member in members for memory in memories]
    inter = torch.stack(similarities).unflatten(0, (len(members), -1)) / contrastive_temperature  # [P, P, N, M]
    intra = _own(inter)[..., 1:]  # [P, N, M - 1]
    intra_losses = intra.logsumexp(-1) - intra[..., : num_positives - 1].mean(-1)
    inter_losses = inter.logsumexp(-1) - inter[..., :num_positives].mean(-1)
    term_weights = (vcl_weight, soft_vcl_weight, icl_weight, soft_icl_weight)
    compared = (intra, inter, intra_losses, inter_losses)
    return _mutual_terms(*compared, *_all_pairs(members), temperature, term_weights)


def mcl_queue_loss(
    *,
    queries: Sequence[Tensor],  # P of [N, D], unit rows, of the first view
    keys: Sequence[Tensor],  # P of [N, D], unit rows, of the second view by the momentum encoders; detached
    queues: Tensor,  # [P, D, length], unit columns, detached
    contrastive_temperature: float = 0.07,  # tau
    temperature: float = 3.0,  # T
    vcl_weight: float = 1.0,
    soft_vcl_weight: float = 1.0,
    icl_weight: float = 1.0,
    soft_icl_weight: float = 1.0,
) -> MutualTerms:
    """Mutual contrastive learning without labels, against queues of momentum-encoded keys (MoCo).

    S_ij = [<q_i, k_j>, q_i queue_j] / tau; the first column is the positive.

    Enqueue the keys once the loss is formed. Raises ValueError with fewer than two peers or shapes that do not fit.
    """
    members = _stack_peers(queries)  # [P, N, D]
    positives, negatives = stack_members(keys, "keys").detach(), full_precision(queues.detach())
    if positives.shape != members.shape or negatives.shape[:2] != (len(members), members.shape[2]):
        raise ValueError(
            f"keys should be {list(members.shape)} and queues {[len(members), members.shape[2]]} + [length], "
            f"found {shapes(positives, negatives)}"
        )
    with torch.autocast(members.device.type, enabled=False):
        positive = torch.einsum("ind,jnd->ijn", members, positives)[..., None]
        inter = torch.cat([positive, torch.einsum("ind,jdq->ijnq", members, negatives)], dim=-1)
    inter = inter / contrastive_temperature  # [P, P, N, 1 + length]
    losses = inter.logsumexp(-1) - inter[..., 0]
    compared = (_own(inter), inter, _own(losses), losses)
    term_weights = (vcl_weight, soft_vcl_weight, icl_weight, soft_icl_weight)
    return _mutual_terms(*compared, *_all_pairs(members), temperature, term_weights)


def ensemble_logit_loss(
    *,
    student_logits: Sequence[Tensor],  # of [N, K], the peers that are taught
    ensemble_logits: Sequence[Tensor],  # of [N, K], all peers; detached
    temperature: float = 3.0,
    task: Equations = CLASSES,
) -> Tensor:
    """Peers follow the mean of all peers' logits ("+ Logit KD"): L = sum_i KL_T([mean_j z_j] -> z_i). A scalar.

    The authors teach both of two peers, but only the last of more. Raises ValueError when shapes differ.
    """
    target = stack_members(ensemble_logits, "ensemble logits").mean(0)
    return divergences_to(target, stack_members(student_logits, "student logits"), temperature, task)


def _in_batch(
    members: Tensor, labels: Tensor, contrastive_temperature: float, include_self: bool, kappa: float | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The first four arguments of `_mutual_terms` for members [E, N, D] of one labelled batch."""
    num_samples = members.shape[1]
    if labels.shape != (num_samples,):
        raise ValueError(f"labels should be [{num_samples}] class ids, found {list(labels.shape)}")
    with torch.autocast(members.device.type, enabled=False):
        similarity = torch.einsum("ind,jmd->ijnm", members, members) / contrastive_temperature  # [E, E, N, N]
    itself = torch.eye(num_samples, dtype=torch.bool, device=labels.device)
    alike = labels[:, None] == labels if kappa is None else vicinal_positives(labels=labels, kappa=kappa)
    positive = alike & ~itself  # [N, N]
    num_positives = positive.sum(1)
    anchor = num_positives > 0
    # far below any similarity, but not -inf: a batch of one has no candidate at all and its gradient should be 0, not NaN
    others = similarity.masked_fill(itself, -1e30)
    losses = others.logsumexp(-1) - (others * positive).sum(-1) / num_positives.clamp(min=1)  # [E, E, N]
    losses = torch.where(anchor, losses, 0) * (num_samples / anchor.sum().clamp(min=1))  # their mean is over anchors
    compared = similarity if include_self else others
    return _own(compared), compared, _own(losses), losses


def _mutual_terms(
    intra: Tensor,  # [E, N, M], similarities within a member
    inter: Tensor,  # [E, E, N, M'], between members
    intra_losses: Tensor,  # [E, N], the rows of NCE
    inter_losses: Tensor,  # [E, E, N]
    own_weights: Tensor,  # [E, N] or [E, 1]
    pair_weights: Tensor,  # [E, E, N] or [E, E, 1], zero where two members do not learn from each other
    temperature: float,
    term_weights: tuple[float, float, float, float],
) -> MutualTerms:
    soft_intra = softened_divergence(intra[:, None], intra.detach(), temperature)  # [E, E, N], i learns from j
    soft_inter = softened_divergence(inter, inter.detach().transpose(0, 1), temperature)
    terms = (
        (own_weights * intra_losses).mean(-1).sum(),
        (pair_weights * soft_intra).mean(-1).sum(),
        (pair_weights * inter_losses).mean(-1).sum(),
        (pair_weights * soft_inter).mean(-1).sum(),
    )
    total = torch.stack([weight * term for weight, term in zip(term_weights, terms, strict=True)]).sum()
    return total, *terms


def _stack_peers(embeddings: Sequence[Tensor]) -> Tensor:
    if len(embeddings) < 2:
        raise ValueError(f"mutual contrastive learning needs at least 2 peers, got {len(embeddings)}")
    return stack_members(embeddings, "embeddings")


def _all_pairs(members: Tensor) -> tuple[Tensor, Tensor]:
    """Weights of every peer [P, 1], and of every ordered pair of different peers [P, P, 1], all 1."""
    others = 1 - torch.eye(len(members), dtype=members.dtype, device=members.device)
    return members.new_ones(len(members), 1), others[:, :, None]


def _own(pairs: Tensor) -> Tensor:
    """[E, ...] of [E, E, ...]: what a member has with itself."""
    return pairs.diagonal(dim1=0, dim2=1).movedim(-1, 0)


def _stage_pairs(peers: Sequence[Sequence[Tensor]]) -> Tensor:
    """[2, pairs]: positions in the flat list of all stages, for every ordered pair of peers and pair of their stages."""
    if len(peers) < 2:
        raise ValueError(f"mutual contrastive learning needs at least 2 peers, got {len(peers)}")
    position = itertools.count()
    positions = [[next(position) for _ in stages] for stages in peers]
    pairs = [pair for a, b in itertools.permutations(positions, 2) for pair in itertools.product(a, b)]
    return torch.tensor(pairs).T
