"""Scores of generated images on cases whose answer is known, and what is said when they should not be trusted.

The images are 4x4 pixels in four columns. Class k is bright in column k; a scalar label is the mean brightness in [0, 1].
The teachers read these off: their features are the pixels, so that nothing has to be trained.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy
import pytest
import torch
import torch_fidelity
from accelerate import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import Dataset

from gankd.data.sets import ImageSet, LazyImages
from gankd.experiment.config import load_config
from gankd.fidelity.extractors import embed, inception_extractor, teacher_extractor
from gankd.fidelity.measures import fidelity_scores, scalar_scores
from gankd.fidelity.scores import (
    classification_accuracy_score,
    compare_with_real,
    draw_fakes,
    evaluate_generator,
    frechet_scorer,
    quick_scores,
    score_rows,
)
from gankd.models.inputs import Normalize
from gankd.models.teacher import Teacher
from gankd.pipeline import Run
from gankd.tasks import Classification, Regression
from generators.images import to_unit_range
from generators.metrics import density_coverage, draw_images, evenly_spread, frechet_distance, frechet_score
from generators.wrapping import wrap
from tests.commands import run

CLASSES = Classification(class_names=("first", "second", "third", "fourth"))
BRIGHTNESS = Regression(label_min=0, label_max=1, unit="units")
IDENTITY = Normalize(torch.zeros(1), torch.ones(1))


def class_images(labels: Tensor, seed: int = 0) -> Tensor:
    """uint8 [N, 1, 4, 4]: noise, and light in the column of the class."""
    images = torch.randint(0, 100, (len(labels), 1, 4, 4), generator=torch.Generator().manual_seed(seed))
    columns = torch.nn.functional.one_hot(labels, 4)[:, None, None, :]
    return (images + 150 * columns).to(torch.uint8)


def class_set(count: int = 200, seed: int = 0) -> ImageSet:
    labels = torch.arange(count) % 4
    return ImageSet(class_images(labels, seed), labels, class_names=CLASSES.class_names, name="reals")


def scalar_images(labels: Tensor, seed: int = 0) -> Tensor:
    """uint8 [N, 1, 4, 4] of mean brightness `labels`, up to noise."""
    noise = torch.randn(len(labels), 1, 4, 4, generator=torch.Generator().manual_seed(seed))
    return (255 * labels[:, None, None, None] + 8 * noise).round().clamp(0, 255).to(torch.uint8)


def scalar_set(count: int = 200, seed: int = 0) -> ImageSet:
    labels = torch.rand(count, generator=torch.Generator().manual_seed(seed + 100)) * 0.6 + 0.2
    return ImageSet(scalar_images(labels, seed), labels, name="reals")


def class_teacher(brightest: float = 20.0) -> Teacher:
    """Logits in favour of the brightest column; features are the 16 pixels."""
    linear = nn.Linear(16, 4, bias=False)
    linear.weight.data = brightest * torch.eye(4).repeat(1, 4)
    return Teacher(nn.Sequential(nn.Flatten(), linear), IDENTITY)


def scalar_teacher() -> Teacher:
    """The mean brightness; features are the 16 pixels."""
    linear = nn.Linear(16, 1, bias=False)
    linear.weight.data.fill_(1 / 16)
    return Teacher(nn.Sequential(nn.Flatten(), linear), IDENTITY)


def shuffled(dataset: ImageSet, seed: int = 0) -> ImageSet:
    """The same images under each other's labels: what a generator that ignores its labels makes."""
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed))
    return replace(dataset, labels=dataset.labels[order], name="fakes")


def class_generator():
    """Draws as `class_images` does, with the latents as the noise."""

    def draw(z: Tensor, y: Tensor) -> Tensor:
        light = torch.nn.functional.one_hot(y, 4)[:, None, None, :]
        return ((z.view(-1, 1, 4, 4).sigmoid() * 100 + 150 * light) / 127.5 - 1).clamp(-1, 1)

    return wrap(draw, resolution=4, image_channels=1, latent_dim=16, num_classes=4)


def scalar_generator():
    """Draws as bright as the label says, with the latents as the noise."""
    draw = lambda z, y: (2 * y[:, None, None, None] - 1 + z.view(-1, 1, 4, 4) / 20).clamp(-1, 1)  # noqa: E731
    return wrap(draw, resolution=4, image_channels=1, latent_dim=16, label_range=(0, 1))


def gaussian(count: int, width: int, seed: int = 0) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def fidelity(real: Tensor, fake: Tensor) -> dict:
    return fidelity_scores(
        real_features=real, fake_features=fake, kid_subsets=5, kid_subset_size=50, seed=0, warnings=[], missing={}
    )


# --- fidelity ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "task", "teacher"),
    [(class_set(), CLASSES, class_teacher()), (scalar_set(), BRIGHTNESS, scalar_teacher())],
    ids=["classes", "scalars"],
)
def test_the_same_images_in_another_order_are_perfect(data, task, teacher):
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))
    scores = evaluate_generator(data.subset(order), data, extractor=teacher_extractor(teacher), task=task)
    inside = "intra_fid" if task is CLASSES else "sliding_fid"
    assert [scores[name] for name in ("fid", inside)] == pytest.approx([0, 0], abs=1e-6)
    assert [scores[name] for name in ("precision", "recall", "density", "coverage")] == [1, 1, 1, 1]


def test_a_shift_of_all_features_costs_its_square():
    features, shift = gaussian(300, 8), torch.arange(8) / 4
    assert fidelity(features, features + shift)["fid"] == pytest.approx(shift.square().sum().item(), rel=1e-4)


def test_a_scaling_of_all_features_costs_the_squared_difference_of_the_standard_deviations():
    features = gaussian(300, 8) - gaussian(300, 8).mean(dim=0)
    variance = features.var(dim=0).sum().item()
    assert fidelity(features, 3 * features)["fid"] == pytest.approx(4 * variance, rel=1e-4)


@pytest.mark.parametrize(("num_real", "num_fake"), [(300, 200), (10, 40), (12, 12)])
def test_both_implementations_of_the_frechet_distance_agree(num_real, num_fake):
    real, fake = gaussian(num_real, 24), 1.5 * gaussian(num_fake, 24, seed=1) + 0.3
    distance = frechet_distance(real_features=real, fake_features=fake)
    assert fidelity(real, fake)["fid"] == pytest.approx(distance, rel=1e-4)


def test_features_that_are_always_zero_change_no_distance():
    real, fake = gaussian(30, 8), 2 * gaussian(20, 8, seed=1)  # N M > D^2: by covariances; padded: by the samples
    padded = [torch.cat([features, torch.zeros(len(features), 40)], dim=1) for features in (real, fake)]
    distance = frechet_distance(real_features=real, fake_features=fake)
    assert frechet_distance(real_features=padded[0], fake_features=padded[1]) == pytest.approx(distance, rel=1e-9)


def test_scores_are_those_of_torch_fidelity_with_the_registered_teacher():
    class Images(Dataset):
        def __init__(self, images):
            self.images = images

        def __len__(self):
            return len(self.images)

        def __getitem__(self, index):
            return self.images[index]

    real, fake, extractor = class_set(), class_set(150, seed=1), teacher_extractor(class_teacher(1.0))
    scores = evaluate_generator(fake, real, extractor=extractor, task=CLASSES, kid_subset_size=60, seed=7)
    metrics = {"fid": True, "kid": True, "isc": True, "prc": True, "kid_subset_size": 60, "rng_seed": 7}
    expected = torch_fidelity.calculate_metrics(
        input1=Images(fake.images),
        input2=Images(real.images),
        feature_extractor=extractor.get_name(),
        cuda=False,
        cache=False,
        save_cpu_ram=True,
        verbose=False,
        **metrics,
    )
    names = {
        "fid": "frechet_inception_distance",
        "kid": "kernel_inception_distance_mean",
        "kid_std": "kernel_inception_distance_std",
        "inception_score": "inception_score_mean",
        "inception_score_std": "inception_score_std",
        "precision": "precision",
        "recall": "recall",
    }
    assert {name: scores[name] for name in names} == {
        name: pytest.approx(expected[theirs], rel=1e-4) for name, theirs in names.items()
    }


# --- density and coverage ---------------------------------------------------------------------------------------------


def brute_force(real: numpy.ndarray, fake: numpy.ndarray, k: int) -> tuple[float, float]:
    """The two definitions, sample by sample."""
    distance = lambda a, b: math.dist(a.tolist(), b.tolist())  # noqa: E731
    radii = [sorted(distance(x, other) for other in real)[k] for x in real]
    inside = [[distance(x, y) < radius for y in fake] for x, radius in zip(real, radii, strict=True)]
    return sum(map(sum, inside)) / (k * len(fake)), sum(map(any, inside)) / len(real)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), num_fake=st.integers(1, 30), k=st.integers(1, 5), chunk_size=st.sampled_from([3, 50]))
def test_density_and_coverage_follow_their_definitions(seed, num_fake, k, chunk_size):
    real, fake = gaussian(20, 3, seed).double(), gaussian(num_fake, 3, seed + 1).double()
    found = density_coverage(real_features=real, fake_features=fake, neighbours=k, chunk_size=chunk_size)
    assert found == pytest.approx(brute_force(real.numpy(), fake.numpy(), k))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), scale=st.sampled_from([1e-3, 1.0, 1e3]), shift=st.sampled_from([0.0, 100.0]))
def test_density_and_coverage_ignore_rotation_scale_and_origin(seed, scale, shift):
    real, fake = gaussian(60, 4, seed).double(), gaussian(50, 4, seed + 1).double()
    rotation = torch.linalg.qr(gaussian(4, 4, seed).double()).Q
    moved = [(features @ rotation) * scale + shift for features in (real, fake)]
    expected = density_coverage(real_features=real, fake_features=fake)
    assert density_coverage(real_features=moved[0], fake_features=moved[1]) == pytest.approx(expected)


def test_one_good_image_many_times_is_dense_and_covers_little():
    real = gaussian(100, 4)
    middle = real.norm(dim=1).argmin()
    density, coverage = density_coverage(real_features=real, fake_features=real[middle].repeat(100, 1))
    assert density > 1
    assert coverage < 0.25


def test_images_far_from_all_reals_have_neither_density_nor_coverage():
    assert density_coverage(real_features=gaussian(50, 4), fake_features=gaussian(50, 4) + 100) == (0, 0)


@pytest.mark.parametrize(
    ("num_real", "num_fake", "width", "message"), [(5, 9, 3, "at least 6 real"), (9, 0, 3, "0"), (9, 9, 4, "width")]
)
def test_density_and_coverage_refuse(num_real, num_fake, width, message):
    with pytest.raises(ValueError, match=message):
        density_coverage(real_features=gaussian(num_real, 3), fake_features=gaussian(num_fake, width))


# --- labels -----------------------------------------------------------------------------------------------------------


def test_a_generator_that_ignores_its_class_is_found_by_intra_fid_and_not_by_fid():
    real, extractor = class_set(), teacher_extractor(class_teacher())
    obeying = evaluate_generator(class_set(seed=1), real, extractor=extractor, task=CLASSES)
    ignoring = evaluate_generator(shuffled(class_set(seed=1)), real, extractor=extractor, task=CLASSES)
    assert ignoring["fid"] == pytest.approx(obeying["fid"], rel=1e-6)
    assert ignoring["intra_fid"] > 10 * obeying["intra_fid"]
    assert obeying["label_score"] == 100
    assert 10 < ignoring["label_score"] < 40  # a quarter agrees by chance


def test_a_single_bad_class_shows_in_its_row():
    real, fakes = class_set(), class_set(seed=1)
    images = torch.where((fakes.labels == 2)[:, None, None, None], 255 - fakes.images, fakes.images)
    scores = evaluate_generator(
        replace(fakes, images=images), real, extractor=teacher_extractor(class_teacher()), task=CLASSES
    )
    rows = {row["class"]: row for row in scores["classes"]}
    assert (
        max(rows, key=lambda name: rows[name]["fid"])
        == min(rows, key=lambda name: rows[name]["label_score"])
        == "third"
    )
    assert rows["third"]["num_real"] == rows["third"]["num_fake"] == 50


def test_a_generator_that_ignores_its_scalar_label_is_found_by_sliding_fid_and_not_by_fid():
    real, extractor = scalar_set(), teacher_extractor(scalar_teacher())
    obeying = evaluate_generator(scalar_set(seed=1), real, extractor=extractor, task=BRIGHTNESS)
    ignoring = evaluate_generator(shuffled(scalar_set(seed=1)), real, extractor=extractor, task=BRIGHTNESS)
    assert ignoring["fid"] == pytest.approx(obeying["fid"], rel=1e-6)
    assert ignoring["sliding_fid"] > 10 * obeying["sliding_fid"]
    assert obeying["label_score"] < 0.02 < 0.1 < ignoring["label_score"]
    assert len(obeying["windows"]) == 20


def scalars(real: ImageSet, fakes: ImageSet, **settings) -> dict:
    """`scalar_scores` of two sets whose features are their pixels."""
    given = {
        "outputs": None,
        "kinds": None,
        "half_width": None,
        "num_windows": 20,
        "warnings": [],
        "missing": {},
        **settings,
    }
    return scalar_scores(
        real_features=real.images.flatten(1).float(),
        fake_features=fakes.images.flatten(1).float(),
        real_labels=real.labels,
        fake_labels=fakes.labels,
        task=BRIGHTNESS,
        **given,
    )


def test_windows_lie_inside_the_span_of_the_real_labels_and_hold_all_of_it():
    real = replace(scalar_set(), labels=torch.linspace(0.2, 0.8, 200))
    windows = scalars(real, real, half_width=0.05, num_windows=7)["windows"]
    assert [window["centre"] for window in windows] == pytest.approx([0.25, 1 / 3, 5 / 12, 0.5, 7 / 12, 2 / 3, 0.75])
    assert all(30 <= window["num_real"] <= 36 for window in windows)  # a sixth of the span; the borders belong to it


def test_windows_of_no_width_are_one_for_every_real_label():
    labels = torch.tensor([0.2, 0.5, 0.8]).repeat_interleave(40)
    real, fakes = (ImageSet(scalar_images(labels, seed), labels) for seed in (0, 1))
    scores = scalars(real, fakes, half_width=0)
    distances = [
        frechet_distance(
            real_features=real.images[labels == label].flatten(1),
            fake_features=fakes.images[labels == label].flatten(1),
        )
        for label in labels.unique()
    ]
    assert [window["fid"] for window in scores["windows"]] == pytest.approx(distances)
    assert scores["sliding_fid"] == pytest.approx(sum(distances) / 3)
    assert scores["sliding_fid_std"] == pytest.approx(numpy.std(distances))


def test_windows_wider_than_the_labels_are_refused():
    with pytest.raises(ValueError, match=r"half_width 0.4 does not fit into the real labels' span \[0.2"):
        scalars(scalar_set(), scalar_set(), half_width=0.4)


def test_label_score_is_in_units_and_does_not_clip_predictions():
    task = Regression(label_min=-50, label_max=150, mean=10, std=20, unit="degrees")
    labels = torch.tensor([150.0, 150.0, 150.0, 150.0])
    outputs = (torch.tensor([140.0, 150.0, 160.0, 250.0]) - 10) / 20  # what a network says in standardised units
    found = scalar_scores(
        real_features=gaussian(9, 3),
        fake_features=gaussian(4, 3),
        real_labels=torch.linspace(-50, 150, 9),
        fake_labels=labels,
        task=task,
        outputs=outputs[:, None],
        kinds=None,
        half_width=50,
        num_windows=2,
        warnings=[],
        missing={},
    )
    errors = [10, 0, 10, 100]
    assert found["label_score"] == pytest.approx(numpy.mean(errors), rel=1e-5)
    assert found["label_score_std"] == pytest.approx(numpy.std(errors), rel=1e-5)
    assert [window["label_score"] for window in found["windows"]] == [None, pytest.approx(30, rel=1e-5)]


def test_diversity_is_the_mean_entropy_of_what_a_classifier_sees_within_a_label():
    labels = torch.tensor([0.2, 0.8]).repeat_interleave(50)
    data = ImageSet(scalar_images(labels), labels)
    kinds = torch.arange(100) % 2  # two kinds, evenly, at the first label; one at the second
    kinds[50:] = 1
    assert scalars(data, data, kinds=kinds, half_width=0)["diversity"] == pytest.approx(math.log(2) / 2)


def test_a_classifier_sees_the_fakes():
    labels = torch.arange(200) % 4 / 10 + 0.2
    images = class_images(torch.arange(200) // 50)  # every label comes with four kinds
    data = ImageSet(images, labels)
    scores = evaluate_generator(
        data,
        data,
        extractor=teacher_extractor(scalar_teacher()),
        task=BRIGHTNESS,
        classifier=class_teacher(),
        half_width=0,
    )
    assert scores["diversity"] == pytest.approx(math.log(4), abs=0.01)


# --- extractors and their cache ---------------------------------------------------------------------------------------


def test_the_name_of_a_teacher_is_its_content():
    name = lambda teacher: teacher_extractor(teacher).get_name()  # noqa: E731
    assert name(class_teacher()) == name(class_teacher())
    other_module = Teacher(nn.Sequential(nn.Flatten(), nn.ReLU(), class_teacher().module[1]), IDENTITY)
    other_normalization = Teacher(class_teacher().module, Normalize(torch.zeros(1), 2 * torch.ones(1)))
    names = {name(teacher) for teacher in (class_teacher(), class_teacher(3.0), other_module, other_normalization)}
    assert len(names) == 4


def test_two_teachers_give_their_own_features():
    images = class_set(8).images
    features = [
        embed(images, teacher_extractor(Teacher(class_teacher().module, Normalize(torch.zeros(1), scale))))[0]
        for scale in (torch.ones(1), torch.full((1,), 2.0))
    ]
    assert torch.equal(features[0], to_unit_range(images).flatten(1))
    assert torch.equal(features[1], features[0] / 2)


def test_kept_features_are_those_of_the_same_images_and_the_same_teacher(tmp_path):
    images, extractor = class_set().images, teacher_extractor(class_teacher())
    first = embed(images, extractor, cache=tmp_path)
    for found, expected in zip(embed(images.clone(), extractor, cache=tmp_path), first, strict=True):
        assert torch.equal(found, expected)
    (file,) = tmp_path.iterdir()
    save_file({name: values + 1 for name, values in load_file(file).items()}, file)
    assert torch.equal(embed(images, extractor, cache=tmp_path)[0], first[0] + 1)  # it was read, not computed again

    other_images, other_teacher = images.flip(0), teacher_extractor(class_teacher(3.0))
    assert torch.equal(embed(other_images, extractor, cache=tmp_path)[0], first[0].flip(0))
    assert torch.equal(embed(images, other_teacher, cache=tmp_path)[0], first[0])
    assert len(list(tmp_path.iterdir())) == 3


def test_images_that_are_read_lazily_are_known_by_their_pixels(tmp_path):
    images, extractor = class_set().images, teacher_extractor(class_teacher())
    lazy = [LazyImages(pixels.__getitem__, tuple(images.shape)) for pixels in (images, 255 - images)]
    found = [embed(pixels, extractor, cache=tmp_path)[0] for pixels in (images, *lazy)]
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[1], found[2])
    assert len(list(tmp_path.iterdir())) == 2


def test_a_cache_changes_no_score(tmp_path):
    settings = {"extractor": teacher_extractor(class_teacher()), "task": CLASSES}
    scores = [
        evaluate_generator(class_set(seed=1), class_set(), cache=cache, **settings)
        for cache in (None, tmp_path, tmp_path)
    ]
    assert scores[0] == scores[1] == scores[2]


def test_a_kept_file_that_is_cut_off_is_named(tmp_path):
    extractor = teacher_extractor(class_teacher())
    embed(class_set().images, extractor, cache=tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match=f"{file.name} is cut off"):
        embed(class_set().images, extractor, cache=tmp_path)


class UntrainedInception(torch_fidelity.FeatureExtractorInceptionV3):
    """The network with random weights: what its file would hold is ignored."""

    def load_state_dict(self, weights):
        pass


def test_inception_is_read_from_a_file_and_takes_grey_images(tmp_path):
    torch.save({}, tmp_path / "nothing.pth")
    source = UntrainedInception("untrained", ["2048"], feature_extractor_weights_path=tmp_path / "nothing.pth")
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    extractor, grey = inception_extractor(tmp_path / "weights.pth"), class_set(2).images
    features, logits = embed(grey, extractor)
    assert features.shape == (2, 2048)
    assert logits.shape == (2, 1008)
    assert torch.equal(features, embed(grey.repeat(1, 3, 1, 1), extractor)[0])
    with torch.no_grad():
        assert torch.allclose(features, source(grey.repeat(1, 3, 1, 1))[0])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "holds no Inception weights"),
        (Normalize(torch.zeros(1), torch.ones(1)), "not a file of tensors only"),
        ({"weight": torch.zeros(3)}, "another network"),
    ],
    ids=["missing", "pickle", "other"],
)
def test_inception_refuses_other_files(tmp_path, content, message):
    if content is not None:
        torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=message):
        inception_extractor(tmp_path / "weights.pth")


# --- what is said, what is refused ------------------------------------------------------------------------------------


def warnings_of(fakes: ImageSet, real: ImageSet, **settings) -> list[str]:
    settings = {"extractor": teacher_extractor(class_teacher()), "task": CLASSES, **settings}
    return evaluate_generator(fakes, real, **settings)["warnings"]


def test_enough_images_need_no_warning():
    assert warnings_of(class_set(2048, seed=1), class_set(2048), kid_subsets=1) == []


def test_few_images_are_said():
    (few, subsets) = warnings_of(class_set(300, seed=1), class_set(200))
    assert few.startswith("FID from 200 real and 300 generated images: below 2,048")
    assert subsets.startswith("KID: subsets of 200 in place of 1,000 images")


def test_fewer_images_than_features_are_said():
    found = warnings_of(class_set(200, seed=1), class_set(16), kid_subset_size=10)
    assert any(sentence.startswith("FID: 16 images for 16 features; covariances of low rank") for sentence in found)
    assert any("features in 4 of 4 groups; covariances of low rank" in sentence for sentence in found)


def test_a_class_without_images_is_left_out_and_named():
    fakes, real = class_set(200, seed=1), class_set()
    fakes = fakes.subset((fakes.labels != 3).nonzero().flatten())
    scores = evaluate_generator(fakes, real, extractor=teacher_extractor(class_teacher()), task=CLASSES)
    distances = [row["fid"] for row in scores["classes"]]
    assert distances[3] is None
    assert scores["intra_fid"] == pytest.approx(sum(distances[:3]) / 3)
    assert any("leaves out 1 of 4 groups, those of label fourth" in sentence for sentence in scores["warnings"])


def test_scores_of_labels_far_from_zero_are_those_of_labels_near_it_f8():
    """Labels 20000 +- 1: sums of their squares leave float32."""
    far = replace(BRIGHTNESS, label_min=20_000, label_max=20_001, mean=20_000)
    shifted = lambda data, by: replace(data, labels=(512 * data.labels).round() / 512 + by)  # noqa: E731 (exact there)
    found = []
    for task, by in ((BRIGHTNESS, 0), (far, 20_000)):
        real, fakes = shifted(scalar_set(), by), shifted(scalar_set(seed=1), by)
        extractor = teacher_extractor(scalar_teacher())
        found.append(evaluate_generator(fakes, real, extractor=extractor, task=task, num_windows=5))
    near, far = found
    assert [window["num_real"] for window in far["windows"]] == [window["num_real"] for window in near["windows"]]
    for name in ("sliding_fid", "label_score", "label_score_std"):
        assert far[name] == pytest.approx(near[name], abs=0.002)  # what float32 tells apart there


def test_windows_without_images_are_left_out_and_counted():
    labels = torch.tensor([0.2, 0.3, 0.8]).repeat_interleave(40)
    data, warnings = ImageSet(scalar_images(labels), labels), []
    scores = scalars(data, data, half_width=0.06, num_windows=6, warnings=warnings)
    assert [window["fid"] is None for window in scores["windows"]] == [False, False, True, True, True, False]
    assert scores["sliding_fid"] == pytest.approx(0, abs=1e-6)
    assert any("leaves out 3 of 6 groups, those of label 0.452, 0.548, 0.644:" in sentence for sentence in warnings)


@pytest.mark.parametrize(
    ("count", "missing"),
    [
        (1, {"fid", "kid", "kid_std", "precision", "recall", "density", "coverage", "intra_fid"}),
        (3, {"precision", "recall", "density", "coverage", "intra_fid"}),
        (5, {"density", "coverage"}),
        (6, set()),
    ],
)
def test_a_score_of_too_few_images_is_not_available_and_ends_nothing_f27(count, missing):
    scores = evaluate_generator(
        class_set(), class_set(count), extractor=teacher_extractor(class_teacher()), task=CLASSES
    )
    assert set(scores["not_available"]) == missing == {name for name in scores if scores[name] is None}
    assert scores["label_score"] == 100
    rows = {name: value for name, _, value in score_rows([scores], CLASSES)}
    assert rows["coverage"].startswith("not available (it takes 6 images on a side, there are") == (count < 6)
    json.dumps(scores, allow_nan=False)


@pytest.mark.parametrize("count", range(3))
def test_the_scores_at_the_end_of_a_run_end_nothing_f27(count):
    """Without validation images too."""
    for generator, teacher, task, data in (
        (class_generator(), class_teacher(), CLASSES, class_set()),
        (scalar_generator(), scalar_teacher(), BRIGHTNESS, scalar_set()),
    ):
        few = data.subset(torch.arange(count))
        scores = quick_scores(generator, teacher, task, few, num_samples=20)
        assert score_rows([scores], task)[0][2].startswith("not available (") == (count < 2)
        json.dumps(scores, allow_nan=False)


def test_a_generator_cannot_be_watched_by_one_image_f27():
    with pytest.raises(ValueError, match="reals: 1 images are too few .* data.validation"):
        frechet_scorer(teacher_extractor(class_teacher()), class_set(1), num_samples=10)


@pytest.mark.parametrize("part", ["features", "outputs"])
def test_numbers_that_are_none_are_an_error_with_a_name_f15(part):
    teacher = class_teacher()
    if part == "outputs":
        teacher.module[1].weight.data[0, 0] = torch.nan
    else:
        teacher.normalize = Normalize(torch.zeros(1), torch.zeros(1))
    with pytest.raises(ValueError, match="reals: .* not finite"):
        warnings_of(class_set(), class_set(), extractor=teacher_extractor(teacher))


def test_images_of_another_shape_are_refused():
    colour = replace(class_set(), images=class_set().images.repeat(1, 3, 1, 1), name="fakes")
    with pytest.raises(ValueError, match=r"fakes holds images of \(3, 4, 4\), reals of \(1, 4, 4\)"):
        warnings_of(colour, class_set())


def test_images_in_0_1_on_one_side_are_refused():
    unscaled = replace(class_set(), images=(class_set().images > 128).to(torch.uint8), name="fakes")
    with pytest.raises(ValueError, match="fakes holds only the values 0 and 1"):
        warnings_of(unscaled, class_set())
    with pytest.raises(ValueError, match="multiplied by 255"):
        warnings_of(class_set(), unscaled)


def test_images_of_the_upper_half_alone_are_pointed_out():
    brighter = replace(class_set(), images=class_set().images // 2 + 127, name="fakes")
    assert any("[0, 1] where [-1, 1] is expected" in sentence for sentence in warnings_of(brighter, class_set()))


def test_labels_of_no_class_are_refused():
    with pytest.raises(ValueError, match="fakes: label 4"):
        warnings_of(replace(class_set(), labels=class_set().labels + 1, name="fakes"), class_set())


def test_a_generator_that_leaves_the_range_is_refused():
    generator = class_generator()
    sample = generator.sample
    generator.sample = lambda *args: 255 * sample(*args)
    with pytest.raises(ValueError, match=r"WrappedGenerator draws values in \[-2\d\d, 2\d\d\]"):
        draw_images(generator, torch.arange(4), seed=0)


# --- drawing ----------------------------------------------------------------------------------------------------------


@given(counts=st.lists(st.integers(1, 9), min_size=2, max_size=4), times=st.integers(1, 3))
def test_labels_of_the_fakes_are_distributed_like_the_real_ones(counts, times):
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)).flip(0)
    spread = evenly_spread(labels, times * len(labels))
    assert labels[spread].bincount().tolist() == [times * count for count in counts]
    assert torch.bincount(spread, minlength=len(labels)).tolist() == [times] * len(labels)


@given(size=st.integers(5, 40), count=st.integers(1, 40))
def test_any_number_of_scalar_labels_is_spread_evenly(size, count):
    labels = torch.rand(size, generator=torch.Generator().manual_seed(size))
    below = lambda values: (values[:, None] <= labels.sort().values).double().mean(dim=0)  # noqa: E731
    assert (below(labels[evenly_spread(labels, count)]) - below(labels)).abs().max() <= 1 / count + 1e-9


def test_fakes_are_a_function_of_the_seed_and_leave_the_generator_as_it_was():
    generator, real = class_generator().train(), class_set()
    first, again, other = (draw_fakes(generator, real, num_samples=300, seed=seed) for seed in (0, 0, 1))
    assert generator.training
    assert torch.equal(first.images, again.images)
    assert not torch.equal(first.images, other.images)
    assert first.labels.bincount().tolist() == [75] * 4
    with pytest.raises(ValueError, match="at least one"):
        draw_fakes(generator, real, num_samples=0)


def test_a_score_for_watching_is_the_frechet_distance_of_the_images_drawn():
    generator, real, teacher = class_generator(), class_set(), class_teacher()
    labels = real.labels[evenly_spread(real.labels, 120)]
    features_of = lambda images: teacher.outputs_and_features(to_unit_range(images))[1]  # noqa: E731
    score = frechet_score(
        generator=generator,
        features_of=features_of,
        real_features=features_of(real.images),
        labels=labels,
        seed=3,
    )
    fakes = draw_fakes(generator, real, num_samples=120, seed=3)
    expected = evaluate_generator(fakes, real, extractor=teacher_extractor(teacher), task=CLASSES)["fid"]
    assert score == pytest.approx(expected, rel=1e-4)


def test_quick_scores_draw_and_take_as_many():
    scores = quick_scores(class_generator(), class_teacher(), CLASSES, class_set(400), num_samples=100)
    assert (scores["num_fake"], scores["num_real"]) == (100, 100)
    assert scores["label_score"] == 100
    assert [row["num_real"] for row in scores["classes"]] == [25] * 4
    json.dumps(scores, allow_nan=False)


def test_real_images_stand_beside_as_many_generated_ones():
    columns = compare_with_real(
        class_generator(),
        class_set(),
        class_set(80, seed=1),
        num_samples=200,
        seed=0,
        extractor=teacher_extractor(class_teacher()),
        task=CLASSES,
    )
    assert {name: scores["num_fake"] for name, scores in columns.items()} == {
        "generated": 200,
        "as_few_generated": 80,
        "other_real": 80,
    }
    rows = score_rows(list(columns.values()), CLASSES)
    assert [row[0] for row in rows][:3] == ["FID", "KID", "Intra-FID"]
    assert all(len(row) == 5 and all(row) for row in rows)


# --- training on fakes ------------------------------------------------------------------------------------------------


def test_what_is_learnt_from_fakes_is_measured_on_real_images():
    def train_on(fakes: ImageSet) -> float:
        return classification_accuracy_score(
            fakes,
            class_set(),
            build_model=lambda: nn.Sequential(nn.Flatten(), nn.Linear(16, 4)),
            task=CLASSES,
            steps=60,
            learning_rate=0.05,
        )["top1"]

    assert train_on(draw_fakes(class_generator(), class_set(), num_samples=200)) > 95
    assert train_on(shuffled(class_set(seed=1))) < 60


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_scores_the_generator_of_a_run(tiny, write_config, tmp_path):
    Run(load_config(write_config(tiny)), Accelerator(cpu=True)).run("teacher")
    directory = tmp_path / "runs" / "tiny"
    output = run("scripts/evaluate_generator.py", "--run", directory, "--num-samples", 120, "--accuracy-score")
    for word in ("FID", "KID", "Intra-FID", "coverage", "note: FID from 40 real and 120 generated images"):
        assert word in output
    numbers = json.loads((directory / "generator_metrics.json").read_text())
    assert numbers["split"] == "train"
    assert numbers["generated"]["num_fake"] == 120
    assert numbers["other_real"]["num_fake"] == numbers["as_few_generated"]["num_fake"] == 60
    assert 0 <= numbers["accuracy_score"]["generated"]["top1"] <= 100


def test_the_command_wants_data_for_a_generator(tmp_path):
    assert "--config" in run("scripts/evaluate_generator.py", "--generator", tmp_path, status=2)


def test_without_other_real_images_a_generator_is_scored_alone():
    """As with `data.validation: 0`."""
    real = class_set(40)
    nothing = real.subset(torch.arange(0))
    settings = {"extractor": teacher_extractor(class_teacher()), "task": CLASSES, "num_samples": 40, "seed": 0}
    assert set(compare_with_real(class_generator(), real, nothing, **settings)) == {"generated"}
    with pytest.raises(ValueError, match="has no images to test a network on"):
        classification_accuracy_score(real, nothing, build_model=torch.nn.Identity, task=CLASSES)
