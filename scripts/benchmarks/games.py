"""Generators: sampling against the bare forward pass, a step of the training against its floor."""

import contextlib
import copy
import itertools
import sys
from collections.abc import Callable, Iterator

import torch
from accelerate import Accelerator
from torch import Tensor

from benchmarks.timing import LABEL_RANGE, NUM_CLASSES, NUM_IMAGES, Measurement, measure, update
from generators.config import GeneratorConfig
from generators.game import Game
from generators.images import from_generator_range
from generators.interface import ConditionalGenerator
from generators.labels import ClassLabels, ScalarLabels
from generators.networks import build_networks
from generators.own_loss import OwnLoss
from generators.randomness import mix, seeded
from generators.training import prefetch, update_average

NUM_CHUNKS = 8  # batches that one call of the sampler draws


def measure_generator(
    config: GeneratorConfig, *, scalars: bool, size: int, accelerator: Accelerator, repeats: int
) -> Iterator[Measurement]:
    """Sampling, then the training step, of fresh networks on noise [NUM_IMAGES, 3, size, size].
    Raises ValueError: a size or a kind of label that the networks cannot take."""
    device = accelerator.device
    num_classes, label_range = (None, LABEL_RANGE) if scalars else (NUM_CLASSES, None)
    images = torch.randint(256, (NUM_IMAGES, 3, size, size), dtype=torch.uint8)
    labels = torch.arange(NUM_IMAGES) % (LABEL_RANGE[1] + 1.0 if scalars else NUM_CLASSES)
    generator, discriminator = build_networks(config, tuple(images.shape[1:]), num_classes, label_range)
    for network in filter(None, (generator, discriminator)):
        network.to(device, memory_format=torch.channels_last)

    rows = labels[: NUM_CHUNKS * config.batch_size]
    alternatives = sampling(generator.eval(), rows, config.batch_size)
    yield measure(config.network, alternatives, target=">= 0.9", images=len(rows), repeats=repeats, device=device)

    plan = ScalarLabels(labels, label_range, config) if scalars else ClassLabels(labels)
    if discriminator is None:
        game = OwnLoss(generator.train(), plan, config, accelerator)
        floor = own_loss_floor(game, size)
    else:
        game = Game(generator.train(), discriminator.train(), plan, config, accelerator)
        floor = game_floor(game, size)
    with game_step(game, images.to(device)) as step:
        alternatives = {"training step": step, "floor": floor}
        seen = config.batch_size * config.discriminator_steps
        yield measure(config.network, alternatives, target="<= 1.1", images=seen, repeats=repeats, device=device)


def sampling(generator: ConditionalGenerator, labels: Tensor, batch_size: int) -> dict[str, Callable[[], object]]:
    """The bare forward pass, and all from labels in the user's units to uint8 images on the device, on the same batches."""
    chunks = labels.split(batch_size)
    y, z = generator.condition(chunks[0]), generator.draw_latents(len(chunks[0]))

    @torch.no_grad()
    def forward() -> None:
        for chunk in chunks:
            generator(z[: len(chunk)], y[: len(chunk)])

    def sample() -> None:
        for chunk in chunks:
            from_generator_range(generator.sample(chunk))

    return {"bare forward": forward, "sample": sample}


@contextlib.contextmanager
def game_step(game: Game | OwnLoss, images: Tensor) -> Iterator[Callable[[], object]]:
    """One step of `generators.train`, as a function of no arguments."""
    config, generator = game.config.replace(steps=sys.maxsize), game.generator
    average = copy.deepcopy(generator)
    batches = prefetch(images, game.plan, config, seed=0, rank=0, size=config.batch_size, first_step=0)
    numbers = itertools.count()

    def step() -> None:
        number = next(numbers)
        torch.manual_seed(mix(0, "generator step", number, 0))
        y = game.plan.generator_batch(config.batch_size // 2, seeded(0, "generator labels", number, 0))
        game.step(next(batches), y.to(game.device))
        update_average(average, generator, number, config.ema_decay)

    with contextlib.closing(batches):
        yield step


def game_floor(game: Game, size: int) -> Callable[[], object]:
    """What a step cannot do without, on inputs that are ready.

    Every discriminator update: the generator's forward pass for B fakes, the discriminator's forward and backward pass on
    2B images. The generator's update: forward through both networks on B, backward to the generator. Both optimisers.
    Penalties and a batch in several passes are not in it: where the settings ask for them, they count as time on top.
    """
    config, device, autocast = game.config, game.device, game.accelerator.autocast
    generator, discriminator = game.generator, game.discriminator
    weights = [parameter for parameter in discriminator.parameters() if parameter.requires_grad]
    # a learning rate of zero costs the same, and leaves the networks to the step
    optimizers = [
        torch.optim.Adam([p for p in network.parameters() if p.requires_grad], lr=0.0, betas=config.betas, fused=True)
        for network in (generator, discriminator)
    ]
    z = torch.randn(config.batch_size, generator.config.latent_dim, device=device)
    y = game.plan.generator_batch(config.batch_size, seeded(0, "floor")).to(device)
    both, both_y = torch.randn(2 * config.batch_size, 3, size, size, device=device), torch.cat([y, y])
    both = both.contiguous(memory_format=torch.channels_last)

    def floor() -> None:
        for _ in range(config.discriminator_steps):
            with torch.no_grad(), autocast():
                generator(z, y)
            with autocast():
                logits = discriminator(both, both_y)
            update([logits], optimizers[1])
        for weight in weights:
            weight.requires_grad_(False)
        with autocast():
            logits = discriminator(generator(z, y), y)
        update([logits], optimizers[0])
        for weight in weights:
            weight.requires_grad_(True)

    return floor


def own_loss_floor(game: OwnLoss, size: int) -> Callable[[], object]:
    """The loss of B images that are ready, its backward pass, and the optimiser."""
    config, generator = game.config, game.generator
    weights = [parameter for parameter in generator.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(weights, lr=0.0, betas=config.betas, fused=True)
    y = game.plan.generator_batch(config.batch_size, seeded(0, "floor")).to(game.device)
    images = torch.randn(config.batch_size, 3, size, size, device=game.device)

    def floor() -> None:
        with game.accelerator.autocast():
            loss = generator.training_loss(images, y)
        update([loss], optimizer)

    return floor
