"""Where a number comes from: commit, configuration, versions, machine, processes."""

import itertools
import json
import platform
import subprocess
from pathlib import Path

import torch
from accelerate import Accelerator

from gankd.fingerprints import digest


def commit() -> str:
    """The short commit of the code (with `+` when it was changed since), or "unknown" outside a repository."""
    here = Path(__file__).parent
    try:
        found = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=here, capture_output=True, text=True, check=True
        )
        changed = subprocess.run(
            ["git", "status", "--porcelain", "-uno"], cwd=here, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found.stdout.strip() + ("+" if changed.stdout.strip() else "")


def config_hash(config) -> str:
    """Short hash of a resolved configuration."""
    return digest(json.dumps(config.model_dump(mode="json"), sort_keys=True).encode())


def versions() -> dict[str, str]:
    """What the numbers were computed with."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    return {"python": platform.python_version(), "torch": torch.__version__, "device": device, "commit": commit()}


def requested_processes() -> int | None:
    """The --num_processes of the `accelerate launch` that started this process, or None.

    With `--cpu` that flag is ignored without a word, which is worth a warning.
    """
    import psutil

    try:
        words = psutil.Process().parent().cmdline()
    except (psutil.Error, AttributeError):
        return None
    for flag, value in itertools.pairwise(words):
        if flag in ("--num_processes", "--num-processes") and value.isdigit():
            return int(value)
    return None


def describe_processes(accelerator: Accelerator, wanted: int | None) -> str:
    """One line on device, processes and precision; with a warning when it is not the number that was asked for."""
    started, wanted = accelerator.num_processes, wanted or requested_processes()
    processes = f"{started} process{'es' if started > 1 else ''}"
    line = f"{accelerator.device.type}, {processes}, mixed precision {accelerator.mixed_precision}"
    if wanted and wanted != started:
        line += (
            f"\n  [yellow]warning: {wanted} processes were asked for, {started} started; on the CPU use "
            f"ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes {wanted} SCRIPT[/yellow]"
        )
    return line
