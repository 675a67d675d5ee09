"""How long a generator trains, and how its learning rates rise and fall meanwhile."""

import time
from collections.abc import Callable

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor

from generators.config import GeneratorConfig

PREPARING, TIMED = 3, 20  # steps before the clock starts, and at most after
LONGEST = 10.0  # seconds that timing may take


def rate_share(config: GeneratorConfig, step: int) -> float:
    """The learning rates of `step` as a share of the configured ones: up in `warmup`, down to 0 in `decay`, linearly."""
    rising = (step + 1) / (config.warmup * config.steps + 1)
    falling = (config.steps - step) / (config.decay * config.steps + 1)
    return min(1.0, rising, falling)


def steps_within(minutes: float, step: Callable[[int], dict[str, Tensor]], accelerator: Accelerator) -> int:
    """How many steps `minutes` of wall time hold beside those that are made here to find out; the main process decides.

    step: makes the step of that number and returns its terms, [] each.
    """

    def seconds(first: int, count: int) -> float:
        begun = time.perf_counter()
        for number in range(first, first + count):
            terms = step(number)
        torch.stack(list(terms.values())).tolist()  # waits for the device
        return time.perf_counter() - begun

    def of_main(value: float) -> int:
        return max(1, int(broadcast(torch.tensor(int(value), device=accelerator.device)).item()))

    begun = time.perf_counter()
    seconds(0, PREPARING - 1)
    longest = min(LONGEST, 60 * minutes / 10)
    count = of_main(min(TIMED, longest / seconds(PREPARING - 1, 1)))
    per_step = seconds(PREPARING, count) / count
    return of_main((60 * minutes - (time.perf_counter() - begun)) / per_step)
