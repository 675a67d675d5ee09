"""Stages on disk: what a directory was made from, whether it is finished, and what may be reused.

A stage's directory holds `stage.json` with the inputs that determine its content (settings, fingerprints of what it reads)
and, once it is finished, its results. A finished stage with the same inputs is skipped, a cut-off one is continued, and one
made from other inputs is never touched without being asked.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from gankd.data.live import LiveSamples
from gankd.data.sets import ImageSet
from gankd.models.teacher import Teacher
from generators.checkpoints import read_json, replace_whole

STAGE_FILE = "stage.json"


class Stage:
    """One directory of a run.

    Args:
        inputs: JSON values that determine what the stage makes.
        replace: remove what other inputs made there, instead of stopping.
    """

    def __init__(self, directory: Path, inputs: dict[str, Any], *, replace: bool = False):
        self.directory, self.replace = Path(directory), replace
        self.inputs = json.loads(json.dumps(inputs))  # tuples become lists, as they will be read back
        self.results: dict[str, Any] = {}

    @property
    def file(self) -> Path:
        return self.directory / STAGE_FILE

    @property
    def fingerprint(self) -> str:
        """Short hash of the inputs: what a later stage names as its own input."""
        return digest(json.dumps(self.inputs, sort_keys=True).encode())

    def state(self) -> str:
        """ "new", "cut off", "finished" or "other" (made from other inputs)."""
        if not self.file.exists():
            return "new"
        record = read_json(self.file)
        if record["inputs"] != self.inputs:
            return "other"
        return "finished" if record["finished"] else "cut off"

    def open(self, accelerator: Accelerator) -> bool:
        """Prepare the directory; True when the stage is finished and `results` holds what it left.

        Raises:
            ValueError: the directory was made from other inputs, and `replace` was not asked for.
        """
        state = self.state()
        if state == "finished":
            self.results = read_json(self.file)["results"]
        if state == "other" and not self.replace:
            there = read_json(self.file)["inputs"]
            raise ValueError(
                f"{self.directory} was made with other settings ({describe_difference(there, self.inputs)}): choose "
                "another output or name, or pass --replace to make this stage and what follows from it again."
            )
        if self.directory.exists() and not self.directory.is_dir():
            raise ValueError(f"{self.directory} is a file where a directory is needed; choose another output or name.")
        if (
            state == "new"
            and self.directory.exists()
            and any(not _is_leftover(path) for path in self.directory.iterdir())
        ):
            raise ValueError(f"{self.directory} is not empty and was not made by gankd; choose another output or name.")
        accelerator.wait_for_everyone()  # nobody writes before everybody has looked
        if state == "finished":
            return True
        if accelerator.is_main_process:
            if state == "other":
                self._remove()
            self._write(finished=False)
        accelerator.wait_for_everyone()
        return False

    def finish(self, accelerator: Accelerator, **results) -> None:
        """Mark the stage as finished, with its results (JSON values)."""
        self.results = results
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            self._write(finished=True)
            (self.directory / "checkpoint.pt").unlink(missing_ok=True)
        accelerator.wait_for_everyone()

    def _remove(self) -> None:
        """Remove the directory; renamed first, so that a removal that is cut off leaves no half of a stage behind."""
        doomed = self.directory.with_name(f".{self.directory.name}.replaced")
        shutil.rmtree(doomed, ignore_errors=True)
        self.directory.rename(doomed)
        shutil.rmtree(doomed)

    def _write(self, *, finished: bool) -> None:
        record = {"finished": finished, "inputs": self.inputs, "results": self.results}
        with replace_whole(self.file) as temporary:
            temporary.write_text(json.dumps(record, indent=2))


def _is_leftover(path: Path) -> bool:
    """What a write that was cut off leaves behind (see `replace_whole`)."""
    return path.name.startswith(".") and path.name.endswith(".tmp")


def describe_difference(there: Any, here: Any, path: str = "") -> str:
    """The first keys in which two nested values differ: "a.b: 1 there, 2 here"."""
    if isinstance(there, dict) and isinstance(here, dict):
        found = [
            describe_difference(there.get(key, "nothing"), here.get(key, "nothing"), f"{path}.{key}".lstrip("."))
            for key in sorted({*there, *here})
            if key not in there or key not in here or there[key] != here[key]
        ]
        return "; ".join(found[:3]) + ("; ..." if len(found) > 3 else "")
    return f"{path}: {json.dumps(there)} there, {json.dumps(here)} here"


def digest(data: bytes) -> str:
    """Twelve hexadecimal digits of SHA-256."""
    return hashlib.sha256(data).hexdigest()[:12]


def fingerprint(value: Tensor | ImageSet | Teacher | nn.Module) -> str:
    """A short hash of what a tensor, a data set, a teacher or a network is.

    Of a network, weights and buffers and the configuration that a generator carries; of a teacher, also how it reads images
    and what its outputs mean. Of images see `ImageSet.fingerprint`.
    """
    if isinstance(value, Tensor):
        data = value.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes()
        return digest(f"{value.dtype}{tuple(value.shape)}".encode() + data)
    if isinstance(value, ImageSet):
        images = value.images
        if isinstance(images, LiveSamples):
            generator = images.generator
            return digest(f"{fingerprint(generator)}{generator.feature_names}{images.seed}{images.shape}".encode())
        return value.fingerprint()
    if isinstance(value, Teacher):
        normalization = "".join(name + fingerprint(buffer) for name, buffer in value.normalize.named_buffers())
        return digest(f"{fingerprint(value.module)}{normalization}{value.feature_path}{value.task}".encode())
    config = {key: entry for key, entry in dict(getattr(value, "config", {})).items() if not key.startswith("_")}
    weights = "".join(name + fingerprint(tensor) for name, tensor in sorted(value.state_dict().items()))
    return digest((json.dumps(config, sort_keys=True, default=str) + weights).encode())
