"""Training of a conditional generator, for class ids and for scalar labels.

    generator = generators.train(images, labels, num_classes=10, directory="runs/mine/generator", steps=5000)

One step: `discriminator_steps` updates of the discriminator on real and fake images in one pass, then one of the generator;
or one update of a generator that has a loss of its own.
Everything random in a step is a function of (seed, step, process), so that a resumed run repeats an uninterrupted one.
"""

import contextlib
import copy
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import Dataset

from generators.checkpoints import all_finite, check_same_run, images_fingerprint, read_checkpoint, save_checkpoint
from generators.config import GeneratorConfig
from generators.feature_heads import FeatureMaps
from generators.game import Game
from generators.guidance import Guide
from generators.images import Images
from generators.inputs import read_inputs
from generators.interface import ConditionalGenerator
from generators.label_network import train_label_network
from generators.labels import ClassLabels, Plan, ScalarLabels, check_labels
from generators.model import GeneratorModel
from generators.monitor import GeneratorDiverged, Monitor, check_health
from generators.networks import build_networks
from generators.own_loss import OwnLoss
from generators.progress import Progress
from generators.randomness import check_seed, mix, seeded
from generators.schedule import rate_share, steps_within
from generators.statistics import recalibrate_batch_norm

# settings that change the result; what a configuration derived from ours adds is nothing to the training
ESSENTIAL = set(GeneratorConfig.model_fields) - {"log_every", "checkpoint_every", "sample_every", "memory_budget"}


def train(
    images: Images | Dataset,
    labels: Tensor | None = None,
    *,
    num_classes: int | None = None,
    label_range: tuple[float, float] | None = None,
    class_names: Sequence[str] | None = None,
    config: GeneratorConfig | None = None,
    directory: str | Path | None = None,
    seed: int = 0,
    accelerator: Accelerator | None = None,
    score: Callable[[ConditionalGenerator], float] | None = None,
    features: FeatureMaps | None = None,
    guide: Guide | None = None,
    log: Callable[[dict], None] = lambda values: None,
    **settings: Any,
) -> GeneratorModel:
    """Train a generator and return it: averaged weights, recalibrated batch norms, eval mode, ready to sample.

    images: uint8 [N, C, H, W] (a tensor, or anything that indexes like one), or a `Dataset` of (image, label) or of
        dictionaries, read once.
    labels: class ids [N] or scalars [N] in the user's units; with a `Dataset` they come from it.
    num_classes: for class ids. Exactly one of this and `label_range` is given.
    label_range: (min, max) of a scalar label in the user's units.
    class_names: what the class ids mean, which the generator then says; None: what a `Dataset` says (its `class_names`
        or `classes`).
    config, **settings: the training's settings, and single ones that replace them (steps=2000, widths=(64, 48)).
    directory: where checkpoints, grids and the trained generator go; a run cut off there is continued, if it had the
        same images, labels (by their contents), settings and seed, with the number of steps that `config.minutes` held.
    score: a generator to a number, lower is better, e.g. `metrics.frechet_score`. Taken every `config.score_every`
        steps, by every process, as it may train a network; the generator with the best one is returned, also when the
        training collapses after it.
    features: images [N, C, H, W] in [-1, 1] to maps [N, C_l, H_l, W_l] of a frozen network, differentiable: discriminators
        look at them too (`config.features`), see `feature_heads`.
    guide: images in [-1, 1] and labels [N] to losses [N] that join the generator's (`config.guidance`), see `guidance`.
        Neither is moved, trained or saved: a run that is continued must be given the same ones.
    log: receives one flat dictionary every `config.log_every` steps.
    Raises ValueError: labels outside the range, all alike or indistinguishable in float32; an image size that the
    networks cannot take; a directory with another run's checkpoint.
    Raises OSError: one sentence, when the disk is full or the directory may not be written.
    Raises GeneratorDiverged: a loss is no longer finite, all images have become the same, or the discriminator answers
    all images alike, and no score was taken before.
    """
    config, accelerator = (config or GeneratorConfig()).replace(**settings), accelerator or Accelerator()
    pixels, labels = read_inputs(images, labels)
    check_seed(seed)
    check_labels(labels, num_classes, label_range)
    check_processes(config, accelerator)
    device, rank, is_main = accelerator.device, accelerator.process_index, accelerator.is_main_process
    size = config.batch_size // accelerator.num_processes
    directory = Path(directory) if directory else None
    checkpoint = directory / "checkpoint.pt" if directory else None
    run = {**config.model_dump(mode="json", include=ESSENTIAL), "seed": seed, "num_images": len(labels)}
    run |= {"num_classes": num_classes, "label_range": list(label_range or ())}
    helped = {name: True for name, help in (("features", features), ("guide", guide)) if help is not None}
    run |= {"helped by": helped} if helped else {}
    if checkpoint:
        run |= {"images": images_fingerprint(pixels), "labels": images_fingerprint(labels)}

    with torch.random.fork_rng():
        torch.manual_seed(mix(seed, "generator networks"))
        plan = ScalarLabels(labels, label_range, config) if label_range else ClassLabels(labels, config.balanced)
        generator, discriminator = build_networks(config, tuple(pixels.shape[1:]), num_classes, label_range)
        if discriminator is None and helped:
            help = next(iter(helped))
            raise ValueError(
                f"{help} is for a game, and the network '{config.network}' has no discriminator; leave it out."
            )
        resumes = checkpoint is not None and checkpoint.exists()
        if generator.config.get("label_input") == "ili" and not resumes:
            where = {"seed": seed, "device": device, "shown": is_main}
            codes = train_label_network(pixels, plan.labels.float(), generator.encoder, **where)
            for network in filter(None, (generator, discriminator)):
                network.encoder.load_state_dict(codes)
        if config.sync_batch_norm:
            convert = nn.SyncBatchNorm.convert_sync_batchnorm
            generator, discriminator = convert(generator), discriminator and convert(discriminator)
        for network in filter(None, (generator, discriminator)):
            network.to(device, memory_format=torch.channels_last).train()
        average = copy.deepcopy(generator)
        if discriminator is None:
            game = OwnLoss(generator, plan, config, accelerator)
        else:
            game = Game(generator, discriminator, plan, config, accelerator, features=features, guide=guide)
        where = {"directory": directory, "seed": seed, "accelerator": accelerator}
        monitor = Monitor(average, plan, config, score=score, log=log, **where)
        parts = {"average": average, "game": game, "monitor": monitor}
        if isinstance(pixels, Tensor) and pixels.numel() <= config.memory_budget << 20:
            pixels = pixels.to(device)
        read = partial(prefetch, pixels, plan, seed=seed, rank=rank, size=size)

        def update(step: int, batches: Iterator, config: GeneratorConfig) -> tuple[dict[str, Tensor], Tensor | None]:
            torch.manual_seed(mix(seed, "generator step", step, rank))
            for player in game.players:
                player.set_rate(rate_share(config, step))
            y = plan.generator_batch(size // 2, seeded(seed, "generator labels", step, rank)).to(device)
            terms, fake = game.step(next(batches), y)
            update_average(average, generator, step, config.ema_decay)
            return terms, fake

        def states() -> dict[str, Any]:
            return {name: part.state_dict() for name, part in parts.items()}

        def restore(state: dict[str, Any]) -> None:
            for name, part in parts.items():
                part.load_state_dict(state[name])

        def save(step: int) -> None:
            if checkpoint and is_main:
                save_checkpoint(checkpoint, {"run": run, "step": step, "steps": config.steps, **states()})

        first_step = 0
        if resumes:
            state = read_checkpoint(checkpoint)
            check_same_run(state, run, checkpoint)
            first_step, config = state["step"], config.replace(minutes=None, steps=state["steps"])
            restore(state)
        elif config.minutes:
            game.config = trial = config.replace(minutes=None, steps=sys.maxsize)
            before = copy.deepcopy(states())
            with contextlib.closing(read(trial, first_step=0)) as batches:
                num_steps = steps_within(config.minutes, lambda step: update(step, batches, trial)[0], accelerator)
            restore(before)  # what follows is what `steps` of that number would make
            if is_main:
                log({"stage": "generator", "step": 0, "minutes": config.minutes, "steps": num_steps})
            config = config.replace(minutes=None, steps=num_steps)
            save(0)

        game.config = config  # whose number of steps is known
        batches, steps = read(config, first_step=first_step), range(first_step, config.steps)
        progress = Progress(steps, title="generator", first=first_step, every=config.log_every, shown=is_main)
        try:
            for step in progress:
                terms, fake = update(step, batches, config)
                last = step + 1 == config.steps
                if (step + 1) % config.log_every == 0 or last:
                    if fake is not None:
                        terms["image_spread"] = fake.std(dim=0).max()
                    means = accelerator.reduce(torch.stack(list(terms.values())), "mean")
                    values = dict(zip(terms, means.tolist(), strict=True))  # the one host sync
                    check_health(values, step + 1)
                    progress.note(**{name: values[term] for name, term in game.shown.items()})
                    if is_main:
                        log({"stage": "generator", "step": step + 1, **values})
                monitor.after_step(step + 1, last=last)
                if checkpoint and (step + 1) % config.checkpoint_every == 0:
                    if not all_finite([average, *game.networks]):
                        raise GeneratorDiverged(f"the generator diverged by step {step + 1}: a weight is not finite.")
                    save(step + 1)
        except GeneratorDiverged as error:
            progress.close()
            if not monitor.best_step:
                raise GeneratorDiverged(" ".join([str(error), *ways_out(checkpoint)])) from None
            back = f"Rolled back to step {monitor.best_step}, whose score of {monitor.best_score:.4g} is the best."
            warnings.warn(" ".join([str(error), back, *ways_out()]), stacklevel=2)

        if monitor.best_step:
            monitor.restore_best()
        recalibrate_batch_norm(average, plan.generator_batch, seed=seed)
    average.requires_grad_(False)
    average.trained_steps = config.steps
    class_names = class_names or getattr(images, "class_names", None) or getattr(images, "classes", None)
    if num_classes and isinstance(class_names, Sequence) and len(class_names) == num_classes:
        average.class_names = tuple(map(str, class_names))
    if directory and is_main:
        average.save_pretrained(directory)
    return average


def ways_out(checkpoint: Path | None = None) -> list[str]:
    """What to do about a run that has failed, and where its last good checkpoint is, as sentences."""
    kept = [f"The last good checkpoint is {checkpoint}."] if checkpoint and checkpoint.exists() else []
    return [*kept, "Lower generator.learning_rate, or take more data or augmentation."]


@torch.no_grad()
def update_average(average: nn.Module, network: nn.Module, step: int, decay: float) -> None:
    """Move the averaged weights towards those after `step`; buffers are copied.

    An exponential average that forgets faster at first, so that a short run does not remember its initial weights.
    """
    decay = min(decay, (1 + step) / (10 + step)) if step else 0.0
    torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), 1 - decay)
    if buffers := list(average.buffers()):
        torch._foreach_copy_(buffers, list(network.buffers()))


def prefetch(
    images: Images, plan: Plan, config: GeneratorConfig, *, seed: int, rank: int, size: int, first_step: int
) -> Iterator[list[dict[str, Tensor]]]:
    """The discriminator's batches of every step from `first_step` on; the next ones are read while these are used."""

    def read(step: int) -> list[dict[str, Tensor]]:
        random = seeded(seed, "discriminator batch", step, rank)
        batches = [plan.discriminator_batch(size, random) for _ in range(config.discriminator_steps)]
        return [{"images": images[batch.pop("indices")], **batch} for batch in batches]

    with ThreadPoolExecutor(max_workers=1) as reader:
        coming = reader.submit(read, first_step)
        for step in range(first_step, config.steps):
            ready, coming = coming.result(), reader.submit(read, step + 1)
            yield ready


def check_processes(config: GeneratorConfig, accelerator: Accelerator) -> None:
    """Raise a ValueError for settings that the processes cannot keep."""
    divisor = 2 * accelerator.num_processes * config.accumulate
    if config.batch_size % divisor:
        raise ValueError(
            f"generator.batch_size {config.batch_size} does not split into pairs over {accelerator.num_processes} "
            f"processes of {config.accumulate} passes; use a multiple of {divisor}."
        )
    if config.sync_batch_norm and accelerator.device.type != "cuda":
        raise ValueError("generator.sync_batch_norm synchronises GPUs, and there is none here; leave it out.")
