"""What the mutual contrastive methods share: settings, heads that embed features, queues of earlier embeddings."""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gankd.distributed.processes import gather
from gankd.losses.precision import full_precision
from gankd.methods.memory_bank import MemoryBank
from gankd.methods.peers.base import PeersConfig
from gankd.models.taps import Taps
from generators.settings import Count, Positive, Weight

WEIGHTS = ("vcl_weight", "soft_vcl_weight", "icl_weight", "soft_icl_weight")


class ContrastConfig(PeersConfig):
    """Peers that share what they find similar; a method adds the weights of the contrast and its temperature."""

    weight: Weight = 1.0
    """Weight of the sum of the four contrastive terms."""
    soft_vcl_weight: Weight = 1.0
    """Weight of following the other peers' similarities."""
    soft_icl_weight: Weight = 1.0
    """Weight of following the other peers' similarities between peers."""
    temperature: Positive = 3.0
    """Softens similarities (already over the contrastive temperature) and logits where peers follow one another."""
    embedding_width: Count = 128
    """Width of the embedding heads."""

    @property
    def weights(self) -> dict[str, float | None]:
        """Weights of the four terms and both temperatures, as the losses name them."""
        return {name: getattr(self, name) for name in (*WEIGHTS, "contrastive_temperature", "temperature")}


class EmbeddingHead(nn.Module):
    """A pooled feature [N, D_in] to a unit vector [N, D], in full precision."""

    def __init__(self, inputs: int, width: int):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width))

    def forward(self, pooled: Tensor) -> Tensor:
        with torch.autocast(pooled.device.type, enabled=False):
            return F.normalize(self.layers(full_precision(pooled)), dim=1)


class KeyQueues(nn.Module):
    """Momentum copies of P encoders and heads, and a queue of the latest keys [D] of each."""

    buffers_stay_equal = True

    def __init__(self, networks: list[nn.Module], heads: nn.ModuleList, width: int, length: int, momentum: float):
        super().__init__()
        self.encoders = copy.deepcopy(nn.ModuleList(networks)).requires_grad_(False)
        self.heads = copy.deepcopy(heads).requires_grad_(False)
        self.momentum = momentum
        queues = F.normalize(torch.randn(len(networks), width, length), dim=1)
        self.bank = MemoryBank(queues.permute(2, 0, 1).contiguous())  # [length, P, D], keys of one image side by side
        self.register_buffer("end", torch.zeros((), dtype=torch.int64))

    def forward(self, paths: list[list[str]], images: Tensor) -> list[Tensor]:
        """The keys [N, D] of each encoder, read at its path, for images [N, C, H, W]."""
        encoders = zip(self.encoders, self.heads, paths, strict=True)
        return [head(Taps(encoder, path)(images)[1][0]) for encoder, head, path in encoders]

    @property
    def queues(self) -> Tensor:
        """[P, D, length]."""
        return self.bank.rows.permute(1, 2, 0).clone(memory_format=torch.contiguous_format)

    def follow(self, networks: list[nn.Module], heads: nn.ModuleList) -> None:
        """theta_k = m theta_k + (1 - m) theta_q; batch-norm statistics are the key encoders' own."""
        queries = [*nn.ModuleList(networks).parameters(), *heads.parameters()]
        for key, query in zip([*self.encoders.parameters(), *self.heads.parameters()], queries, strict=True):
            key.lerp_(query.detach(), 1 - self.momentum)

    def push(self, keys: list[Tensor]) -> None:
        """The keys [N, D] of every encoder, of all processes, take the place of the oldest."""
        length = len(self.bank.rows)
        latest = gather(torch.stack(keys, dim=1))[-length:]  # [N, P, D]
        places = (self.end + torch.arange(len(latest), device=latest.device)) % length
        self.bank.write(places, latest, gathered=True)
        self.end = (self.end + len(latest)) % length
