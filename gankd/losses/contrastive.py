"""Contrast: of embeddings against memory banks, and among samples of nearby scalar labels.

nce_loss, crd_loss: Tian, Krishnan, Isola, "Contrastive Representation Distillation", ICLR 2020, arXiv 1910.10699
vicinal_positives: the hard vicinity of Ding et al., "CcGAN: Continuous Conditional Generative Adversarial Networks for
    Image Generation", ICLR 2021, arXiv 2011.07466
vicinal_contrastive_loss: Khosla et al., "Supervised Contrastive Learning", NeurIPS 2020, arXiv 2004.11362, with the
    vicinity, samples with nearby labels, in place of its classes

A step of CRD: embed both features, draw the contrast, take the loss against the banks as they are, then update them, as
`gankd.methods.memory_bank` does. Samples that have no place in a bank (a live generator's) are contrasted inside their
batch or against a queue: the banks are then the detached embeddings of the batch, followed by those of earlier batches, and
the ids are places in them.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .checks import check_same_batch, check_same_shape, shapes
from .precision import full_precision

NCE_EPS = 1e-7


def nce_loss(
    *,
    probabilities: Tensor,  # [N, K + 1], P of the positive, then of K negatives
    n_data: int,  # the noise draws uniformly among so many samples
    eps: float = NCE_EPS,
) -> Tensor:
    """Noise-contrastive estimation: tell the positive from K draws of noise of density Pn = 1 / n_data.

    L = -1/N sum_n [ log( P_n0 / (P_n0 + K Pn + eps) ) + sum_{k >= 1} log( K Pn / (P_nk + K Pn + eps) ) ]

    A sum over the negatives and a mean over the batch. Raises ValueError when there is no negative.
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
    check_same_shape(student_embedding, teacher_embedding, "student and teacher embeddings")
    if student_bank.shape != teacher_bank.shape or student_bank.shape[1] != student_embedding.shape[1]:
        width = student_embedding.shape[1]
        raise ValueError(f"both banks need the shape [n_data, {width}], not {shapes(student_bank, teacher_bank)}")
    if len(contrast_indices) != len(student_embedding):
        raise ValueError(f"{len(contrast_indices)} rows of contrast ids for {len(student_embedding)} embeddings")
    student_side, z_student = _contrast(student_embedding, teacher_bank, contrast_indices, temperature, z_student)
    teacher_side, z_teacher = _contrast(teacher_embedding, student_bank, contrast_indices, temperature, z_teacher)
    return student_side + teacher_side, z_student, z_teacher


def vicinal_positives(
    *,
    labels: Tensor,  # [N]
    kappa: float,  # half-width of the vicinity, in the labels' units
) -> Tensor:
    """Which pairs of samples count as alike: pos_ij = |y_i - y_j| <= kappa.

    Not transitive, unlike "same class". Returns bool [N, N] with a true diagonal.
    Raises ValueError when the labels are not [N] or kappa is negative.
    """
    if labels.ndim != 1:
        raise ValueError(f"a vicinity needs one label per sample, [N], got {list(labels.shape)}")
    if kappa < 0:
        raise ValueError(f"the half-width kappa of a vicinity cannot be negative, got {kappa}")
    labels = full_precision(labels.detach())
    return (labels[:, None] - labels).abs() <= kappa


def vicinal_contrastive_loss(
    *,
    embeddings: Tensor,  # [N, D], rows of length 1
    labels: Tensor,  # [N]
    kappa: float,  # half-width of the vicinity, in the labels' units
    contrastive_temperature: float = 0.1,
) -> Tensor:
    """Samples with nearby labels are drawn together, all others pushed apart.

    l_ij = e_i . e_j / contrastive_temperature;  lp_i = log-softmax of l_i over j != i
    L = mean over the rows i with a positive j != i of -(mean of lp_ij over those j)

    A batch in which no row has a positive costs 0 and keeps its graph. Raises ValueError when embeddings and labels
    differ in number, the labels are not [N], kappa is negative or the temperature is not positive.
    """
    check_same_batch(embeddings, labels, "embeddings and labels")
    if contrastive_temperature <= 0:
        raise ValueError(f"the contrastive temperature must be positive, got {contrastive_temperature}")
    itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    positives = vicinal_positives(labels=labels, kappa=kappa) & ~itself
    with torch.autocast(embeddings.device.type, enabled=False):
        embeddings = full_precision(embeddings)
        similarities = embeddings @ embeddings.T / contrastive_temperature  # [N, N]
    # the lowest finite number: -infinity would send NaN through the gradient of a batch of one
    similarities = similarities.masked_fill(itself, torch.finfo(similarities.dtype).min)
    log_probabilities = F.log_softmax(similarities, dim=1)
    num_positives = positives.sum(1)  # [N]
    row_losses = -torch.where(positives, log_probabilities, 0).sum(1) / num_positives.clamp(min=1)  # [N]
    return row_losses.sum() / (num_positives > 0).sum().clamp(min=1)


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
        raise ValueError(f"give a positive and at least one negative a sample, [N, K + 1], not {list(contrast.shape)}")
    return contrast.shape[1] - 1
