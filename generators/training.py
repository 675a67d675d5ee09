"""Adversarial training of a conditional generator, for class ids and for scalar labels.

    generator = generators.train(images, labels, num_classes=10, directory="runs/mine/generator")

One step: `discriminator_steps` updates of the discriminator on real and fake images in one pass, then one of the generator.
Everything random in a step is a function of (seed, step, process), so that a resumed run repeats an uninterrupted one.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from generators import losses
from generators.augment import random_diff_augment
from generators.checkpoints import read_checkpoint, save_checkpoint
from generators.config import GeneratorConfig
from generators.images import as_uint8, to_generator_range
from generators.interface import ConditionalGenerator
from generators.label_network import train_label_network
from generators.networks.sngan import SNGANDiscriminator, SNGANGenerator
from generators.randomness import mix, seeded
from generators.vicinity import kappa_rule_of_thumb, normalize_labels, sample_vicinity, sigma_rule_of_thumb

NUM_TRIES = 50  # noise draws for a target label before the nearest real label is taken


class GeneratorDiverged(RuntimeError):
    """Training stopped because the generator is of no more use; the last good checkpoint is kept."""


class ClassLabels:
    """Which labels and real images a step uses when labels are class ids."""

    def __init__(self, labels: Tensor, config: GeneratorConfig):
        self.labels = labels

    def discriminator_batch(self, size: int, random: torch.Generator) -> dict[str, Tensor]:
        real = torch.randint(len(self.labels), (size,), generator=random)
        fake = torch.randint(len(self.labels), (size,), generator=random)
        return {
            "indices": real,
            "real_y": self.labels[real],
            "fake_y": self.labels[fake],
            "fake_input": self.labels[fake],
        }

    def generator_batch(self, size: int, random: torch.Generator) -> Tensor:
        return self.labels[torch.randint(len(self.labels), (size,), generator=random)]


class ScalarLabels:
    """Which labels and real images a step uses when labels are scalars in [0, 1] (vicinal sampling of CcGAN)."""

    def __init__(self, labels: Tensor, label_range: tuple[float, float], config: GeneratorConfig):
        low, high = label_range
        self.labels = normalize_labels(labels=labels.double(), label_min=low, label_max=high)
        self.distinct = self.labels.unique()
        self.vicinity = config.vicinity
        self.sigma = config.sigma / (high - low) if config.sigma else float(sigma_rule_of_thumb(labels=self.labels))
        if not config.sigma and self.sigma > 0.1:
            warnings.warn(
                f"the rule of thumb for sigma gives {self.sigma * (high - low):.3g}, over a tenth of the label range: "
                "labels will blur. Set generator.sigma (label units) yourself.",
                stacklevel=2,
            )
        if config.kappa:
            width = config.kappa / (high - low)
            self.kappa = width if config.vicinity == "hard" else 1 / width**2
        else:
            self.kappa = float(kappa_rule_of_thumb(labels=self.labels, multiplier=5.0, vicinity=config.vicinity))

    def targets(self, size: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
        """Centres [size] among the distinct labels (a rare label counts as much as a common one), noise [size, tries]."""
        centres = self.distinct[torch.randint(len(self.distinct), (size,), generator=random)]
        return centres, torch.randn(size, NUM_TRIES, generator=random, dtype=torch.float64)

    def discriminator_batch(self, size: int, random: torch.Generator) -> dict[str, Tensor]:
        centres, noise = self.targets(size, random)
        pick, place = torch.rand(2, size, generator=random, dtype=torch.float64)
        target, real, fake, _ = sample_vicinity(
            train_labels=self.labels,
            centres=centres,
            noise=noise,
            pick=pick,
            place=place,
            kappa=self.kappa,
            vicinity=self.vicinity,
            sigma=self.sigma,
        )
        batch = {"indices": real, "real_y": target.float(), "fake_y": target.float(), "fake_input": fake.float()}
        return batch | {"real_labels": self.labels[real].float()}

    def generator_batch(self, size: int, random: torch.Generator) -> Tensor:
        centres, noise = self.targets(size, random)
        return (centres + self.sigma * noise[:, 0]).clamp(0, 1).float()


def discriminator_loss(
    config: GeneratorConfig, batch: dict[str, Tensor], real: Tensor, fake: Tensor, kappa: float | None
):
    """The configured loss on logits [B] of real and fake images; soft vicinity weighs each sample by its distance."""
    if kappa is not None and config.vicinity == "soft":
        return losses.soft_vicinal_discriminator_loss(
            real_logits=real,
            fake_logits=fake,
            real_labels=batch["real_labels"],
            fake_labels=batch["fake_input"],
            target_labels=batch["real_y"],
            kappa=kappa,
            loss="hinge" if config.loss == "hinge" else "vanilla",
        )
    loss = losses.hinge_discriminator_loss if config.loss == "hinge" else losses.nonsaturating_discriminator_loss
    return loss(real_logits=real, fake_logits=fake)[0]


def build_networks(
    config: GeneratorConfig, image_shape: tuple[int, int, int], num_classes: int | None, label_range: tuple | None
) -> tuple[SNGANGenerator, SNGANDiscriminator]:
    """A fresh generator and discriminator for images [C, H, W] and one kind of label.

    Raises:
        ValueError: images that are not square or of a size the networks cannot take; a label_input that does not fit.
    """
    channels, height, width = image_shape
    if height != width:
        raise ValueError(f"images are {height}x{width}; the generators need square images: set data.image_size.")
    label_input = config.label_input or ("embedding" if num_classes else "fourier")
    shared = dict(
        resolution=height,
        image_channels=channels,
        label_dim=config.label_dim,
        num_classes=num_classes,
        label_input=label_input,
    )
    generator = SNGANGenerator(widths=config.widths, latent_dim=config.latent_dim, label_range=label_range, **shared)
    return generator, SNGANDiscriminator(widths=config.discriminator_widths, **shared)


def train(
    images: Tensor,
    labels: Tensor | None = None,
    *,
    num_classes: int | None = None,
    label_range: tuple[float, float] | None = None,
    config: GeneratorConfig | None = None,
    directory: str | Path | None = None,
    seed: int = 0,
    accelerator: Accelerator | None = None,
    log: Callable[[dict], None] = lambda values: None,
    **settings,
) -> ConditionalGenerator:
    """Train a generator and return it: averaged weights, recalibrated batch norms, eval mode, ready to sample.

    Args:
        images: uint8 [N, C, H, W] (a tensor, or anything that indexes like one), or a `Dataset` of (image, label).
        labels: class ids int64 [N] or scalars [N] in the user's units; with a `Dataset` they come from it.
        num_classes: for class ids. Exactly one of this and `label_range` is given.
        label_range: (min, max) of a scalar label in the user's units.
        config, **settings: the training's settings, and single ones that replace them (steps=2000, widths=(64, 48)).
        directory: where checkpoints go and the trained generator is saved; a run found there is resumed.
        log: receives one flat dictionary every `config.log_every` steps.

    Raises:
        ValueError: labels outside the range, an image size that the networks cannot take.
        GeneratorDiverged: a loss is no longer finite, or all images have become the same.
    """
    config, accelerator = (config or GeneratorConfig()).replace(**settings), accelerator or Accelerator()
    if labels is None:
        images, labels = read_dataset(images)
    check_labels(labels, num_classes, label_range)
    device, rank, world = accelerator.device, accelerator.process_index, accelerator.num_processes
    if config.batch_size % (2 * world):
        raise ValueError(f"generator.batch_size {config.batch_size} cannot be split into pairs over {world} processes.")
    size = config.batch_size // world

    with torch.random.fork_rng():
        torch.manual_seed(mix(seed, "generator networks"))
        generator, discriminator = build_networks(config, tuple(images.shape[1:]), num_classes, label_range)
        plan = ClassLabels(labels, config) if num_classes else ScalarLabels(labels, label_range, config)
        if generator.config.label_input == "ili":
            network = train_label_network(images, plan.labels.float(), generator.encoder, seed=seed, device=device)
            generator.encoder.load_state_dict(network)
            discriminator.encoder.load_state_dict(network)
        for network in (generator, discriminator):
            network.to(device, memory_format=torch.channels_last).train()
        average = AveragedModel(generator, multi_avg_fn=get_ema_multi_avg_fn(config.ema_decay))  # copies the buffers
        players = {
            name: Player(network, config, accelerator)
            for name, network in (("generator", generator), ("discriminator", discriminator))
        }

        first_step, checkpoint = 0, Path(directory) / "checkpoint.pt" if directory else None
        if checkpoint and checkpoint.exists():
            state = read_checkpoint(checkpoint)
            first_step = state["step"]
            average.load_state_dict(state["average"])
            for name, player in players.items():
                player.load_state_dict(state[name])

        if isinstance(images, Tensor) and images.numel() < 2 << 30:
            images = images.to(device)
        batches = prefetch(images, plan, config, seed=seed, rank=rank, size=size, first_step=first_step)
        bar = tqdm(
            range(first_step, config.steps),
            desc="generator",
            initial=first_step,
            total=config.steps,
            unit="step",
            disable=not accelerator.is_main_process,
            dynamic_ncols=True,
        )
        for step in bar:
            torch.manual_seed(mix(seed, "generator step", step, rank))
            for batch in next(batches):
                batch = {key: value.to(device, non_blocking=True) for key, value in batch.items()}
                real = to_generator_range(batch["images"])
                if config.horizontal_flip:
                    mirrored = torch.rand(len(real), 1, 1, 1, device=device) < 0.5
                    real = torch.where(mirrored, real.flip(3), real)
                with torch.no_grad(), accelerator.autocast():
                    fake = generator(torch.randn(size, config.latent_dim, device=device), batch["fake_input"])
                both = random_diff_augment(torch.cat([real, fake.float()]), config.augment, config.cutout)
                with accelerator.autocast():
                    logits = discriminator(to_channels_last(both), torch.cat([batch["real_y"], batch["fake_y"]]))
                real_logits, fake_logits = logits.float().chunk(2)
                d_loss = discriminator_loss(config, batch, real_logits, fake_logits, getattr(plan, "kappa", None))
                players["discriminator"].update(d_loss)

            discriminator.requires_grad_(False)
            y = plan.generator_batch(size // 2, seeded(seed, "generator labels", step, rank)).to(device).repeat(2)
            z = torch.randn(size, config.latent_dim, device=device)
            with accelerator.autocast():
                fake = generator(z, y)
                logits = discriminator(
                    to_channels_last(random_diff_augment(fake.float(), config.augment, config.cutout)), y
                )
            adversarial = losses.hinge_generator_loss if config.loss == "hinge" else losses.nonsaturating_generator_loss
            g_loss = adversarial(fake_logits=logits)
            if config.mode_seeking:
                (first, second), (first_z, second_z) = fake.chunk(2), z.chunk(2)
                g_loss = g_loss + config.mode_seeking * losses.mode_seeking_loss(
                    first_images=first, second_images=second, first_latents=first_z, second_latents=second_z
                )
            players["generator"].update(g_loss)
            discriminator.requires_grad_(True)
            average.update_parameters(generator)

            if (step + 1) % config.log_every == 0 or step + 1 == config.steps:
                values = {
                    "discriminator_loss": d_loss,
                    "generator_loss": g_loss,
                    "real_accuracy": (real_logits > 0).float().mean(),
                    "fake_accuracy": (fake_logits < 0).float().mean(),
                }
                values = dict(
                    zip(values, torch.stack([v.detach().float() for v in values.values()]).tolist(), strict=True)
                )
                stop_if_diverged(values, fake.detach(), step + 1, checkpoint)
                bar.set_postfix({"D": f"{values['discriminator_loss']:.2f}", "G": f"{values['generator_loss']:.2f}"})
                if accelerator.is_main_process:
                    log({"stage": "generator", "step": step + 1, **values})
            if checkpoint and (step + 1) % config.checkpoint_every == 0 and accelerator.is_main_process:
                state = {name: player.state_dict() for name, player in players.items()}
                save_checkpoint(checkpoint, {"step": step + 1, "average": average.state_dict(), **state})

        trained = average.module
        recalibrate_batch_norm(trained, plan, seed=seed, device=device)
    trained.eval().requires_grad_(False)
    if directory and accelerator.is_main_process:
        trained.save_pretrained(directory)
    return trained


class Player:
    """One of the two networks with its optimiser: an update averages the gradients over the processes."""

    def __init__(self, network: nn.Module, config: GeneratorConfig, accelerator: Accelerator):
        self.network, self.world = network, accelerator.num_processes
        self.parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.Adam(self.parameters, lr=config.learning_rate, betas=config.betas, fused=True)
        self.scaler = torch.amp.GradScaler(accelerator.device.type, enabled=accelerator.mixed_precision == "fp16")

    def update(self, loss: Tensor) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        if self.world > 1:
            gradients = [parameter.grad for parameter in self.parameters]
            flat = torch.cat([gradient.flatten() for gradient in gradients])
            torch.distributed.all_reduce(flat)
            for gradient, mean in zip(
                gradients, (flat / self.world).split([g.numel() for g in gradients]), strict=True
            ):
                gradient.copy_(mean.view(gradient.shape))
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def state_dict(self) -> dict:
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def load_state_dict(self, state: dict) -> None:
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])


def to_channels_last(images: Tensor) -> Tensor:
    return images.contiguous(memory_format=torch.channels_last)


def prefetch(
    images, plan, config: GeneratorConfig, *, seed: int, rank: int, size: int, first_step: int
) -> Iterator[list[dict]]:
    """The discriminator's batches of every step from `first_step` on, the next step's images read while one is computed."""

    def read(step: int) -> list[dict[str, Tensor]]:
        random = seeded(seed, "discriminator batch", step, rank)
        batches = [plan.discriminator_batch(size, random) for _ in range(config.discriminator_steps)]
        return [{"images": images[batch.pop("indices")], **batch} for batch in batches]

    with ThreadPoolExecutor(max_workers=1) as reader:
        coming = reader.submit(read, first_step)
        for step in range(first_step, config.steps):
            ready, coming = coming.result(), reader.submit(read, step + 1)
            yield ready


def stop_if_diverged(values: dict[str, float], fake: Tensor, step: int, checkpoint: Path | None) -> None:
    """Raise `GeneratorDiverged` on a value that is not finite, or when all images of a batch are the same."""
    kept = f" The last good checkpoint is {checkpoint}." if checkpoint and checkpoint.exists() else ""
    advice = " Lower generator.learning_rate, or take more data or augmentation."
    if not all(torch.isfinite(torch.tensor(list(values.values())))):
        raise GeneratorDiverged(f"the generator diverged at step {step}: a loss is no longer finite.{kept}{advice}")
    if fake.float().std(dim=0).max() < 1e-3:
        raise GeneratorDiverged(
            f"the generator collapsed at step {step}: it draws the same image always.{kept}{advice}"
        )


@torch.no_grad()
def recalibrate_batch_norm(
    generator: ConditionalGenerator, plan, *, seed: int, device, batch_size: int = 256, num_batches: int = 20
) -> None:
    """Recompute the running statistics as plain averages over fresh batches: they must belong to the averaged weights."""
    norms = [module for module in generator.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a cumulative average
    generator.train()
    random = seeded(seed, "batch norm")
    for _ in range(num_batches):
        z = torch.randn(batch_size, generator.config.latent_dim, generator=random)
        generator(z.to(device), plan.generator_batch(batch_size, random).to(device))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def check_labels(labels: Tensor, num_classes: int | None, label_range: tuple[float, float] | None) -> None:
    """Raise a ValueError unless the labels are of the one kind that was declared, and within its range."""
    if (num_classes is None) == (label_range is None):
        raise ValueError("give exactly one of num_classes (class ids) and label_range (scalar labels).")
    low, high = label_range or (0, num_classes - 1)
    if not low < high:
        raise ValueError(f"labels span [{low}, {high}]; a conditional generator needs at least two different labels.")
    outside = (labels < low) | (labels > high)
    if outside.any():
        index = int(outside.nonzero()[0])
        raise ValueError(f"label {labels[index].item():g} of sample {index} lies outside [{low:g}, {high:g}].")


def read_dataset(dataset) -> tuple[Tensor, Tensor]:
    """The images (uint8 [N, C, H, W]) and labels [N] of a map-style `Dataset` of (image, label)."""
    if hasattr(dataset, "images") and hasattr(dataset, "labels"):
        return dataset.images, dataset.labels
    images, labels = zip(*(dataset[index] for index in range(len(dataset))), strict=True)
    return torch.stack([as_uint8(image) for image in images]), torch.as_tensor(labels)
