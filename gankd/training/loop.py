"""The one training loop, for teachers and students alike.

What is trained and how a step's loss is made is the distiller's business; the loop feeds it batches, steps the optimiser,
logs every named term and writes checkpoints. A step is a function of (seed, step, process): a resumed run repeats an
uninterrupted one, bit for bit on the CPU.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import torch
from accelerate import Accelerator
from pydantic import Field
from torch import nn
from tqdm import tqdm

from gankd.data.augment import AugmentationConfig
from gankd.data.loader import BatchSource
from gankd.data.views import Views
from gankd.distributed.batch_norm import synchronized
from gankd.methods.base import Distiller
from gankd.training.lars import LARS
from generators.checkpoints import all_finite, check_same_run, read_checkpoint, save_checkpoint
from generators.randomness import mix
from generators.settings import Count, Positive, Settings, Weight

UNESSENTIAL = {"log_every", "checkpoint_every"}  # settings that change nothing in what is trained


class TrainingConfig(Settings):
    """How a network is trained."""

    steps: Count = 1000
    """Optimiser steps. Every arm takes the same number, whatever its data."""
    epochs: Positive | None = None
    """Passes over the real training data, in place of `steps`."""
    batch_size: Count = 64
    """Images a step, over all processes."""
    optimizer: Literal["sgd", "adamw", "lars"] = "adamw"
    """The optimiser. LARS, for batches of thousands, adapts the rate of every matrix and kernel that is decayed."""
    learning_rate: Positive = 3e-3
    """Its peak."""
    learning_rate_per: Count | None = None
    """The batch size that `learning_rate` is for; the peak grows in proportion to `batch_size` (256 in Squeeze and Span,
    VICReg and SimSiam: learning_rate * batch_size / 256). Null: `learning_rate` is the peak whatever the batch."""
    weight_decay: Weight = 5e-2
    """On matrices and kernels; on biases and normalisation parameters too with `decay_all`."""
    decay_all: bool = False
    """Biases and normalisation parameters are decayed as well, as Squeeze and Span and SimReg train."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """SGD's (Nesterov) and that of LARS (without)."""
    schedule: Literal["cosine", "steps", "constant"] = "cosine"
    """How the learning rate falls: half a cosine to zero, tenfold at `milestones`, or not at all."""
    milestones: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = (0.625, 0.75, 0.875)
    """For `schedule: steps`, as shares of the run (defaults: epochs 150, 180, 210 of 240)."""
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the run in which the learning rate first rises linearly."""
    augmentation: AugmentationConfig = AugmentationConfig()
    """Random changes of the training images."""
    synchronize_batch_norm: bool = False
    """Whether batch norms take mean and variance over the images of all processes, as one process with the whole batch does,
    and not over those of their own."""
    views: Count | None = None
    """Every sample has this many augmented views, which repeat from pass to pass; the teacher answers each once, unless its
    features are read too, and its answers are kept. 1 without augmentation. Null: fresh views all the time."""
    log_every: Count = 50
    """Steps between two lines in the log."""
    checkpoint_every: Count = 500
    """Steps between two checkpoints."""

    @property
    def peak_rate(self) -> float:
        """The highest learning rate of the run."""
        if self.learning_rate_per is None:
            return self.learning_rate
        return self.learning_rate * self.batch_size / self.learning_rate_per

    def num_steps(self, steps_per_epoch: int) -> int:
        return self.steps if self.epochs is None else max(1, round(self.epochs * steps_per_epoch))


def rate_factor(config: TrainingConfig, step: int, num_steps: int) -> float:
    """The learning rate of `step` as a share of its peak."""
    progress, warmup = step / num_steps, config.warmup
    if progress < warmup:
        return (step + 1) / (warmup * num_steps + 1)
    if config.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))
    if config.schedule == "steps":
        return 0.1 ** sum(progress >= milestone for milestone in config.milestones)
    return 1.0


def build_optimizer(module: nn.Module, config: TrainingConfig) -> torch.optim.Optimizer:
    """The configured optimiser over the trainable parameters; without `decay_all`, vectors among them do not decay."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if not parameters:
        raise ValueError("all parameters of the student are frozen; set requires_grad on those that should be trained.")
    special = module.parameter_groups() if isinstance(module, Distiller) else []
    apart = {id(parameter) for group in special for parameter in group["params"]}
    common = [parameter for parameter in parameters if id(parameter) not in apart]
    groups = [part for group in ({"params": common}, *special) for part in by_decay(group, config)]
    for group in groups:
        group.setdefault("rate", 1.0)
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.peak_rate, momentum=config.momentum, nesterov=config.momentum > 0)
    if config.optimizer == "lars":
        return LARS(groups, lr=config.peak_rate, momentum=config.momentum)
    return torch.optim.AdamW(groups, lr=config.peak_rate, fused=True)


def by_decay(group: dict, config: TrainingConfig) -> list[dict]:
    """A group with a weight decay of its own as it is; of another its matrices and kernels, and its vectors."""
    if "weight_decay" in group:
        return [group]
    decays = {True: config.weight_decay, False: config.weight_decay if config.decay_all else 0.0}
    return [
        {**group, "params": [each for each in group["params"] if (each.ndim > 1) == is_matrix], "weight_decay": decay}
        for is_matrix, decay in decays.items()
    ]


def fit(
    distiller: Distiller,
    source: BatchSource,
    config: TrainingConfig,
    *,
    accelerator: Accelerator,
    seed: int,
    name: str = "training",
    directory: Path | None = None,
    log: Callable[[dict], None] = lambda values: None,
) -> None:
    """Train `distiller` in place on the batches of `source`.

    Args:
        directory: where the checkpoint goes; one found there is resumed.
        log: receives one flat dictionary every `config.log_every` steps.

    Raises:
        ValueError: the loss is no longer finite.
    """
    num_steps, rank = config.num_steps(source.steps_per_epoch), accelerator.process_index
    distiller.to(accelerator.device, memory_format=torch.channels_last)
    first_step, checkpoint = 0, directory / "checkpoint.pt" if directory else None
    state = read_checkpoint(checkpoint) if checkpoint and checkpoint.exists() else None
    if not state:
        if stage := distiller.first_stage(config.replace(steps=num_steps, epochs=None)):
            first, settings = stage
            where = directory / "first_stage" if directory else None
            fit(
                first,
                source,
                settings,
                accelerator=accelerator,
                seed=seed,
                name=f"{name}, first stage",
                directory=where,
                log=log,
            )
        distiller.prepare(source)
    optimizer = build_optimizer(distiller, config)
    run = {**config.model_dump(mode="json", exclude=UNESSENTIAL), "steps": num_steps, "seed": seed}
    run |= {"method": distiller.config.model_dump(mode="json"), "data": source.description}
    if state:
        check_same_run(state, run, checkpoint)
        first_step = state["step"]
        distiller.load_state_dict(state["distiller"])
        optimizer.load_state_dict(state["optimizer"])
    model, optimizer = accelerator.prepare(distiller, optimizer)
    if state and accelerator.scaler is not None:
        accelerator.scaler.load_state_dict(state["scaler"])
    model.train()

    bar = tqdm(
        source.stream(first_step, num_steps),
        desc=name,
        initial=first_step,
        total=num_steps,
        unit="step",
        disable=not accelerator.is_main_process,
        dynamic_ncols=True,
    )
    started, done, terms, task = time.perf_counter(), first_step, [], distiller.task
    shared_norms = [distiller] if config.synchronize_batch_norm and not distiller.is_spread else []
    with torch.random.fork_rng(), synchronized(*shared_norms):
        for step, batch in enumerate(bar, start=first_step):
            torch.manual_seed(mix(seed, "training step", step, rank))
            for group in optimizer.param_groups:
                factor = 1.0 if group.get("constant") else rate_factor(config, step, num_steps)
                group["lr"] = config.peak_rate * group["rate"] * factor
            distiller.task = task.at(step / num_steps)
            if isinstance(distiller.augment, Views):
                distiller.augment.step = step
            distiller.start_step(step, num_steps, source.steps_per_epoch)
            losses = model(batch)
            optimizer.zero_grad(set_to_none=True)
            accelerator.backward(losses["loss"])
            optimizer.step()
            terms.append(torch.stack([term.detach().float() for term in losses.values()]))

            if (step + 1) % config.log_every == 0 or step + 1 == num_steps:
                means = dict(zip(losses, torch.stack(terms).mean(dim=0).tolist(), strict=True))  # the one host sync
                if not math.isfinite(means["loss"]):
                    raise ValueError(
                        f"{name}: the loss is no longer finite at step {step + 1}; lower the learning rate."
                    )
                rate = (step + 1 - done) * source.batch_size / (time.perf_counter() - started)
                started, done, terms = time.perf_counter(), step + 1, []
                bar.set_postfix({"loss": f"{means['loss']:.3f}", "images/s": f"{rate:.0f}"})
                if accelerator.is_main_process:
                    log(
                        {
                            "stage": name,
                            "step": step + 1,
                            "images": (step + 1) * source.batch_size,
                            "learning_rate": optimizer.param_groups[0]["lr"],
                            "images_per_second": rate,
                            **means,
                        }
                    )
            if checkpoint and (step + 1) % config.checkpoint_every == 0:
                if not all_finite([distiller]):
                    raise ValueError(
                        f"{name}: weights are no longer finite at step {step + 1}; lower the learning rate."
                    )
                state = {"run": run, "step": step + 1, "distiller": distiller.state_dict()}
                state["optimizer"] = optimizer.state_dict()
                state["scaler"] = accelerator.scaler.state_dict() if accelerator.scaler is not None else None
                if accelerator.is_main_process:
                    save_checkpoint(checkpoint, state)
    if directory and accelerator.is_main_process:
        shutil.rmtree(directory / "first_stage", ignore_errors=True)  # its result is in what was trained after it
    accelerator.free_memory()
    distiller.task = task
    distiller.eval()
    distiller.finish()
