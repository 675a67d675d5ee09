"""Diverse peers: each follows its own attention-weighted mixture of the peers, and a leader follows their mean.

Chen, Mei, Wang, Feng, Chen, "Online Knowledge Distillation with Diverse Peers", AAAI 2020, arXiv 1912.00350.
"""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from gankd.data.loader import Batch
from gankd.losses.online import okddip_attention, okddip_divergence
from gankd.methods.peers.base import Online, RampedConfig, disagreement
from gankd.methods.setup import Setup
from generators.settings import Count


class OKDDipConfig(RampedConfig):
    """sum over peers and leader of the task's loss + weight * w(step) * how far each is from its own target."""

    name: Literal["okddip"] = "okddip"
    """The method's name."""
    peers: Annotated[int, Field(ge=3)] = 4
    """Students, the leader among them."""
    reduction: Count = 8
    """How many times narrower queries and keys are than the pooled feature."""


class OKDDip(Online):
    """A = softmax over b of (W_q h_a) . (W_k h_b),  t_a = sum_b A_ab z_b, h the pooled features of the peers
    L = sum_a CE(z_a) + CE(z_L) + weight w(step) { sum_a KL_T(t_a -> z_a) + KL_T(mean_a z_a -> z_L) }

    Scalars: squared differences for KL. Targets are attached: nothing else trains the attention. The leader is the
    student. `self_attention` in the log is the mean of A's diagonal: at 1 the peers teach each other nothing.

    >>> student = gankd.distill(student, real=train, method="okddip", steps=2)

    Loss: losses.online.okddip_loss
    """

    Config = OKDDipConfig
    reads = ("pooled",)

    def __init__(self, config: OKDDipConfig, setup: Setup):
        super().__init__(config, setup)
        widths = {shape[0] for shape in self.shapes("pooled")[1:]}
        if len(widths) > 1:
            raise ValueError(
                f"okddip compares the peers' pooled features, which are {' and '.join(map(str, sorted(widths)))} wide; "
                "give peer_models of one width, or use dml."
            )
        width = widths.pop()
        self.query = nn.Linear(width, max(1, width // config.reduction), bias=False)
        self.key = nn.Linear(width, max(1, width // config.reduction), bias=False)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        config, weight = self.config, self.config.weight * self.ramp
        answers, batch = self.answers_to(batch)
        leader, *peers = answers.outputs
        features = torch.stack(answers.pooled[1:], dim=1)  # [N, m - 1, D]
        attention = okddip_attention(queries=self.query(features), keys=self.key(features))  # [N, m - 1, m - 1]
        weighted = weight * okddip_divergence(
            peer_logits=peers, leader_logits=leader, attention=attention, temperature=config.temperature, task=self.task
        )
        labels = self.label_loss(answers.outputs, batch.labels)
        log = {
            "self_attention": attention.detach().diagonal(dim1=1, dim2=2).mean(),
            "spread": disagreement(answers.outputs, self.task),
        }
        return {"loss": labels + weighted, "task": labels, "okddip": weighted, **log}
