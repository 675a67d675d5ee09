"""Contrastive representation distillation: student and teacher find each other's embedding of a sample among many.

Tian, Krishnan, Isola, "Contrastive Representation Distillation", ICLR 2020, arXiv 1910.10699.
"""

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator
from torch import Tensor, nn

from gankd.distributed.processes import gather, own_rows
from gankd.losses import crd_loss
from gankd.losses.precision import full_precision
from gankd.methods.memory_bank import MemoryBank, PositiveSets
from gankd.methods.setup import Outputs, Setup
from gankd.methods.terms import FeatureTermConfig, Term
from gankd.tasks import REGRESSION
from generators.settings import Count, Share, Weight


class CRDConfig(FeatureTermConfig):
    """task loss + weight (L(student against the teacher's bank) + L(teacher against the student's bank))."""

    name: Literal["crd"] = "crd"
    """The method's name."""
    weight: Weight = 0.8
    """Weight of the term."""
    dimension: Count = 128
    """Width of the embeddings on the sphere that student and teacher share."""
    num_negatives: Count = 16384
    """Negatives a sample; no more than every sample finds without meeting one twice."""
    temperature: Annotated[float, Field(ge=0.012)] = 0.07
    """What the inner products are divided by; exp(1 / temperature) must stay a float32."""
    momentum: Share = 0.5
    """Share of the old row when a bank is updated."""
    mode: Literal["exact", "relax"] = "exact"
    """The positive: the sample itself, or any of its class (with scalars: within `kappa`)."""
    negatives: Literal["other_class", "any"] = "other_class"
    """What a sample is contrasted with: those of other classes (with scalars: beyond `kappa`), or any other sample."""
    kappa: Weight | None = None
    """Scalars: labels that differ by at most this much, in their own units, are alike. Null: a tenth of their standard
    deviation."""
    memory: Literal["bank", "queue", "batch"] = "bank"
    """Where negatives come from: a bank with a row for every sample, the latest batches (for data without end, or too
    many samples for a bank: two times `dimension` float32 numbers each), or the batch alone."""
    queue_size: Count = 16384
    """Samples in the queue."""

    @field_validator("student_taps", "teacher_taps")
    @classmethod
    def _is_one(cls, paths):
        if paths is not None and len(paths) != 1:
            raise ValueError(f"crd embeds one feature of either network, not {len(paths)}; name a single module")
        return paths


class Embedding(nn.Linear):
    """A feature [N, ...] on the sphere that student and teacher share, [N, D]: v = W f + b, then v / max(|v|, 1e-12)."""

    def forward(self, feature: Tensor) -> Tensor:
        with torch.autocast(feature.device.type, enabled=False):
            return F.normalize(super().forward(full_precision(feature).flatten(1)), dim=1, eps=1e-12)


class CRD(Term):
    """v = normalise(W f + b) of both pooled features, a = exp(<v, M[c]> / T) with the other side's bank M, and

    L = -1/N sum_n [ log( P_n0 / (P_n0 + K/n) ) + sum_k log( K/n / (P_nk + K/n) ) ],   P = a / Z, on both sides

    for a positive c_0 and K negatives. Z = n mean(a) of the first batch, ever after. Both heads are trained, so both
    sides need a bank; rows of the batch move to normalise(momentum M + (1 - momentum) v) after each step. Real and
    synthetic samples have rows alike. All processes write what all of them saw, so that banks stay equal.
    Raises ValueError: training labels of which one is alike to all others; `kappa` for classes.

    >>> student = gankd.distill(student, teacher, real=train, method={"name": "crd", "num_negatives": 64})

    Loss: losses.contrastive.crd_loss
    """

    Config = CRDConfig
    buffers_stay_equal = True

    def __init__(self, config: CRDConfig, setup: Setup):
        super().__init__(config, setup)
        self.student_taps, self.teacher_taps = setup.taps(config, lambda taps: taps[-1:])
        heads = [
            Embedding(sum(torch.Size(shape).numel() for shape in shapes), config.dimension)
            for shapes in setup.shapes(self.student_taps, self.teacher_taps)
        ]
        self.student_head, self.teacher_head = heads
        self.kappa = None
        if setup.task.kind != REGRESSION and config.kappa is not None:
            raise ValueError("method crd: kappa is a distance of scalar labels; leave it out for classes.")
        if setup.task.kind == REGRESSION:
            self.kappa = 0.1 * setup.task.std if config.kappa is None else config.kappa
        self.register_buffer("normalizers", torch.zeros(2))  # Z of both sides; 0 until the first step
        self.has_normalizers = False  # known without asking the device

        labels = setup.data.labels.cpu()
        rows = {"bank": setup.data.num_samples, "queue": config.queue_size, "batch": 0}[config.memory]
        self.student_bank = MemoryBank.of_directions(rows, config.dimension, config.momentum)
        self.teacher_bank = MemoryBank.of_directions(rows, config.dimension, config.momentum)
        if config.memory == "bank":
            self.positives = self.positives_of(labels)
            if self.positives.largest == len(labels):
                sample = int(self.positives.count.argmax())
                raise ValueError(
                    f"method crd: sample {sample} with label {labels[sample].item():g} is alike to every other, so that "
                    "it has no negatives; set negatives: any" + (", or a smaller kappa." if self.kappa else ".")
                )
        else:  # a row that nobody has written yet is unlike everybody
            nobody = torch.finfo(labels.dtype).max if labels.is_floating_point() else -1
            self.queue_labels = MemoryBank(torch.full((rows,), nobody, dtype=labels.dtype))

    def positives_of(self, labels: Tensor, largest: int | None = None) -> PositiveSets:
        if self.config.negatives == "any":
            return PositiveSets(torch.arange(len(labels), device=labels.device), None, largest=1)
        return PositiveSets(labels, self.kappa, largest=largest)

    def forward(self, outputs: Outputs) -> Tensor:
        (student,), (teacher,) = self.features(outputs)
        student, teacher = self.student_head(student), self.teacher_head(teacher)  # [N, D]
        banks = self.student_bank, self.teacher_bank
        if self.config.memory == "bank":
            anchors = gather(outputs.batch.indices)
            loss = self.contrast(student, teacher, [bank.rows.clone() for bank in banks], self.positives, anchors)
            if self.training:
                self.student_bank.write(outputs.batch.indices, student)
                self.teacher_bank.write(outputs.batch.indices, teacher)
            return loss
        labels = torch.cat([gather(outputs.labels), self.queue_labels.rows])  # of the batch, then of the queue
        rows = [torch.cat([gather(v), bank.rows]) for v, bank in zip((student, teacher), banks, strict=True)]
        anchors = torch.arange(len(labels) - len(self.queue_labels.rows), device=labels.device)
        loss = self.contrast(student, teacher, rows, self.positives_of(labels, largest=len(labels)), anchors)
        if self.training:
            self.queue_labels.push(outputs.labels)
            self.student_bank.push(student)
            self.teacher_bank.push(teacher)
        return loss

    def contrast(
        self,
        student: Tensor,  # [N, D]
        teacher: Tensor,  # [N, D]
        banks: list[Tensor],  # [n, D] of the student and of the teacher
        positives: PositiveSets,
        anchors: Tensor,  # [N x processes], places of all processes' samples in the banks
    ) -> Tensor:
        """The loss of this process's samples, of which the mean over processes is that of the batch."""
        n = len(positives.order)
        drawn = positives.draw(
            anchors,
            num_negatives=min(self.config.num_negatives, n - positives.largest or max(1, n - 1)),
            mode=self.config.mode,
            rows=own_rows(),
        )
        share: Tensor | float = 1.0
        if self.config.memory != "bank":  # a sample that all are alike to has nothing to be told from
            told = positives.count[anchors] < n
            own = told[own_rows()]
            if not bool(own.any()):
                self.normalizers_of(None, 0.0)
                return 0 * (student.sum() + teacher.sum())  # to which both heads belong
            share = own.sum() * len(anchors) / (len(own) * told.sum())
            student, teacher, drawn = student[own], teacher[own], drawn[own]
        arguments = {
            "student_embedding": student,
            "teacher_embedding": teacher,
            "student_bank": banks[0],
            "teacher_bank": banks[1],
            "contrast_indices": drawn,
            "temperature": self.config.temperature,
        }
        z_student, z_teacher = self.normalizers_of(arguments, share)
        return share * crd_loss(**arguments, z_student=z_student, z_teacher=z_teacher)[0]

    @torch.no_grad()
    def normalizers_of(self, arguments: dict | None, share: Tensor | float) -> Tensor:
        """Z of the student's and of the teacher's side, [2]: those of the first batch that has something to contrast.

        arguments: of `crd_loss`, this process's rows; None where it has none.
        share: this process's rows, as a share of the mean number of rows of a process.
        """
        self.has_normalizers = self.has_normalizers or bool((self.normalizers > 0).all())
        if self.has_normalizers:
            return self.normalizers
        own = torch.stack(crd_loss(**arguments)[1:]) if arguments else torch.zeros_like(self.normalizers)
        estimates = gather((share * own)[None]).mean(dim=0)
        if self.training:
            self.normalizers = estimates
        return estimates
