"""The rules of cGAN-KD that decide which candidates stay: rejection sampling (M1), filtering by teacher error (M2).

Pure functions of scores. Sources: Ding et al., arXiv 2103.11166 (rejection) and Expert Systems with Applications 213:119060,
2023, arXiv 2104.03164 (filtering, number of samples, choice of rho).
"""

import dataclasses

import torch
from torch import Tensor


def error_quantile(*, errors: Tensor, rho: float) -> Tensor:
    """The rho-quantile (linear interpolation) of teacher errors [N]: the threshold alpha(rho)."""
    ordered = errors.sort().values
    position = rho * (len(ordered) - 1)
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low].lerp(ordered[high], position - low)


def class_error_quantiles(*, errors: Tensor, labels: Tensor, rho: float, num_classes: int) -> Tensor:
    """alpha(rho, y): the rho-quantile of errors [N] within every class of labels [N], [num_classes].

    A class without a sample gets -inf: nothing of it could be kept.
    """
    thresholds = errors.new_full((num_classes,), -torch.inf)
    for label in labels.unique().tolist():
        thresholds[label] = error_quantile(errors=errors[labels == label], rho=rho)
    return thresholds


def filter_by_teacher_error(*, errors: Tensor, threshold: float | Tensor, labels: Tensor | None = None) -> Tensor:
    """Keep (bool [N]) samples whose error is strictly below the threshold: a scalar, or [K] looked up by labels [N].

    Strict as in the original code (the paper writes <=): the sample at the quantile is dropped.
    """
    return errors < (threshold if labels is None else threshold[labels])


def balanced_fake_counts(*, labels: Tensor, num_fake: int, num_classes: int) -> Tensor:
    """How many samples to take of every class, int64 [K]: num_fake // K, the remainder to the last, capped by supply."""
    wanted = torch.full((num_classes,), num_fake // num_classes)
    wanted[-1] += num_fake % num_classes
    return torch.minimum(wanted, torch.bincount(labels, minlength=num_classes))


def select_rho(*, rhos: Tensor, validation_errors: Tensor) -> Tensor:
    """The rho [] with the lowest validation error among rhos [R]; ties go to the larger, which keeps more samples."""
    return rhos[validation_errors == validation_errors.min()].max()


@dataclasses.dataclass(frozen=True)
class Scores:
    """What is known of every candidate, in the order in which they were drawn."""

    labels: Tensor
    """The labels that the generator was given, [N]."""
    groups: Tensor
    """int64 [N]: the label group, a class or a bin of scalars; each has its own bound."""
    chunks: Tensor
    """int64 [N]: the chunk in which a candidate was drawn; bounds grow from chunk to chunk."""
    errors: Tensor
    """The teacher's error, [N]."""
    uniforms: Tensor
    """In [0, 1), [N]."""
    ratios: Tensor | None = None
    """Density ratios [N], or None without subsampling."""
    teacher_outputs: Tensor | None = None
    """What the teacher said, [N, K]."""


def ratio_bounds(ratios: Tensor, groups: Tensor, num_groups: int, *, quantile: float) -> Tensor:
    """The bound M of every label group, [G]: a quantile (1: the maximum) of the burn-in's ratios [N]. Raises
    ValueError: a label group in which the bound is 0, so that nothing could be accepted; a ratio that is not finite."""
    if not ratios.isfinite().all():
        raise ValueError("the density ratio is not finite; lower synthesis.subsample.learning_rate.")
    empty = (torch.bincount(groups, minlength=num_groups) == 0).nonzero().flatten().tolist()
    if empty:
        raise ValueError(
            f"no burn-in sample fell into the label groups {empty}: raise synthesis.subsample.burn_in or lower label_bins."
        )
    bounds = torch.stack([error_quantile(errors=ratios[groups == group], rho=quantile) for group in range(num_groups)])
    if not (bounds > 0).all():
        raise ValueError(
            f"the density ratio is 0 almost everywhere for label groups {(bounds <= 0).nonzero().flatten().tolist()}: "
            "nothing could be accepted there. Change synthesis.subsample.steps or learning_rate, or switch it off "
            "(synthesis.subsample.enabled=false)."
        )
    return bounds


def subsample(scores: Scores, bounds: Tensor, *, growing: bool) -> Tensor:
    """M1: accept candidates (bool [N]) with probability r / M, M starting at bounds [G] of the label groups.

    `growing`: M grows to the largest ratio of its group so far, chunk by chunk;
    otherwise M stays and a ratio beyond it always passes.
    """
    accepted = torch.zeros(len(scores.labels), dtype=torch.bool)
    for group in range(len(bounds)):
        members = (scores.groups == group).nonzero().flatten()
        ratios = scores.ratios[members]
        bound = bounds[group].expand(len(members))
        if growing:
            chunks = scores.chunks[members]
            chunk_max = torch.zeros(int(scores.chunks.max()) + 1).scatter_reduce(0, chunks, ratios, "amax")
            bound = torch.maximum(chunk_max.cummax(dim=0).values[chunks], bound)
        accepted[members] = scores.uniforms[members] <= ratios / bound
    return accepted


def teacher_filter(scores: Scores, accepted: Tensor, rho: float, *, num_classes: int | None) -> tuple[Tensor, Tensor]:
    """M2: keep (bool [N]) the share rho of the accepted with the smallest error; also the thresholds, [K] or [].

    Per class for class ids, over all for scalars. The thresholds are quantiles of the very samples that are filtered (the
    paper's code takes those of a burn-in for classes), so that the discarded share is 1 - rho by construction. Where errors
    tie at the threshold, so that the strict rule would discard more than that (a teacher whose cross-entropy is 0 for most
    samples), those at the threshold stay.
    """
    groups = torch.zeros_like(scores.groups) if num_classes is None else scores.labels
    thresholds = class_error_quantiles(
        errors=scores.errors[accepted], labels=groups[accepted], rho=rho, num_classes=num_classes or 1
    )
    kept = accepted & filter_by_teacher_error(errors=scores.errors, threshold=thresholds, labels=groups)
    count = lambda mask: torch.bincount(groups[mask], minlength=len(thresholds))  # noqa: E731
    tied = count(kept) < (rho * (count(accepted) - 1)).long().clamp(min=1)
    kept |= accepted & tied[groups] & (scores.errors == thresholds[groups])
    return kept, thresholds if num_classes is not None else thresholds[0]


def take(kept: Tensor, labels: Tensor, num_samples: int, *, num_classes: int | None) -> Tensor:
    """Indices (int64, ascending) of the first `num_samples` kept ones; balanced over the classes for class ids."""
    indices = kept.nonzero().flatten()
    if num_classes is None:
        return indices[:num_samples]
    counts = balanced_fake_counts(labels=labels[indices], num_fake=num_samples, num_classes=num_classes)
    firsts = [indices[labels[indices] == label][:count] for label, count in enumerate(counts.tolist())]
    return torch.cat(firsts).sort().values
