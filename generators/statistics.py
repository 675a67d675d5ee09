"""Batch norm statistics that belong to the weights: averages over fresh batches instead of a memory of the training."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from generators.interface import ConditionalGenerator
from generators.randomness import seeded


def standing_statistics(generator: ConditionalGenerator, labels: Tensor, *, seed: int = 0, **settings) -> None:
    """Give a loaded generator the statistics of its own samples, in place; it is left in eval mode.

    labels: in the user's units [N]; batches draw theirs from them. settings: those of `recalibrate_batch_norm`.
    Raises ValueError for labels that the generator does not know.
    Source: Brock, Donahue, Simonyan, "Large Scale GAN Training", ICLR 2019, appendix D ("standing statistics").
    """
    y = generator.condition(labels).cpu()
    draw = lambda size, random: y[torch.randint(len(y), (size,), generator=random)]  # noqa: E731
    recalibrate_batch_norm(generator, draw, seed=seed, **settings)


@torch.no_grad()
def recalibrate_batch_norm(
    generator: ConditionalGenerator,
    draw_labels: Callable[[int, torch.Generator], Tensor],
    *,
    seed: int,
    batch_size: int = 64,
    num_batches: int = 40,
) -> None:
    """Recompute the running statistics as plain averages over fresh batches: they must belong to the averaged weights.

    draw_labels(size, random): labels [size] as the generator's forward takes them. The generator is left in eval mode.
    """
    norms = [module for module in generator.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a cumulative average
    generator.train()
    if norms:
        random = seeded(seed, "batch norm")
        for _ in range(num_batches):
            z = generator.draw_latents(batch_size, generator=random)
            generator(z, draw_labels(batch_size, random).to(z.device))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    generator.eval()
