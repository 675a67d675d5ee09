"""Networks that answer at every stage, as lmcl has them: a branch, an embedding and a share of the aggregate for each."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from gankd.losses.precision import full_precision
from gankd.methods.peers.contrast import EmbeddingHead
from gankd.models.tail import NetworkTail, reinitialize
from gankd.models.taps import Taps, default_taps, feature_shapes


class Stages(NamedTuple):
    """What one peer makes of a batch."""

    outputs: list[Tensor]
    """[N, K] of every stage; the last is the network's own."""
    embeddings: list[Tensor]
    """[N, D], unit rows."""
    pooled: list[Tensor]
    """[N, D_in]."""
    aggregate: Tensor
    """[N, K]."""


class Peer(nn.Module):
    """What a peer has besides its network: for every stage but the last a copy of what follows it, an embedding head for
    every stage, and the weights by which their outputs are aggregated."""

    def __init__(self, network: nn.Module, image_shape: tuple[int, int, int], width: int):
        super().__init__()
        taps = default_taps(network, image_shape=image_shape)
        self.stages, self.pooled = taps[1:-2], taps[-1]
        self.branches = nn.ModuleList(NetworkTail(network, path, image_shape) for path in self.stages)
        reinitialize(self.branches)
        ((inputs,),) = feature_shapes(network, image_shape, [self.pooled])
        count = len(self.stages) + 1
        self.inputs = inputs
        self.heads = nn.ModuleList(EmbeddingHead(inputs, width) for _ in range(count))
        self.gate = nn.Sequential(nn.Linear(count * inputs, inputs), nn.ReLU(), nn.Linear(inputs, count))

    def forward(self, network: nn.Module, images: Tensor) -> Stages:
        last, (*maps, last_pooled) = Taps(network, [*self.stages, self.pooled])(images)
        outputs, pooled = [], []
        for branch, feature in zip(self.branches, maps, strict=True):
            output, (vector,) = Taps(branch, [f"network.{self.pooled}"])(feature, images)
            outputs.append(output)
            pooled.append(vector)
        outputs, pooled = [*outputs, last], [*pooled, last_pooled]
        embeddings = [head(vector) for head, vector in zip(self.heads, pooled, strict=True)]
        shares = full_precision(self.gate(torch.cat(pooled, dim=1))).softmax(dim=1)  # [N, S]
        aggregate = sum(share[:, None] * output for share, output in zip(shares.T, outputs, strict=True))
        return Stages(outputs, embeddings, pooled, aggregate)


class Together(nn.Module):
    """All peers in one module, for a pass with other weights than their own."""

    def __init__(self, networks: list[nn.Module], peers: nn.ModuleList):
        super().__init__()
        self.networks, self.peers = nn.ModuleList(networks), peers

    def forward(self, images: Tensor) -> list[Stages]:
        return [peer(network, images) for network, peer in zip(self.networks, self.peers, strict=True)]
