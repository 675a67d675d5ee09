"""Training without labels, as a user does it: images of any kind, a generator's samples, what the backbone then knows."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

import gankd
from gankd.data.augment import AugmentationConfig
from gankd.data.inputs import as_unlabelled
from gankd.data.live import LiveSamples
from gankd.data.sets import ImageSet
from gankd.models import SmallResNet
from gankd.synthesis import feature_store as writing
from gankd.training import TrainingConfig
from generators import load_generator
from tests.generators import test_diffusion, test_interface, test_stylegan2

SQUEEZE = {"name": "squeeze_and_span", "embedding_width": 16, "squeeze_width": 16}
VICREG = {"name": "vicreg", "embedding_width": 16, "projector_width": 16}
TRAINING = TrainingConfig(
    steps=4, batch_size=8, log_every=1, learning_rate=1e-3, augmentation=AugmentationConfig(brightness=0.4)
)


def network(num_outputs: int = 3, channels: int = 1, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return SmallResNet(num_outputs, in_channels=channels, widths=(4, 8))


def images(count: int = 20, channels: int = 1, size: int = 8) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(256, (count, channels, size, size), dtype=torch.uint8, generator=generator)


def sngan(kind: str = "embedding", **settings) -> nn.Module:
    return test_interface.make(kind, **{"resolution": 16, "widths": (8, 6, 4), **settings})


def equal(one: nn.Module, other: nn.Module) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return all(torch.equal(first[name], second[name]) for name in first)


class Images(Dataset):
    """A user's data set: an image alone, or with anything behind it."""

    def __init__(self, images: Tensor, wrapping=lambda image, index: image):
        self.images, self.wrapping = images, wrapping

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int):
        return self.wrapping(self.images[index], index)


# --- images -----------------------------------------------------------------------------------------------------------

SOURCES = {
    "a set with labels": ImageSet(images(), torch.arange(20) % 3),
    "images alone": Images(images()),
    "images in tuples": TensorDataset(images()),
    "images and anything": Images(images(), lambda image, index: (image, f"file-{index}.png", {"index": index})),
    "images in lists": Images(images(), lambda image, index: [image, index]),
    "floats": Images(images(), lambda image, index: image.float() / 255),
}


@pytest.mark.parametrize("name", SOURCES)
def test_images_come_in_any_form_and_no_label_counts(name: str) -> None:
    plain = gankd.pretrain(network(), real=images(), method=VICREG, training=TRAINING)
    assert equal(gankd.pretrain(network(), real=SOURCES[name], method=VICREG, training=TRAINING), plain)
    assert not equal(plain, network()) and not plain.training
    mean, std = plain.input_normalization
    assert mean[0] == pytest.approx(images().float().mean().item() / 255) and len(std) == 1


def test_images_beyond_the_memory_budget_are_read_on_demand() -> None:
    plain = gankd.pretrain(network(), real=images(), method=VICREG, training=TRAINING)
    lazy = gankd.pretrain(
        network(), real=Images(images()), method=VICREG, training=TRAINING, memory_budget=100, workers=0
    )
    assert equal(lazy, plain)
    assert not isinstance(as_unlabelled(Images(images()), memory_budget=100).images, Tensor)


def test_fewer_images_than_a_batch_are_enough() -> None:
    logged: list[dict] = []
    student = gankd.pretrain(network(), real=images(3), method=VICREG, training=TRAINING, log=logged.append)
    assert not equal(student, network()) and [values["step"] for values in logged] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (images()[:0], r"real: images have shape \(0, 1, 8, 8\); expected \[N, C, H, W\], N above 0"),
        (images()[0], r"real: images have shape \(1, 8, 8\); expected \[N, C, H, W\]"),
        (images().int(), "an image has type torch.int32; expected uint8"),
        (images().float(), r"an image has values in .* expected floats in \[0, 1\]"),
        (Images(images()[:0]), "real: the data set is empty"),
    ],
)
def test_what_are_no_images_is_refused(wrong, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        gankd.pretrain(network(), real=wrong, method=VICREG, training=TRAINING)


def test_a_probe_reads_the_labels_of_any_data_set() -> None:
    labels, logged = torch.arange(20) % 3, []
    for real in (TensorDataset(images(), labels), ImageSet(images(), labels)):
        gankd.pretrain(network(), real=real, method=VICREG, training=TRAINING, online_probe=True, log=logged.append)
    losses = [values["probe"] for values in logged]
    assert losses[:4] == losses[4:] and losses[0] > 0.5  # three classes, not one that is always right


# --- a generator's samples --------------------------------------------------------------------------------------------


def diffusion(path: Path) -> nn.Module:
    return load_generator(test_diffusion.save_conditional(path / "pipeline"), num_steps=2)


GENERATORS = {
    "sngan": lambda path: sngan(),
    "sngan, scalars": lambda path: sngan("fourier"),
    "stylegan2": lambda path: test_stylegan2.make(num_classes=3, noise="const"),
    "diffusion": diffusion,
}


@pytest.mark.parametrize("kind", GENERATORS)
def test_samples_and_the_backbone_they_train_are_the_same_live_and_stored(kind: str, tmp_path: Path) -> None:
    generator = GENERATORS[kind](tmp_path)
    live, stored = (
        gankd.feature_set(generator, 12, seed=3),
        gankd.feature_set(generator, 12, seed=3, directory=tmp_path / "s"),
    )
    assert isinstance(live.images, LiveSamples) and isinstance(stored.images, Tensor) and live.is_synthetic
    assert live.feature_widths == stored.feature_widths and stored.generator_features.dtype == torch.float16
    assert torch.equal(live.labels, stored.labels) and len(live) == len(stored) == 12
    assert (live.images[torch.arange(12)].int() - stored.images.int()).abs().max() <= 1  # by rounding
    features = live.images.draw(torch.arange(12))[1]
    torch.testing.assert_close(features, stored.generator_features, rtol=2e-3, atol=2e-3)
    assert features.shape[1] == sum(live.feature_widths) and features.float().std(dim=0).max() > 0

    channels, size = live.image_shape[:2]
    students = []
    for synthetic in (live, stored):
        student = network(channels=channels)
        gankd.pretrain(
            student,
            real=images(channels=channels, size=size),
            synthetic=synthetic,
            synthetic_fraction=0.5,
            method=SQUEEZE,
            training=TRAINING,
        )
        students.append(student)
    assert not equal(students[0], network(channels=channels))
    for one, other in zip(*(student.state_dict().values() for student in students), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_a_generator_alone_trains_a_backbone() -> None:
    student = gankd.pretrain(network(), synthetic=gankd.feature_set(sngan(), 400), method=SQUEEZE, training=TRAINING)
    assert not equal(student, network())


def test_scalar_labels_are_those_that_the_generator_was_asked_for() -> None:
    live = gankd.feature_set(sngan("fourier"), 200)
    low, high = sngan("fourier").config.label_range
    assert (
        live.labels.dtype == torch.float32
        and low <= live.labels.min() < low + 5
        and high - 5 < live.labels.max() <= high
    )
    assert gankd.feature_set(sngan(), 7).labels.tolist() == [0, 1, 2, 0, 1, 2, 0]


def test_a_store_that_was_cut_off_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "CHUNK", 5)
    whole = gankd.feature_set(sngan(), 12, directory=tmp_path / "whole")

    class Interruption(Exception):
        """Stands for a killed process."""

    drawn, draw = [], LiveSamples.draw

    def dying(self, indices: Tensor):
        if drawn and 10 in indices:
            raise Interruption
        drawn.append(indices)
        return draw(self, indices)

    directory = tmp_path / "cut"
    monkeypatch.setattr(LiveSamples, "draw", dying)
    with pytest.raises(Interruption):
        gankd.feature_set(sngan(), 12, directory=directory)
    assert [indices.tolist() for indices in drawn] == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]
    with pytest.raises(ValueError, match="was made with other settings"):
        gankd.feature_set(sngan(), 13, directory=directory)

    drawn.clear()
    monkeypatch.setattr(LiveSamples, "draw", lambda self, indices: (drawn.append(indices), draw(self, indices))[1])
    continued = gankd.feature_set(sngan(), 12, directory=directory)
    assert [indices.tolist() for indices in drawn] == [[10, 11]]
    for name in ("images", "labels", "generator_features"):
        assert torch.equal(getattr(continued, name), getattr(whole, name))
    assert not (directory / "chunks").exists()
    read = gankd.feature_set(sngan(), 12, directory=directory)  # finished: nothing is drawn
    assert len(drawn) == 1 and torch.equal(read.images, whole.images) and read.feature_widths == whole.feature_widths


@pytest.mark.parametrize(
    ("change", "settings"), [("seed", {"seed": 1}), ("number", {"num_samples": 11}), ("generator", {})]
)
def test_a_store_of_something_else_is_not_read(change: str, settings: dict, tmp_path: Path) -> None:
    gankd.feature_set(sngan(), 12, directory=tmp_path)
    other = sngan()
    if change == "generator":
        with torch.no_grad():
            next(other.parameters()).add_(0.1)
    with pytest.raises(ValueError, match="was made with other settings"):
        gankd.feature_set(other, **{"num_samples": 12, **settings}, directory=tmp_path)


def test_a_store_of_other_features_is_not_read(tmp_path: Path) -> None:
    gankd.feature_set(sngan(), 12, directory=tmp_path)
    other = sngan()
    other.feature_names = other.feature_names[:1]
    with pytest.raises(ValueError, match="was made with other settings"):
        gankd.feature_set(other, 12, directory=tmp_path)


# --- what the backbone knows, and where it goes -----------------------------------------------------------------------


def brightness(count: int, classes: bool, seed: int = 0, channels: int = 1) -> ImageSet:
    """Images whose label is how bright their upper half is."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    pictures = torch.randint(30, (count, channels, 8, 8), generator=generator)
    pictures[:, :, :4] += 70 * labels.view(-1, 1, 1, 1)
    return ImageSet(pictures.to(torch.uint8), labels if classes else 10.0 * labels)


@pytest.mark.parametrize("classes", [True, False])
def test_a_backbone_is_probed_on_other_data_than_it_was_trained_on(classes: bool) -> None:
    student = gankd.pretrain(network(), real=images(), method=VICREG, training=TRAINING)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    train, test = brightness(60, classes), brightness(30, classes, seed=1)
    results = gankd.probe(student, train, TensorDataset(test.images, test.labels))
    assert set(results) == ({"linear", "knn_200", "knn_1"} if classes else {"ridge", "knn_20"})
    best = results["linear"].value if classes else results["ridge"].value
    assert best > 90 if classes else best < 3
    assert all(str(result).startswith("top1 " if classes else "mae ") for result in results.values())
    assert all(torch.equal(before[name], value) for name, value in student.state_dict().items())
    assert not student.training


def test_a_probe_normalises_as_the_backbone_was_trained() -> None:
    student = gankd.pretrain(network(), real=images(), method=VICREG, training=TRAINING)
    seen: list[Tensor] = []
    hook = student.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    train = brightness(20, True)
    gankd.probe(student, train, train)
    hook.remove()
    mean, std = student.input_normalization
    torch.testing.assert_close(seen[0], (train.images.float() / 255 - mean[0]) / std[0])


@pytest.mark.parametrize("classes", [True, False])
def test_a_pretrained_backbone_is_the_start_of_a_student(classes: bool) -> None:
    data = brightness(30, classes)
    outputs = 3 if classes else 1
    student = gankd.pretrain(network(outputs), real=data, method=VICREG, training=TRAINING)
    start = {name: value.clone() for name, value in student.state_dict().items()}
    frozen = gankd.distill(student, real=data, method="supervised", steps=1, batch_size=8, learning_rate=1e-9)
    for name, parameter in frozen.named_parameters():
        torch.testing.assert_close(parameter, start[name], rtol=0, atol=1e-6)  # it goes on from there
    teacher = network(outputs, seed=1)
    student = gankd.distill(frozen, teacher, real=data, method="kd", steps=40, batch_size=15, learning_rate=0.01)
    assert not torch.equal(student.head.weight, start["head.weight"])
    assert set(gankd.evaluate(student, data)) >= ({"top1"} if classes else {"mae"})
    assert student.output_task.kind == ("classification" if classes else "regression")
