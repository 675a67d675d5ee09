"""A whole experiment, small enough to run in seconds; commands.py is how a user would start it."""

import gc
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

from tests.commands import ROOT, environment, run, start

__all__ = ["ROOT", "environment", "run", "start"]
torch.set_num_threads(1)  # the tests' networks are too small for two threads, which only spin beside another process
if not torch.cuda.is_available():  # `manual_seed` writes down the call stack thrice, for the errors of devices to come
    for device in (torch.cuda, torch.xpu, torch.mtia):
        device.traceback = SimpleNamespace(format_stack=list)


def pytest_collection_finish() -> None:
    """A garbage collection need not visit what was imported, a million objects, which stay."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def tiny(tmp_path) -> dict:
    """An experiment on 8-pixel digits: every stage, a few steps each."""
    network = {"name": "small_resnet", "options": {"widths": [8, 8]}}
    training = {"batch_size": 16, "learning_rate": 0.01, "log_every": 5, "checkpoint_every": 5}
    return {
        "name": "tiny",
        "output": str(tmp_path / "runs"),
        "data": {"name": "digits", "image_size": 8, "labelled": 40, "validation": 60},
        "teacher": {"model": network, "steps": 20, **training},
        "generator": {
            "widths": [8, 8],
            "discriminator_widths": [8],
            "latent_dim": 8,
            "label_dim": 8,
            "steps": 20,
            "batch_size": 16,
            "log_every": 5,
            "checkpoint_every": 5,
        },
        "synthesis": {
            "num_samples": 60,
            "chunk_size": 40,
            "shard_size": 25,
            "max_candidates": 4000,
            "rho": 0.8,
            "force": True,  # 20 steps make no generator that shows its labels
            "subsample": {
                "widths": [32],
                "dropout": 0,
                "steps": 150,
                "learning_rate": 0.001,
                "batch_size": 32,
                "burn_in": 20,
            },
        },
        "student": {"model": network, "steps": 10, "seeds": [0, 1], **training},
    }


@pytest.fixture
def tiny_regression(tiny) -> dict:
    """The same on rotated digits."""
    tiny["data"]["name"] = "rotated_digits"
    tiny["task"] = {"kind": "regression", "label_min": -60, "label_max": 60, "unit": "degrees"}
    tiny["generator"] |= {"sigma": 3, "kappa": 6}
    tiny["synthesis"]["subsample"] |= {"label_bins": 2, "burn_in": 40}
    return tiny


@pytest.fixture
def write_config(tmp_path):
    """A function that writes an experiment to a YAML file and returns its path."""

    def write(values: dict, name: str = "experiment.yaml") -> Path:
        path = tmp_path / name
        path.write_text(yaml.safe_dump(values))
        return path

    return write
