"""Layer-wise mutual contrastive learning: every stage of a peer learns from every stage of the others.

Yang, An, Zhou, Zhuang, Xu, Zhang, "Online Knowledge Distillation via Mutual Contrastive Learning for Visual Recognition",
TPAMI 2023, arXiv 2207.11518.
"""

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from gankd.data.loader import Batch
from gankd.distributed.processes import gather, gather_with_gradient, mean_with_gradient
from gankd.losses import layer_matching_weights, layerwise_mcl_loss
from gankd.losses.online import divergences_to
from gankd.losses.precision import full_precision
from gankd.methods.peers.base import Online
from gankd.methods.peers.contrast import ContrastConfig
from gankd.methods.peers.stages import Peer, Stages, Together
from gankd.methods.setup import Setup
from generators.settings import Count, Positive, Weight


class LMCLConfig(ContrastConfig):
    """sum over peers, stages and their aggregate of the task's loss + weight * contrastive terms + logit_weight * KL."""

    name: Literal["lmcl"] = "lmcl"
    """The method's name."""
    vcl_weight: Weight = 0.1
    """Weight of the contrast within a peer."""
    icl_weight: Weight = 0.1
    """Weight of the contrast between peers."""
    contrastive_temperature: Positive = 0.1
    """Temperature of the similarities."""
    logit_weight: Weight = 1.0
    """Weight of every peer following every peer's aggregate, its own too."""
    embedding_width: Count = 128
    """Width of the embedding heads and of the meta network."""
    meta_every: Annotated[int, Field(ge=0)] = 50
    """Steps between two meta steps (500 on ImageNet); 0: none, and the matching of stages stays as it begins."""
    meta_rate: Positive = 0.1
    """Learning rate of the meta network and of the inner steps (SGD)."""
    meta_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Momentum of the meta network's steps."""

    @property
    def sampling(self) -> str:
        return "distinct_pairs"

    cannot_spread: ClassVar[str] = "its meta step differentiates steps of all peers together; use mcl"


class LMCL(Online):
    """L = sum over peers of CE of every stage and of their aggregate + weight * layerwise_mcl_loss
        + logit_weight sum over peers i, j of KL_T([aggregate_j] -> z_i)

    Stage k of a peer is its network up to there and a copy of what follows. Pair weights are sigmoid(cos(A f, B g)) of
    pooled features, with a linear map for every peer and stage: the meta network. Every `meta_every` steps it is trained
    so that peers who take two SGD steps on the contrastive terms and one on the labels are right about the labels: the
    gradient passes through these steps, which are then forgotten. Terms and meta step are those of the whole batch of
    all processes.

    >>> student = gankd.distill(student, real=train, method="lmcl", steps=2)

    Loss: losses.mutual_contrastive.layerwise_mcl_loss
    """

    Config = LMCLConfig
    tasks = frozenset({"classification"})
    hint = "It finds positives by class; for a scalar target use method mcl (form: queue, or positives: vicinal)."

    def __init__(self, config: LMCLConfig, setup: Setup):
        super().__init__(config, setup)
        self.peers = nn.ModuleList(Peer(network, self.image_shape, config.embedding_width) for network in self.networks)
        self.meta = nn.ModuleList(
            nn.ModuleList(nn.Linear(peer.inputs, config.embedding_width) for _ in peer.heads) for peer in self.peers
        ).requires_grad_(False)  # it has steps of its own
        self.register_buffer("meta_velocity", torch.zeros(sum(part.numel() for part in self.meta.parameters())))
        self.is_meta_step = False

    def start_step(self, step: int, num_steps: int, steps_per_epoch: int) -> None:
        self.is_meta_step = self.config.meta_every > 0 and (step + 1) % self.config.meta_every == 0

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        config = self.config
        images = self.normalize(self.augment(batch.images))
        if self.is_meta_step and self.training:
            self.step_meta_network(images, batch.labels)
        stages = Together(self.networks, self.peers)(images)
        outputs = [peer.outputs[-1] for peer in stages]
        self.update_running_loss(outputs, batch.labels)
        labels = self.label_losses_of(stages, batch.labels)
        contrast, *terms = self.contrast(stages, batch.labels, dict(self.meta.named_parameters()))
        logits = sum(divergences_to(guide.aggregate, outputs, config.temperature, self.task) for guide in stages)
        losses = {"task": labels, "logits": logits}
        losses |= dict(zip(("vcl", "soft_vcl", "icl", "soft_icl"), terms, strict=True))
        return {"loss": labels + config.weight * contrast + config.logit_weight * logits, **losses}

    def label_losses_of(self, stages: list[Stages], labels: Tensor) -> Tensor:
        outputs = [output for peer in stages for output in (*peer.outputs, peer.aggregate)]
        return self.label_loss(outputs, labels)

    def contrast(self, stages: list[Stages], labels: Tensor, meta: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """The contrastive terms of the batch of all processes, each pair of stages weighted by the meta network with the
        parameters `meta`."""
        config, projected = self.config, []
        with torch.autocast(labels.device.type, enabled=False):
            for index, peer in enumerate(stages):
                layers = [
                    (meta[f"{index}.{stage}.weight"], meta[f"{index}.{stage}.bias"])
                    for stage in range(len(peer.pooled))
                ]
                pairs = zip(peer.pooled, layers, strict=True)
                projected.append([F.linear(full_precision(vector.detach()), *layer) for vector, layer in pairs])
        return layerwise_mcl_loss(
            embeddings=[[gather_with_gradient(vector) for vector in peer.embeddings] for peer in stages],
            labels=gather(labels),
            matching_weights=layer_matching_weights(
                projected_features=[[gather_with_gradient(vector) for vector in peer] for peer in projected]
            ),
            **config.weights,
        )

    def step_meta_network(self, images: Tensor, labels: Tensor) -> None:
        """One SGD step of the meta network, on the label loss of peers that have taken the inner steps."""
        meta = {name: parameter.detach().clone().requires_grad_() for name, parameter in self.meta.named_parameters()}
        with torch.enable_grad():
            gradients = torch.autograd.grad(self.loss_after_inner_steps(images, labels, meta), list(meta.values()))
        gradient = torch.cat([part.flatten() for part in gradients])
        with torch.no_grad():
            self.meta_velocity.mul_(self.config.meta_momentum).add_(gather(gradient[None]).mean(0))
            parameters = list(self.meta.parameters())
            parts = self.meta_velocity.split([parameter.numel() for parameter in parameters])
            for parameter, part in zip(parameters, parts, strict=True):
                parameter.sub_(self.config.meta_rate * part.view_as(parameter))

    def loss_after_inner_steps(self, images: Tensor, labels: Tensor, meta: dict[str, Tensor]) -> Tensor:
        """The label loss of peers after two SGD steps on the contrastive terms and one on the labels, as a function of
        the meta network's parameters. The peers themselves stay as they are."""
        peers = Together(self.networks, self.peers)
        weights = {name: parameter for name, parameter in peers.named_parameters() if parameter.requires_grad}
        buffers = {name: buffer.clone() for name, buffer in peers.named_buffers()}  # batch norm's move: forgotten
        for objective in ("contrast", "contrast", "labels"):
            stages = functional_call(peers, {**weights, **buffers}, (images,))
            loss = (
                self.label_losses_of(stages, labels)
                if objective == "labels"
                else self.contrast(stages, labels, meta)[0]
            )
            gradients = torch.autograd.grad(
                loss, list(weights.values()), create_graph=True, allow_unused=True, materialize_grads=True
            )
            gradient = mean_with_gradient(torch.cat([part.flatten() for part in gradients]))
            parts = gradient.split([weight.numel() for weight in weights.values()])
            weights = {
                name: weight - self.config.meta_rate * part.view_as(weight)
                for (name, weight), part in zip(weights.items(), parts, strict=True)
            }
        return self.label_losses_of(functional_call(peers, {**weights, **buffers}, (images,)), labels)
