"""Contrastive representation distillation: student and teacher find each other's embedding of a sample among many.

Tian, Krishnan, Isola, "Contrastive Representation Distillation", ICLR 2020, arXiv 1910.10699.
"""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, distributed, nn

from gankd.distributed.processes import gather, several
from gankd.losses import crd_initial_bank, crd_loss, crd_update_bank, embed_and_normalize
from gankd.methods.setup import Outputs, Setup
from gankd.methods.terms import FeatureTermConfig, Term
from gankd.tasks import REGRESSION
from generators.settings import Count, Share, Weight


class CRDConfig(FeatureTermConfig):
    """task loss + weight (L(student against the teacher's bank) + L(teacher against the student's bank))."""

    name: Literal["crd"] = "crd"
    """The method."""
    weight: Weight = 0.8
    """Of the term."""
    dimension: Count = 128
    """Of the sphere that student and teacher share."""
    num_negatives: Count = 16384
    """Negatives a sample; no more than every sample finds without meeting one twice."""
    temperature: Annotated[float, Field(ge=0.012)] = 0.07
    """Divides the inner products; exp(1 / temperature) must stay a float32."""
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


class Alike(NamedTuple):
    """Samples in the order of their labels, where those alike to a sample stand side by side."""

    order: Tensor
    """[n] int64, places sorted by label."""
    first: Tensor
    """[n] int64, where in `order` those alike to a sample begin."""
    count: Tensor
    """[n] int64, how many there are, the sample included."""

    @classmethod
    def of(cls, labels: Tensor, kappa: float | None) -> Alike:
        """By equal labels [n], or by scalars [n] that differ by at most kappa."""
        values, order = labels.sort(stable=True)
        lowest, highest = (labels, labels) if kappa is None else (labels - kappa, labels + kappa)
        first = torch.searchsorted(values, lowest)
        return cls(order, first, torch.searchsorted(values, highest, right=True) - first)


@torch.no_grad()
def draw_contrast(
    alike: Alike,
    anchors: Tensor,  # [N] int64
    *,
    num_negatives: int,
    largest: int,  # at least every anchor's count; n where that is not known without asking the device
    mode: str = "exact",
) -> Tensor:  # [N, K + 1] int64
    """A positive and K negatives of each anchor, like `contrast_indices` with one shuffle a batch instead of one a row.

    The pool of an anchor, of P samples, is one interval of the cyclic order of labels. All rows walk through one random
    permutation of places in their intervals, each from its own start, uniform over its pool, and take the first K places
    that they have. A row is thus a uniform draw without replacement, as the permutation is random. And, whatever the
    permutation, the random start gives each sample of the pool the chance K / P of being in the row, independently of
    the other rows: for a sum over negatives, as the loss and its gradient are, mean and variance are those of
    independent rows.

    A pool smaller than K is gone through again; of an empty one the negatives mean nothing. The draws are those of the
    default generator, and nothing is read from the device.
    """
    n, device = len(alike.order), anchors.device
    first, count = alike.first[anchors], alike.count[anchors]  # [N]
    pool = n - count
    at_least_one = pool.clamp(min=1)
    random = torch.randint(1 << 62, (2, len(anchors)), device=device)  # so large that % is uniform
    positives = anchors if mode == "exact" else alike.order[first + random[0] % count]
    shuffle = torch.randperm(n, device=device)
    position = torch.empty_like(shuffle).scatter_(0, shuffle, torch.arange(n, device=device))
    start = position[random[1] % at_least_one]
    walk = torch.cat([shuffle, shuffle]).unfold(0, min(num_negatives + largest, n), 1)[
        start
    ]  # long enough for K places
    taken = walk < pool[:, None]
    slot = taken.cumsum(1).sub_(1)
    slot.masked_fill_(~taken, num_negatives).clamp_(max=num_negatives)  # the last column takes what is left over
    places = walk.new_zeros(len(anchors), num_negatives + 1).scatter_(1, slot, walk)[:, :-1]
    if num_negatives > n - largest:  # some pool may be smaller
        places = places.gather(1, torch.arange(num_negatives, device=device) % at_least_one[:, None])
    twice = torch.cat([alike.order, alike.order])  # the interval behind those alike wraps around
    return torch.cat([positives[:, None], twice[(first + count)[:, None] + places]], dim=1)


class CRD(Term):
    """v = normalise(W f + b) of both pooled features, a = exp(<v, M[c]> / T) with the other side's bank M, and

    L = -1/N sum_n [ log( P_n0 / (P_n0 + K/n) ) + sum_k log( K/n / (P_nk + K/n) ) ],   P = a / Z, on both sides

    for a positive c_0 and K negatives. Z = n mean(a) of the first batch, ever after. Both heads are trained, so both
    sides need a bank; rows of the batch move to normalise(momentum M + (1 - momentum) v) after each step. Real and
    synthetic samples have rows alike. All processes write what all of them saw, so that banks stay equal.

    Raises:
        ValueError: training labels of which one is alike to all others; `kappa` for classes.
    """

    Config = CRDConfig
    buffers_stay_equal = True

    def __init__(self, config: CRDConfig, setup: Setup):
        super().__init__(config, setup)
        self.student_taps, self.teacher_taps = setup.taps(config, lambda taps: taps[-1:])
        heads = [
            nn.Linear(sum(torch.Size(shape).numel() for shape in shapes), config.dimension)
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
        for side in ("student", "teacher"):
            self.register_buffer(f"{side}_bank", crd_initial_bank(n_data=rows, dimension=config.dimension))
        if config.memory == "bank":
            alike = self._alike(labels)
            self.largest = int(alike.count.max())
            if self.largest == len(labels):
                sample = int(alike.count.argmax())
                raise ValueError(
                    f"method crd: sample {sample} with label {labels[sample].item():g} is alike to every other, so that "
                    "it has no negatives; set negatives: any" + (", or a smaller kappa." if self.kappa else ".")
                )
            for name, values in alike._asdict().items():
                self.register_buffer(name, values, persistent=False)
        else:  # a row that nobody has written yet is unlike everybody
            nobody = torch.finfo(labels.dtype).max if labels.is_floating_point() else -1
            self.register_buffer("queue_labels", torch.full((rows,), nobody, dtype=labels.dtype))

    def _alike(self, labels: Tensor) -> Alike:
        if self.config.negatives == "any":
            return Alike.of(torch.arange(len(labels), device=labels.device), None)
        return Alike.of(labels, self.kappa)

    def forward(self, outputs: Outputs) -> Tensor:
        student, teacher = (
            embed_and_normalize(feature=feature, weight=head.weight, bias=head.bias)
            for (feature,), head in zip(self.features(outputs), (self.student_head, self.teacher_head), strict=True)
        )
        if self.config.memory == "bank":
            return self._against_banks(student, teacher, outputs.batch.indices)
        return self._against_queue(student, teacher, outputs.batch.labels)

    def _against_banks(self, student: Tensor, teacher: Tensor, indices: Tensor) -> Tensor:
        num_negatives = min(self.config.num_negatives, len(self.order) - self.largest)
        contrast = draw_contrast(
            Alike(self.order, self.first, self.count),
            indices,
            num_negatives=num_negatives,
            largest=self.largest,
            mode=self.config.mode,
        )
        loss = self._loss(student, teacher, self.student_bank, self.teacher_bank, contrast)
        if self.training:
            indices, student, teacher = map(gather, (indices, student, teacher))
            update = {"indices": indices, "momentum": self.config.momentum}
            # New tensors: the loss still needs the old ones for its gradient.
            self.student_bank = crd_update_bank(bank=self.student_bank, embedding=student, **update)
            self.teacher_bank = crd_update_bank(bank=self.teacher_bank, embedding=teacher, **update)
        return loss

    def _against_queue(self, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        labels_of_all = torch.cat([gather(labels), self.queue_labels])  # the batch of all processes, then the queue
        student_bank = torch.cat([gather(student), self.student_bank])
        teacher_bank = torch.cat([gather(teacher), self.teacher_bank])
        n, alike = len(labels_of_all), self._alike(labels_of_all)
        before = len(labels) * distributed.get_rank() if several() else 0
        places = before + torch.arange(len(labels), device=labels.device)
        places = places[alike.count[places] < n]  # a sample to which all are alike has nothing to be told from
        contrast = draw_contrast(
            alike,
            places,
            num_negatives=max(1, min(self.config.num_negatives, n - 1)),
            largest=n,
            mode=self.config.mode,
        )
        loss = self._loss(student[places - before], teacher[places - before], student_bank, teacher_bank, contrast)
        if self.training:
            rows = len(self.queue_labels)
            self.queue_labels = labels_of_all[:rows].clone()
            self.student_bank, self.teacher_bank = student_bank[:rows].clone(), teacher_bank[:rows].clone()
        return loss

    def _loss(self, student: Tensor, teacher: Tensor, student_bank: Tensor, teacher_bank: Tensor, contrast: Tensor):
        arguments = {
            "student_embedding": student,
            "teacher_embedding": teacher,
            "student_bank": student_bank,
            "teacher_bank": teacher_bank,
            "contrast_indices": contrast,
            "temperature": self.config.temperature,
        }
        normalizers = self._normalizers(arguments)
        if normalizers is None or len(student) == 0:
            return 0 * (student.sum() + teacher.sum())  # to which both heads belong
        return crd_loss(**arguments, z_student=normalizers[0], z_teacher=normalizers[1])[0]

    @torch.no_grad()
    def _normalizers(self, arguments: dict) -> Tensor | None:
        """Z of the student's and of the teacher's side, [2]: those of the first batch of the first process.

        None where that batch has nothing to contrast: then the next one sets them.
        """
        self.has_normalizers = self.has_normalizers or bool((self.normalizers > 0).all())
        if self.has_normalizers:
            return self.normalizers
        estimates = torch.zeros_like(self.normalizers)
        if len(arguments["student_embedding"]) > 0:
            estimates = torch.stack(crd_loss(**arguments)[1:])
        if several():
            distributed.broadcast(estimates, src=0)
        if self.training:
            self.normalizers = estimates
        return estimates if bool((estimates > 0).all()) else None
