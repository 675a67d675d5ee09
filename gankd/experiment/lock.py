"""One run at a time in a directory."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from accelerate import Accelerator

try:
    import fcntl
except ImportError:  # Windows, where two runs in one directory are not noticed
    fcntl = None


@contextlib.contextmanager
def locked(directory: Path, accelerator: Accelerator) -> Iterator[None]:
    """Hold a directory for this run, all of its processes; a killed run holds nothing.
    Raises ValueError: another run is at work there."""
    if not accelerator.is_main_process or fcntl is None:
        yield
        return
    directory.mkdir(parents=True, exist_ok=True)
    with open(directory / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"another run is at work in {directory}; wait for it, or choose another output or name."
            ) from None
        yield
