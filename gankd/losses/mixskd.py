"""MixSKD: what a network says about a mixed image equals the mixture of what it says about the images.

Yang, An, Zhou, Cai, Zhi, Wu, Xu, Zhang, "MixSKD: Self-Knowledge Distillation from Mixup for Image Recognition",
ECCV 2022, arXiv 2208.05768
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .checks import shapes
from .classes import CLASSES, Equations
from .mixing import mixup_batch
from .precision import full_precision


def mixskd_loss(
    *,
    logits: Sequence[Tensor],  # B stages, the backbone last, each [2 N, K]: N images, then their N mixtures
    features: Sequence[Tensor],  # B stages, the maps [2 N, C_b, H_b, W_b] before pooling
    interpolated_teacher_logits: Tensor,  # [N, K], the self-teacher's on interpolated maps
    mixup_teacher_logits: Tensor,  # [N, K], the self-teacher's on the maps of the mixtures
    labels: Tensor,  # [N], class ids
    permutation: Tensor,  # [N], the partner of each image
    mixing: float,  # share of the image itself, one for the batch
    temperature: float = 3.0,
    task: Equations = CLASSES,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The four terms of MixSKD that need no discriminator.

    For any output o: I(o) = mixing o_n + (1 - mixing) o_perm(n) over the images, M(o) = o on the mixtures.
    z_b logits and F_b maps of stage b, h_I and h_M the self-teacher's logits, KL(s, t) the divergence of the
    task with a detached t, CE and mixup CE its losses:
      clean CE     sum_b CE(z_b, y)
      mixup CE     sum_b mixup_CE(M(z_b)) + mixup_CE(h_I) + mixup_CE(h_M)
      KL           sum_{b<B} [ KL(I(z_b), M(z_b)) + KL(M(z_b), I(z_b)) ] + KL(I(z_B), h_M) + KL(M(z_B), h_I)
      feature MSE  sum_b mean (I(F_b) - M(F_b))^2, gradients into both

    The self-teacher learns from its mixup CE alone. The authors' CIFAR script leaves the mixup CE out of what it
    minimises, which leaves the self-teacher at its initial weights; here it is in, as in their ImageNet script. Returns
    (total, clean CE, mixup CE, KL, feature MSE), scalars; the total is the plain sum.
    """
    num_samples = len(labels)
    if not logits or len(logits) != len(features):
        raise ValueError(f"every stage has logits and a feature map: {len(logits)} and {len(features)} were given")
    for output in [*logits, *features]:
        if len(output) != 2 * num_samples:
            raise ValueError(
                f"an output {list(output.shape)} does not hold the {num_samples} images and their {num_samples} mixtures"
            )

    def divergence(outputs: Tensor, targets: Tensor) -> Tensor:
        return task.divergence(outputs, targets.detach(), temperature=temperature)

    halves = [full_precision(stage).chunk(2) for stage in logits]  # B of ([N, K], [N, K])
    clean_ce = sum(task.loss(clean, labels) for clean, _ in halves)
    mixed = (*(mixture for _, mixture in halves), interpolated_teacher_logits, mixup_teacher_logits)
    mixup_ce = sum(task.mixed_loss(output, labels, permutation, mixing) for output in mixed)

    *branches, backbone = [interpolation_and_mixture(stage, permutation, mixing) for stage in logits]
    # crosswise: the backbone never meets the self-teacher's view of its own input
    kl = divergence(backbone[0], mixup_teacher_logits) + divergence(backbone[1], interpolated_teacher_logits)
    for interpolation, mixture in branches:
        kl = kl + divergence(interpolation, mixture) + divergence(mixture, interpolation)

    pairs = [interpolation_and_mixture(stage, permutation, mixing) for stage in features]
    feature_mse = sum((interpolation - mixture).square().mean() for interpolation, mixture in pairs)
    return clean_ce + mixup_ce + kl + feature_mse, clean_ce, mixup_ce, kl, feature_mse


def interpolation_and_mixture(output: Tensor, permutation: Tensor, mixing: float) -> tuple[Tensor, Tensor]:
    """I(o) and M(o) of an output on N images and their N mixtures: [2 N, ...] to [N, ...] each, in full precision."""
    clean, mixture = full_precision(output).chunk(2)
    return mixup_batch(images=clean, permutation=permutation, mixing=mixing), mixture


def mixskd_discriminator_loss(
    *,
    interpolated_scores: Sequence[Tensor],  # a stage each, [N, 2], on interpolated maps
    mixup_scores: Sequence[Tensor],  # a stage each, [N, 2], on the maps of the mixtures
) -> Tensor:
    """How badly the discriminators tell interpolated maps, [1, 0], from maps of mixtures, [0, 1].

    L = sum over stages of the mean binary cross-entropy over 2 N x 2 scores

    The discriminators minimise it and the network maximises it, by a reversed gradient or an optimiser each. Gradients
    flow into both arguments.
    """
    if not interpolated_scores or len(interpolated_scores) != len(mixup_scores):
        found = f"{len(interpolated_scores)} interpolated and {len(mixup_scores)} mixup ones were given"
        raise ValueError(f"every stage has both kinds of scores: {found}")
    losses = []
    for interpolated, mixup in zip(interpolated_scores, mixup_scores, strict=True):
        if interpolated.shape != mixup.shape or interpolated.shape[1:] != (2,):
            raise ValueError(f"scores {shapes(interpolated, mixup)} must both be [N, 2]")
        scores = full_precision(torch.cat([interpolated, mixup]))  # [2 N, 2]
        targets = torch.eye(2, dtype=scores.dtype, device=scores.device).repeat_interleave(len(mixup), dim=0)
        losses.append(F.binary_cross_entropy_with_logits(scores, targets))
    return sum(losses)
