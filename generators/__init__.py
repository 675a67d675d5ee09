"""Conditional generative models: train one, load one, sample from it.

    import generators

    generator = generators.train(images, labels, num_classes=10)
    generator.sample(torch.tensor([3, 1, 4]))                      # [3, C, H, W] in [-1, 1]

This package knows nothing of distillation. Its names load on first use: importing it costs no more than torch.
"""

from __future__ import annotations

import importlib

_HOMES = {
    "ConditionalGenerator": "generators.interface",
    "GeneratorConfig": "generators.config",
    "GeneratorDiverged": "generators.monitor",
    "SNGANGenerator": "generators.networks.sngan",
    "load_generator": "generators.pretrained",
    "sample_grid": "generators.grids",
    "standing_statistics": "generators.statistics",
    "train": "generators.training",
    "wrap": "generators.wrapping",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module 'generators' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)
