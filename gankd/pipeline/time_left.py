"""How long a run has still to go, said when it begins and whenever a stage has ended.

A stage takes what those of its arm took. Before the first of them ended, training takes at least its steps times one that is
timed here, or the minutes that it is given; every other stage is named as unknown.
"""

import time
from collections import defaultdict
from statistics import fmean

import torch

from gankd.models.outputs import outputs_of
from gankd.pipeline.stage import Stage
from generators.images import to_unit_range
from generators.progress import clock


class TimeLeft:
    """What the stages of a `Run` took and will take."""

    def __init__(self, run):
        self.run = run
        self.seconds: dict[str, list[float]] = defaultdict(list)  # of stages that ended, by what they share
        self.steps: dict[str, float] = {}  # seconds of one training step

    def note(self, stage: Stage) -> None:
        """Remember what a stage took that has ended, now or in an earlier run."""
        if "seconds" in stage.results:
            self.seconds[without_seed(stage)].append(stage.results["seconds"])

    def line(self, stages: list[Stage]) -> str:
        """The estimate for the stages that are left, in a line."""
        total, least, unknown = 0.0, False, []
        for stage in stages:
            if alike := self.seconds.get(without_seed(stage)):
                total += fmean(alike)
            elif stage.minutes is not None:
                total += 60 * stage.minutes
            elif stage.training is None:
                unknown.append(stage.name)
            else:
                total, least = total + stage.training[2].steps * self.step_of(stage), True
        known = f"{'at least' if least or unknown else 'about'} {clock(total)}" if len(unknown) < len(stages) else ""
        timed = " (training by a timed step of each network)" if least else ""
        parts = [known + timed, f"unknown for {', '.join(unknown)}" if unknown else ""]
        return f"  time left: {', '.join(filter(None, parts))}"

    def step_of(self, stage: Stage) -> float:
        """Seconds of a forward and a backward of the stage's network with the images of a step, random state untouched."""
        run, (model, task, training) = self.run, stage.training
        key, accelerator, train = f"{model} {training.batch_size}", self.run.accelerator, self.run.data.train
        if key not in self.steps:
            passes = accelerator.gradient_accumulation_steps
            size = max(2, training.batch_size // (passes * accelerator.num_processes))
            images = to_unit_range(train.images[torch.arange(size) % len(train)].to(accelerator.device))
            with torch.random.fork_rng():
                network, images = run.network(model, task).to(accelerator.device).train(), run.normalize(images)
                for _ in range(2):  # the first prepares
                    started = time.perf_counter()
                    with accelerator.autocast():
                        loss = outputs_of(network(images)).float().square().mean()
                    loss.backward()
                    loss.item()  # which waits for the device
            self.steps[key] = passes * (time.perf_counter() - started)
        return self.steps[key]


def without_seed(stage: Stage) -> str:
    return stage.name.split("/seed-")[0]
