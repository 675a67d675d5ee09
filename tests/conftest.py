"""A whole experiment, small enough to run in seconds; and how a user would start it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

ROOT = Path(__file__).parent.parent
torch.set_num_threads(1)  # the tests' networks are too small for two threads, which only spin beside another process


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


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "TOKENIZERS_PARALLELISM": "false"}


def start(*arguments: str, launcher: tuple[str, ...] = ()) -> subprocess.Popen:
    """Start a command of scripts/ as a user would."""
    command = [sys.executable, *launcher, *map(str, arguments)]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # tests in the background of a shell ignore it
    )


def run(*arguments: str, launcher: tuple[str, ...] = (), status: int = 0) -> str:
    """Run a command of scripts/ to its end and return what it printed."""
    process = start(*arguments, launcher=launcher)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == status, output
    return output
