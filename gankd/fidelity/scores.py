"""How good a conditional generator is: do its images look real, do they vary, do they show what their labels say?

    extractor = teacher_extractor(teacher)      # or inception_extractor("weights-inception-2015-12-05.pth")
    scores = evaluate_generator(generator, real, extractor=extractor, task=task)
    print(scores["fid"], scores["warnings"])

Every image is embedded once. FID, KID, inception score, precision and recall are torch-fidelity's functions of the
features, the rest those of `generators.metrics`. Its file cache is not used, because reading it unpickles.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn
from torch_fidelity import FeatureExtractorBase
from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, KEY_METRIC_ISC_STD, isc_features_to_metric

from gankd.api import distill
from gankd.data.sets import ImageSet
from gankd.evaluation import network_metrics
from gankd.fidelity.extractors import embed, teacher_extractor
from gankd.fidelity.measures import class_scores, fidelity_scores, scalar_scores
from gankd.methods.alone.supervised import Supervised
from gankd.models.inputs import Normalize
from gankd.models.teacher import Teacher
from gankd.synthesis.checks import check_finite
from gankd.tasks import Classification, Regression, Task
from gankd.training import TrainingConfig
from generators.interface import ConditionalGenerator
from generators.metrics import draw_images, evenly_spread, frechet_score


def quick_scores(
    generator: ConditionalGenerator,
    teacher: Teacher,
    task: Task,
    real: ImageSet,
    *,
    seed: int = 0,
    num_samples: int = 2000,
) -> dict:
    """`evaluate_generator` in the teacher's features with that many fakes and at most as many real images: seconds.

    For the end of a run: where nothing can be compared, "not_available" says why.
    """
    try:
        if not len(real):
            raise ValueError(f"{real.name} has no images to compare with")
        real = at_most(real, num_samples)
        settings = {"num_samples": num_samples, "kid_subsets": 20, "seed": seed}
        return evaluate_generator(generator, real, extractor=teacher_extractor(teacher), task=task, **settings)
    except ValueError as error:
        return {"num_real": len(real), "num_fake": num_samples, "warnings": [], "not_available": {"fid": str(error)}}


def frechet_scorer(
    extractor: FeatureExtractorBase, real: ImageSet, *, num_samples: int, seed: int = 0
) -> Callable[[ConditionalGenerator], float]:
    """A function of a generator: the Frechet distance between `real` and `num_samples` of its images, of like labels.

    The real images are embedded once, and every call takes the same labels and latents, so that the scores of a training
    compare.
    Raises ValueError: fewer than two real images.
    """
    if len(real) < 2:
        raise ValueError(
            f"{real.name}: {len(real)} images are too few to score a generator by; set data.validation to more, or "
            "generator.score_every=null."
        )
    real_features, _ = embed(real.images, extractor)
    labels = real.labels[evenly_spread(real.labels, num_samples)]

    reference = {"real_features": real_features, "labels": labels, "seed": seed}
    features_of = lambda images: embed(images, extractor)[0]  # noqa: E731
    return lambda generator: frechet_score(generator=generator, features_of=features_of, **reference)


def at_most(images: ImageSet, count: int) -> ImageSet:
    """So many of them if there are more, with labels distributed like all of theirs."""
    return images if len(images) <= count else images.subset(evenly_spread(images.labels, count))


def draw_fakes(generator: ConditionalGenerator, real: ImageSet, *, num_samples: int, seed: int = 0) -> ImageSet:
    """Images of a generator for labels distributed like the real ones, in the order of the labels.
    Raises ValueError: real labels that the generator does not know, images outside [-1, 1], no image asked."""
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
        extractor's logits) or `scalar_scores` return, "warnings": sentences that belong beside the numbers, and
        "not_available": of scores that are None for want of images, why.
    Raises ValueError: no images on a side, images of unlike shapes or value ranges, labels outside the task, features
    or outputs that are not finite.
    """
    if not isinstance(fakes, ImageSet):
        fakes = draw_fakes(fakes, real, num_samples=num_samples, seed=seed)
    for dataset in (fakes, real):
        task.check(dataset.labels, dataset.name)
        if not len(dataset):
            raise ValueError(f"{dataset.name} has no images to compare with.")
    warnings, missing = oddities(fakes, real), {}
    real_features, _ = embed(real.images, extractor, cache=cache)
    fake_features, logits = embed(fakes.images, extractor)
    for dataset, found in ((real, real_features), (fakes, fake_features)):
        if not found.isfinite().all():
            raise ValueError(f"{dataset.name}: its features are not finite: the network they come from has diverged.")
    features = {"real_features": real_features, "fake_features": fake_features}
    features |= {"warnings": warnings, "missing": missing}
    labels = {"real_labels": real.labels, "fake_labels": fakes.labels}
    outputs, known = None, getattr(extractor, "teacher", None)
    if teacher is not None or known is not None:
        outputs = logits if teacher in (None, known) else teacher.map(fakes.images, teacher)
        check_finite(outputs, task, f"{fakes.name}: the teacher's outputs")
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
    return {**scores, "warnings": warnings, "not_available": missing}


def compare_with_real(
    generator: ConditionalGenerator, real: ImageSet, other: ImageSet, *, num_samples: int, seed: int, **settings
) -> dict[str, dict]:
    """The scores of a generator, and those that real images reach, which say what is good.

    other: real images of another split than the reference `real`.
    settings: as in `evaluate_generator`.

    Returns:
        "generated", the scores of `num_samples` images; "other_real", unless `other` is empty; and, where it holds fewer
        images, "as_few_generated", because FIDs compare at equal numbers only.
    """
    other = at_most(other, num_samples)
    columns = {"generated": evaluate_generator(generator, real, num_samples=num_samples, seed=seed, **settings)}
    if not len(other):
        return columns
    if len(other) < num_samples:
        columns["as_few_generated"] = evaluate_generator(generator, real, num_samples=len(other), seed=seed, **settings)
    return {**columns, "other_real": evaluate_generator(other, real, seed=seed, **settings)}


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

    build_model: makes the network, seeded by `seed`.
    training, **settings: as in `gankd.distill`.
    normalize: of its inputs; None takes the statistics of `fakes`.

    Source: Ravuri & Vinyals, "Classification Accuracy Score for Conditional Generative Models", NeurIPS 2019.
    """
    accelerator = accelerator or Accelerator()
    if not len(real_test):
        raise ValueError(f"{real_test.name} has no images to test a network on; give others, or set data.validation.")
    oddities(fakes, real_test)
    normalize = (normalize or Normalize.of(fakes.images)).to(accelerator.device)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = build_model()
    settings |= {"training": training, "seed": seed, "accelerator": accelerator, "name": "accuracy score"}
    model = distill(model, real=fakes, method=Supervised, task=task, normalize=normalize, **settings)
    return network_metrics(model, normalize, task, real_test, accelerator=accelerator)


def score_rows(columns: list[dict], task: Task) -> list[list[str]]:
    """What `evaluate_generator` found, for a table: [name, which way is better, a value for each of `columns`] a row."""
    judged = ("|teacher - label|", "lower") if isinstance(task, Regression) else ("teacher sees the label", "higher")
    distances = {"fid": "FID", "kid": "KID", "intra_fid": "Intra-FID", "sliding_fid": "sliding FID"}
    shares = ("precision", "recall", "density", "coverage")
    rows = [
        *((name, "lower", key, "") for key, name in distances.items()),
        (*judged, "label_score", task.unit),
        ("inception score", "higher", "inception_score", ""),
        *((key, "higher", key, "") for key in shares),
        ("diversity", "higher", "diversity", "nats"),
    ]

    def in_words(scores: dict, key: str, unit: str) -> str:
        if scores.get(key) is None:
            why = scores.get("not_available", {}).get(key)
            return f"not available ({why})" if why else ""
        spread = f" ± {scores[f'{key}_std']:.3g}" if scores.get(f"{key}_std") is not None else ""
        return f"{scores[key]:.4g}{spread} {unit}".strip()

    table = [[name, better, *(in_words(scores, key, unit) for scores in columns)] for name, better, key, unit in rows]
    return [row for row in table if any(row[2:])]


def oddities(fakes: ImageSet, real: ImageSet) -> list[str]:
    """Sentences about what is odd about the pixels of the fakes beside those of the real images.
    Raises ValueError: images of unlike shapes, or 0..1 on one side and 0..255 on the other."""
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
