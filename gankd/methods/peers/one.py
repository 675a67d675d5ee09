"""On-the-fly native ensemble: the branches of one network follow their gated sum.

Lan, Zhu, Gong, "Knowledge Distillation by On-the-Fly Native Ensemble", NeurIPS 2018, arXiv 1806.04606.
"""

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from gankd.data.loader import Batch
from gankd.losses import one_loss
from gankd.losses.precision import full_precision
from gankd.methods.peers.base import Online, RampedConfig
from gankd.methods.setup import Setup
from gankd.models.taps import feature_shapes


class ONEConfig(RampedConfig):
    """sum over branches and ensemble of the task's loss + weight * w(step) * how far branches are from the ensemble."""

    name: Literal["one"] = "one"
    """The method's name."""
    peers: Annotated[int, Field(ge=2)] = 3
    """Branches, the student's own last stage among them."""
    share: Literal["trunk"] = "trunk"
    """The gate reads the trunk that the branches share."""

    cannot_spread: ClassVar[str] = "its branches share a trunk; use okddip or ffl with share: nothing"


class ONE(Online):
    """g = softmax(ReLU(BatchNorm(Linear(global average of the trunk's map)))),  z_e = sum_i g_i z_i
    L = sum_i CE(z_i) + CE(z_e) + weight w(step) sum_i KL_T([z_e] -> z_i); scalars: squared differences for KL.

    The trunk is everything up to the last stage but one. The first branch is the student's own and is deployed.

    >>> student = gankd.distill(student, real=train, method="one", steps=2)

    Loss: losses.online.one_loss
    """

    Config = ONEConfig

    def __init__(self, config: ONEConfig, setup: Setup):
        super().__init__(config, setup)
        (shape,) = feature_shapes(setup.student, self.image_shape, [self.trunk_path])
        self.gate = Gate(shape[0], config.peers)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        config, weight = self.config, self.config.weight * self.ramp
        answers, batch = self.answers_to(batch)
        loss, labels, weighted = one_loss(
            branch_logits=answers.outputs,
            gates=self.gate(answers.trunk),  # [N, m]
            labels=batch.labels,
            temperature=config.temperature,
            kd_weight=weight,
            task=self.task,
        )
        return {"loss": loss, "task": labels, "one": weighted}


class Gate(nn.Module):
    """How much each of m branches counts: a map [N, C, H, W] to softmax(ReLU(BatchNorm(Linear(global average)))) [N, m].

    In full precision, by the statistics of the batch. Raises ValueError for a batch of one image, which has no variance.
    """

    def __init__(self, channels: int, num_branches: int):
        super().__init__()
        self.linear = nn.Linear(channels, num_branches)
        self.norm = nn.BatchNorm1d(num_branches, track_running_stats=False)

    def forward(self, feature_map: Tensor) -> Tensor:
        if len(feature_map) < 2:
            raise ValueError(
                f"the gates are normalised over the batch: it needs at least 2 images, got {len(feature_map)}"
            )
        with torch.autocast(feature_map.device.type, enabled=False):
            pooled = full_precision(feature_map).mean((2, 3))  # [N, C]
            return self.norm(self.linear(pooled)).relu().softmax(dim=1)
