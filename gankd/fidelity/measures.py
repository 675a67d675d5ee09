"""Measures of generated images against real ones, from features: of all, class by class, along a scalar label."""

import statistics
from collections.abc import Callable

import torch
from torch import Tensor
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric
from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

from gankd.tasks import Classification, Regression
from generators.metrics import density_coverage, frechet_distance, label_entropy, label_score

NEIGHBOURS = 5  # of density and coverage, as in their paper; precision and recall take torch-fidelity's 3
FEW = 2048  # images below which FIDs are not quoted: as many as Inception has features
LOW_RANK = "covariances of low rank make it too large; compare it at equal numbers only"


def fidelity_scores(
    *,
    real_features: Tensor,
    fake_features: Tensor,
    kid_subsets: int,
    kid_subset_size: int,
    seed: int,
    warnings: list[str],
    missing: dict[str, str],
) -> dict:
    """Are the images like the real ones, whatever their labels? Features float32 [N, D] and [M, D].

    Returns "fid", "kid", "kid_std", "kid_subset_size", "precision" and "recall" (k = 3) by torch-fidelity, "density" and
    "coverage" (k = 5). Appends to `warnings` what makes them hard to compare, and to `missing` why a score is None.
    """
    num_real, num_fake, num_features = len(real_features), len(fake_features), real_features.shape[1]
    fewest = min(num_real, num_fake)
    if fewest < FEW:
        warnings.append(
            f"FID from {num_real:,} real and {num_fake:,} generated images: below {FEW:,} it is too large by an amount "
            "that depends on their numbers; compare it at equal numbers only, or KID, which has no such bias."
        )
    if fewest <= num_features:
        warnings.append(f"FID: {fewest:,} images for {num_features:,} features; {LOW_RANK}.")
    subset_size = min(kid_subset_size, fewest)
    if subset_size < kid_subset_size:
        warnings.append(
            f"KID: subsets of {subset_size:,} in place of {kid_subset_size:,} images, all that the smaller side has; its "
            "spread over the subsets is too small."
        )
    scores: dict = {"kid_subset_size": subset_size}

    def add(needed: int, names: tuple[str, ...], compute: Callable[[], tuple[float, ...]]) -> None:
        if fewest < needed:
            missing.update(dict.fromkeys(names, f"it takes {needed} images on a side, there are {fewest}"))
        scores.update(zip(names, compute() if fewest >= needed else [None] * len(names), strict=True))

    def fid() -> tuple[float]:
        moments = [fid_features_to_statistics(features.double()) for features in (fake_features, real_features)]
        return (max(0.0, fid_statistics_to_metric(*moments, verbose=False)[KEY_METRIC_FID]),)  # -1e-13 of equal sets

    def kid() -> tuple[float, ...]:
        settings = {"kid_subsets": kid_subsets, "kid_subset_size": subset_size, "rng_seed": seed, "verbose": False}
        found = kid_features_to_metric(fake_features, real_features, **settings)
        return found[KEY_METRIC_KID_MEAN], found[KEY_METRIC_KID_STD]

    def balls() -> tuple[float, ...]:
        settings = {"prc_batch_size": 1000, "save_cpu_ram": True, "verbose": False}
        found = prc_features_to_metric(fake_features, real_features, **settings)
        return found[KEY_METRIC_PRECISION], found[KEY_METRIC_RECALL]

    pair = {"real_features": real_features, "fake_features": fake_features}
    add(2, ("fid",), fid)
    add(2, ("kid", "kid_std"), kid)
    add(4, ("precision", "recall"), balls)
    add(NEIGHBOURS + 1, ("density", "coverage"), lambda: density_coverage(**pair, neighbours=NEIGHBOURS))
    return scores


def class_scores(
    *,
    real_features: Tensor,
    fake_features: Tensor,
    real_labels: Tensor,
    fake_labels: Tensor,
    task: Classification,
    outputs: Tensor | None,
    warnings: list[str],
    missing: dict[str, str],
) -> dict:
    """Do the images show their class?

    Features [N, D] and [M, D], class ids [N] and [M]; outputs: a teacher's logits of the fakes [M, K].

    Returns "intra_fid", the mean over the classes of the Frechet distance inside a class; "label_score", the share in % of
    the fakes that the teacher puts into their class (None without `outputs`); "classes", the same by class, with "class",
    "num_real" and "num_fake". A class with fewer than two images on a side has no distance, which `warnings` then says.
    Source: Miyato & Koyama, "cGANs with Projection Discriminator", ICLR 2018, "intra FID"; cGAN-KD's evaluation.
    """
    members = {name: (real_labels == label, fake_labels == label) for label, name in enumerate(task.class_names)}
    groups = _frechet_in_groups("Intra-FID", members, real_features, fake_features, warnings)
    classes = []
    for (name, (_, fakes)), group in zip(members.items(), groups, strict=True):
        agreed = task.label_score(outputs[fakes], fake_labels[fakes]) if outputs is not None and fakes.any() else None
        classes.append({"class": name, **group, "label_score": agreed})
    if all(group["fid"] is None for group in groups):
        missing["intra_fid"] = "no class has two images on either side"
    return {
        "intra_fid": _mean(classes, "fid"),
        "label_score": None if outputs is None else task.label_score(outputs, fake_labels),
        "classes": classes,
    }


def scalar_scores(
    *,
    real_features: Tensor,
    fake_features: Tensor,
    real_labels: Tensor,
    fake_labels: Tensor,
    task: Regression,
    outputs: Tensor | None,
    kinds: Tensor | None,
    half_width: float | None,
    num_windows: int,
    warnings: list[str],
    missing: dict[str, str],
) -> dict:
    """Do the images show their scalar label?

    Features [N, D] and [M, D], labels [N] and [M] in units; outputs: a teacher's standardised predictions for the fakes
    [M, 1]; kinds: class ids [M] that a classifier sees in the fakes.

    Windows |label - c| <= half_width around `num_windows` centres c from min + half_width to max - half_width of the real
    labels; half_width None is a twentieth of their span, 0 a window for every real label (an Intra-FID).

    Returns "sliding_fid", the mean over the windows of the Frechet distance inside a window, and its spread
    "sliding_fid_std"; "label_score" and "label_score_std" of |teacher's prediction - label| in units, predictions not
    clipped (None without `outputs`); "diversity", the mean over the windows of the entropy of `kinds` in nats (None
    without); "half_width"; "windows", the same by window, with "centre", "num_real" and "num_fake". A window with fewer
    than two images on a side has no distance, which `warnings` then says.
    Source: Ding et al., "CcGAN", T-PAMI 2023 (arXiv 2011.07466), "Sliding FID", "Label Score", "Diversity".
    Raises ValueError: windows that do not fit into the span of the labels.
    """
    real_labels, fake_labels = real_labels.double(), fake_labels.double()
    low, high = real_labels.min().item(), real_labels.max().item()
    half_width = (high - low) / 20 if half_width is None else half_width
    if not 0 <= 2 * half_width <= high - low:
        raise ValueError(f"half_width {half_width:g} does not fit into the real labels' span [{low:g}, {high:g}].")
    centres = real_labels.unique().tolist()
    if half_width > 0:
        centres = torch.linspace(low + half_width, high - half_width, num_windows, dtype=torch.float64).tolist()
    reach = half_width + 1e-9 * (high - low)  # the outermost labels lie on a border, up to rounding
    members = {c: ((real_labels - c).abs() <= reach, (fake_labels - c).abs() <= reach) for c in centres}
    name = f"Sliding FID (half-width {half_width:g})"
    groups = _frechet_in_groups(name, members, real_features, fake_features, warnings)

    def score(fakes: Tensor) -> tuple[float, float] | tuple[None, None]:
        if outputs is None or not fakes.any():
            return None, None
        assigned = (fake_labels[fakes] - task.label_min) / (task.label_max - task.label_min)
        ends = {"label_min": task.label_min, "label_max": task.label_max}
        return label_score(predicted_labels=task.normalize(outputs[fakes]), assigned_labels=assigned, **ends)

    windows = []
    for (centre, (_, fakes)), group in zip(members.items(), groups, strict=True):
        diversity = label_entropy(labels=kinds[fakes]) if kinds is not None and fakes.any() else None
        windows.append({"centre": centre, **group, "label_score": score(fakes)[0], "diversity": diversity})
    mean, std = score(torch.ones_like(fake_labels, dtype=torch.bool))
    distances = [window["fid"] for window in windows if window["fid"] is not None]
    if not distances:
        missing["sliding_fid"] = "no window holds two images of either side"
    return {
        "sliding_fid": _mean(windows, "fid"),
        "sliding_fid_std": statistics.pstdev(distances) if distances else None,
        "label_score": mean,
        "label_score_std": std,
        "diversity": _mean(windows, "diversity"),
        "half_width": half_width,
        "windows": windows,
    }


def _frechet_in_groups(
    name: str,
    members: dict[str | float, tuple[Tensor, Tensor]],  # bool [N] of the real, bool [M] of the generated images
    real_features: Tensor,
    fake_features: Tensor,
    warnings: list[str],
) -> list[dict]:
    """The Frechet distance inside each group ("fid", None below two images on a side), with the numbers of its images."""
    groups, missing, num_few = [], [], 0
    for title, (in_real, in_fake) in members.items():
        num_real, num_fake, distance = int(in_real.sum()), int(in_fake.sum()), None
        if min(num_real, num_fake) >= 2:
            distance = frechet_distance(real_features=real_features[in_real], fake_features=fake_features[in_fake])
            num_few += min(num_real, num_fake) <= real_features.shape[1]
        else:
            missing.append(title if isinstance(title, str) else f"{title:.4g}")
        groups.append({"num_real": num_real, "num_fake": num_fake, "fid": distance})
    if missing:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        warnings.append(
            f"{name} leaves out {len(missing)} of {len(members)} groups, those of label {', '.join(missing[:5])}{more}: "
            "fewer than two real or generated images."
        )
    if num_few:
        warnings.append(
            f"{name}: no more images than the {real_features.shape[1]:,} features in {num_few} of {len(members)} groups; "
            f"{LOW_RANK}."
        )
    return groups


def _mean(groups: list[dict], key: str) -> float | None:
    values = [group[key] for group in groups if group[key] is not None]
    return statistics.fmean(values) if values else None
