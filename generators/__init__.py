"""Conditional generative models: train one, load one, sample from it.

    import generators

    generator = generators.train(images, labels, num_classes=10)
    generator.sample(torch.tensor([3, 1, 4]))                      # [3, C, H, W] in [-1, 1]

This package knows nothing of distillation. Its names load on first use: importing it costs no more than torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for editors and type checkers; at run time see __getattr__
    from generators.checks import check_generator as check_generator
    from generators.config import GeneratorConfig as GeneratorConfig
    from generators.grids import sample_grid as sample_grid
    from generators.interface import ConditionalGenerator as ConditionalGenerator
    from generators.model import GeneratorModel as GeneratorModel
    from generators.monitor import GeneratorDiverged as GeneratorDiverged
    from generators.networks import NETWORKS as NETWORKS
    from generators.networks.sngan import SNGANGenerator as SNGANGenerator
    from generators.pretrained import load_generator as load_generator
    from generators.recipes import suited_config as suited_config
    from generators.statistics import standing_statistics as standing_statistics
    from generators.training import train as train
    from generators.wrapping import wrap as wrap

_HOMES = {
    "NETWORKS": "networks",
    "ConditionalGenerator": "interface",
    "GeneratorConfig": "config",
    "GeneratorDiverged": "monitor",
    "GeneratorModel": "model",
    "SNGANGenerator": "networks.sngan",
    "check_generator": "checks",
    "load_generator": "pretrained",
    "sample_grid": "grids",
    "standing_statistics": "statistics",
    "suited_config": "recipes",
    "train": "training",
    "wrap": "wrapping",
}
__all__ = list(_HOMES)


def _load(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'generators' has no attribute '{name}'")
    return getattr(importlib.import_module(f"generators.{_HOMES[name]}"), name)


if not TYPE_CHECKING:  # to whom every name would be one
    __getattr__ = _load


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
