"""What users hand over as data: an answer in every usual form, below and above the memory budget alike, or one sentence."""

from __future__ import annotations

import io
import pickle
import random

import numpy
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, SubsetRandomSampler, TensorDataset

from gankd.class_names import sorted_class_names
from gankd.data.inputs import as_image_set, as_unlabelled
from gankd.data.loader import BatchSource
from gankd.data.sets import ImageSet, LazyImages, RandomImages, match_classes, scalar_labels

BUDGETS = pytest.mark.parametrize("budget", [0, 2 << 30])
SIZE = 20


def pictures(num_samples: int = SIZE) -> torch.Tensor:
    return torch.arange(num_samples, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 6, 6).contiguous()


class Samples(Dataset):
    """What `make` makes of an index."""

    def __init__(self, make, size: int = SIZE, **attributes):
        self.make, self.size, self.reads = make, size, []
        vars(self).update(attributes)

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        self.reads.append(index)
        return self.make(index)


def values(dataset: ImageSet) -> list[int]:
    return dataset.images[torch.arange(len(dataset))][:, 0, 0, 0].tolist()


def refused(sentence: str, data, budget: int = 2 << 30) -> None:
    with pytest.raises(ValueError, match=sentence):
        as_image_set(data, "mine", budget)


# --- G: forms that have a natural answer ------------------------------------------------------------------------------

IMAGE = pictures()
FORMS = {
    "tuples": Samples(lambda i: (IMAGE[i], i % 2)),
    "more than two": Samples(lambda i: (IMAGE[i], i % 2, "file.png")),
    "PIL images": Samples(lambda i: (Image.fromarray(IMAGE[i].permute(1, 2, 0).numpy()), i % 2)),
    "floats": Samples(lambda i: (IMAGE[i].float() / 255, i % 2)),
    "uint16": Samples(lambda i: (IMAGE[i].permute(1, 2, 0).numpy().astype(numpy.uint16) * 257, i % 2)),
    "dictionaries": Samples(lambda i: {"image": IMAGE[i], "label": i % 2}),
    "other keys": Samples(lambda i: {"pixel_values": IMAGE[i].float() / 255, "labels": torch.tensor(i % 2)}),
    "img": Samples(lambda i: {"img": IMAGE[i], "label": i % 2, "id": "x"}),
    "labels of shape [1]": Samples(lambda i: (IMAGE[i], torch.tensor([i % 2]))),
    "numpy numbers": Samples(lambda i: (IMAGE[i], numpy.int32(i % 2))),
    "booleans": Samples(lambda i: (IMAGE[i], bool(i % 2))),
    "words": Samples(lambda i: (IMAGE[i], [" cat", "dog "][i % 2])),
    "numbers as words": Samples(lambda i: (IMAGE[i], ["9", "10"][i % 2])),
    "arrays": (IMAGE.numpy(), numpy.arange(SIZE) % 2),
    "tensors": (IMAGE, torch.arange(SIZE) % 2),
    "a list of arrays": [IMAGE.permute(0, 2, 3, 1), (torch.arange(SIZE) % 2)[:, None]],
    "a list of samples": [(IMAGE[i], i % 2) for i in range(SIZE)],
    "TensorDataset": TensorDataset(IMAGE, torch.arange(SIZE) % 2),
    "Subset": Subset(TensorDataset(IMAGE.flip(0), (torch.arange(SIZE) + 1) % 2), list(reversed(range(SIZE)))),
    "DataLoader": DataLoader(TensorDataset(IMAGE, torch.arange(SIZE) % 2), batch_size=7, shuffle=True),
}


@BUDGETS
@pytest.mark.parametrize("form", FORMS)
def test_G_every_usual_form_is_taken(form, budget) -> None:
    dataset = as_image_set(FORMS[form], "mine", budget)
    assert values(dataset) == list(range(SIZE)) and dataset.labels.dtype == torch.int64
    assert dataset.labels.tolist() == [i % 2 for i in range(SIZE)]
    assert isinstance(dataset.images, torch.Tensor) == (budget > 0)
    names = {"words": ("cat", "dog"), "numbers as words": ("9", "10")}.get(form)
    assert dataset.class_names == names
    if "list" not in form and form not in ("arrays", "tensors"):
        assert values(as_unlabelled(FORMS[form], "mine", budget)) == list(range(SIZE))


def test_G_hugging_face_data_sets_are_taken() -> None:
    datasets, arrow = pytest.importorskip("datasets"), pytest.importorskip("pyarrow")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["ant", "bee"])})
    encoded = []
    for image in IMAGE:
        buffer = io.BytesIO()
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(buffer, "PNG")
        encoded.append({"bytes": buffer.getvalue(), "path": None})
    kind = arrow.struct([("bytes", arrow.binary()), ("path", arrow.string())])
    table = arrow.table({"image": arrow.array(encoded, kind), "label": [i % 2 for i in range(SIZE)]})
    info = datasets.DatasetInfo(features=features)
    part = datasets.Dataset(datasets.table.InMemoryTable(table), info=info, fingerprint="mine")
    for budget in (0, 1 << 30):
        dataset = as_image_set(part, "mine", budget)
        assert values(dataset) == list(range(SIZE)) and dataset.class_names == ("ant", "bee")
    refused("dictionary with the keys train, test: give one of its values", {"train": part, "test": part})
    refused("has the keys image, species; expected", [{"image": part[0]["image"], "species": 1}])


class Stream(IterableDataset):
    def __init__(self, end: int | None):
        self.end = end

    def __iter__(self):
        index = 0
        while self.end is None or index < self.end:
            yield IMAGE[index % SIZE], index % 2
            index += 1


def test_G_iterables_are_read_once_where_they_end() -> None:
    for data in (Stream(SIZE), DataLoader(Stream(SIZE), batch_size=4)):
        dataset = as_image_set(data)
        assert values(dataset) == list(range(SIZE)) and dataset.labels.tolist() == [i % 2 for i in range(SIZE)]
    refused(
        "has no index and is larger than the memory budget of 0 MiB, or endless: give a map-style", Stream(None), 9999
    )


@pytest.mark.parametrize(
    ("classes", "names"),
    [(2, ("0", "1")), (["a ", "b"], ("a", "b")), ({"b": 1, "a": 0}, ("a", "b")), (None, None)],
)
def test_G_classes_in_any_form(classes, names) -> None:
    assert as_image_set(Samples(lambda i: (IMAGE[i], i % 2), classes=classes)).class_names == names


def test_words_are_numbered_as_the_classes_are() -> None:
    dataset = as_image_set(Samples(lambda i: (IMAGE[i], ["cat", "dog"][i % 2]), classes=["dog", "emu", "cat"]))
    assert dataset.labels.tolist()[:2] == [2, 0] and dataset.class_names == ("dog", "emu", "cat")


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ([], "the data set is empty"),
        (3, "mine is a int; expected a data set"),
        (IMAGE, r"array of images without labels: give the pair \(images, labels\)"),
        ((IMAGE, [1, 2]), "20 images but"),
        (Samples(lambda i: IMAGE[i]), r"mine\[0\] is Tensor without a label"),
        (Samples(lambda i: {"picture": IMAGE[i]}), r"mine\[0\] has the keys picture; expected an image as image, img"),
        (Samples(lambda i: (IMAGE[i], None)), r"mine\[0\] has no label \(None\)"),
        (Samples(lambda i: (IMAGE[i], torch.eye(3)[i % 3])), r"mine\[0\] .* label.argmax\(\), in place of the one-hot"),
        (Samples(lambda i: (IMAGE[i], torch.tensor([0.3, 0.7]))), r"label of shape \(2,\)"),
        (Samples(lambda i: (IMAGE[i], "cat" if i else 1)), "has the word 'cat' as its label, others have numbers"),
        (Samples(lambda i: (IMAGE[i], float("nan") if i == 4 else 0.5 * i)), "no finite number of 32 bits: nan at 4"),
        (Samples(lambda i: (IMAGE[i][:, : 6 - i % 2], 0)), r"mine\[\d+\] has shape \(3, 5, 6\)"),
        (Samples(lambda i: (IMAGE[i][:2], 0)), "expected 1 or 3 channels"),
        (
            DataLoader(TensorDataset(IMAGE, torch.zeros(SIZE)), sampler=SubsetRandomSampler([1, 2])),
            "SubsetRandomSampler, which may leave samples out",
        ),
    ],
)  # fmt: skip
def test_G_what_has_no_answer_is_one_sentence(data, sentence) -> None:
    refused(sentence, data)


@BUDGETS
def test_F16_pixels_that_are_no_numbers_are_refused_with_their_sample(budget) -> None:
    def make(index):
        image = IMAGE[index].float() / 255
        image[0, 0, 0] = {7: float("nan"), 9: 1.5}.get(index, 0)
        return image, index % 2

    with pytest.raises(ValueError, match=r"mine\[7\]: an image has pixels that are NaN or infinite"):
        as_image_set(Samples(make), "mine", budget).in_memory()


# --- F11: one path for all data sets ----------------------------------------------------------------------------------


@BUDGETS
def test_F11_labels_are_those_that_come_with_the_images(budget) -> None:
    wrong = Samples(lambda i: (IMAGE[i], i % 3), targets=[0] * SIZE)
    assert as_image_set(wrong, "mine", budget).labels.tolist() == [i % 3 for i in range(SIZE)]
    right = Samples(lambda i: (IMAGE[i % SIZE], i % 3), 1000, targets=[i % 3 for i in range(1000)])
    assert as_image_set(right, "mine", budget).labels.tolist() == right.targets
    assert budget or len(right.reads) < 200, "targets that hold spare a pass over all images"


@BUDGETS
def test_F11_a_user_s_data_set_is_read_in_order_by_one_thread(budget) -> None:
    dataset = Samples(lambda i: (IMAGE[i], 0))
    found = as_image_set(dataset, "mine", budget)
    dataset.reads.clear()
    found.images[torch.tensor([5, 3, 9, 1])]
    assert dataset.reads == ([5, 3, 9, 1] if budget == 0 else [])


class Flips(Dataset):
    """Random transforms as torchvision, NumPy and Python draw them."""

    def __init__(self, draw: str):
        self.draw, self.private = draw, numpy.random.default_rng(0)
        self.targets = [i % 2 for i in range(SIZE)]

    def __len__(self):
        return SIZE

    def __getitem__(self, index):
        number = {
            "torch": lambda: torch.rand(()).item(),
            "numpy": lambda: numpy.random.rand(),
            "python": random.random,
            "private": self.private.random,
        }[self.draw]()
        image = IMAGE[index].clone()
        image[:, 0, 1] = int(256 * number)
        return image, index % 2


def epochs(dataset: ImageSet, budget: int, *, workers: int = 0, first: int = 0, seed: int = 0) -> torch.Tensor:
    """What three passes of four steps show of the pixel that is random, by sample: [3, SIZE]."""
    source = BatchSource(dataset, batch_size=5, memory_budget=budget, workers=workers, seed=seed)
    shown = torch.zeros(3, SIZE, dtype=torch.uint8)
    for step, batch in enumerate(source.stream(first, 12), start=first):
        shown[step // 4, batch.indices] = batch.images[:, 0, 0, 1]
    return shown


@BUDGETS
@pytest.mark.parametrize("draw", ["torch", "numpy", "python"])
def test_F11_random_transforms_are_drawn_afresh_in_every_epoch(draw, budget) -> None:
    states = random.getstate(), numpy.random.get_state()[1].tobytes(), torch.get_rng_state()
    dataset = as_image_set(Flips(draw), "mine", budget)
    assert dataset.is_random and isinstance(dataset.subset(torch.arange(9)).images, RandomImages)
    shown = epochs(dataset, 2 << 30)
    assert all(len(sample.unique()) == 3 for sample in shown.T[:5])
    assert torch.equal(shown, epochs(dataset, 0, workers=2)), "a function of (seed, step), whoever reads"
    assert torch.equal(shown[1:], epochs(dataset, 0, first=4)[1:]), "so that a run resumes exactly"
    assert not torch.equal(shown, epochs(dataset, 0, seed=1))
    everything = torch.arange(SIZE)
    assert torch.equal(dataset.images[everything], dataset.images[everything]), "measuring sees one draw"
    assert dataset.fingerprint() == as_image_set(Flips(draw), "mine", 0).fingerprint()
    now = random.getstate(), numpy.random.get_state()[1].tobytes(), torch.get_rng_state()
    assert now[:2] == states[:2] and torch.equal(now[2], states[2]), "the caller's random state is as it was"


@BUDGETS
def test_F11_draws_that_cannot_be_repeated_are_refused(budget) -> None:
    refused("another image each time it is read, by a random generator of its own", Flips("private"), budget)


def test_F11_views_that_repeat_refuse_transforms_that_do_not() -> None:
    from gankd.data.augment import Augment, AugmentationConfig
    from gankd.data.views import Views

    source = BatchSource(as_image_set(Flips("torch")), batch_size=4)
    with pytest.raises(ValueError, match="views repeat, and this data set's own random transforms do not"):
        Views(Augment(AugmentationConfig()), 2, source, seed=0)


class Plain(Dataset):
    def __len__(self):
        return SIZE

    def __getitem__(self, index):
        return IMAGE[index], index % 2


def test_F11_what_is_read_reaches_spawned_workers(monkeypatch) -> None:
    lazy = as_image_set(Plain(), "mine", 0)
    copy = pickle.loads(pickle.dumps(lazy))
    assert values(copy) == values(lazy)
    monkeypatch.setattr("multiprocessing.get_start_method", lambda: "spawn")
    assert BatchSource(lazy, batch_size=4, memory_budget=0, workers=2).workers == 2
    closure = as_image_set(Samples(lambda i: (IMAGE[i], 0)), "mine", 0)
    with pytest.warns(UserWarning, match="read by the training process, not by workers"):
        assert BatchSource(closure, batch_size=4, memory_budget=0, workers=2).workers == 0


# --- F28: one identity ------------------------------------------------------------------------------------------------


def test_F28_the_memory_budget_does_not_change_what_a_set_is() -> None:
    small, large = (as_image_set(Plain(), "mine", budget) for budget in (0, 1 << 30))
    assert small.fingerprint() == large.fingerprint()
    changed = Samples(lambda i: (IMAGE[i] + (i == 13), i % 2))
    assert as_image_set(changed, "mine", 0).fingerprint() != small.fingerprint()
    assert small.subset(torch.arange(5)).fingerprint() == large.subset(torch.arange(5)).fingerprint()
    named = as_image_set(Samples(lambda i: (IMAGE[i], i % 2), classes=["a", "b"]))
    assert named.fingerprint() != large.fingerprint(), "classes of other names are other labels"


# --- F7: names --------------------------------------------------------------------------------------------------------


def named(labels: list[int], *names: str) -> ImageSet:
    return ImageSet(pictures(len(labels)), torch.tensor(labels), class_names=names or None, name="mine")


def test_F7_classes_are_matched_by_name() -> None:
    ours = named([0, 1, 1], "ant", "cat ")
    matched = match_classes(ours, ["ant", "bee", "cat"], "the teacher")
    assert matched.labels.tolist() == [0, 2, 2] and matched.class_names == ("ant", "bee", "cat")
    assert match_classes(named([0, 1]), ["a", "b"], "the teacher").labels.tolist() == [0, 1]
    assert match_classes(ours, None, "the teacher") is ours
    assert match_classes(named([0, 0], "ant", "cat"), ["ant", "bee"], "the teacher").labels.tolist() == [0, 0]
    with pytest.raises(ValueError, match="mine: class 'cat' is not one of the teacher; did you mean 'cats'"):
        match_classes(ours, ["ant", "cats"], "the teacher")
    with pytest.raises(ValueError, match="mine: class 'ant' is named twice by the teacher"):
        match_classes(ours, ["ant", "ant", "cat"], "the teacher")


def test_F7_numbers_as_names_are_in_their_order() -> None:
    assert sorted_class_names(["10", "9", "-1", "2.5", "9 "]) == ["-1", "2.5", "9", "10"]
    assert sorted_class_names(["b", "10", "9"]) == ["10", "9", "b"]
    assert sorted_class_names(["inf", "2"]) == ["2", "inf"]


# --- F31: scalars -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [1e9, -2e8, 2.0**27])
def test_F31_labels_that_float32_cannot_tell_apart_are_refused(offset) -> None:
    with pytest.raises(ValueError, match="mine has labels in .* cannot tell apart: subtract a constant"):
        as_image_set(Samples(lambda i: (IMAGE[i], offset + i)), "mine")


def test_F31_labels_of_64_bits_become_those_of_32_or_are_refused() -> None:
    images = pictures(4)
    found = as_image_set(ImageSet(images, torch.arange(4, dtype=torch.float64), name="mine"))
    assert found.labels.dtype == torch.float32
    with pytest.raises(ValueError, match="cannot tell apart"):
        as_image_set(ImageSet(images, 1e9 + torch.arange(4, dtype=torch.float64), name="mine"))


@pytest.mark.parametrize("values", [[20000.0, 20001, 19999], [1e-9, 2e-9], [0.1 + 0.2, 0.3, 5], [1.6e9, 1.7e9], [4, 4]])
def test_F31_others_are_kept(values) -> None:
    values = torch.tensor(values, dtype=torch.float64)
    torch.testing.assert_close(scalar_labels(values, "mine").double(), values, rtol=1e-6, atol=0)


def test_lazy_images_of_nothing_are_nothing() -> None:
    assert LazyImages(None, (5, 1, 2, 2))[torch.arange(0)].shape == (0, 1, 2, 2)
