"""How good a conditional generator is: do its images look real, do they vary, do they show what their labels say?

    extractor = teacher_extractor(teacher)      # or inception_extractor("weights-inception-2015-12-05.pth")
    scores = evaluate_generator(generator, real, extractor=extractor, task=task)
    print(scores["fid"], scores["warnings"])

Every image is embedded once. FID, KID, inception score, precision and recall are torch-fidelity's functions of the
features, the rest those of `generators.metrics`. Its file cache is not used, because reading it unpickles.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch_fidelity import FeatureExtractorBase
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, KEY_METRIC_ISC_STD, isc_features_to_metric
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric
from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

from gankd.api import distill
from gankd.data.sets import ImageSet
from gankd.evaluation import evaluate
from gankd.fidelity.extractors import embed, teacher_extractor
from gankd.models.teacher import Normalize, Teacher
from gankd.tasks import Classification, Regression, Task
from gankd.training import TrainingConfig
from generators.interface import ConditionalGenerator
from generators.metrics import (
    density_coverage,
    draw_images,
    evenly_spread,
    frechet_distance,
    frechet_score,
    label_entropy,
    label_score,
)

NEIGHBOURS = 5  # of density and coverage, as in their paper; precision and recall take torch-fidelity's 3
FEW = 2048  # images below which FIDs are not quoted: as many as Inception has features
LOW_RANK = "covariances of low rank make it too large; compare it at equal numbers only"


def quick_scores(
    generator: ConditionalGenerator,
    teacher: Teacher,
    task: Task,
    real: ImageSet,
    *,
    seed: int = 0,
    num_samples: int = 2000,
) -> dict:
    """`evaluate_generator` in the teacher's features with that many fakes and at most as many real images: seconds."""
    if len(real) > num_samples:
        real = real.subset(evenly_spread(real.labels, num_samples))
    extractor = teacher_extractor(teacher)
    return evaluate_generator(
        generator, real, extractor=extractor, task=task, num_samples=num_samples, kid_subsets=20, seed=seed
    )


def frechet_scorer(
    extractor: FeatureExtractorBase, real: ImageSet, *, num_samples: int, seed: int = 0
) -> Callable[[ConditionalGenerator], float]:
    """A function of a generator: the Frechet distance between `real` and `num_samples` of its images, of like labels.

    The real images are embedded once, and every call takes the same labels and latents, so that the scores of a training
    compare. real: as `ImageSet`, at least two images.
    """
    real_features, _ = embed(real.images, extractor)
    labels = real.labels[evenly_spread(real.labels, num_samples)]

    def score(generator: ConditionalGenerator) -> float:
        return frechet_score(
            generator=generator,
            features_of=lambda images: embed(images, extractor)[0],
            real_features=real_features,
            labels=labels,
            seed=seed,
        )

    return score


def draw_fakes(generator: ConditionalGenerator, real: ImageSet, *, num_samples: int, seed: int = 0) -> ImageSet:
    """Images of a generator for labels distributed like the real ones, in the order of the labels.

    Raises:
        ValueError: real labels that the generator does not know, images outside [-1, 1], no image asked.
    """
    if num_samples < 1:
        raise ValueError(f"{num_samples} images of a generator cannot be drawn; ask for at least one.")
    labels = real.labels[evenly_spread(real.labels, num_samples)]
    images = draw_images(generator, labels, seed=seed)
    return ImageSet(images, labels, class_names=real.class_names, is_synthetic=True, name="generated")


def evaluate_generator(
    fakes: ImageSet | ConditionalGenerator,
    real: ImageSet,
    *,
    extractor: FeatureExtractorBase,
    task: Task,
    teacher: Teacher | None = None,
    classifier: Teacher | None = None,
    num_samples: int = 10_000,
    half_width: float | None = None,
    num_windows: int = 20,
    kid_subsets: int = 100,
    kid_subset_size: int = 1000,
    seed: int = 0,
    cache: Path | None = None,
) -> dict:
    """All scores of generated images against real ones, as JSON values; numbers of unlike settings do not compare.

    Args:
        fakes: labelled images, or a generator of which `num_samples` are drawn (see `draw_fakes`).
        real: the reference; its training images, as is usual for FID, reward a generator that repeats them.
        extractor: the feature space. Scores in a teacher's features do not compare with published ones (Inception), and
            those against images that it was trained on are too bad: to a teacher, these look unlike any others.
        teacher: judges the labels of the fakes; None takes that of a `TeacherExtractor`.
        classifier: for scalar labels: of something that should vary within a label (the diversity of CcGAN).
        half_width, num_windows: of the sliding FID, see `scalar_scores`.
        kid_subsets, kid_subset_size: of KID.
        cache: folder for the embedded reference, see `embed`.

    Returns:
        What was compared ("extractor", "num_features", "reference", "num_real", "num_fake", "seed"), what
        `fidelity_scores` and, by the task, `class_scores` (with "inception_score" and "inception_score_std" of the
        extractor's logits) or `scalar_scores` return, and "warnings": sentences that belong beside the numbers.

    Raises:
        ValueError: fewer than six images on a side, images of unlike shapes or value ranges, labels outside the task.
    """
    if not isinstance(fakes, ImageSet):
        fakes = draw_fakes(fakes, real, num_samples=num_samples, seed=seed)
    for dataset in (fakes, real):
        task.check(dataset.labels, dataset.name)
        if len(dataset) <= NEIGHBOURS:
            raise ValueError(
                f"{dataset.name}: {len(dataset)} images are too few to compare distributions; give at least "
                f"{NEIGHBOURS + 1}, and {FEW:,} for numbers to quote."
            )
    warnings = oddities(fakes, real)
    real_features, _ = embed(real.images, extractor, cache=cache)
    fake_features, logits = embed(fakes.images, extractor)
    features = {"real_features": real_features, "fake_features": fake_features, "warnings": warnings}
    labels = {"real_labels": real.labels, "fake_labels": fakes.labels}
    outputs, known = None, getattr(extractor, "teacher", None)
    if teacher is not None or known is not None:
        outputs = logits if teacher in (None, known) else teacher.map(fakes.images, teacher)
    scores = {
        "extractor": extractor.get_name(),
        "num_features": real_features.shape[1],
        "reference": real.name,
        "num_real": len(real),
        "num_fake": len(fakes),
        "seed": seed,
        **fidelity_scores(**features, kid_subsets=kid_subsets, kid_subset_size=kid_subset_size, seed=seed),
    }
    if isinstance(task, Classification):
        scores |= class_scores(**features, **labels, task=task, outputs=outputs)
        splits = min(10, len(fakes))
        found = isc_features_to_metric(logits, splits=splits, shuffle=True, rng_seed=seed)
        scores |= {"inception_score": found[KEY_METRIC_ISC_MEAN], "inception_score_std": found[KEY_METRIC_ISC_STD]}
    else:
        kinds = None if classifier is None else classifier.map(fakes.images, classifier).argmax(dim=1)
        windows = {"half_width": half_width, "num_windows": num_windows}
        scores |= scalar_scores(**features, **labels, **windows, task=task, outputs=outputs, kinds=kinds)
    return {**scores, "warnings": warnings}


def compare_with_real(
    generator: ConditionalGenerator, real: ImageSet, other: ImageSet, *, num_samples: int, seed: int, **settings
) -> dict[str, dict]:
    """The scores of a generator, and those that real images reach, which say what is good.

    Args:
        other: real images of another split than the reference `real`.
        settings: as in `evaluate_generator`.

    Returns:
        "generated", the scores of `num_samples` images; "other_real"; and, where `other` holds fewer images,
        "as_few_generated", because FIDs compare at equal numbers only.
    """
    if len(other) > num_samples:
        other = other.subset(evenly_spread(other.labels, num_samples))
    columns = {"generated": evaluate_generator(generator, real, num_samples=num_samples, seed=seed, **settings)}
    if len(other) < num_samples:
        columns["as_few_generated"] = evaluate_generator(generator, real, num_samples=len(other), seed=seed, **settings)
    return {**columns, "other_real": evaluate_generator(other, real, seed=seed, **settings)}


def fidelity_scores(
    *,
    real_features: Tensor,
    fake_features: Tensor,
    kid_subsets: int,
    kid_subset_size: int,
    seed: int,
    warnings: list[str],
) -> dict:
    """Are the images like the real ones, whatever their labels? Features float32 [N, D] and [M, D].

    Returns "fid", "kid", "kid_std", "kid_subset_size", "precision" and "recall" (k = 3) by torch-fidelity, "density" and
    "coverage" (k = 5). Appends to `warnings` what makes them hard to compare.
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
    moments = [fid_features_to_statistics(features.double()) for features in (fake_features, real_features)]
    kid = kid_features_to_metric(
        fake_features,
        real_features,
        kid_subsets=kid_subsets,
        kid_subset_size=subset_size,
        rng_seed=seed,
        verbose=False,
    )
    balls = prc_features_to_metric(fake_features, real_features, prc_batch_size=1000, save_cpu_ram=True, verbose=False)
    density, coverage = density_coverage(
        real_features=real_features, fake_features=fake_features, neighbours=NEIGHBOURS
    )
    return {
        "fid": max(0.0, fid_statistics_to_metric(*moments, verbose=False)[KEY_METRIC_FID]),  # -1e-13 of equal sets
        "kid": kid[KEY_METRIC_KID_MEAN],
        "kid_std": kid[KEY_METRIC_KID_STD],
        "kid_subset_size": subset_size,
        "precision": balls[KEY_METRIC_PRECISION],
        "recall": balls[KEY_METRIC_RECALL],
        "density": density,
        "coverage": coverage,
    }


def class_scores(
    *,
    real_features: Tensor,
    fake_features: Tensor,
    real_labels: Tensor,
    fake_labels: Tensor,
    task: Classification,
    outputs: Tensor | None,
    warnings: list[str],
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

    Raises:
        ValueError: windows that do not fit into the span of the labels.
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
    groups = _frechet_in_groups(
        f"Sliding FID (half-width {half_width:g})", members, real_features, fake_features, warnings
    )

    def score(fakes: Tensor) -> tuple[float, float] | tuple[None, None]:
        if outputs is None or not fakes.any():
            return None, None
        return label_score(
            predicted_labels=task.normalize(outputs[fakes]),
            assigned_labels=(fake_labels[fakes] - task.label_min) / (task.label_max - task.label_min),
            label_min=task.label_min,
            label_max=task.label_max,
        )

    windows = []
    for (centre, (_, fakes)), group in zip(members.items(), groups, strict=True):
        diversity = label_entropy(labels=kinds[fakes]) if kinds is not None and fakes.any() else None
        windows.append({"centre": centre, **group, "label_score": score(fakes)[0], "diversity": diversity})
    mean, std = score(torch.ones_like(fake_labels, dtype=torch.bool))
    distances = [window["fid"] for window in windows if window["fid"] is not None]
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


def classification_accuracy_score(
    fakes: ImageSet,
    real_test: ImageSet,
    *,
    build_model: Callable[[], nn.Module],
    task: Task,
    training: TrainingConfig | None = None,
    normalize: Normalize | None = None,
    seed: int = 0,
    accelerator: Accelerator | None = None,
    **settings,
) -> dict[str, float]:
    """What a fresh network that was trained on fakes alone knows of real images: the task's metrics on `real_test`.

    Read it beside the same call with real training images for `fakes`. For scalar labels it is an error, not an accuracy.

    Args:
        build_model: makes the network, seeded by `seed`.
        training, **settings: as in `gankd.distill`.
        normalize: of its inputs; None takes the statistics of `fakes`.

    Source: Ravuri & Vinyals, "Classification Accuracy Score for Conditional Generative Models", NeurIPS 2019.
    """
    accelerator = accelerator or Accelerator()
    oddities(fakes, real_test)
    normalize = (normalize or Normalize.of(fakes.images)).to(accelerator.device)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = build_model()
    model = distill(
        model,
        real=fakes,
        method="supervised",
        training=training,
        task=task,
        normalize=normalize,
        seed=seed,
        accelerator=accelerator,
        name="accuracy score",
        **settings,
    )
    return evaluate(model, normalize, task, real_test, accelerator=accelerator)


def score_rows(columns: list[dict], task: Task) -> list[list[str]]:
    """What `evaluate_generator` found, for a table: [name, which way is better, a value for each of `columns`] a row."""
    judged = ("|teacher - label|", "lower") if isinstance(task, Regression) else ("teacher sees the label", "higher")
    rows = [
        ("FID", "lower", "fid", ""),
        ("KID", "lower", "kid", ""),
        ("Intra-FID", "lower", "intra_fid", ""),
        ("sliding FID", "lower", "sliding_fid", ""),
        (*judged, "label_score", task.unit),
        ("inception score", "higher", "inception_score", ""),
        ("precision", "higher", "precision", ""),
        ("recall", "higher", "recall", ""),
        ("density", "higher", "density", ""),
        ("coverage", "higher", "coverage", ""),
        ("diversity", "higher", "diversity", "nats"),
    ]

    def in_words(scores: dict, key: str, unit: str) -> str:
        if scores.get(key) is None:
            return ""
        spread = f" ± {scores[f'{key}_std']:.3g}" if scores.get(f"{key}_std") is not None else ""
        return f"{scores[key]:.4g}{spread} {unit}".strip()

    table = [[name, better, *(in_words(scores, key, unit) for scores in columns)] for name, better, key, unit in rows]
    return [row for row in table if any(row[2:])]


def print_scores(columns: dict[str, dict], task: Task) -> None:
    """A table of the scores, a column each, and what the first one warns of, in the terminal."""
    from rich.console import Console
    from rich.table import Table

    first, console = next(iter(columns.values())), Console()
    table = Table("", "better", title=f"against {first['num_real']:,} real images", title_justify="left")
    for name, scores in columns.items():
        table.add_column(f"{name.replace('_', ' ')} ({scores['num_fake']:,})", justify="right")
    for row in score_rows(list(columns.values()), task):
        table.add_row(*row)
    console.print(table)
    for warning in first["warnings"]:
        console.print(f"note: {warning}", highlight=False, markup=False, soft_wrap=True)


def oddities(fakes: ImageSet, real: ImageSet) -> list[str]:
    """Sentences about what is odd about the pixels of the fakes beside those of the real images.

    Raises:
        ValueError: images of unlike shapes, or 0..1 on one side and 0..255 on the other.
    """
    if fakes.image_shape != real.image_shape:
        raise ValueError(
            f"{fakes.name} holds images of {fakes.image_shape}, {real.name} of {real.image_shape}: bring both to one size "
            "and number of channels (data.image_size, data.channels) before comparing them."
        )
    (fake_low, fake_high), (real_low, real_high) = (
        torch.aminmax(dataset.images[torch.linspace(0, len(dataset) - 1, min(1000, len(dataset))).long()])
        for dataset in (fakes, real)
    )
    for dataset, high, other in ((fakes, fake_high, real_high), (real, real_high, fake_high)):
        if high == 1 < other:
            raise ValueError(
                f"{dataset.name} holds only the values 0 and 1, the other side goes up to {other}: images in [0, 1] must "
                "be multiplied by 255 before they become uint8."
            )
    if fake_low >= 127 and real_low < 64:
        return [
            f"{fakes.name}: no pixel is darker than {fake_low}, real ones go down to {real_low}: does the generator draw "
            "in [0, 1] where [-1, 1] is expected?"
        ]
    return []
