"""Contrastive representation distillation: the loss of embeddings against memory banks, and the draw of the contrast.

embed_and_normalize, nce_loss, crd_loss, crd_initial_bank, crd_update_bank, contrast_indices: Tian, Krishnan, Isola,
"Contrastive Representation Distillation", ICLR 2020, arXiv 1910.10699; the memory bank after Wu, Xiong, Yu, Lin,
"Unsupervised Feature Learning via Non-Parametric Instance Discrimination", CVPR 2018, arXiv 1805.01978

One step: embed both features, draw the contrast, take the loss against the banks as they are, then update the banks.
Samples that have no place in a bank (a live generator's) are contrasted inside their batch or against a queue: the banks
are then the detached embeddings of the batch, followed by those of earlier batches, and the ids are places in them.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .precision import full_precision

NCE_EPS = 1e-7


def embed_and_normalize(
    *,
    feature: Tensor,  # [N, ...], as a rule the pooled penultimate feature
    weight: Tensor,  # [D, in], in = the feature's trailing entries
    bias: Tensor,  # [D]
) -> Tensor:  # [N, D], rows of norm 1
    """A feature on the sphere that student and teacher share: v = W f + b, then v / max(|v|, 1e-12).

    Gradients reach the feature and the head: the teacher's head is trained too, so detach the teacher's feature.
    Raises ValueError when the head does not fit the feature.
    """
    flat = full_precision(feature).flatten(1)  # [N, in]
    if flat.shape[1] != weight.shape[1]:
        raise ValueError(
            f"the embedding takes {weight.shape[1]} inputs; features of shape {list(feature.shape)} "
            f"have {flat.shape[1]} a sample"
        )
    with torch.autocast(flat.device.type, enabled=False):
        return F.normalize(F.linear(flat, weight.to(flat.dtype), bias.to(flat.dtype)), dim=1, eps=1e-12)


def nce_loss(
    *,
    probabilities: Tensor,  # [N, K + 1], P of the positive, then of K negatives
    n_data: int,  # the noise draws uniformly among so many samples
    eps: float = NCE_EPS,
) -> Tensor:
    """Noise-contrastive estimation: tell the positive from K draws of noise of density Pn = 1 / n_data.

    L = -1/N sum_n [ log( P_n0 / (P_n0 + K Pn + eps) ) + sum_{k >= 1} log( K Pn / (P_nk + K Pn + eps) ) ]

    A sum over the negatives and a mean over the batch. Returns a scalar.
    Raises ValueError when there is no negative.
    """
    num_negatives = _num_negatives(probabilities)
    probabilities = full_precision(probabilities)
    noise = num_negatives / n_data  # K Pn
    positives = torch.log1p((noise + eps) / probabilities[:, 0])
    negatives = torch.log1p(probabilities[:, 1:] / (noise + eps))  # P is near Pn: 1 + P / (K Pn) would round it away
    return (positives.sum() + negatives.sum()) / len(probabilities) + num_negatives * math.log1p(eps / noise)


def crd_loss(
    *,
    student_embedding: Tensor,  # [N, D], unit rows
    teacher_embedding: Tensor,  # [N, D], unit rows; not detached: the teacher's head learns too
    student_bank: Tensor,  # [n_data, D], earlier student embeddings by sample id, detached
    teacher_bank: Tensor,  # [n_data, D], earlier teacher embeddings, detached
    contrast_indices: Tensor,  # [N, K + 1] int64, ids in [0, n_data): the positive, then K negatives
    temperature: float = 0.07,
    z_student: float | Tensor | None = None,  # normalisers; None estimates them from this batch
    z_teacher: float | Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # loss, z_student, z_teacher
    """Contrastive representation distillation: a sample's student and teacher embeddings find each other among K others.

    With c the contrast ids, each side against the other side's bank:
      a_s[n,k] = exp( <v_s[n], M_t[c[n,k]]> / T ),   a_t[n,k] = exp( <v_t[n], M_s[c[n,k]]> / T )
      Z = n_data * mean(a) on the first batch, that constant ever after;   L = nce_loss(a_s / Z_s) + nce_loss(a_t / Z_t)

    Gradients reach both embeddings, not the banks and not Z. Returns the scalar loss and the normalisers that were used:
    pass them to every later call. exp overflows float32 for T below 0.012.
    Raises ValueError when shapes do not fit or there is no negative.
    """
    if student_embedding.shape != teacher_embedding.shape:
        raise ValueError(
            f"student and teacher embeddings differ in shape: {list(student_embedding.shape)} "
            f"and {list(teacher_embedding.shape)}"
        )
    if student_bank.shape != teacher_bank.shape or student_bank.shape[1] != student_embedding.shape[1]:
        raise ValueError(
            f"both banks need the shape [n_data, {student_embedding.shape[1]}], "
            f"not {list(student_bank.shape)} and {list(teacher_bank.shape)}"
        )
    if len(contrast_indices) != len(student_embedding):
        raise ValueError(f"{len(contrast_indices)} rows of contrast ids for {len(student_embedding)} embeddings")
    student_side, z_student = _contrast(student_embedding, teacher_bank, contrast_indices, temperature, z_student)
    teacher_side, z_teacher = _contrast(teacher_embedding, student_bank, contrast_indices, temperature, z_teacher)
    return student_side + teacher_side, z_student, z_teacher


def crd_initial_bank(
    *, n_data: int, dimension: int, generator: torch.Generator | None = None, device: torch.device | str | None = None
) -> Tensor:  # [n_data, D]
    """A bank before training: entries uniform in (-a, a), a = sqrt(3 / D), so that E |row|^2 = 1."""
    limit = math.sqrt(3 / dimension)
    return torch.empty(n_data, dimension, device=device).uniform_(-limit, limit, generator=generator)


@torch.no_grad()
def crd_update_bank(
    *,
    bank: Tensor,  # [n_data, D], unchanged
    embedding: Tensor,  # [N, D], of the bank's own network
    indices: Tensor,  # [N] int64, ids of the batch
    momentum: float = 0.5,
) -> Tensor:  # [n_data, D]
    """The bank after a step: rows y of the batch become normalise( momentum * M[y] + (1 - momentum) * v ).

    When an id occurs twice in a batch, its last occurrence counts, on every device.
    Raises ValueError when shapes do not fit.
    """
    if embedding.shape != (len(indices), bank.shape[1]):
        raise ValueError(
            f"{len(indices)} rows of a bank {list(bank.shape)} cannot take embeddings {list(embedding.shape)}"
        )
    rows = momentum * full_precision(bank[indices]) + (1 - momentum) * full_precision(embedding)
    rows = F.normalize(rows, dim=1, eps=1e-12).to(bank.dtype)
    # The order of two writes to one row is undefined on a GPU: let both write the same.
    place = torch.arange(len(indices), device=indices.device)
    last = place.new_zeros(len(bank)).scatter_reduce_(0, indices, place, "amax")[indices]
    return bank.index_copy(0, indices, rows[last])


@torch.no_grad()
def contrast_indices(
    *,
    labels: Tensor,  # [n_data], of every sample that has a place in the banks
    indices: Tensor,  # [N] int64, the anchors' ids
    num_negatives: int,
    mode: str = "exact",  # positive: "exact" the anchor itself, "relax" any sample alike, the anchor included
    kappa: float | None = None,  # alike: labels that differ by at most kappa; None: equal labels
    generator: torch.Generator | None = None,  # on the labels' device; None: torch's global one
) -> Tensor:  # [N, K + 1] int64
    """What each anchor is contrasted with: a positive, then K negatives drawn uniformly from the samples unlike it.

    Drawn without replacement; where K exceeds an anchor's pool, its row goes through the pool in random order again and
    again. Class ids need no kappa; a scalar target has no classes, and kappa takes their place: the hard vicinity of
    Ding et al., "CcGAN", ICLR 2021. labels = torch.arange(n_data) makes every other sample a negative.

    Everything happens on the labels' device, in [N, n_data] numbers and one read of a single number.
    Raises ValueError for an unknown mode, labels that are not [n_data], a negative kappa, and an anchor that every sample
    is alike to.
    """
    if mode not in ("exact", "relax"):
        raise ValueError(f"unknown contrast mode {mode!r}: use 'exact' or 'relax'")
    if labels.ndim != 1:
        raise ValueError(f"a contrast needs one label per sample, [n_data], not {list(labels.shape)}")
    if kappa is None:
        alike = labels == labels[indices, None]  # [N, n_data]
    elif kappa >= 0:
        scalars = full_precision(labels)
        alike = (scalars - scalars[indices, None]).abs() <= kappa
    else:
        raise ValueError(f"the half-width kappa of a vicinity cannot be negative, got {kappa}")
    pool_sizes = len(labels) - alike.sum(1, keepdim=True)  # [N, 1]
    smallest_pool = int(pool_sizes.min())
    if smallest_pool == 0:
        alone = int(pool_sizes.argmin())
        raise ValueError(
            f"sample {int(indices[alone])} with label {labels[indices[alone]].item()} has no negatives: every sample's "
            "label is alike; give labels of at least two kinds, or torch.arange(n_data) to contrast every other sample"
        )
    # The order of independent uniform keys is a random permutation of each row's samples.
    keys = torch.rand(alike.shape, generator=generator, device=labels.device)
    positives = indices if mode == "exact" else torch.where(alike, keys, 2).argmin(1)
    keys.masked_fill_(alike, 2)  # behind every key of the pool
    if num_negatives <= smallest_pool:
        negatives = keys.topk(num_negatives, largest=False, sorted=False).indices
    else:
        shuffled = keys.topk(min(num_negatives, len(labels)), largest=False).indices  # the pool first
        negatives = shuffled.gather(1, torch.arange(num_negatives, device=labels.device) % pool_sizes)
    return torch.cat([positives[:, None], negatives], dim=1)


def _contrast(
    embedding: Tensor, bank: Tensor, contrast_indices: Tensor, temperature: float, z: float | Tensor | None
) -> tuple[Tensor, Tensor]:
    """nce_loss( exp(<v, M[c]> / T) / Z ) in logs, which neither overflow nor underflow, and Z."""
    num_negatives = _num_negatives(contrast_indices)
    noise = num_negatives / len(bank)  # K Pn
    log_scores = _bank_products(full_precision(embedding), bank, contrast_indices) / temperature
    if z is None:
        z = len(bank) * log_scores.detach().exp().mean()
    z = torch.as_tensor(z, dtype=log_scores.dtype, device=log_scores.device).detach()
    logits = log_scores - (z.log() + math.log(noise + NCE_EPS))  # log of P / (K Pn + eps)
    positives, negatives = F.logsigmoid(logits[:, 0]), F.logsigmoid(-logits[:, 1:])
    loss = -(positives.sum() + negatives.sum()) / len(logits) + num_negatives * math.log1p(NCE_EPS / noise)
    return loss, z


def _bank_products(embedding: Tensor, bank: Tensor, contrast_indices: Tensor) -> Tensor:
    """<v[n], M[c[n,k]]>, [N, K + 1].

    The product with the whole bank reads it once, while the rows M[c] are a tensor [N, K + 1, D] of random reads: 0.5 GB
    and 20 times slower at N 64, K 16384, D 128, n_data 50000 on one CPU thread. Both cost the same where the bank is about
    80 times longer than K, beyond which the rows win.
    """
    bank = bank.detach().to(embedding.dtype)
    with torch.autocast(embedding.device.type, enabled=False):
        if len(bank) > 80 * contrast_indices.shape[1]:
            return torch.einsum("nd,nkd->nk", embedding, bank[contrast_indices])
        return (embedding @ bank.T).gather(1, contrast_indices)


def _num_negatives(contrast: Tensor) -> int:
    if contrast.ndim != 2 or contrast.shape[1] < 2:
        raise ValueError(
            f"a contrast is a positive and at least one negative a sample, [N, K + 1], not {list(contrast.shape)}"
        )
    return contrast.shape[1] - 1
