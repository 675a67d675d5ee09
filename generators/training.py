"""Adversarial training of a conditional generator, for class ids and for scalar labels.

    generator = generators.train(images, labels, num_classes=10, directory="runs/mine/generator", steps=5000)

One step: `discriminator_steps` updates of the discriminator on real and fake images in one pass, then one of the generator.
Everything random in a step is a function of (seed, step, process), so that a resumed run repeats an uninterrupted one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

from generators import losses
from generators.augment import random_diff_augment
from generators.checkpoints import all_finite, check_same_run, read_checkpoint, save_checkpoint
from generators.config import GeneratorConfig
from generators.images import as_uint8, to_generator_range
from generators.interface import ConditionalGenerator
from generators.label_network import train_label_network
from generators.labels import ClassLabels, ScalarLabels, check_labels
from generators.networks import build_networks
from generators.randomness import mix, seeded

UNESSENTIAL = {
    "log_every",
    "checkpoint_every",
    "memory_budget",
    "checkpoint",
    "train_on",
}  # change nothing in the training


class GeneratorDiverged(ValueError):
    """Training stopped because the generator is of no more use; the last good checkpoint is kept."""


def train(
    images,
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
        directory: where checkpoints go and the trained generator is saved; a run cut off there is continued.
        log: receives one flat dictionary every `config.log_every` steps.

    Raises:
        ValueError: labels outside the range, an image size that the networks cannot take.
        GeneratorDiverged: a loss is no longer finite, or all images have become the same.
    """
    config, accelerator = (config or GeneratorConfig()).replace(**settings), accelerator or Accelerator()
    if labels is None:
        images, labels = read_dataset(images)
    check_labels(labels, num_classes, label_range)
    check_images(images, len(labels))
    device, rank, is_main = accelerator.device, accelerator.process_index, accelerator.is_main_process
    if config.batch_size % (2 * accelerator.num_processes):
        raise ValueError(
            f"generator.batch_size {config.batch_size} does not split into pairs over {accelerator.num_processes} processes."
        )
    size = config.batch_size // accelerator.num_processes
    checkpoint = Path(directory) / "checkpoint.pt" if directory else None
    run = {**config.model_dump(mode="json", exclude=UNESSENTIAL), "seed": seed, "num_images": len(labels)}
    run |= {"num_classes": num_classes, "label_range": list(label_range or ())}

    with torch.random.fork_rng():
        torch.manual_seed(mix(seed, "generator networks"))
        plan = ClassLabels(labels) if num_classes else ScalarLabels(labels, label_range, config)
        generator, discriminator = build_networks(config, tuple(images.shape[1:]), num_classes, label_range)
        resumes = checkpoint is not None and checkpoint.exists()
        if generator.config.get("label_input") == "ili" and not resumes:
            codes = train_label_network(images, plan.labels.float(), generator.encoder, seed=seed, device=device)
            generator.encoder.load_state_dict(codes)
            discriminator.encoder.load_state_dict(codes)
        for network in (generator, discriminator):
            network.to(device, memory_format=torch.channels_last).train()
        average = AveragedModel(generator, multi_avg_fn=moving_average(config.ema_decay))  # copies the buffers
        game = Game(generator, discriminator, plan, config, accelerator)
        first_step = 0
        if resumes:
            state = read_checkpoint(checkpoint)
            check_same_run(state, run, checkpoint)
            first_step = state["step"]
            average.load_state_dict(state["average"])
            game.load_state_dict(state["game"])

        if isinstance(images, Tensor) and images.numel() <= config.memory_budget << 20:
            images = images.to(device)
        batches = prefetch(images, plan, config, seed=seed, rank=rank, size=size, first_step=first_step)
        steps = range(first_step, config.steps)
        progress = {"desc": "generator", "initial": first_step, "total": config.steps, "unit": "step"}
        bar = tqdm(steps, **progress, disable=not is_main, dynamic_ncols=True)
        for step in bar:
            torch.manual_seed(mix(seed, "generator step", step, rank))
            for batch in next(batches):
                d_terms = game.discriminator_step(batch)
            y = plan.generator_batch(size // 2, seeded(seed, "generator labels", step, rank)).to(device)
            g_loss, fake = game.generator_step(y)
            average.update_parameters(generator)

            if (step + 1) % config.log_every == 0 or step + 1 == config.steps:
                terms = {**d_terms, "generator_loss": g_loss}
                values = dict(zip(terms, torch.stack(list(terms.values())).tolist(), strict=True))  # the one host sync
                stop_if_diverged(values, fake, step + 1, checkpoint)
                bar.set_postfix({"D": f"{values['discriminator_loss']:.2f}", "G": f"{values['generator_loss']:.2f}"})
                if is_main:
                    log({"stage": "generator", "step": step + 1, **values})
            if checkpoint and (step + 1) % config.checkpoint_every == 0:
                if not all_finite([average, generator, discriminator]):
                    raise diverged(step + 1, "diverged", "a weight is no longer finite", checkpoint)
                if is_main:
                    state = {"run": run, "step": step + 1, "average": average.state_dict(), "game": game.state_dict()}
                    save_checkpoint(checkpoint, state)

        trained = average.module
        recalibrate_batch_norm(trained, plan, seed=seed, device=device)
    trained.eval().requires_grad_(False)
    if directory and is_main:
        trained.save_pretrained(directory)
    return trained


class Game:
    """The two networks, their losses and their optimisers: one update of the one or the other."""

    def __init__(
        self,
        generator: ConditionalGenerator,
        discriminator: nn.Module,
        plan: ClassLabels | ScalarLabels,
        config: GeneratorConfig,
        accelerator: Accelerator,
    ):
        self.generator, self.discriminator, self.plan, self.config = generator, discriminator, plan, config
        self.accelerator, self.device = accelerator, accelerator.device
        self.generator_player = Player(generator, config, accelerator)
        self.discriminator_player = Player(discriminator, config, accelerator)

    def discriminator_step(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Real images against fakes of the batch's labels; returns the loss and the share told right, [] each."""
        batch = {key: value.to(self.device, non_blocking=True) for key, value in batch.items()}
        real = to_generator_range(batch["images"])
        if self.config.horizontal_flip:
            mirrored = torch.rand(len(real), 1, 1, 1, device=self.device) < 0.5
            real = torch.where(mirrored, real.flip(3), real)
        z = torch.randn(len(real), self.generator.config.latent_dim, device=self.device)
        with torch.no_grad(), self.accelerator.autocast():
            fake = self.generator(z, batch["fake_input"])
        both = torch.cat([real, fake.float()])
        real_logits, fake_logits = self.judge(both, torch.cat([batch["real_y"], batch["fake_y"]])).chunk(2)
        loss = self.discriminator_loss(batch, real_logits, fake_logits)
        self.discriminator_player.update(loss)
        return {
            "discriminator_loss": loss.detach(),
            "real_accuracy": (real_logits > 0).float().mean(),
            "fake_accuracy": (fake_logits < 0).float().mean(),
            "logit_spread": torch.cat([real_logits, fake_logits]).detach().std(),
        }

    def discriminator_loss(self, batch: dict[str, Tensor], real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        """The configured loss; a soft vicinity weighs every sample by its distance from the target label."""
        hinge = self.config.loss == "hinge"
        if isinstance(self.plan, ScalarLabels) and self.plan.vicinity == "soft":
            return losses.soft_vicinal_discriminator_loss(
                real_logits=real_logits,
                fake_logits=fake_logits,
                real_labels=batch["real_labels"],
                fake_labels=batch["fake_input"],
                target_labels=batch["real_y"],
                kappa=self.plan.kappa,
                loss="hinge" if hinge else "vanilla",
            )
        loss = losses.hinge_discriminator_loss if hinge else losses.nonsaturating_discriminator_loss
        return loss(real_logits=real_logits, fake_logits=fake_logits)[0]

    def generator_step(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Two fakes for every label y [B / 2]; returns the loss [] and the images [B, C, H, W]."""
        self.discriminator_player.require_gradients(False)
        y = y.repeat(2)
        z = torch.randn(len(y), self.generator.config.latent_dim, device=self.device)
        with self.accelerator.autocast():
            fake = self.generator(z, y)
        fake = fake.float()
        logits = self.judge(fake, y)
        hinge = self.config.loss == "hinge"
        adversarial = losses.hinge_generator_loss if hinge else losses.nonsaturating_generator_loss
        loss = adversarial(fake_logits=logits)
        if self.config.mode_seeking:
            (first, second), (first_z, second_z) = fake.chunk(2), z.chunk(2)
            loss = loss + self.config.mode_seeking * losses.mode_seeking_loss(
                first_images=first, second_images=second, first_latents=first_z, second_latents=second_z
            )
        self.generator_player.update(loss)
        self.discriminator_player.require_gradients(True)
        return loss.detach(), fake.detach()

    def judge(self, images: Tensor, y: Tensor) -> Tensor:
        """The discriminator's logits [N] of augmented images, float32."""
        augmented = random_diff_augment(images, self.config.augment, self.config.cutout)
        with self.accelerator.autocast():
            return self.discriminator(augmented.contiguous(memory_format=torch.channels_last), y).float()

    def state_dict(self) -> dict:
        return {
            "generator": self.generator_player.state_dict(),
            "discriminator": self.discriminator_player.state_dict(),
        }

    def load_state_dict(self, state: dict) -> None:
        self.generator_player.load_state_dict(state["generator"])
        self.discriminator_player.load_state_dict(state["discriminator"])


class Player:
    """One of the two networks with its optimiser: an update averages the gradients over the processes."""

    def __init__(self, network: nn.Module, config: GeneratorConfig, accelerator: Accelerator):
        self.network, self.world = network, accelerator.num_processes
        self.parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.Adam(self.parameters, lr=config.learning_rate, betas=config.betas, fused=True)
        self.scaler = torch.amp.GradScaler(accelerator.device.type, enabled=accelerator.mixed_precision == "fp16")

    def require_gradients(self, required: bool) -> None:
        """Switch off the gradients of the network that only judges; frozen parameters stay frozen."""
        for parameter in self.parameters:
            parameter.requires_grad_(required)

    def update(self, loss: Tensor) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        if self.world > 1:
            gradients = [parameter.grad for parameter in self.parameters]
            flat = torch.cat([gradient.flatten() for gradient in gradients])
            torch.distributed.all_reduce(flat)
            means = (flat / self.world).split([gradient.numel() for gradient in gradients])
            for gradient, mean in zip(gradients, means, strict=True):
                gradient.copy_(mean.view(gradient.shape))
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def state_dict(self) -> dict:
        return {name: getattr(self, name).state_dict() for name in ("network", "optimizer", "scaler")}

    def load_state_dict(self, state: dict) -> None:
        for name in ("network", "optimizer", "scaler"):
            getattr(self, name).load_state_dict(state[name])


def moving_average(decay: float) -> Callable[[list[Tensor], list[Tensor], Tensor], None]:
    """An exponential average that forgets faster at first, so that a short run does not remember its initial weights."""

    @torch.no_grad()
    def update(averages: list[Tensor], values: list[Tensor], num_averaged: Tensor) -> None:
        count = int(num_averaged)
        torch._foreach_lerp_(averages, values, 1 - min(decay, (1 + count) / (10 + count)))

    return update


def prefetch(
    images, plan, config: GeneratorConfig, *, seed: int, rank: int, size: int, first_step: int
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


def stop_if_diverged(values: dict[str, float], fake: Tensor, step: int, checkpoint: Path | None) -> None:
    """Raise `GeneratorDiverged` on a value that is not finite, or when all images of a batch are the same."""
    if not torch.tensor(list(values.values())).isfinite().all():
        raise diverged(step, "diverged", "a loss is no longer finite", checkpoint)
    if values["logit_spread"] == 0:
        raise diverged(step, "diverged", "the discriminator answers every image alike", checkpoint)
    if fake.std(dim=0).max() < 1e-3:
        raise diverged(step, "collapsed", "it draws the same image always", checkpoint)


def diverged(step: int, event: str, reason: str, checkpoint: Path | None) -> GeneratorDiverged:
    """The error that says so, and where the last good checkpoint is."""
    kept = f" The last good checkpoint is {checkpoint}." if checkpoint and checkpoint.exists() else ""
    return GeneratorDiverged(
        f"the generator {event} at step {step}: {reason}.{kept} Lower generator.learning_rate, or take more data or "
        "augmentation."
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


def check_images(images, num_labels: int) -> None:
    """Raise a ValueError unless there is one uint8 image [C, H, W] a label."""
    if images.shape[0] != num_labels:
        raise ValueError(f"there are {images.shape[0]} images but {num_labels} labels.")
    first = images[torch.arange(1)]
    if first.dtype != torch.uint8 or first.ndim != 4:
        raise ValueError(f"images are {first.dtype} {tuple(images.shape)}; expected uint8 [N, C, H, W] in 0..255.")


def read_dataset(dataset) -> tuple[Tensor, Tensor]:
    """The images (uint8 [N, C, H, W]) and labels [N] of a map-style `Dataset` of (image, label)."""
    if hasattr(dataset, "images") and hasattr(dataset, "labels"):
        return dataset.images, dataset.labels
    images, labels = zip(*(dataset[index] for index in range(len(dataset))), strict=True)
    return torch.stack([as_uint8(image) for image in images]), torch.as_tensor(labels)
