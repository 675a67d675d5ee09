"""A generator's samples with its features of them on disk: what a live set of them (`data.live`) becomes."""

import shutil
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from gankd.data.live import BATCH, LiveSamples
from gankd.synthesis.store import read_tensors, write_missing, write_store

CHUNK = 1000


def write_feature_store(live: LiveSamples, directory: Path, *, accelerator: Accelerator, provenance: dict) -> None:
    """Write all samples to a store, each process its share of the chunks; those that are there already are kept."""
    chunks = torch.arange(len(live)).split(CHUNK)
    files = [directory / "chunks" / f"chunk-{number:05d}.safetensors" for number in range(len(chunks))]

    def draw(number: int) -> dict[str, Tensor]:
        drawn = [live.draw(indices) for indices in chunks[number].split(BATCH)]
        images, features = (torch.cat(parts).cpu() for parts in zip(*drawn, strict=True))
        return {"images": images, "labels": live.labels[chunks[number]], "generator_features": features}

    write_missing(files, draw, accelerator, title="generated samples")
    if accelerator.is_main_process:
        parts = [read_tensors(file) for file in files]
        joined = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        manifest = {**provenance, "feature_widths": live.feature_widths}
        write_store(directory, joined, shard_size=10_000, manifest=manifest)
        shutil.rmtree(directory / "chunks")
    accelerator.wait_for_everyone()
