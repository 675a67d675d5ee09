"""The adversarial game: two networks, their losses and their optimisers, and one update of the one or the other."""

import functools
from collections.abc import Iterable

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from generators import losses
from generators.augment import random_diff_augment, random_mirror
from generators.config import FeatureHeadsConfig, GeneratorConfig, GuidanceConfig
from generators.feature_heads import FeatureHeads, FeatureMaps
from generators.guidance import Guidance, Guide
from generators.images import to_generator_range
from generators.interface import ConditionalGenerator
from generators.labels import Plan, ScalarLabels


class Game:
    """The two networks, their losses and their optimisers.

    What it remembers beside the weights: the number of discriminator updates (for the lazy penalty), the probability of
    the adaptive augmentation and how well the guide likes the images.

    features: maps of a frozen network, on which discriminators of their own look (`config.features`).
    guide: what else the generator's images should please (`config.guidance`).
    """

    shown = {"D": "discriminator_loss", "G": "generator_loss"}

    def __init__(
        self,
        generator: ConditionalGenerator,
        discriminator: nn.Module,
        plan: Plan,
        config: GeneratorConfig,
        accelerator: Accelerator,
        *,
        features: FeatureMaps | None = None,
        guide: Guide | None = None,
    ):
        self.generator, self.discriminator, self.plan, self.config = generator, discriminator, plan, config
        self.accelerator, self.device = accelerator, accelerator.device
        self.maps_of, self.heads, self.features, judges = features, None, config.features, discriminator
        if features is not None:
            self.features = config.features or FeatureHeadsConfig()
            self.heads = FeatureHeads.on(features, generator.config, self.features, self.device)
            self.heads.to(self.device).train()
            judges = nn.ModuleList([discriminator, self.heads] if self.features.pixels else [self.heads])
        self.guidance = None
        if guide is not None:
            self.guidance = Guidance(guide, config.guidance or GuidanceConfig(), generator, accelerator)
        rate = config.learning_rate
        self.generator_player = Player(generator, rate, config, accelerator)
        rate = config.discriminator_learning_rate or rate
        self.discriminator_player = Player(judges, rate, config, accelerator)
        self.networks, self.players = [generator, judges], [self.generator_player, self.discriminator_player]
        self.discriminator_updates = 0
        adapts = config.augment_target is not None
        self.augment_probability = torch.zeros((), device=self.device) if adapts else None

    def step(self, batches: list[dict[str, Tensor]], y: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """An update of the discriminator for every batch, then one of the generator for labels y; its terms and fakes."""
        for batch in batches:
            terms = self.discriminator_step(batch)
        terms["generator_loss"], fake = self.generator_step(y)
        return terms, fake

    # --- discriminator ------------------------------------------------------------------------------------------------

    def discriminator_step(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Real images against fakes of the batch's labels; returns the loss and the share told right, [] each."""
        batch = {key: value.to(self.device, non_blocking=True) for key, value in batch.items()}
        parts = {key: value.chunk(self.config.accumulate) for key, value in batch.items()}
        penalise = self.config.r1 > 0 and self.discriminator_updates % self.config.r1_every == 0
        terms = []
        for part in (dict(zip(parts, values, strict=True)) for values in zip(*parts.values(), strict=True)):
            loss, values = self.discriminator_loss(part, penalise)
            self.discriminator_player.backward(loss / self.config.accumulate)
            terms.append(values)
        self.discriminator_player.step()
        self.discriminator_updates += 1
        terms = {key: torch.stack([values[key] for values in terms]).mean() for key in terms[0]}
        if self.augment_probability is not None:
            self.adapt_augmentation(terms["real_sign"], len(batch["images"]))
        return terms

    def discriminator_loss(self, batch: dict[str, Tensor], penalise: bool) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss [] of a part of the batch, and what the log says about it."""
        real = to_generator_range(batch["images"])
        if self.config.horizontal_flip:
            real = random_mirror(real)
        z = torch.randn(len(real), self.generator.config.latent_dim, device=self.device)
        with torch.no_grad(), self.accelerator.autocast():
            fake = self.generator(z, batch["fake_input"])
        both = torch.cat([real, fake.float()])
        logits = self.judge(both, torch.cat([batch["real_y"], batch["fake_y"]]))
        real_logits, fake_logits = logits.chunk(2, dim=1)
        pairs = zip(self.weights(), real_logits, fake_logits, strict=True)
        loss = sum_of(weight * self.adversarial_loss(batch, real, fake) for weight, real, fake in pairs)
        values = {
            "discriminator_loss": loss.detach(),
            "real_accuracy": (real_logits > 0).float().mean(),
            "fake_accuracy": (fake_logits < 0).float().mean(),
            "logit_spread": torch.cat([real_logits, fake_logits]).detach().std(),
        }
        if self.augment_probability is not None:
            values["real_sign"] = real_logits.detach().sign().mean()
            values["augment_probability"] = self.augment_probability
        if penalise:
            real.requires_grad_()
            penalty = losses.r1_penalty(real_logits=self.judge(real, batch["real_y"]), real_images=real)
            loss = loss + self.config.r1 / 2 * self.config.r1_every * penalty
        return loss, values

    def adversarial_loss(self, batch: dict[str, Tensor], real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        """The configured loss; a soft vicinity weighs every sample by its distance from the target label."""
        hinge, logits = self.config.loss == "hinge", {"real_logits": real_logits, "fake_logits": fake_logits}
        if isinstance(self.plan, ScalarLabels) and self.plan.vicinity == "soft":
            labels = {"real_labels": batch["real_labels"], "fake_labels": batch["fake_input"]}
            labels |= {"target_labels": batch["real_y"], "kappa": self.plan.kappa}
            kind = "hinge" if hinge else "vanilla"
            return losses.soft_vicinal_discriminator_loss(**logits, **labels, loss=kind)
        loss = losses.hinge_discriminator_loss if hinge else losses.nonsaturating_discriminator_loss
        return loss(**logits)[0]

    def adapt_augmentation(self, real_sign: Tensor, num_images: int) -> None:
        """Augment more while the discriminator is too sure of the real images, less while it is not."""
        if self.accelerator.num_processes > 1:
            real_sign = self.accelerator.reduce(real_sign, "mean")
        change = num_images * self.accelerator.num_processes / self.config.augment_images
        sign = (real_sign - self.config.augment_target).sign()
        self.augment_probability = (self.augment_probability + change * sign).clamp(0, 1)

    # --- generator ----------------------------------------------------------------------------------------------------

    def generator_step(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Two fakes for every label y [B / 2]; returns the loss [] and the images [B, C, H, W]."""
        self.discriminator_player.require_gradients(False)
        total, fakes = torch.zeros((), device=self.device), []
        for part in y.chunk(self.config.accumulate):
            loss, fake = self.generator_loss(part.repeat(2))
            self.generator_player.backward(loss / self.config.accumulate)
            total += loss.detach() / self.config.accumulate
            fakes.append(fake.detach())
        if self.config.orthogonal:
            self.generator_player.add_orthogonal_gradient(self.config.orthogonal)
        self.generator_player.step()
        self.discriminator_player.require_gradients(True)
        return total, torch.cat(fakes)

    def generator_loss(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """The loss [] and the images [N, C, H, W] for labels y [N], of which the second half repeats the first."""
        z = torch.randn(len(y), self.generator.config.latent_dim, device=self.device)
        with self.accelerator.autocast():
            fake = self.generator(z, y)
        fake = fake.float()
        hinge = self.config.loss == "hinge"
        adversarial = losses.hinge_generator_loss if hinge else losses.nonsaturating_generator_loss
        logits = zip(self.weights(), self.judge(fake, y), strict=True)
        loss = sum_of(weight * adversarial(fake_logits=each) for weight, each in logits)
        if self.guidance is not None:
            loss = loss + self.guidance.loss(fake, y, self.progress)
        if self.config.mode_seeking:
            (first, second), (first_z, second_z) = fake.chunk(2), z.chunk(2)
            loss = loss + self.config.mode_seeking * losses.mode_seeking_loss(
                first_images=first, second_images=second, first_latents=first_z, second_latents=second_z
            )
        return loss, fake

    # --- both ---------------------------------------------------------------------------------------------------------

    def judge(self, images: Tensor, y: Tensor) -> Tensor:
        """The logits [K, N] of augmented images, float32: of the discriminator on pixels and of those on features."""
        config, logits = self.config, []
        if self.heads is None or self.features.pixels:
            augmented = random_diff_augment(images, config.augment, config.cutout, self.augment_probability)
            with self.accelerator.autocast():
                logits.append(self.discriminator(augmented.contiguous(memory_format=torch.channels_last), y)[None])
        if self.heads is not None:
            augmented = random_diff_augment(images, self.features.augment)
            with self.accelerator.autocast():
                maps = self.maps_of(augmented.contiguous(memory_format=torch.channels_last))
                logits.append(self.heads(maps, y))
        return torch.cat(logits).float()

    def weights(self) -> list[float]:
        """How much each of the discriminators counts, in the order of their logits."""
        if self.heads is None:
            return [1.0]
        return [1.0] * self.features.pixels + [self.features.weight] * len(self.heads.heads)

    @property
    def progress(self) -> float:
        """Share of the generator's updates that are done."""
        return (self.discriminator_updates / self.config.discriminator_steps - 1) / self.config.steps

    def state_dict(self) -> dict:
        return {
            "generator": self.generator_player.state_dict(),
            "discriminator": self.discriminator_player.state_dict(),
            "discriminator_updates": self.discriminator_updates,
            "augment_probability": self.augment_probability,
            "guidance": None if self.guidance is None else self.guidance.level,
        }

    def load_state_dict(self, state: dict) -> None:
        self.generator_player.load_state_dict(state["generator"])
        self.discriminator_player.load_state_dict(state["discriminator"])
        self.discriminator_updates = state["discriminator_updates"]
        if self.augment_probability is not None:
            self.augment_probability = state["augment_probability"].to(self.device)
        if self.guidance is not None:
            self.guidance.level = state["guidance"]


def sum_of(losses: Iterable[Tensor]) -> Tensor:
    """Their sum []; of one alone, that one to the bit."""
    return functools.reduce(torch.add, losses)


class Player:
    """One of the two networks with its optimiser: an update averages the gradients over the processes."""

    def __init__(self, network: nn.Module, learning_rate: float, config: GeneratorConfig, accelerator: Accelerator):
        self.network, self.world = network, accelerator.num_processes
        self.learning_rate, self.longest_gradient = learning_rate, None
        self.parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.Adam(self.parameters, lr=learning_rate, betas=config.betas, fused=True)
        self.scaler = torch.amp.GradScaler(accelerator.device.type, enabled=accelerator.mixed_precision == "fp16")

    def require_gradients(self, required: bool) -> None:
        """Switch off the gradients of the network that only judges; frozen parameters stay frozen."""
        for parameter in self.parameters:
            parameter.requires_grad_(required)

    def set_rate(self, share: float) -> None:
        """Learn with this share of the learning rate from now on."""
        for group in self.optimizer.param_groups:
            group["lr"] = share * self.learning_rate

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a loss []."""
        self.scaler.scale(loss).backward()

    def add_orthogonal_gradient(self, strength: float) -> None:
        """Add that of BigGAN's penalty on the matrices and kernels; tables of class codes are left alone."""
        tables = {id(table.weight) for table in self.network.modules() if isinstance(table, nn.Embedding)}
        scale = self.scaler.get_scale()
        for parameter in self.parameters:
            if parameter.ndim > 1 and id(parameter) not in tables and parameter.grad is not None:
                gradient = losses.orthogonal_regularisation_gradient(weight=parameter, strength=strength)
                parameter.grad.add_(gradient, alpha=scale)

    def step(self) -> None:
        """Change the weights by the gradients gathered since the last step."""
        if self.world > 1:
            gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
            flat = torch.cat([gradient.flatten() for gradient in gradients])
            torch.distributed.all_reduce(flat)
            means = (flat / self.world).split([gradient.numel() for gradient in gradients])
            for gradient, mean in zip(gradients, means, strict=True):
                gradient.copy_(mean.view(gradient.shape))
        if self.longest_gradient is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.parameters, self.longest_gradient)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> dict:
        return {name: getattr(self, name).state_dict() for name in ("network", "optimizer", "scaler")}

    def load_state_dict(self, state: dict) -> None:
        for name in ("network", "optimizer", "scaler"):
            getattr(self, name).load_state_dict(state[name])
