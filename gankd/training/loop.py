"""The one training loop, for teachers and students alike.

What is trained and how a step's loss is made is the distiller's business; the loop feeds it batches, steps the optimiser,
logs every named term and writes checkpoints. A step is a function of (seed, step, process): a resumed run repeats an
uninterrupted one, bit for bit on the CPU.
"""

import contextlib
import dataclasses
import math
import shutil
import time
from collections.abc import Iterator

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from torch import Tensor, nn

from gankd.data.loader import Batch, BatchSource
from gankd.data.views import Views
from gankd.distributed.batch_norm import synchronized
from gankd.methods.base import Distiller
from gankd.models.rehearsal import has_idle_parameters, to_channels_last
from gankd.models.state import frozen_parts, preserve_state
from gankd.training.config import TrainingConfig, rate_factor
from gankd.training.context import RunContext
from gankd.training.optimizers import build_optimizer
from generators.checkpoints import all_finite, check_same_run, read_checkpoint, save_checkpoint
from generators.progress import Progress
from generators.randomness import mix
from generators.settings import fingerprint_settings


def fit(distiller: Distiller, source: BatchSource, config: TrainingConfig, context: RunContext) -> None:
    """Train `distiller` in place on the batches of `source`; a checkpoint in the context's directory is resumed.

    An accelerator's `gradient_accumulation_steps` are passes into which a step's batch is cut, their gradients summed: less
    memory, the same step, but for batch norms, fresh random draws and losses that compare the images of a batch.
    Raises ValueError: the loss is no longer finite; the checkpoint is another run's.
    """
    student = distiller.student
    frozen = frozen_parts(student)
    with preserve_state(student), _released(context.accelerator) as prepared:
        _fit(distiller, source, config, context, frozen, prepared)
    distiller.eval()
    distiller.finish()


def _fit(
    distiller: Distiller,
    source: BatchSource,
    config: TrainingConfig,
    context: RunContext,
    frozen: list[nn.Module],
    prepared: list,
) -> None:
    accelerator, seed, name, directory = context.accelerator, context.seed, context.name, context.directory
    num_steps, rank = config.num_steps(source.steps_per_epoch), accelerator.process_index
    passes = accelerator.gradient_accumulation_steps
    if passes > 1 and isinstance(distiller.augment, Views):
        raise ValueError(
            "views that repeat are shown to whole batches; leave gradient_accumulation_steps at 1, or views null."
        )
    distiller.to(accelerator.device)
    images = distiller.normalize(torch.zeros(2, *source.image_shape, device=accelerator.device))
    to_channels_last(distiller, distiller.student, images)
    first_step, checkpoint = 0, directory / "checkpoint.pt" if directory else None
    state = read_checkpoint(checkpoint) if checkpoint and checkpoint.exists() else None
    run = {**fingerprint_settings(config), "steps": num_steps, "seed": seed, **context.identity}
    run |= {"method": distiller.config.model_dump(mode="json"), "data": source.description, "passes": passes}
    if state:
        check_same_run(state, run, checkpoint)
    else:
        if stage := distiller.first_stage(config.replace(steps=num_steps, epochs=None)):
            first, settings = stage
            where = directory / "first_stage" if directory else None
            fit(first, source, settings, dataclasses.replace(context, name=f"{name}, first stage", directory=where))
        distiller.prepare(source)
    optimizer = build_optimizer(distiller, config)
    if state:
        first_step = state["step"]
        distiller.load_state_dict(state["distiller"])
        optimizer.load_state_dict(state["optimizer"])
    handler = accelerator.ddp_handler
    if accelerator.num_processes > 1 and handler is None and has_idle_parameters(distiller.student, images):
        handler = DistributedDataParallelKwargs(find_unused_parameters=True)  # or processes wait for their gradients
    with _as_before(accelerator, "ddp_handler", accelerator.ddp_handler):
        accelerator.ddp_handler = handler
        model, optimizer = accelerator.prepare(distiller, optimizer)
    prepared += [model, optimizer]
    if state and accelerator.scaler is not None:
        accelerator.scaler.load_state_dict(state["scaler"])
    model.train()
    for part in frozen:
        part.eval()

    shown = {"title": name, "total": num_steps, "first": first_step, "every": config.log_every}
    progress = Progress(source.stream(first_step, num_steps), **shown, shown=accelerator.is_main_process)
    started, done, terms, task = time.perf_counter(), first_step, [], distiller.task
    shared_norms = [distiller] if config.synchronize_batch_norm and not distiller.is_spread else []
    with torch.random.fork_rng(), progress, _as_before(distiller, "task", task), synchronized(*shared_norms):
        for step, batch in enumerate(progress, start=first_step):
            torch.manual_seed(mix(seed, "training step", step, rank))
            for group in optimizer.param_groups:
                factor = 1.0 if group.get("constant") else rate_factor(config, step, num_steps)
                group["lr"] = config.peak_rate * group["rate"] * factor
            distiller.task = task.at(step / num_steps)
            if isinstance(distiller.augment, Views):
                distiller.augment.step = step
            distiller.start_step(step, num_steps, source.steps_per_epoch)
            optimizer.zero_grad(set_to_none=True)
            losses = _backward(model, batch, accelerator)
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
                progress.note(loss=f"{means['loss']:.3f}", rate=f"{rate:.0f} images/s")
                if accelerator.is_main_process:
                    context.log(
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


def _backward(model: nn.Module, batch: Batch, accelerator: Accelerator) -> dict[str, Tensor]:
    """The gradients of a batch in the accelerator's number of passes, and the loss terms, means over the batch."""
    passes, means = min(accelerator.gradient_accumulation_steps, len(batch.labels)), {}
    for index in range(passes):
        part = part_of(batch, index, passes)
        share = len(part.labels) / len(batch.labels)
        is_last = index + 1 == passes
        with contextlib.nullcontext() if is_last else accelerator.no_sync(model):
            losses = model(part)
            if accelerator.gradient_accumulation_steps == 1:
                accelerator.backward(losses["loss"])
                return losses
            accelerator.backward(
                losses["loss"] * (share * accelerator.gradient_accumulation_steps)
            )  # which it divides by
        for name, term in losses.items():
            means[name] = means.get(name, 0) + share * term.detach()
    return means


def part_of(batch: Batch, index: int, parts: int) -> Batch:
    """Every `parts`-th sample of a batch from `index` on; as between processes, the two of a pair stay together."""
    if parts == 1:
        return batch
    rows, features = torch.arange(index, len(batch.labels), parts, device=batch.labels.device), batch.generator_features
    if features is not None:
        first = len(batch.labels) - len(features)  # synthetic samples come last
        features = features[rows[rows >= first] - first]
    columns = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
    picked = {name: column[rows] for name, column in columns.items() if isinstance(column, Tensor)}
    return dataclasses.replace(batch, **picked | {"generator_features": features})


@contextlib.contextmanager
def _as_before(thing: object, attribute: str, value: object) -> Iterator[None]:
    try:
        yield
    finally:
        setattr(thing, attribute, value)


@contextlib.contextmanager
def _released(accelerator: Accelerator) -> Iterator[list]:
    """Yields a list for what is prepared meanwhile, which the accelerator then forgets; what it held before stays."""
    prepared: list = []
    state, synchronizes = accelerator.gradient_state, accelerator.gradient_state.sync_gradients
    state._set_sync_gradients(True)  # a step is a step, wherever the caller's own accumulation stands
    try:
        yield prepared
    finally:
        state._set_sync_gradients(synchronizes)
        for held in (accelerator._models, accelerator._optimizers):
            held[:] = [thing for thing in held if not any(thing is ours for ours in prepared)]
