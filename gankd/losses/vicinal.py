"""Contrast for scalar labels: samples with nearby labels take the part of samples of one class.

vicinal_positives: the hard vicinity of Ding et al., "CcGAN: Continuous Conditional Generative Adversarial Networks for
    Image Generation", ICLR 2021, arXiv 2011.07466
vicinal_contrastive_loss: Khosla et al., "Supervised Contrastive Learning", NeurIPS 2020, arXiv 2004.11362, with the
    vicinity for its classes
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .checks import check_same_batch
from .precision import full_precision


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
