"""Building blocks that the generator and discriminator networks share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def spectral_normalize(weight: Tensor, u: Tensor, eps: float = 1e-12) -> tuple[Tensor, Tensor, Tensor]:
    """Divide a weight by its largest singular value, estimated by one power iteration from u (the BigGAN rule).

    W = weight as [out, rest];  v = normalize(u W);  u' = normalize(v W^T);  sigma = v W^T u'^T

    weight: [out, ...]; u: [1, out], the left singular vector of the step before.
    Returns (weight / sigma, u' [1, out], sigma []). u' and v carry no gradient, sigma does. The iteration also runs
    at evaluation, from the stored u: torch's own spectral norm reuses its stored vectors there instead, so weights
    trained with one rule are not reproduced by the other.
    Source: Miyato et al., "Spectral Normalization for GANs", ICLR 2018, algorithm 1; Brock et al., ICLR 2019.
    """
    with torch.autocast(weight.device.type, enabled=False):
        matrix = weight.flatten(1)  # [out, rest]
        with torch.no_grad():
            v = F.normalize(u @ matrix, eps=eps)  # [1, rest]
            u = F.normalize(v @ matrix.T, eps=eps)  # [1, out]
        sigma = (v @ matrix.T @ u.T).squeeze()
        return weight / sigma, u, sigma
