"""Trained generators from disk."""

from __future__ import annotations

import json
from pathlib import Path

from generators.interface import ConditionalGenerator
from generators.networks.sngan import SNGANGenerator

ARCHITECTURES: dict[str, type[ConditionalGenerator]] = {"SNGANGenerator": SNGANGenerator}


def load_generator(path: str | Path, *, device: str = "cpu") -> ConditionalGenerator:
    """A generator saved by `save_pretrained`: averaged weights, eval mode, ready to sample.

    Raises:
        ValueError: no such folder, one without a generator, or one of an architecture that is not known here.
    """
    path = Path(path)
    config = path / ConditionalGenerator.config_name
    if not config.exists():
        raise ValueError(f"{path} holds no generator (no {config.name}); give a folder written by save_pretrained.")
    architecture = json.loads(config.read_text()).get("_class_name")
    if architecture not in ARCHITECTURES:
        raise ValueError(f"{config} names the architecture '{architecture}'; known: {', '.join(ARCHITECTURES)}.")
    generator = ARCHITECTURES[architecture].from_pretrained(path, low_cpu_mem_usage=False)
    return generator.to(device).eval().requires_grad_(False)
