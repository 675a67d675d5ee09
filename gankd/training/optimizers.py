"""The optimisers by name: ours, and those that a user's own file registers.

    @gankd.register("optimizer", "lion", learning_rate=3e-4, weight_decay=0.1)
    def lion(groups, learning_rate, *, betas: tuple[float, float] = (0.9, 0.99)) -> torch.optim.Optimizer: ...

The keyword arguments are the settings of `optimizer_options`; `groups` are parameter groups with their weight decay.
Rate and decay are for configurations that say none; with `batch_size` too, that rate grows in proportion to the batch.
"""

from typing import Annotated

import torch
from pydantic import Field
from torch import nn

from generators.registry import Registry
from generators.settings import Positive, Share

OPTIMIZERS = Registry("optimizer", learning_rate=3e-3, weight_decay=5e-2, batch_size=None)
Momentum = Annotated[float, Field(ge=0, lt=1, description="Share of the last update in the next.")]
Nesterov = Annotated[bool, Field(description="Whether the gradient is taken where the momentum leads.")]
Betas = Annotated[tuple[Share, Share], Field(description="Decay of the means of gradients and of their squares.")]
Epsilon = Annotated[Positive, Field(description="What keeps the denominator from zero.")]
Trust = Annotated[Positive, Field(description="Length of a step as a share of the weights' length.")]


@OPTIMIZERS.register("sgd", learning_rate=0.05, weight_decay=5e-4)  # Tian et al., CRD, 2020: what its table trains with
def sgd(groups: list[dict], learning_rate: float, *, momentum: Momentum = 0.9, nesterov: Nesterov = True):
    """Stochastic gradient descent; Nesterov's momentum unless there is none."""
    return torch.optim.SGD(groups, lr=learning_rate, momentum=momentum, nesterov=nesterov and momentum > 0)


@OPTIMIZERS.register("adamw")
def adamw(groups: list[dict], learning_rate: float, *, betas: Betas = (0.9, 0.999), eps: Epsilon = 1e-8):
    """Adam with decoupled weight decay."""
    return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, eps=eps, fused=True)


@OPTIMIZERS.register("lars", learning_rate=0.3, batch_size=256, weight_decay=1e-6)  # Chen et al., SimCLR, 2020
def lars(groups: list[dict], learning_rate: float, *, momentum: Momentum = 0.9, trust_coefficient: Trust = 1e-3):
    """Layer-wise adaptive rates, see `gankd.training.lars`."""
    from gankd.training.lars import LARS

    return LARS(groups, lr=learning_rate, momentum=momentum, trust_coefficient=trust_coefficient)


def build_optimizer(module: nn.Module, config) -> torch.optim.Optimizer:
    """The configured optimiser (a `TrainingConfig`) over the trainable parameters of a network or a distiller; without
    `decay_all`, vectors among them do not decay. Raises ValueError: all parameters are frozen."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if not parameters:
        raise ValueError("all parameters of the student are frozen; set requires_grad on those that should be trained.")
    special = module.parameter_groups() if hasattr(module, "parameter_groups") else []
    apart = {id(parameter) for group in special for parameter in group["params"]}
    common = [parameter for parameter in parameters if id(parameter) not in apart]
    groups = [part for group in ({"params": common}, *special) for part in by_decay(group, config)]
    for group in groups:
        group.setdefault("rate", 1.0)
    options = OPTIMIZERS.options(config.optimizer)
    settings = {"momentum": config.momentum} if "momentum" in options.model_fields else {}
    settings = options.of({**settings, **config.optimizer_options})
    values = {name: getattr(settings, name) for name in options.model_fields}
    return OPTIMIZERS.find(config.optimizer)(groups, config.peak_rate, **values)


def by_decay(group: dict, config) -> list[dict]:
    """A group with a weight decay of its own as it is; of another its matrices and kernels, and its vectors."""
    if "weight_decay" in group:
        return [group]
    decays = {True: config.weight_decay, False: config.weight_decay if config.decay_all else 0.0}
    return [
        {**group, "params": [each for each in group["params"] if (each.ndim > 1) == is_matrix], "weight_decay": decay}
        for is_matrix, decay in decays.items()
    ]
