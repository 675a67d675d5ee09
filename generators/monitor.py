"""What is looked at while a generator trains: sample grids, scores, the best weights so far, and signs of a failed run."""

import copy
import math
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor

from generators.checkpoints import replace_whole
from generators.config import GeneratorConfig
from generators.grids import sample_grid
from generators.interface import ConditionalGenerator
from generators.labels import Plan
from generators.statistics import recalibrate_batch_norm

FADED = 1e-4  # standard deviation of the discriminator's logits below which the generator learns nothing from them


class GeneratorDiverged(ValueError):
    """The training has failed, and there is no earlier generator with a score to return instead."""


class Monitor:
    """Saves a grid of samples every `sample_every` steps, takes a score every `score_every`, and keeps the best weights.

    average: the averaged generator. A copy of it, with batch norm statistics of its own, draws the samples.
    plan: the labels for those statistics.
    score: a generator in evaluation mode to a number, lower is better; every process asks, the first one's counts.
    directory: where `samples/step-N.png` go; None: no grids.
    Raises ValueError: scores are asked for without a `score`.
    """

    def __init__(
        self,
        average: ConditionalGenerator,
        plan: Plan,
        config: GeneratorConfig,
        *,
        score: Callable[[ConditionalGenerator], float] | None,
        directory: Path | None,
        seed: int,
        accelerator: Accelerator,
        log: Callable[[dict], None],
    ):
        if config.score_every and score is None:
            raise ValueError("score_every is set, but there is nothing to score with: give train(..., score=function).")
        self.average, self.plan, self.config, self.score, self.log = average, plan, config, score, log
        self.directory, self.seed, self.accelerator = directory, seed, accelerator
        self.best_step, self.best_score = 0, math.inf
        self.best_weights: dict[str, Tensor] = {}

    def after_step(self, step: int, *, last: bool) -> None:
        """Save a grid and take a score if `step` is a multiple of their intervals, or the last one.

        Raises GeneratorDiverged: the score is far above the best one.
        """
        config = self.config
        draws = bool(config.sample_every and self.directory) and (step % config.sample_every == 0 or last)
        scores = bool(config.score_every) and (step % config.score_every == 0 or last)
        if not (draws or scores):
            return
        ready = copy.deepcopy(self.average)
        recalibrate_batch_norm(ready, self.plan.generator_batch, seed=self.seed)  # everywhere: it may synchronise
        if draws and self.accelerator.is_main_process:
            with replace_whole(self.directory / "samples" / f"step-{step:06d}.png") as temporary:
                sample_grid(ready, seed=self.seed).save(temporary, format="png")
        if scores:
            self.take_score(ready, step)

    def take_score(self, ready: ConditionalGenerator, step: int) -> None:
        """Take a score, keep weights that have the best one, and stop a collapsed run; every process does the same."""
        is_main, device = self.accelerator.is_main_process, self.accelerator.device
        value = torch.tensor(self.score(ready), dtype=torch.float64, device=device)
        score = broadcast(value).item()
        if score < self.best_score:
            self.best_step, self.best_score = step, score
            weights = self.average.state_dict()
            self.best_weights = {key: value.detach().to("cpu", copy=True) for key, value in weights.items()}
        if is_main:
            values = {"score": score, "best_score": self.best_score, "best_step": self.best_step}
            self.log({"stage": "generator", "step": step, **values})
        ratio = self.config.collapse_ratio
        if not math.isfinite(score) or (ratio and score > ratio * self.best_score):
            raise GeneratorDiverged(
                f"the generator collapsed by step {step}: its score is {score:.4g}, after {self.best_score:.4g} at step "
                f"{self.best_step}."
            )

    def restore_best(self) -> None:
        """Put the best weights back into the averaged generator."""
        self.average.load_state_dict(self.best_weights)

    def state_dict(self) -> dict:
        return {name: getattr(self, name) for name in ("best_step", "best_score", "best_weights")}

    def load_state_dict(self, state: dict) -> None:
        self.best_step, self.best_score, self.best_weights = (state[name] for name in self.state_dict())


def check_health(values: dict[str, float], step: int) -> None:
    """Raise `GeneratorDiverged` if a logged value is not finite, or if all images or all the logits are alike, where a game
    has some."""
    sentence = None
    if not all(map(math.isfinite, values.values())):
        sentence = f"the generator diverged by step {step}: a loss is no longer finite."
    elif values.get("image_spread", math.inf) < 1e-3:
        sentence = f"the generator collapsed by step {step}: it draws the same image always."
    elif values.get("logit_spread", math.inf) < FADED:
        sentence = (
            f"the game came to a standstill by step {step}: the discriminator answers every image alike (a spread of "
            f"{values['logit_spread']:.1g}). Give it more discriminator_steps or wider discriminator_widths, too."
        )
    if sentence:
        raise GeneratorDiverged(sentence)
