"""Two alternatives, timed in turn; see scripts/benchmark.py for why."""

import dataclasses
import math
import platform
import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

from gankd.experiment import provenance

NUM_IMAGES, NUM_CLASSES, LABEL_RANGE = 10_000, 10, (0.0, 90.0)
LEAST_SECONDS = 0.1  # of a turn: below, one would measure the scheduler


@dataclasses.dataclass(frozen=True)
class Measurement:
    """Two alternatives, timed in turn; the ratio is that of the first to the second."""

    subject: str
    """A network or a method."""
    target: str
    """Where the ratio should be."""
    seconds: dict[str, list[float]]
    """Of one call of either alternative, a number a round."""
    images: int
    """Images that a call makes or trains on."""
    peak_memory: int
    """Bytes: on CUDA allocated by both alternatives, on the CPU resident since the process began."""

    @property
    def quartiles(self) -> tuple[float, float, float]:
        """Of the rounds' ratios; the middle one is the median."""
        ratios = [first / second for first, second in zip(*self.seconds.values(), strict=True)]
        return tuple(statistics.quantiles(ratios, n=4, method="inclusive"))

    def __str__(self) -> str:
        lower, median, upper = self.quartiles
        rates = [f"{self.images / statistics.median(seconds):,.0f}" for seconds in self.seconds.values()]
        return (
            f"{self.subject:27} {' / '.join(self.seconds):21} {median:6.3f} [{lower:.3f}, {upper:.3f}], want {self.target}; "
            f"{' and '.join(rates)} images/s, peak {self.peak_memory / 2**20:,.0f} MiB"
        )


def interleaved(
    alternatives: dict[str, Callable[[], object]],
    *,
    repeats: int,
    device: torch.device,
    least_seconds: float = LEAST_SECONDS,
) -> dict[str, list[float]]:
    """Seconds a call of each alternative, in `repeats` rounds in which they take turns (ABAB...).

    Two calls of each come first, which are not counted in: algorithms are chosen and optimisers make their state in the
    first; the second says how many calls make up a turn of `least_seconds`.
    """

    def turn(call: Callable[[], object], count: int) -> float:
        synchronize(device)
        started = time.perf_counter()
        for _ in range(count):
            call()
        synchronize(device)
        return (time.perf_counter() - started) / count

    for call in alternatives.values():
        turn(call, 1)
    counts = {name: max(1, math.ceil(least_seconds / turn(call, 1))) for name, call in alternatives.items()}
    seconds = {name: [] for name in alternatives}
    for _ in range(repeats):
        for name, call in alternatives.items():
            seconds[name].append(turn(call, counts[name]))
    return seconds


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure(
    subject: str, alternatives: dict[str, Callable[[], object]], *, target: str, images: int, repeats: int, device
) -> Measurement:
    """Time two alternatives against each other, and note the memory that they need."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    seconds = interleaved(alternatives, repeats=repeats, device=device)
    return Measurement(subject, target, seconds, images, peak_memory(device))


def peak_memory(device: torch.device) -> int:
    """Bytes: allocated on a CUDA device since the last reset, or resident since the process began."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource  # not on Windows

    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def machine(device: torch.device) -> dict[str, str | int]:
    """What the times were measured on."""
    name = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    return {**provenance.versions(), "device": f"{device.type} ({name})", "threads": torch.get_num_threads()}


def update(outputs: list[Tensor], optimizer: torch.optim.Optimizer) -> None:
    """The backward pass from the cheapest loss there is, and the optimiser's update."""
    optimizer.zero_grad(set_to_none=True)
    sum(output.float().mean() for output in outputs).backward()
    optimizer.step()
