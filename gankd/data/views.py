"""Views that repeat, so that a teacher need not answer the same question twice.

With `TrainingConfig.views` a sample is not augmented anew every time: it has that many views, the v-th of which is a
function of (seed, sample, v), and shows one after the other from pass to pass over its set. A teacher's answer to a view
is then known once it was given, and from there on distillation costs no more than plain training, while teacher and
student still see the same view, which matters (Beyer et al., "Knowledge distillation: A good teacher is patient and
consistent", CVPR 2022, arXiv 2106.05237).
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from gankd.data.augment import Augment
from gankd.data.loader import Batch, BatchSource
from gankd.losses.precision import full_precision
from gankd.models.teacher import Teacher
from generators.randomness import seeded


class Views(nn.Module):
    """Shows every sample of `source` in `num_views` fixed views and keeps the teacher's outputs for each view.

    Called on a batch of the source, it returns the view that each sample shows in the current step.

    In its k-th pass (from 0) a sample shows view k mod num_views. In evaluation mode images are only converted.

    teacher: None where nobody asks for `answers`.
    Raises ValueError: images with random transforms of their own, whose views cannot repeat.

    Attributes:
        step: the number of the current batch; the training loop sets it before each batch.
    """

    def __init__(
        self, augment: Augment, num_views: int, source: BatchSource, *, teacher: Teacher | None = None, seed: int
    ):
        super().__init__()
        if source.is_random:
            raise ValueError(
                "views repeat, and this data set's own random transforms do not: leave these out and set `augmentation`, or "
                "leave `views` null."
            )
        self.augment, self.num_views, self.source, self.teacher = augment, num_views, source, teacher
        self.step: int | None = None
        size = source.image_shape[1:]
        views = [
            augment.draw(source.num_samples, size, device="cpu", generator=seeded(seed, "view", view))
            for view in range(num_views)
        ]
        # not buffers: a checkpoint has no use for what (seed, view) determines
        self.draws = {name: torch.stack([draws[name] for draws in views]).to(source.device) for name in views[0]}
        """By name, [num_views, num_samples, ...]."""
        self.table: Tensor | None = None
        """The teacher's answers, [num_views, num_samples, K], in full precision."""
        self.answered: set[tuple[int, int]] = set()
        """(view, first sample of the set): which rows of the table are filled."""

    def forward(self, batch: Batch) -> Tensor:
        """The view that each sample of the batch shows in this step, float32 [N, C, H, W] in [0, 1]."""
        if not self.training:
            return self.augment(batch.images)
        return self._show(batch, self._now())

    @torch.no_grad()
    def answers(self, batch: Batch) -> Tensor:
        """The teacher's outputs for the views of this step, [N, K].

        They are computed when a set first comes to a view, for all samples of the set. Several processes share the work,
        which needs all of them at the same step.
        """
        for part in self.source.parts:
            for number in part.passes_of(self.step):
                view = number % self.num_views
                if (view, part.offset) not in self.answered:
                    self._ask(view, part.offset, part.num_samples)
                    self.answered.add((view, part.offset))
        return self.table[self._now(), batch.indices]

    def _now(self) -> Tensor:
        """int64 [N]: the views of this step."""
        assert self.step is not None, "a batch is shown whose step is not known"
        return self.source.passes(self.step) % self.num_views

    def _show(self, batch: Batch, views: Tensor) -> Tensor:
        draws = {name: table[views, batch.indices] for name, table in self.draws.items()}
        return self.augment.apply_draws(batch.images, draws)

    def _ask(self, view: int, first: int, num_samples: int) -> None:
        """Fill the rows of `num_samples` samples from `first` on, each process its share, in chunks of a batch's size."""
        source, answers = self.source, []
        mine = torch.arange(first, first + num_samples, device=source.index_device)
        is_shared = 1 < source.world_size <= num_samples  # of fewer samples every process asks for all
        if is_shared:
            mine = mine[source.rank :: source.world_size]
        for chunk in mine.split(source.batch_size // source.world_size):
            batch = source.at(chunk)
            answers.append(full_precision(self.teacher(self._show(batch, torch.full_like(batch.indices, view)))))
        if self.table is None:
            self.table = answers[0].new_zeros(self.num_views, source.num_samples, *answers[0].shape[1:])
        rows = self.table.new_zeros(num_samples, *self.table.shape[2:])
        rows[mine.to(rows.device) - first] = torch.cat(answers)
        if is_shared:
            torch.distributed.all_reduce(rows)  # every row comes from one process, the others add 0
        self.table[view, first : first + num_samples] = rows


def view_of(augment: Callable, batch: Batch) -> Tensor:
    """The view of a batch that a training step looks at, float32 [N, C, H, W]: a fresh one, or one of those that repeat."""
    return augment(batch) if isinstance(augment, Views) else augment(batch.images)
