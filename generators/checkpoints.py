"""Files that are always whole: written to a temporary name and renamed; training state read without unpickling."""

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from generators.images import Images

# how torch.save and safetensors say that a write failed, whatever the reason; an OSError says it by its type
FULL_OR_FROZEN = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)
FAILED_WRITES = re.compile(r"PytorchStreamWriter|inline_container|unexpected pos|iostream|I/?O ?error", re.IGNORECASE)


@contextlib.contextmanager
def replace_whole(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; when the block ends, flush that file to disk and rename it to `path`.

    A block that fails leaves nothing behind, and `path` as it was. Who may read the file is what the umask says, also where
    the block's writer (safetensors) keeps it to its owner.
    Raises OSError: one sentence, when the file cannot be written.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with telling_failed_writes(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.unlink(missing_ok=True)
            temporary.touch()
            mode = temporary.stat().st_mode
            yield temporary
            temporary.chmod(mode)
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):  # the first failure is the one to tell
            temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def telling_failed_writes(path: Path) -> Iterator[None]:
    """Raise what keeps a block from writing `path` as an OSError of one sentence; other failures pass as they are."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if isinstance(error, FailedWrite) or not is_failed_write(error, path):
            raise
        raise FailedWrite(path, error) from error


def is_failed_write(error: Exception, path: Path) -> bool:
    """Whether an error says that a file at `path`, or a folder on the way there, cannot be written."""
    if not isinstance(error, OSError):
        return bool(FAILED_WRITES.search(str(error)))
    if error.filename is None or isinstance(error.filename, int):
        return error.errno in FULL_OR_FROZEN
    culprit = Path(error.filename)
    return culprit.is_relative_to(path.parent) or path.is_relative_to(culprit)


class FailedWrite(OSError):
    """A file that could not be written, why, and the way out, in one sentence."""

    def __init__(self, path: Path, error: Exception):
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        folder = next((parent for parent in path.absolute().parents if parent.is_dir()), Path("/"))
        if (free := shutil.disk_usage(folder).free) < 1 << 20:
            reason = f"no space left on the disk ({reason})"
        super().__init__(
            f"{path} could not be written: {reason} ({free >> 20:,} MiB are free there). Make room, or choose a directory "
            "that may be written, and start again; what was finished before is kept."
        )
        self.errno = getattr(error, "errno", None)


def read_json(path: Path) -> Any:
    """The value that a JSON file holds. Raises ValueError: the file is cut off or is no JSON."""
    try:
        return json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path} is cut off or no JSON; delete {path.parent} and run the same command again."
        ) from error


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write `state` (tensors, numbers, strings and containers of them) so that `path` is always whole."""
    with replace_whole(path) as temporary:
        torch.save(state, temporary)


def check_same_run(state: dict[str, Any], run: dict[str, Any], path: Path) -> None:
    """Raise a ValueError unless a checkpoint was written by the run that is described by `run` (flat, plain values)."""
    there = state["run"]
    differing = sorted(key for key in {*there, *run} if there.get(key) != run.get(key))
    if differing:
        key = differing[0]
        raise ValueError(
            f"{path} belongs to another run ({key}: {there.get(key)} there, {run.get(key)} here); delete it, or choose "
            "another directory."
        )


def images_fingerprint(values: Images) -> str:
    """A short hash of the contents of a tensor, or of what indexes like one, which is read in parts for it.

    Values that know their own, as `fingerprint`, are asked.
    """
    known = getattr(values, "fingerprint", None)
    if known is not None:
        return str(known() if callable(known) else known)
    content = hashlib.blake2b(str(tuple(values.shape)).encode(), digest_size=8)
    for part in torch.arange(values.shape[0]).split(1024):
        part = values[part.to(values.device) if isinstance(values, Tensor) else part].detach().cpu().reshape(-1)
        content.update(str(part.dtype).encode() + part.view(torch.uint8).numpy().tobytes())
    return content.hexdigest()


def all_finite(modules: Iterable[nn.Module]) -> bool:
    """Whether every weight and buffer is finite."""
    tensors = (tensor for module in modules for tensor in module.state_dict().values())
    return all(bool(tensor.isfinite().all()) for tensor in tensors if tensor.is_floating_point())


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read what `save_checkpoint` wrote, onto the CPU.
    Raises ValueError: the file is cut off, or holds objects other than tensors and plain values."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(
            f"{path} cannot be read as a checkpoint ({type(error).__name__}); delete it to train anew."
        ) from error
