"""Stages on disk: what a directory was made from, whether it is finished, and what may be reused.

A stage's directory holds `stage.json` with the inputs that determine its content (settings, fingerprints of whatever it
reads) and, once it is finished, its results and the SHA-256 of its files. A finished stage with the same inputs is skipped,
a cut-off one is continued, and one made from other inputs is never touched without being asked.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gankd.fingerprints import digest, file_hash
from generators.checkpoints import read_json, replace_whole

if TYPE_CHECKING:
    from accelerate import Accelerator

STAGE_FILE = "stage.json"
FORMAT = 2
"""Since 2 the inputs hold the whole task, the normalisation and the contents of everything that is read."""
PENDING = "not made yet"
"""In the place of an input's fingerprint that an earlier stage has still to make: equal to any."""


class StageDirectory:
    """One directory of a run.

    inputs: JSON values that determine what the stage makes.
    replace: remove what other inputs made there, instead of stopping. None: nor is it offered, as in the library.
    """

    def __init__(self, directory: Path, inputs: dict[str, Any], *, replace: bool | None = False):
        self.directory, self.replace = Path(directory), replace
        self.inputs = json.loads(json.dumps(inputs))  # tuples become lists, as they will be read back
        self.results: dict[str, Any] = {}

    @property
    def file(self) -> Path:
        return self.directory / STAGE_FILE

    @property
    def _doomed(self) -> Path:
        return self.directory.with_name(f".{self.directory.name}.replaced")

    @property
    def content(self) -> str:
        """What a later stage names as its own input: a hash of the files that were made, PENDING before."""
        if self.state() != "finished":
            return PENDING
        return digest(json.dumps(self._record()["files"], sort_keys=True).encode())

    def state(self) -> str:
        """ "new", "cut off", "finished", "other" (made from other inputs) or "old" (made by an earlier gankd)."""
        record = self._record()
        if record is None or (not record["finished"] and not self._others()):  # nothing was made yet: nothing is lost
            return "new" if record is None or record.get("inputs") != self.inputs else "cut off"
        if record.get("format") != FORMAT:
            return "old"
        if not _same(record["inputs"], self.inputs):
            return "other"
        return "finished" if record["finished"] else "cut off"

    def refusal(self) -> str | None:
        """The sentence with which `begin` would refuse, None when it would not. Touches nothing."""
        if self.directory.exists() and not self.directory.is_dir():
            return f"{self.directory} is a file where a directory is needed; choose another output or name."
        state, elsewhere = self.state(), "choose another output or name, or pass --replace to make this stage and what "
        elsewhere += "follows from it again."
        if self.replace is None:
            elsewhere = "choose another directory, or delete this one."
        if state == "other" and not self.replace:
            difference = describe_difference(self._record()["inputs"], self.inputs)
            return f"{self.directory} was made with other settings ({difference}): {elsewhere}"
        if state == "old" and not self.replace:
            return (
                f"{self.directory} was made by an earlier gankd, whose {STAGE_FILE} does not hold the whole task, the "
                f"normalisation and the contents of all that a stage reads: {elsewhere}"
            )
        if self._record() is None and self._others():
            return f"{self.directory} is not empty and was not made by gankd; choose another output or name."
        if state == "finished":
            return self._damage()
        return None

    def begin(self, accelerator: Accelerator) -> bool:
        """Prepare the directory; True when the stage is finished and `results` holds what it left.

        Raises ValueError: the directory was made from other inputs and `replace` was not asked for, belongs to somebody
        else, or its files are no longer those that were written.
        """
        if sentence := self.refusal():
            raise ValueError(sentence)
        state = self.state()
        if state == "finished":
            self.results = self._record()["results"]
        accelerator.wait_for_everyone()  # nobody writes before everybody has looked
        if state == "finished":
            return True
        if accelerator.is_main_process:
            shutil.rmtree(self._doomed, ignore_errors=True)  # of a removal that was cut off
            if state in ("other", "old"):
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

    @contextlib.contextmanager
    def once(self, accelerator: Accelerator) -> Iterator[dict[str, Any] | None]:
        """Begin, time and finish: yields a dictionary for the results of the work, or None when it was done before.

        with directory.once(accelerator) as results:
            if results is not None:
                results |= make()
        """
        if self.begin(accelerator):
            yield None
            return
        started, results = time.perf_counter(), {}
        yield results
        self.finish(accelerator, **results, seconds=time.perf_counter() - started)

    def _record(self) -> dict[str, Any] | None:
        """What stage.json holds, None where there is none."""
        if not self.file.is_file():
            return None
        record = read_json(self.file)
        if not isinstance(record, dict) or not {"finished", "inputs", "results"} <= set(record):
            raise ValueError(
                f"{self.file} is no record of a stage; delete {self.directory} and run the same command again."
            )
        return record

    def _others(self) -> bool:
        """Whether the directory holds anything besides its record."""
        if not self.directory.is_dir():
            return False
        return any(path.name != STAGE_FILE and not _is_leftover(path) for path in self.directory.iterdir())

    def _damage(self) -> str | None:
        for name, known in self._record()["files"].items():
            path = self.directory / name
            found = file_hash(path)
            if found != known:
                what = (
                    "not the file that was written, or cut off" if found else "missing, though this stage was finished"
                )
                return f"{path} is {what}; delete {self.directory} and run the same command again."
        return None

    def _made(self) -> dict[str, str]:
        """The files that later stages read, with their hashes; the store's manifest vouches for its shards."""
        files = (path for pattern in ("*.safetensors", "*.json") for path in sorted(self.directory.glob(pattern)))
        return {
            path.name: file_hash(path)
            for path in files
            if path.name != STAGE_FILE and not path.name.startswith(("shard-", "."))
        }

    def _remove(self) -> None:
        """Remove the directory; renamed first, so that a removal that is cut off leaves no half of a stage behind."""
        self.directory.rename(self._doomed)
        shutil.rmtree(self._doomed)

    def _write(self, *, finished: bool) -> None:
        record = {"format": FORMAT, "finished": finished, "inputs": self.inputs, "results": self.results}
        if finished:
            record["files"] = self._made()
        with replace_whole(self.file) as temporary:
            temporary.write_text(json.dumps(record, indent=2))


def _is_leftover(path: Path) -> bool:
    """What a write that was cut off leaves behind (see `replace_whole`)."""
    return path.name.startswith(".") and path.name.endswith(".tmp")


def _same(there: Any, here: Any) -> bool:
    """Whether inputs are equal, as far as they are known; what a stage did not find there, it has made itself."""
    if isinstance(there, dict) and isinstance(here, dict):
        return set(there) == set(here) and all(_same(there[key], here[key]) for key in here)
    return PENDING in (here, there) or there == here


def describe_difference(there: Any, here: Any, path: str = "") -> str:
    """The first keys in which two nested values differ: "a.b: 1 there, 2 here"."""
    if isinstance(there, dict) and isinstance(here, dict):
        found = [
            describe_difference(there.get(key, "nothing"), here.get(key, "nothing"), f"{path}.{key}".lstrip("."))
            for key in sorted({*there, *here})
            if key not in there or key not in here or not _same(there[key], here[key])
        ]
        return "; ".join(found[:3]) + ("; ..." if len(found) > 3 else "")
    return f"{path}: {json.dumps(there)} there, {json.dumps(here)} here"
