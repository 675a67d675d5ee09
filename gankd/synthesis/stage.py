"""cGAN-KD's synthesis: draw candidates, score them, select, store.

    chunk c: labels, latents, uniforms = f(seed, c) -> images -> density ratio, teacher error   (any process, any order)
    then, over the scores of all candidates: rejection (M1) -> filter (M2) -> relabel (M2) -> shards      (one process)

Everything random is a function of (seed, chunk), and every rule reads the scores in the order of the candidates: the same
store comes out of any number of processes and after any interruption.
"""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from gankd.data.sets import ImageSet
from gankd.models.state import preserve_state
from gankd.models.teacher import Teacher
from gankd.synthesis.candidates import Candidates, Labels
from gankd.synthesis.checks import check_generator_fits, check_samples, check_teacher
from gankd.synthesis.config import SynthesisConfig
from gankd.synthesis.ratio import RatioModel
from gankd.synthesis.selection import Scores, ratio_bounds, select_rho, subsample, take, teacher_filter
from gankd.synthesis.store import write_store, write_tensors
from gankd.tasks import CLASSIFICATION, REGRESSION, Task
from generators.interface import ConditionalGenerator
from generators.randomness import mix

PAPER_RHO = {CLASSIFICATION: 0.9, REGRESSION: 0.7}  # arXiv 2104.03164, of all tables
EXAMPLES_PER_KIND = 8  # kept and rejected images a label that the report shows


@dataclasses.dataclass(frozen=True)
class Selection:
    """What M1 and M2 decided about the candidates."""

    accepted: Tensor
    """bool [N]: passed the rejection sampling."""
    kept: Tensor
    """bool [N]: passed the teacher's filter too."""
    indices: Tensor
    """int64, ascending: those of the kept that fill the store."""
    rho: float | None
    thresholds: Tensor | None
    """The teacher-error thresholds: [K] for classes, [] for scalars, None without a filter."""


class Synthesis:
    """One run of the synthesis; `run` is its table of contents.

    real: the images that the generator was trained on, which M1 compares its images with; their labels are drawn.
    validation_error: error on the validation split of a student trained on a selection, for `rho: validation`.
    provenance: what the manifest should tell besides.
    """

    def __init__(
        self,
        generator: ConditionalGenerator,
        teacher: Teacher,
        task: Task,
        real: ImageSet,
        config: SynthesisConfig,
        *,
        directory: Path,
        seed: int,
        accelerator: Accelerator,
        provenance: dict | None = None,
        validation_error: Callable[[ImageSet], float] | None = None,
        log: Callable[[dict], None] = lambda values: None,
    ):
        # of a teacher only its predictions count here, which a student's head might not keep
        self.task = task = task.plain()
        self.teacher = teacher = teacher.for_task(task)
        self.generator, self.real, self.config = generator, real, config
        self.directory, self.seed, self.accelerator, self.log = directory, seed, accelerator, log
        self.provenance, self.validation_error = provenance or {}, validation_error
        check_generator_fits(generator, task, real)
        check_teacher(teacher, task, real)
        self.rho = PAPER_RHO[task.kind] if config.rho == "paper" else config.rho
        if config.rho == "validation" and validation_error is None:
            raise ValueError("rho: validation trains students, as only a whole experiment does; give a number or None.")
        self.num_classes = getattr(task, "num_classes", None)
        self.labels = Labels.of(task, real.labels, config.subsample.label_bins)

    def run(self) -> None:
        """Fill `directory` with a finished store; what an interrupted run left there is used.
        Raises ValueError: see `check_samples`; too few candidates survive; a density ratio that is of no use."""
        with preserve_state(self.generator), preserve_state(self.teacher.module):
            self.generator.eval()
            self.make_store()

    def make_store(self) -> None:
        """The steps, in order, with networks that are only asked."""
        subjects, config = (self.generator, self.teacher, self.task, self.real), self.config
        check_samples(*subjects, seed=self.seed, force=config.force, num_samples=config.num_samples)
        ratio = self.ratio_model() if self.config.subsample.enabled else None
        bounds = self.burn_in(ratio) if ratio else None
        candidates = self.stream("candidates", ratio, keep_images=True)
        selection = None
        while selection is None:
            candidates.draw_until(self.next_num_chunks(candidates.num_chunks))
            scores = candidates.scores()
            selection = self.select(candidates, scores, bounds)
        if self.accelerator.is_main_process:
            self.write(candidates, scores, selection, bounds)
            for stream in ("candidates", "burn_in"):
                shutil.rmtree(self.directory / stream, ignore_errors=True)  # what is worth keeping is in the store
        self.accelerator.wait_for_everyone()

    def ratio_model(self) -> RatioModel:
        """M1's density ratio: trained on the main process, or what an earlier run left."""
        file = self.directory / "density_ratio.safetensors"
        with torch.random.fork_rng():
            torch.manual_seed(mix(self.seed, "density ratio"))
            model = RatioModel(self.generator, self.teacher, self.task, self.real, self.config.subsample)
            if self.accelerator.is_main_process and not file.exists():
                model.fit(self.log)
                model.save(file)
        self.accelerator.wait_for_everyone()
        model.load(file)
        return model

    def burn_in(self, ratio: RatioModel) -> Tensor:
        """The bound with which every label group starts, [S], from candidates that serve for nothing else."""
        stream = self.stream("burn_in", ratio, keep_images=False)
        stream.draw_until(-(-self.config.subsample.burn_in * self.labels.num_groups // self.config.chunk_size))
        scores = stream.scores()
        return ratio_bounds(scores.ratios, scores.groups, self.labels.num_groups, quantile=self.config.subsample.bound)

    def stream(self, name: str, ratio: RatioModel | None, *, keep_images: bool) -> Candidates:
        what = (self.generator, self.teacher, self.task, self.labels, ratio, keep_images)
        return Candidates(name, self.directory / name, *what, self.config.chunk_size, self.seed, self.accelerator)

    def next_num_chunks(self, num_chunks: int) -> int:
        """How many chunks to have after the next wave: as many as no loss at all would need, then half as many again."""
        most = max(1, (self.config.max_candidates or 20 * self.config.num_samples) // self.config.chunk_size)
        if num_chunks >= most:
            raise ValueError(
                f"{num_chunks * self.config.chunk_size} candidates leave fewer than synthesis.num_samples = "
                f"{self.config.num_samples}: raise synthesis.max_candidates, ask for fewer, or soften rho or the "
                "subsampling."
            )
        fewest = -(-self.config.num_samples // self.config.chunk_size)
        return min(most, max(fewest, num_chunks + -(-num_chunks // 2)))

    def select(self, candidates: Candidates, scores: Scores, bounds: Tensor | None) -> Selection | None:
        """Apply M1 and M2 to the scores; None when too few samples are left."""
        accepted = torch.ones(len(scores.labels), dtype=torch.bool)
        if bounds is not None:
            accepted = subsample(scores, bounds, growing=self.config.subsample.bound == 1)
        if self.rho != "validation":
            return self.filter(scores, accepted, self.rho)
        choices = [self.filter(scores, accepted, rho) for rho in self.config.rho_grid]
        if None in choices:
            return None
        errors = [self.validation_error(self.image_set(candidates, choice)) for choice in choices]
        for choice, error in zip(choices, errors, strict=True):
            self.log({"stage": "rho", "rho": choice.rho, "validation_error": error})
        rhos = torch.tensor(self.config.rho_grid, dtype=torch.float64)
        best = select_rho(rhos=rhos, validation_errors=torch.tensor(errors, dtype=torch.float64))
        return choices[self.config.rho_grid.index(best.item())]

    def filter(self, scores: Scores, accepted: Tensor, rho: float | None) -> Selection | None:
        """M2 with one rho (None: no filter), then the first samples that fill the store; None when they do not."""
        kept, thresholds = accepted.clone(), None
        if rho is not None:
            kept, thresholds = teacher_filter(scores, accepted, rho, num_classes=self.num_classes)
        indices = take(kept, scores.labels, self.config.num_samples, num_classes=self.num_classes)
        if len(indices) < self.config.num_samples:
            return None
        return Selection(accepted, kept, indices, rho, thresholds)

    @property
    def replaces_labels(self) -> bool:
        """M2's label replacement: as configured, else for scalars only."""
        replace = self.config.replace_labels
        return self.num_classes is None if replace is None else replace

    def final_labels(self, rows: dict[str, Tensor]) -> Tensor:
        return self.task.replace(rows["teacher_outputs"], rows["labels"]) if self.replaces_labels else rows["labels"]

    def image_set(self, candidates: Candidates, selection: Selection) -> ImageSet:
        """The selected samples as a set, as they would come out of the store."""
        rows = candidates.rows(selection.indices)
        return ImageSet(rows["images"], self.final_labels(rows), is_synthetic=True, name="synthetic")

    def write(self, candidates: Candidates, scores: Scores, selection: Selection, bounds: Tensor | None) -> None:
        """Write scores, examples, shards and, last, the manifest."""
        rows = candidates.rows(selection.indices)
        samples = {name: rows[name] for name in ("images", "teacher_outputs", "errors", "ratios") if name in rows}
        samples |= {"labels": self.final_labels(rows), "generator_labels": rows["labels"]}
        samples["candidates"] = selection.indices
        table = {name: getattr(scores, name) for name in ("labels", "errors", "ratios")}
        table |= {"accepted": selection.accepted, "kept": selection.kept}
        known = {name: values for name, values in table.items() if values is not None}
        write_tensors(self.directory / "scores.safetensors", known)
        write_tensors(self.directory / "examples.safetensors", self.examples(candidates, scores, selection))
        everyone = torch.ones_like(selection.kept)
        stages = {"candidates": everyone, "subsampled": selection.accepted, "filtered": selection.kept}
        manifest = {
            "class_names": self.real.class_names,
            "task": self.task.kind,
            "config": self.config.model_dump(mode="json"),
            "seed": self.seed,
            "num_candidates": len(scores.labels),
            "acceptance_rate": selection.accepted.float().mean().item(),
            "kept_rate": selection.kept.float().mean().item(),
            "rho": selection.rho,
            "thresholds": None if selection.thresholds is None else selection.thresholds.tolist(),
            "bounds": None if bounds is None else bounds.tolist(),
            "labels_replaced": self.replaces_labels,
            # how well the generator's labels fit its images in the teacher's eyes, before M1, after M1, after M2
            "label_score": {
                name: self.task.label_score(scores.teacher_outputs[members], scores.labels[members])
                for name, members in stages.items()
            },
            **self.provenance,
        }
        write_store(self.directory, samples, shard_size=self.config.shard_size, manifest=manifest)

    def examples(self, candidates: Candidates, scores: Scores, selection: Selection) -> dict[str, Tensor]:
        """A few images a label group: kept, rejected by the ratio (lowest first), rejected by the teacher (worst first)."""
        kept = selection.kept.nonzero().flatten()
        by_ratio = (~selection.accepted).nonzero().flatten()
        by_teacher = (selection.accepted & ~selection.kept).nonzero().flatten()
        by_teacher = by_teacher[scores.errors[by_teacher].argsort(descending=True, stable=True)]
        if scores.ratios is not None:
            by_ratio = by_ratio[scores.ratios[by_ratio].argsort(stable=True)]
        tensors = {}
        for fate, members in (("kept", kept), ("ratio", by_ratio), ("teacher", by_teacher)):
            groups = scores.groups[members]
            first = [members[groups == group][:EXAMPLES_PER_KIND] for group in range(self.labels.num_groups)]
            rows = candidates.rows(torch.cat(first).sort().values)
            tensors |= {f"{fate}.{name}": rows[name] for name in ("images", "labels", "errors")}
        return tensors
