"""What a user may give to train on (G): arrays, dictionaries, columns of labels, and what is refused in a sentence."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import generators
from generators.inputs import read_inputs

PIXELS = torch.randint(256, (12, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
LABELS = torch.arange(12) % 3


def samples(form: str) -> list:
    """A list is a map-style data set."""
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in PIXELS]
    pairs = zip(pictures, PIXELS, LABELS, strict=True)
    return {
        "tuples": lambda: [(picture, int(label)) for picture, _, label in pairs],
        "more than two": lambda: [(pixels, label, "path.png") for _, pixels, label in pairs],
        "hugging face": lambda: [{"image": picture, "label": int(label)} for picture, _, label in pairs],
        "img": lambda: [{"img": pixels.numpy(), "labels": label[None]} for _, pixels, label in pairs],
        "pixel_values": lambda: [{"pixel_values": pixels.float() / 255, "target": label} for _, pixels, label in pairs],
    }[form]()


@pytest.mark.parametrize("form", ["tuples", "more than two", "hugging face", "img", "pixel_values"])
def test_samples_come_in_many_forms(form: str) -> None:
    images, labels = read_inputs(samples(form))
    assert torch.equal(torch.as_tensor(images), PIXELS) and torch.equal(labels, LABELS)


@pytest.mark.parametrize("labels", [LABELS.numpy(), LABELS.tolist(), LABELS[:, None], LABELS.int(), LABELS.byte()])
def test_arrays_and_columns_of_labels_are_read(labels) -> None:
    images, read = read_inputs(PIXELS.numpy(), labels)
    assert torch.equal(torch.as_tensor(images), PIXELS) and torch.equal(read, LABELS) and read.dtype == torch.int64


def test_what_is_read_is_trained_alike() -> None:
    settings = {"num_classes": 3, "widths": (8, 8), "discriminator_widths": (8,), "batch_size": 8, "steps": 1}
    expected = generators.train(PIXELS, LABELS, **settings).state_dict()
    for given in ((samples("hugging face"),), (PIXELS.numpy(), LABELS.tolist()), (TensorDataset(PIXELS, LABELS),)):
        trained = generators.train(*given, **settings).state_dict()
        assert all(torch.equal(expected[key], trained[key]) for key in expected)


class Stream(IterableDataset):
    def __iter__(self):
        return iter(samples("tuples"))


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ((DataLoader(TensorDataset(PIXELS, LABELS)),), "a DataLoader cannot be indexed; .* its .dataset"),
        ((Stream(),), "a Stream cannot be indexed"),
        (([{"picture": PIXELS[0], "label": 3}],), "sample 0 is a dictionary of picture, label; expected"),
        (([PIXELS[0]],), "sample 0 is a Tensor; expected"),
        (([],), "the data set is empty"),
        (([(PIXELS[0], 0), (PIXELS[0, :, :4], 1)],), r"image 1 has shape \(3, 4, 8\), image 0 has \(3, 8, 8\): resize"),
        (([(PIXELS[0], "cat"), (PIXELS[1], "dog")],), "labels are no numbers"),
        ((PIXELS, torch.zeros(12, 2)), r"labels have shape \(12, 2\); expected one number an image"),
        ((PIXELS, LABELS[:5]), "there are 12 images but 5 labels"),
        ((np.zeros((12, 3, 8, 8)), LABELS), r"images are torch.float64 \(12, 3, 8, 8\); expected uint8"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(given: tuple, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as caught:
        read_inputs(*given)
    assert "\n" not in str(caught.value)


def test_images_that_are_read_when_they_are_asked_for_stay_unread() -> None:
    class Lazy:
        shape, asked = PIXELS.shape, 0

        def __getitem__(self, indices: Tensor) -> Tensor:
            self.asked += len(indices)
            return PIXELS[indices]

    lazy = Lazy()
    assert read_inputs(lazy, LABELS)[0] is lazy and lazy.asked == 1
