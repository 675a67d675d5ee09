"""The synthetic store: safetensors shards and a manifest that says where every sample came from.

synthetic/
    shard-00000.safetensors ...     images, labels, generator_labels, teacher_outputs, errors, ratios, candidates; of a set
                                    for methods that learn from the generator's features: images, labels, these features
    scores.safetensors              what was known of every candidate, kept or not (for the report)
    examples.safetensors            a few kept and rejected images a label
    manifest.json                   counts, thresholds, acceptance, scores, provenance, SHA-256 of every shard
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from gankd.data.sets import ImageSet
from generators.checkpoints import read_json, replace_whole
from generators.progress import Progress

MANIFEST = "manifest.json"


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write a safetensors file so that `path` is always whole."""
    with replace_whole(path) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary)


def read_tensors(path: Path, *, without: str | None = None) -> dict[str, Tensor]:
    """Read a safetensors file, all of it or all but one tensor. Raises ValueError: the file is missing or cut off."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys() if name != without}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ValueError(
            f"{path} is missing or cut off; delete {path.parent} and run the same command again."
        ) from error


def write_missing(
    files: list[Path], make: Callable[[int], dict[str, Tensor]], accelerator: Accelerator, *, title: str
) -> None:
    """Have all the files: those that are missing are made by their number, each process its share of them."""
    mine = range(accelerator.process_index, len(files), accelerator.num_processes)
    missing = [number for number in mine if not files[number].exists()]
    for number in Progress(missing, title=title, unit="chunk", every=10, shown=accelerator.is_main_process):
        write_tensors(files[number], make(number))
    accelerator.wait_for_everyone()


def write_store(directory: Path, samples: dict[str, Tensor], *, shard_size: int, manifest: dict) -> None:
    """Write `samples` (tensors with one row a sample) in shards, then the manifest, which marks the store as whole."""
    num_samples = len(samples["labels"])
    shards = []
    for number, start in enumerate(range(0, num_samples, shard_size)):
        path = directory / f"shard-{number:05d}.safetensors"
        # a clone, because the bytes of a slice's whole storage would be written otherwise
        write_tensors(path, {name: rows[start : start + shard_size].clone() for name, rows in samples.items()})
        count, digest = min(shard_size, num_samples - start), hashlib.sha256(path.read_bytes()).hexdigest()
        shards.append({"file": path.name, "num_samples": count, "sha256": digest})
    with replace_whole(directory / MANIFEST) as temporary:
        temporary.write_text(json.dumps({**manifest, "num_samples": num_samples, "shards": shards}, indent=2))


def read_manifest(directory: str | Path) -> dict:
    """The manifest of a finished store.
    Raises ValueError: there is none, it is damaged, or it lists other shards than lie beside it."""
    directory = Path(directory)
    path = directory / MANIFEST
    again = f"delete {directory} and run the same command again"
    if not path.exists():
        way = again if directory.exists() else "run the synthesis first"
        raise ValueError(f"{directory} holds no finished synthetic store (no {MANIFEST}); {way}.")
    manifest = read_json(path)
    try:
        listed = {shard["file"]: (shard["num_samples"], shard["sha256"]) for shard in manifest["shards"]}
        whole = bool(listed) and sum(count for count, _ in listed.values()) == manifest["num_samples"]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged; {again}.") from error
    if not whole or {file.name for file in directory.glob("shard-*.safetensors")} - listed.keys():
        raise ValueError(f"{path} does not list the shards that were written; {again}.")
    return manifest


def load_store(directory: str | Path) -> ImageSet:
    """The samples of a store as an `ImageSet`, with the teacher's outputs beside the labels.
    Raises ValueError: no finished store, or a shard that is missing, cut off, or not the one that was written."""
    directory, manifest = Path(directory), read_manifest(directory)
    shards = []
    for shard in manifest["shards"]:
        path = directory / shard["file"]
        tensors = read_tensors(path)
        if hashlib.sha256(path.read_bytes()).hexdigest() != shard["sha256"]:
            raise ValueError(
                f"{path} is not the file that the manifest describes; delete {directory} and run the same command again."
            )
        shards.append(tensors)
    columns = [name for name in ("images", "labels", "teacher_outputs", "generator_features") if name in shards[0]]
    joined = {name: torch.cat([shard[name] for shard in shards]) for name in columns}
    names, widths = manifest.get("class_names"), tuple(manifest.get("feature_widths", ()))
    facts = {"class_names": tuple(names) if names else None, "feature_widths": widths, "name": str(directory)}
    return ImageSet(**joined, **facts, is_synthetic=True)
