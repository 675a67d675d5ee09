"""Candidates on disk: drawn in chunks, scored, and read back.

Everything random in a chunk is a function of (seed, stream, chunk), so that any process may draw any chunk at any time.
"""

import dataclasses
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from gankd.models.teacher import Teacher
from gankd.synthesis.checks import check_finite
from gankd.synthesis.ratio import RatioModel
from gankd.synthesis.selection import Scores
from gankd.synthesis.store import read_tensors, write_missing
from gankd.tasks import Classification, Task
from generators.checks import check_range
from generators.images import from_generator_range, to_unit_range
from generators.interface import ConditionalGenerator
from generators.randomness import seeded


@dataclasses.dataclass(frozen=True)
class Labels:
    """Which label a candidate gets, and which others share its ratio bound.

    num_classes: classes come in turn, and each is a label group of its own.
    low, high, num_bins: scalars are uniform in [low, high], cut into so many label groups.
    """

    num_classes: int | None
    low: float = 0.0
    high: float = 1.0
    num_bins: int = 1

    @classmethod
    def of(cls, task: Task, labels: Tensor, num_bins: int) -> "Labels":
        """All classes of the task, or the range that the real labels span."""
        if isinstance(task, Classification):
            return cls(task.num_classes)
        return cls(None, labels.min().item(), labels.max().item(), num_bins)

    @property
    def num_groups(self) -> int:
        return self.num_classes or self.num_bins

    def draw(self, first: int, count: int, random: torch.Generator) -> Tensor:
        """The labels [count] of the candidates from index `first` on."""
        if self.num_classes:
            return torch.arange(first, first + count) % self.num_classes
        return self.low + (self.high - self.low) * torch.rand(count, generator=random)

    def groups(self, labels: Tensor) -> Tensor:
        """int64 [N]."""
        if self.num_classes:
            return labels
        return ((labels - self.low) / (self.high - self.low) * self.num_bins).long().clamp(0, self.num_bins - 1)


@dataclasses.dataclass
class Candidates:
    """One stream of candidates ("candidates" or "burn_in") as chunk files in `directory`."""

    stream: str
    directory: Path
    generator: ConditionalGenerator
    teacher: Teacher
    task: Task
    labels: Labels
    ratio: RatioModel | None
    keep_images: bool
    """Whether the images are stored beside the scores."""
    chunk_size: int
    seed: int
    accelerator: Accelerator
    num_chunks: int = 0

    def file(self, chunk: int) -> Path:
        return self.directory / f"chunk-{chunk:05d}.safetensors"

    def draw_until(self, num_chunks: int) -> None:
        """Have `num_chunks` chunks on disk."""
        write_missing([self.file(chunk) for chunk in range(num_chunks)], self.draw, self.accelerator, title=self.stream)
        self.num_chunks = num_chunks

    @torch.no_grad()
    def draw(self, chunk: int) -> dict[str, Tensor]:
        """The candidates of one chunk and their scores, on the CPU."""
        random = seeded(self.seed, self.stream, chunk)
        labels = self.labels.draw(chunk * self.chunk_size, self.chunk_size, random)
        latents = self.generator.draw_latents(self.chunk_size, generator=random)
        uniforms = torch.rand(self.chunk_size, generator=random)
        on_device = labels.to(self.teacher.device)
        drawn = self.generator.sample(on_device, latents)
        check_range(drawn, f"{self.stream}, chunk {chunk}: the generator")
        images = from_generator_range(drawn)
        outputs = self.teacher(to_unit_range(images)).float()
        check_finite(outputs, self.task, f"{self.stream}, chunk {chunk}: the teacher's outputs")
        rows = {"labels": labels, "uniforms": uniforms, "teacher_outputs": outputs}
        rows["errors"] = self.task.error(outputs, on_device)
        if self.ratio is not None:
            rows["ratios"] = self.ratio(images, on_device)
        if self.keep_images:
            rows["images"] = images
        return {name: values.cpu() for name, values in rows.items()}

    def scores(self) -> Scores:
        """What is known of all candidates drawn so far."""
        rows = self.rows(torch.arange(self.num_chunks * self.chunk_size), images=False)
        return Scores(
            labels=rows["labels"],
            groups=self.labels.groups(rows["labels"]),
            chunks=torch.arange(self.num_chunks).repeat_interleave(self.chunk_size),
            errors=rows["errors"],
            uniforms=rows["uniforms"],
            ratios=rows.get("ratios"),
            teacher_outputs=rows["teacher_outputs"],
        )

    def rows(self, indices: Tensor, *, images: bool = True) -> dict[str, Tensor]:
        """The stored tensors of the candidates at `indices` (int64, ascending), with or without their images."""
        parts: dict[str, list[Tensor]] = {}
        for chunk in range(self.num_chunks):
            first = chunk * self.chunk_size
            local = indices[(indices >= first) & (indices < first + self.chunk_size)] - first
            for name, values in read_tensors(self.file(chunk), without=None if images else "images").items():
                parts.setdefault(name, []).append(values[local])
        return {name: torch.cat(values) for name, values in parts.items()}
