"""M1 of cGAN-KD: the conditional density ratio r(x|y) = p_real(x|y) / p_generated(x|y) in a feature space.

Source: Ding et al., "Efficient Subsampling of Realistic Images From GANs Conditional on a Class or a Continuous Variable",
arXiv 2103.11166 (cDR-RS).
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gankd.synthesis.config import SubsamplingConfig


def density_ratio_loss(
    *, real_ratios: Tensor, fake_ratios: Tensor, penalty_weight: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Conditional softplus loss of ratios r_r (real) and r_g (generated), [N, 1] or [N]; the batches may differ in size.

        mean[sigmoid(r_g) r_g - softplus(r_g)] - mean[sigmoid(r_r)]  +  penalty_weight (mean[r_g] - 1)^2

    Stationary, point by point, at r = p_real / p_generated; the penalty pins the mean that a ratio must have.
    Returns (total, softplus part, weighted penalty).
    """
    real_ratios, fake_ratios = real_ratios.float(), fake_ratios.float()
    divergence = (fake_ratios.sigmoid() * fake_ratios - F.softplus(fake_ratios)).mean() - real_ratios.sigmoid().mean()
    penalty = penalty_weight * (fake_ratios.mean() - 1).square()
    return divergence + penalty, divergence, penalty


class DensityRatio(nn.Module):
    """phi(label code, features) >= 0: per hidden width Linear, GroupNorm, ReLU, dropout; then Linear to 1, ReLU.

    code_dim: length of the label code; 0 classes means that the caller gives the code itself.
    num_classes: a learned table of codes for class ids, or None when labels come as codes.
    """

    def __init__(
        self,
        feature_dim: int,
        code_dim: int,
        widths: Sequence[int],
        *,
        num_classes: int | None = None,
        dropout: float = 0.5,
        num_groups: int = 8,
    ):
        super().__init__()
        self.code = nn.Identity() if num_classes is None else nn.Embedding(num_classes, code_dim)
        layers, width = [], code_dim + feature_dim
        for hidden in widths:
            layers += [nn.Linear(width, hidden), nn.GroupNorm(num_groups, hidden), nn.ReLU(), nn.Dropout(dropout)]
            width = hidden
        last = nn.Linear(width, 1)
        nn.init.ones_(last.bias)  # the ratio of equal distributions: the last ReLU is not born dead
        self.layers = nn.Sequential(*layers, last, nn.ReLU())

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        """Ratios [N] for features [N, D] and class ids [N] (or codes [N, E])."""
        return self.layers(torch.cat([self.code(labels), features], dim=1)).squeeze(1)


def train_density_ratio(
    ratio: DensityRatio,
    config: SubsamplingConfig,
    *,
    real_features: Tensor,
    real_labels: Tensor,
    frequencies: Tensor | None = None,
    fake_features: Callable[[Tensor], Tensor],
    encode: Callable[[Tensor], Tensor],
    log: Callable[[dict], None] = lambda values: None,
) -> DensityRatio:
    """Train `ratio` in place and return it in eval mode; every step pairs real samples with fakes of the same labels.

    real_features: [N, D], real_labels: [N], class ids or scalars in the user's units.
    frequencies: how often a real sample is drawn, [N], up to a factor; None: all as often.
    fake_features: labels [B] -> features [B, D] of fresh generated images.
    encode: labels [B] -> what `ratio` takes as its second argument.
    Raises ValueError: the ratio has died (0 for every generated image), so that nothing could be accepted.
    """
    device = real_features.device
    optimizer = torch.optim.Adam(ratio.parameters(), lr=config.learning_rate, betas=(0.5, 0.999), weight_decay=1e-4)
    milestones = [int(config.steps * 0.4), int(config.steps * 0.75)]
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones)
    ratio.train()
    for step in range(config.steps):
        if frequencies is None:
            indices = torch.randint(len(real_labels), (config.batch_size,), device=device)
        else:
            indices = torch.multinomial(frequencies, config.batch_size, replacement=True)
        labels = real_labels[indices]
        codes = encode(labels)
        real_ratios = ratio(real_features[indices], codes)
        fake_ratios = ratio(fake_features(labels), codes)
        ratios = {"real_ratios": real_ratios, "fake_ratios": fake_ratios}
        loss, divergence, penalty = density_ratio_loss(**ratios, penalty_weight=config.penalty)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        if (step + 1) % 100 == 0 or step + 1 == config.steps:
            values = {"loss": divergence, "penalty": penalty, "real_ratio": real_ratios, "fake_ratio": fake_ratios}
            means = {name: value.mean().item() for name, value in values.items()}
            log({"stage": "density_ratio", "step": step + 1, **means})
    if not fake_ratios.detach().max() > 0:
        raise ValueError(
            "the density ratio is 0 for every generated image: lower synthesis.subsample.learning_rate, raise "
            "synthesis.subsample.penalty, or set synthesis.subsample.enabled=false."
        )
    return ratio.eval()
