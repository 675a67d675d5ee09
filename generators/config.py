"""What the user says about the generator and its training."""

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from generators.conditioning import LabelInput
from generators.networks import NETWORK_SETTINGS, NETWORKS
from generators.registry import NameIn, OptionsIn
from generators.settings import Count, Positive, Settings, Share, Weight


class FeatureHeadsConfig(Settings):
    """Discriminators on the maps of a frozen network (projected GAN), beside the one on pixels or in its place."""

    weight: Positive = 1.0
    """Weight of the loss of each of them; that of the one on pixels is 1."""
    channels: Count = 64
    """Channels to which a fixed random mixing brings every map."""
    mix_scales: bool = True
    """Whether the finer maps receive the coarser ones, mixed at random, too."""
    pixels: bool = True
    """Whether the discriminator on pixels stays."""
    augment: str = "translation"
    """DiffAugment of the images before the network: a comma-separated choice of color, translation, cutout."""

    @field_validator("augment")
    @classmethod
    def _names_known_changes(cls, augment: str) -> str:
        return checked_policy(augment)


class GuidanceConfig(Settings):
    """How much somebody who knows what the labels mean helps the generator: a term of its loss."""

    weight: Positive = 0.5
    """Weight of the guide's loss, which is 1 or so for images that show little."""
    warmup: Share = 0.1
    """Share of the training in which the weight rises from 0: the first images are worth no answer."""
    decay: Share = 0.0
    """Share of the training, at its end, in which the weight falls to 0."""
    augment: str = "translation"
    """DiffAugment of the images before they are shown: a comma-separated choice of color, translation, cutout."""

    @field_validator("augment")
    @classmethod
    def _names_known_changes(cls, augment: str) -> str:
        return checked_policy(augment)


def checked_policy(augment: str) -> str:
    """The same policy of DiffAugment.
    Raises ValueError: an unknown word in it."""
    words = set(filter(None, (word.strip() for word in augment.split(","))))
    if unknown := words - {"color", "translation", "cutout"}:
        raise ValueError(f"augment names '{unknown.pop()}'; choose from color, translation, cutout")
    return augment


class GeneratorConfig(Settings):
    """A conditional generator: its network, and how it is trained. Defaults suit 32-pixel colour images."""

    network: Annotated[str, NameIn(NETWORKS)] = "sngan"
    """The architecture. GANs: sngan and dcgan, 8 to 128 pixels; sagan, 64 and 128; biggan and biggan_deep, 32 to 256, class
    ids. A flow: unet, from 8 pixels on. Or the name of a network of your own, registered with
    `generators.networks.NETWORKS`."""
    options: Annotated[dict[str, Any], OptionsIn(NETWORKS)] = {}
    """Settings of a network of your own: the keyword-only parameters of what was registered. Ours have theirs below."""
    widths: tuple[Count, ...] | None = None
    """Generator channels at 4x4 pixels and after every doubling (sngan), where fewer doublings than the image needs end in a
    bilinear enlargement; channels at the finest patches and after every halving (unet). Null: 256, 256, 256, 256 for sngan
    and 64, 96, 128 for unet."""
    discriminator_widths: tuple[Count, ...] = (128,)
    """Discriminator channels after every halving down to 4x4 and of a last block (sngan); one number means it everywhere."""
    channels: Count = 64
    """Unit in which sagan, biggan, biggan_deep and dcgan count their widths (the papers' ch)."""
    attention: tuple[Count, ...] = ()
    """Image sizes at which in biggan and biggan_deep self-attention follows (the paper: 64 at 128 pixels)."""
    shared_embedding: bool = False
    """Whether one class code of label_dim feeds all batch norms, instead of a table in each (biggan)."""
    hierarchical: bool = False
    """Whether every block gets a slice of the latents beside the class code (biggan)."""
    depth: Count | None = None
    """Blocks at every image size. Null: 2 for biggan_deep and 1 for unet."""
    patch: Count | None = None
    """Side of the blocks of pixels that enter as channels (unet). Null: 1 up to 16 pixels, 2 up to 32, 4 above."""
    sampling_steps: Count = 6
    """Steps from noise to an image (unet): each takes two evaluations of the network, the last one."""
    label_guidance: Weight = 2.0
    """Weight of the label over no label when images are drawn (unet): 1 for none; more is clearer and less varied."""
    latent_dim: Count = 128
    """Length of the latent vector."""
    label_dim: Count = 128
    """Length of the code into which the label is translated."""
    label_input: LabelInput | None = None
    """How the label enters: embedding (classes), fourier, ili or nli (scalars). Null: embedding or fourier."""

    loss: Literal["hinge", "nonsaturating"] = "hinge"
    """The adversarial loss of both networks."""
    vicinity: Literal["hard", "soft"] = "hard"
    """Scalar labels: which real images stand for a target label, those within kappa (hard) or all, weighted (soft)."""
    sigma: Positive | None = None
    """Scalar labels: noise added to target labels, in label units. Null: CcGAN's rule of thumb."""
    kappa: Positive | None = None
    """Scalar labels: half-width of the vicinity in label units (soft: the weight is exp(-(distance/kappa)^2)). Null: five
    times the largest gap between neighbouring labels, isolated ones left out, and a quarter of the label range at most."""
    mode_seeking: Weight = 0.0
    """Weight of the mode-seeking term, which rewards images that differ when their latents do. Few images need it."""
    r1: Weight = 0.0
    """Weight gamma of the gradient penalty on real images, gamma / 2 |grad D|^2 (R1)."""
    r1_every: Count = 16
    """Discriminator updates between two penalties; each counts that many times (lazy regularisation)."""
    orthogonal: Weight = 0.0
    """Strength of BigGAN's orthogonal regularisation of the generator's weights (its authors: 1e-4)."""
    augment: str = "translation,cutout"
    """DiffAugment: a comma-separated choice of color, translation, cutout; empty for none."""
    augment_target: Share | None = None
    """Adaptive augmentation (ADA): each change happens with a probability that holds the mean sign of the discriminator's
    answers to real images at this (its authors: 0.6). Null: every change happens to every image (DiffAugment)."""
    augment_images: Count = 500_000
    """Adaptive augmentation: real images in which the probability can go from 0 to 1."""
    cutout: Share = 0.5
    """DiffAugment's cutout box as a share of the image side."""
    horizontal_flip: bool = False
    """Mirror half of the real images (only where that keeps the label)."""
    features: FeatureHeadsConfig | None = None
    """Discriminators on the frozen `features` that `generators.train` is given. Null: the defaults, if it is given any."""
    guidance: GuidanceConfig | None = None
    """How much the `guide` that `generators.train` is given counts. Null: the defaults, where it is given one."""

    balanced: bool = False
    """Whether every class is drawn equally often, however rare its images are; distinct scalars always are."""

    minutes: Positive | None = None
    """Wall time of the training, in place of `steps`: a few steps are timed first, and their number is fixed for good. Grids
    and scores come on top."""
    steps: Count | None = None
    """Updates of the generator. Null: 20,000, or as many as `minutes` hold."""
    batch_size: Count = 64
    """Real images a discriminator update, over all processes."""
    accumulate: Count = 1
    """Parts into which the batch of an update is split, their gradients summed: less memory, the same batch but for the
    batch norms' statistics and the spectral norms' iterations."""
    sync_batch_norm: bool = False
    """Several GPUs: batch norms take their statistics over all of them."""
    discriminator_steps: Count = 1
    """Discriminator updates before every generator update."""
    learning_rate: Positive | None = None
    """Learning rate of Adam, which trains all networks. Null: 0.0002, and 0.001 for unet."""
    discriminator_learning_rate: Positive | None = None
    """Learning rate of the discriminator. Null: the same as the generator's."""
    betas: tuple[Share, Share] | None = None
    """Adam's decay rates of the mean gradient and of its mean square. Null: 0.0, 0.9, and 0.9, 0.99 for unet."""
    warmup: Share | None = None
    """Share of the steps in which the learning rates first rise linearly. Null: 0.0, and 0.03 for unet."""
    decay: Share | None = None
    """Share of the steps, the last ones, in which the learning rates fall linearly to 0. Null: 0.0, and 0.5 for unet."""
    ema_decay: Share = 0.999
    """The generator that is kept averages its weights over about 1 / (1 - decay) steps (over a tenth of a shorter run)."""
    memory_budget: Annotated[int, Field(ge=0)] = 2048
    """MiB of training images that may stay on the device; a larger set is read batch by batch."""
    log_every: Count = 50
    """Steps between two lines in the log and two checks for divergence."""
    sample_every: Count | None = 1000
    """Steps between two grids of samples (samples/step-N.png). Null: none."""
    score_every: Count | None = None
    """Steps between two scores, lower is better (in a run by generator.judge). The generator with the best one is kept.
    Null: the last generator is."""
    collapse_ratio: Annotated[float, Field(gt=1)] | None = 4.0
    """Stop, and go back to the best, when a score is this many times the best one. Null: never."""
    checkpoint_every: Count = 500
    """Steps between two checkpoints."""

    def network_settings(self) -> dict[str, Any]:
        """The settings that shape the chosen network: fields of ours, validated options of a user's."""
        if self.network in NETWORK_SETTINGS:
            return {name: getattr(self, name) for name in NETWORK_SETTINGS[self.network]}
        options = NETWORKS.options(self.network).of(self.options)
        return {name: getattr(options, name) for name in type(options).model_fields}

    @field_validator(*NETWORKS.common_defaults)
    @classmethod
    def _null_means_the_networks_own(cls, value: Any, known: ValidationInfo) -> Any:
        if value is not None or "network" not in known.data:
            return value
        return NETWORKS.defaults(known.data["network"])[known.field_name]

    @field_validator("steps")
    @classmethod
    def _steps_or_minutes(cls, value: int | None, known: ValidationInfo) -> int | None:
        if known.data.get("minutes") is None:
            return value or 20_000
        if value is not None:
            raise ValueError(f"{value} is set beside minutes, which stand in its place; leave one of the two null")
        return None

    @model_validator(mode="after")
    def _settings_of_the_network(self):
        taken, defaults = NETWORK_SETTINGS.get(self.network, ()), NETWORKS.defaults(self.network)
        for name in sorted(set().union(*NETWORK_SETTINGS.values()) - set(taken)):
            if getattr(self, name) != defaults.get(name, type(self).model_fields[name].default):
                known = ", ".join(taken) or f"options: {', '.join(NETWORKS.options(self.network).model_fields)}"
                raise ValueError(f"{name} does not shape the network '{self.network}', which takes {known}")
        if taken and self.options:
            raise ValueError(
                f"options are for a network of your own; the settings of '{self.network}' stand beside them"
            )
        try:
            self.network_settings()
        except ValueError as error:
            raise ValueError("; ".join(f"options.{line}" for line in str(error).splitlines())) from error
        return self

    @model_validator(mode="after")
    def _even_batch(self):
        if self.batch_size % (2 * self.accumulate):
            passes = f"accumulate {self.accumulate} passes of pairs" if self.accumulate > 1 else "pairs"
            raise ValueError(
                f"batch_size {self.batch_size} does not split into {passes}; use a multiple of {2 * self.accumulate}"
            )
        if self.sync_batch_norm and self.label_input == "nli":
            raise ValueError("sync_batch_norm does not go with label_input nli; use ili or fourier")
        if self.augment_target is not None and not self.augment:
            raise ValueError("augment_target adapts the changes that augment names, and it names none")
        if self.label_input == "ili" and (self.label_dim < 16 or self.label_dim % 8):
            raise ValueError(
                f"label_dim {self.label_dim} does not suit label_input ili; use a multiple of 8 from 16 on"
            )
        if self.network == "sngan" and len(self.widths) < 2:
            raise ValueError("widths needs two numbers or more: a generator without a block would not see its label")
        checked_policy(self.augment)
        return self
