"""Collaborative learning: students that each see their own augmentation follow one target made of their outputs.

Guo et al., "Online Knowledge Distillation via Collaborative Learning", CVPR 2020.
"""

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from gankd.data.loader import Batch, BatchSource
from gankd.distributed.processes import gather, gather_with_gradient
from gankd.losses import kdcl_loss, regression_ensemble_weights
from gankd.losses.precision import full_precision
from gankd.methods.peers.base import Online, PeersConfig
from gankd.methods.setup import Setup
from gankd.models.state import in_evaluation_mode
from gankd.tasks import CLASSIFICATION
from generators.images import to_unit_range
from generators.settings import Positive, Weight


class KDCLConfig(PeersConfig):
    """task_weight * sum over students of the task's loss + weight * how far they are from the common target."""

    name: Literal["kdcl"] = "kdcl"
    """The method's name."""
    task_weight: Weight = 1.0
    """Weight of the labels' loss."""
    weight: Weight = 1.0
    """Weight of the common target."""
    temperature: Positive = 2.0
    """Temperature that softens both distributions of classes."""
    ensemble: Literal["mean", "best", "min_logit", "linear", "general"] = "mean"
    """The target of a sample: the students' mean, the student that is least wrong on its label, the least of every logit
    relative to the label's, the average of the batch with the lowest cross-entropy (both of classes only), or the mixture
    whose errors cancel best on held-out samples."""
    held_out: Annotated[float, Field(gt=0, le=0.5)] = 0.1
    """Share of the real samples that the losses leave out, to compute the mixture from (general); 1,000 at most."""

    def check_task(self, task_kind: str, head: str = "scalar") -> None:
        if self.ensemble in ("min_logit", "linear") and task_kind != CLASSIFICATION:
            raise ValueError(f"kdcl's {self.ensemble} needs the label's logit, which scalars lack: set ensemble: best.")


class KDCL(Online):
    """L = task_weight sum_i CE(z_i) + weight sum_i KL_T([z_t] -> z_i), student i on its own view of the images

    mean       z_t = 1/m sum_i z_i                     best   that of the student with the lowest error on the sample
    min_logit  z_tk = min_i (z_ik - z_iy)              general  z_t = sum_i a_i z_i,  a = C^-1 1 / (1' C^-1 1)
    linear     z_t = sum_i a_i z_i,  a >= 0 of sum 1 with the lowest CE(z_t) in the batch

    C_ij is the mean product of the errors of students i and j on held-out samples, renewed every epoch. Scalars: squared
    differences for KL.

    >>> student = gankd.distill(student, real=train, method="kdcl", steps=2)

    Loss: losses.online.kdcl_loss
    """

    Config = KDCLConfig

    def __init__(self, config: KDCLConfig, setup: Setup):
        super().__init__(config, setup)
        self.data: BatchSource = setup.data
        self.register_buffer("mixture", None)
        if config.ensemble == "general":
            pool = self.data.num_real or self.data.num_samples  # generated labels say too little about errors
            count = min(1000, round(config.held_out * pool))
            if count < 2:
                raise ValueError(f"kdcl's general ensemble has {pool} samples, too few to hold any out; use best.")
            self.register_buffer("held_out", torch.randperm(pool, device="cpu")[:count])
            self.mixture = torch.full((config.peers,), 1 / config.peers)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        config = self.config
        views, batch = self.views_of(batch, config.peers)
        outputs, labels, indices = self.answer(views).outputs, batch.labels, batch.indices
        if not self.is_spread and config.ensemble in ("linear", "general"):  # whose means are over the whole batch
            outputs = [gather_with_gradient(output) for output in outputs]
            labels, indices = gather(labels), gather(indices)
        if config.ensemble == "general":
            used = ~torch.isin(indices, self.held_out)
            if not used.any():
                zero = sum(output.sum() for output in outputs) * 0
                return {"loss": zero, "task": zero, "kdcl": zero}
            outputs, labels = [output[used] for output in outputs], labels[used]
        self.update_running_loss(outputs, labels)
        weights = linear_weights(torch.stack(outputs), labels) if config.ensemble == "linear" else self.mixture
        loss, label_loss, divergence = kdcl_loss(
            student_logits=outputs,
            labels=labels,
            temperature=config.temperature,
            ce_weight=config.task_weight,
            kd_weight=config.weight,
            ensemble=config.ensemble if weights is None else "weighted",
            weights=weights,
            task=self.task,
        )
        return {"loss": loss, "task": label_loss, "kdcl": divergence}

    def start_step(self, step: int, num_steps: int, steps_per_epoch: int) -> None:
        super().start_step(step, num_steps, steps_per_epoch)
        if self.config.ensemble == "general" and step > 0 and step % steps_per_epoch == 0:
            self.renew_mixture()

    @torch.no_grad()
    def renew_mixture(self) -> None:
        """The mixture of the students as they are, from their answers to the held-out samples; every process alike."""
        with in_evaluation_mode(self):
            chunks = [self.data.at(indices).images for indices in self.held_out.cpu().split(512)]
            answers = [self.answer([to_unit_range(images)]).outputs for images in chunks]
        outputs = [torch.cat(chunks).float() for chunks in zip(*answers, strict=True)]
        labels = self.data.labels[self.held_out]
        weights = regression_ensemble_weights(
            predictions=[self.task.soft_labels(output) for output in outputs],
            labels=self.task.soften(labels, outputs[0].shape[1]),
        )
        self.mixture.copy_(weights)


@torch.no_grad()
def linear_weights(logits: Tensor, labels: Tensor, num_rounds: int = 12) -> Tensor:
    """The shares a >= 0 of sum 1 that minimise CE(sum_i a_i z_i), a convex problem: logits [m, N, K] to [m].

    Of 12 rounds each takes the best of many steps or none: multiplicative ones, a_i ~ a_i exp(-rate * slope_i), and from
    each student to each other, which get on where the loss is stiff. The cross-entropy never rises, and nothing waits for
    the device.
    """
    logits, device = full_precision(logits), logits.device
    one_hot, vertices = F.one_hot(labels, logits.shape[2]), torch.eye(len(logits), dtype=logits.dtype, device=device)
    others = (vertices[:, None] - vertices).flatten(0, 1)  # [m m, m], to student i from student j
    givers = vertices.repeat(len(logits), 1)  # [m m, m], student j
    amounts, rates = 2.0 ** -torch.arange(10, device=device), 2.0 ** torch.arange(-8, 8, device=device)
    shares = logits.new_full((len(logits),), 1 / len(logits))
    with torch.autocast(device.type, enabled=False):
        for _ in range(num_rounds):
            mixed = torch.tensordot(shares, logits, dims=1)  # [N, K]
            slopes = torch.tensordot(logits, mixed.softmax(1) - one_hot, dims=2)  # [m], of the sum
            slopes = slopes - slopes.mean()
            steps = rates[:, None] * slopes / slopes.abs().max().clamp(min=1e-12)
            multiplied = (shares.clamp(min=1e-30).log() - steps).softmax(1)
            exchanged = shares + amounts[:, None, None] * (givers @ shares)[:, None] * others
            candidates = torch.cat([shares[None], multiplied, exchanged.flatten(0, 1)])  # [17 + 10 m m, m]
            mixtures = torch.tensordot(candidates, logits, dims=1)
            losses = F.cross_entropy(mixtures.flatten(0, 1), labels.repeat(len(candidates)), reduction="none")
            shares = candidates[losses.view(len(candidates), -1).mean(1).argmin()]
    return shares
