"""Mutual contrastive learning: peers embed images alike, and share what they find similar.

Yang, An, Cai, Xu, "Mutual Contrastive Learning for Visual Representation Learning", AAAI 2022, arXiv 2104.12565.
"""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from gankd.data.loader import Batch
from gankd.distributed.processes import gather, gather_with_gradient, own_rows
from gankd.losses import ensemble_logit_loss, mcl_loss, mcl_memory_loss, mcl_queue_loss
from gankd.methods.memory_bank import MemoryBank, PositiveSets
from gankd.methods.peers.base import Online
from gankd.methods.peers.contrast import ContrastConfig, EmbeddingHead, KeyQueues
from gankd.methods.setup import Setup
from gankd.tasks import CLASSIFICATION
from generators.settings import Count, Positive, Weight


class MCLConfig(ContrastConfig):
    """sum over peers of the task's loss + weight * the four contrastive terms + logit_weight * following the mean output."""

    name: Literal["mcl"] = "mcl"
    """The method's name."""
    form: Literal["batch", "memory", "queue"] | None = None
    """What an image is contrasted with: the batch, memory banks (many classes), or queues of earlier images without their
    labels. Null: batch for classes, queue for a scalar target."""
    positives: Literal["class", "vicinal"] = "class"
    """What is alike (batch, memory): images of one class, or (scalar target) whose labels differ by at most `kappa`."""
    kappa: Positive | None = None
    """Largest difference of two labels that are alike (`positives: vicinal`), in the labels' units."""
    vcl_weight: Weight | None = None
    """Weight of the contrast within a peer. Null: 0.1, and 1 for queues."""
    icl_weight: Weight | None = None
    """Weight of the contrast between peers. Null: 0.1, and 1 for queues."""
    contrastive_temperature: Positive | None = None
    """Temperature of the similarities. Null: 0.1 within the batch, else 0.07."""
    include_self: bool = True
    """Whether following (batch) also covers an image's similarity to itself, the same for every peer."""
    logit_weight: Weight = 0.0
    """Weight of following the peers' mean output: both of two peers do, of more the student alone. The paper has 1."""
    negatives: Count = 8192
    """Negatives of an image (memory); no more than every image finds without meeting one twice."""
    bank_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Share that a sample's row keeps of itself (memory)."""
    queue_length: Count = 65536
    """Keys of a peer (queue); no more are kept than there are samples."""
    encoder_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """Share that the key encoders keep of themselves (queue)."""

    def form_for(self, task_kind: str) -> str:
        """batch, memory or queue."""
        return self.form or ("batch" if task_kind == CLASSIFICATION else "queue")

    @property
    def sampling(self) -> str:
        return "distinct_pairs" if self.form_for(CLASSIFICATION) == "batch" else "uniform"

    def check_task(self, task_kind: str, head: str = "scalar") -> None:
        if self.form_for(task_kind) == "queue":
            if self.spread_peers:
                raise ValueError(
                    "mcl's queues cannot have spread_peers: every process needs the keys of all peers' encoders, which "
                    "would be run as often as before; set form: batch or memory."
                )
            return
        if task_kind != CLASSIFICATION and self.positives == "class":
            raise ValueError("mcl finds positives by class; set positives: vicinal or use the queue form.")
        if task_kind == CLASSIFICATION and self.positives == "vicinal":
            raise ValueError("mcl's vicinal positives are for scalar labels; classes have positives: class.")
        if self.positives == "vicinal" and self.kappa is None:
            raise ValueError(
                "mcl with positives: vicinal needs kappa, how far apart labels of one vicinity may be, in their units."
            )


class MCL(Online):
    """L = sum_i CE_i + weight (a VCL + b softVCL + c ICL + d softICL) + logit_weight KL([mean z] -> z), see losses.mcl_loss

    v_i = normalised Linear(ReLU(Linear(pooled feature))) of peer i. All peers see one view; with queues the keys are
    momentum encoders' embeddings of a second one. Sums run over peers and ordered pairs: with P peers the terms grow like
    P (P - 1). Peers are always whole networks (the authors share the first stage from three peers on). Heads, banks, key
    encoders and queues are stored with the run.

    >>> student = gankd.distill(student, real=train, method="mcl", steps=2)

    Loss: losses.mutual_contrastive.mcl_loss
    """

    Config = MCLConfig
    buffers_stay_equal = True
    reads = ("pooled",)

    def __init__(self, config: MCLConfig, setup: Setup):
        super().__init__(config, setup)
        self.form = config.form_for(setup.task.kind)
        vicinal = self.form != "queue" and config.positives == "vicinal"
        self.kappa = config.kappa if vicinal else None  # None: alike are those of one class
        data, width = setup.data, config.embedding_width
        self.heads_of_peers = nn.ModuleList(EmbeddingHead(shape[0], width) for shape in self.shapes("pooled"))
        if self.form == "memory":
            self.positives = PositiveSets(data.labels.cpu(), self.kappa)
            if self.positives.largest == data.num_samples:
                raise ValueError("mcl has a sample that every other is alike to, and so no negatives; use form: queue.")
            size = (data.num_samples, width, config.bank_momentum)
            self.banks = nn.ModuleList(MemoryBank.of_directions(*size) for _ in range(config.peers))
        if self.form == "queue":
            length = min(config.queue_length, data.num_samples)
            self.keys = KeyQueues(self.networks, self.heads_of_peers, width, length, config.encoder_momentum)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        config = self.config
        answers, batch = self.answers_to(batch)
        outputs = answers.outputs
        embeddings = [head(pooled) for head, pooled in zip(self.heads_of_peers, answers.pooled, strict=True)]
        if self.form == "batch":
            contrast, *terms = self.in_batch(embeddings, batch)
        elif self.form == "memory":
            contrast, *terms = self.against_banks(embeddings, batch)
        else:
            contrast, *terms = self.against_queues(embeddings, batch)
        losses = {"task": self.label_loss(outputs, batch.labels)}
        losses |= dict(zip(("vcl", "soft_vcl", "icl", "soft_icl"), terms, strict=True))
        loss = losses["task"] + config.weight * contrast
        if config.logit_weight > 0:
            losses["logits"] = self.logit_loss(outputs)
            loss = loss + config.logit_weight * losses["logits"]
        return {"loss": loss, **losses}

    @property
    def weights(self) -> dict[str, float]:
        """Of the four terms, and the two temperatures."""
        contrast = 1.0 if self.form == "queue" else 0.1
        defaults = {"vcl_weight": contrast, "icl_weight": contrast}
        defaults["contrastive_temperature"] = 0.1 if self.form == "batch" else 0.07
        return {name: defaults[name] if value is None else value for name, value in self.config.weights.items()}

    def in_batch(self, embeddings: list[Tensor], batch: Batch) -> tuple[Tensor, ...]:
        """Against the images of the whole batch, over all processes."""
        labels = batch.labels
        if not self.is_spread:
            embeddings, labels = [gather_with_gradient(embedding) for embedding in embeddings], gather(labels)
        return mcl_loss(
            embeddings=embeddings,
            labels=labels,
            kappa=self.kappa,
            include_self=self.config.include_self,
            **self.weights,
        )

    def against_banks(self, embeddings: list[Tensor], batch: Batch) -> tuple[Tensor, ...]:
        """Against one image alike (maybe itself) and images unlike it, drawn from all samples."""
        drawn = self.positives.draw(
            batch.indices if self.is_spread else gather(batch.indices),
            num_negatives=min(self.config.negatives, len(self.positives.order) - self.positives.largest),
            mode="relax",
            rows=slice(None) if self.is_spread else own_rows(),
        )
        terms = mcl_memory_loss(
            embeddings=embeddings,
            banks=[bank.rows.clone() for bank in self.banks],
            positive_indices=torch.stack([batch.indices, drawn[:, 0]], dim=1),
            negative_indices=drawn[:, 1:],
            **self.weights,
        )
        if self.training:
            for bank, embedding in zip(self.banks, embeddings, strict=True):
                bank.write(batch.indices, embedding, gathered=self.is_spread)
        return terms

    def against_queues(self, queries: list[Tensor], batch: Batch) -> tuple[Tensor, ...]:
        """The second view's key is the positive, the keys of earlier batches are the negatives."""
        with torch.no_grad():
            if self.training:
                self.keys.follow(self.networks, self.heads_of_peers)
            images = self.normalize(self.augment(batch.images))
            keys = self.keys([self.taps_of(network) for network in self.networks], images)
        terms = mcl_queue_loss(queries=queries, keys=keys, queues=self.keys.queues, **self.weights)
        if self.training:
            self.keys.push(keys)
        return terms

    def logit_loss(self, outputs: list[Tensor]) -> Tensor:
        """The taught peers follow the mean of all."""
        taught = outputs if len(outputs) == 2 else outputs[:1]
        return ensemble_logit_loss(
            student_logits=taught, ensemble_logits=outputs, temperature=self.config.temperature, task=self.task
        )
