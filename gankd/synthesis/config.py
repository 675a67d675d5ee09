"""What the user says about synthesis: which modules of cGAN-KD are on, and how many samples they leave."""

from typing import Annotated, Literal

from pydantic import Field

from generators.settings import Count, Positive, Settings, Weight


class SubsamplingConfig(Settings):
    """M1 of cGAN-KD: a conditional density ratio p_real / p_generated, then rejection sampling (cDR-RS)."""

    enabled: bool = True
    """Whether candidates are subsampled by their density ratio; off: every one passes."""
    features: Literal["teacher", "autoencoder", "classifier"] = "teacher"
    """Where the ratio is estimated: the teacher's features (cheap), or an extractor trained for it, as in the paper: a
    sparse autoencoder (made for scalar labels) or a classifier with a wide bottleneck (made for classes)."""
    extractor_steps: Count = 2000
    """Training steps of the feature extractor, where it is an autoencoder or a classifier."""
    widths: tuple[Annotated[int, Field(ge=16, multiple_of=8)], ...] = (512, 256, 128)
    """Hidden widths of the ratio network (the paper: 2048, 1024, 512, 256, 128 on 3072 features)."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Dropout of the ratio network."""
    steps: Count = 500
    """Training steps of the ratio network (the paper: 200 epochs); the learning rate falls tenfold after 40 and 75 %."""
    batch_size: Count = 128
    """Real images, and as many generated ones, in a training step of the ratio network."""
    learning_rate: Positive = 1e-4
    """Learning rate of the ratio network, under Adam (betas .5, .999, weight decay 1e-4)."""
    penalty: Weight = 1.0
    """Weight of (mean ratio of generated images - 1)^2, which the true ratio leaves at 0 (the paper: 0.01). When few real
    images can be told from all generated ones, a weight below about 0.1 lets the ratio die at 0."""
    burn_in: Count = 500
    """Samples a class (scalars: a label bin) from which the ratio's bound starts."""
    bound: Annotated[float, Field(gt=0, le=1)] = 0.95
    """The bound M as a quantile of the burn-in's ratios; ratios beyond it always pass. 1: the maximum, growing while
    sampling, as in the paper: with few real images one overconfident ratio then rejects nearly everything."""
    label_bins: Count = 20
    """For scalar labels: the label range is cut into so many bins, each with its own bound."""


class SynthesisConfig(Settings):
    """Draw candidates, keep those that look real (M1) and that the teacher agrees with (M2), relabel them (M2)."""

    num_samples: Count = 50_000
    """Samples in the finished store."""
    max_candidates: Count | None = None
    """Stop with a sentence when so many candidates do not leave `num_samples`. Null: twenty times `num_samples`."""
    chunk_size: Count = 1000
    """Candidates drawn at once: the unit of work, of resuming and of distribution over processes."""
    shard_size: Count = 10_000
    """Samples in one file of the store."""
    subsample: SubsamplingConfig = SubsamplingConfig()
    """Subsampling by density ratio (M1)."""
    rho: Annotated[float, Field(gt=0, le=1)] | Literal["paper", "validation"] | None = "paper"
    """M2: the share of samples kept, those with the smallest teacher error (per class; globally for scalars). Null: all.
    `paper`: 0.9 for classes and 0.7 for scalars. `validation`: try `rho_grid` and take the one whose student does best on
    the validation split."""
    rho_grid: tuple[Annotated[float, Field(gt=0, le=1)], ...] = (0.5, 0.7, 0.9, 1.0)
    """The values tried by `rho: validation`."""
    replace_labels: bool | None = None
    """M2: take the teacher's answer as the label. Null: only for scalar labels, as in the paper."""
    force: bool = False
    """Go on with a generator that the teacher reads at chance level: whose images show it nothing of their labels."""
