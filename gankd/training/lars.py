"""LARS: SGD whose step is set for each layer by the norms of its weights and of its gradient.

You, Gitman, Ginsburg, "Large Batch Training of Convolutional Networks", 2017, arXiv 1708.03888.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor


class LARS(torch.optim.Optimizer):
    """Layer-wise adaptive rates. For the weights w of a layer and their gradient g,

        u = g + weight_decay * w
        m <- momentum * m + u * trust_coefficient * |w| / (|u| + eps)        (m = 0 before the first step)
        w <- w - lr * m

    with the norm of the decayed gradient, |g + weight_decay * w|, where the paper has |g| + weight_decay * |w|: as BYOL and
    VICReg train (Grill et al., 2020, arXiv 2006.07733; Bardes, Ponce, LeCun, 2022, arXiv 2105.04906). Where |w| or |u| is 0,
    and for vectors (biases, normalisation) always, the factor before u is 1: SGD with momentum.
    A group may replace every setting.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict],
        lr: float,
        *,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust_coefficient: float = 1e-3,
        eps: float = 1e-8,
    ):
        settings = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(params, {**settings, "trust_coefficient": trust_coefficient, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        with torch.enable_grad():
            loss = closure() if closure else None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                precise = torch.promote_types(parameter.dtype, torch.float32)
                weights = parameter.to(precise)
                update = parameter.grad.to(precise).add(weights, alpha=group["weight_decay"])
                if parameter.ndim > 1:
                    size, length = torch.linalg.vector_norm(weights), torch.linalg.vector_norm(update)
                    factor = group["trust_coefficient"] * size / (length + group["eps"])
                    update *= torch.where((size > 0) & (length > 0), factor, 1.0)
                state = self.state[parameter]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(update)
                state["momentum"].mul_(group["momentum"]).add_(update)
                parameter.sub_(state["momentum"] * group["lr"])
        return loss
