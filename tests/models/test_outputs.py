"""One tensor of whatever a network answers with (F18, F15, G)."""

from __future__ import annotations

import collections
import types

import pytest
import torch
from torch import Tensor, nn

from gankd.models.inputs import Normalize
from gankd.models.outputs import check_numbers, outputs_of, plain_outputs
from gankd.models.taps import Taps
from gankd.models.teacher import Teacher

OUTPUTS, OTHER = torch.arange(6.0).view(2, 3), torch.zeros(2, 3)
InceptionLike = collections.namedtuple("InceptionLike", ["aux_logits", "logits"])  # the order does not matter


@pytest.mark.parametrize(
    "result",
    [
        OUTPUTS,
        (OUTPUTS, OTHER),
        [OUTPUTS, OTHER],
        (None, OUTPUTS),
        {"logits": OUTPUTS, "loss": OTHER},
        {"aux": OTHER, "out": OUTPUTS},
        types.SimpleNamespace(loss=None, logits=OUTPUTS),
        InceptionLike(OTHER, OUTPUTS),
    ],
    ids=lambda result: type(result).__name__,
)
def test_f18_outputs_are_found_in_every_form(result) -> None:
    assert outputs_of(result) is OUTPUTS


@pytest.mark.parametrize(
    ("result", "sentence"),
    [
        ({"boxes": OTHER}, "a dict of boxes, in which no outputs"),
        (None, "a NoneType"),
        ((), "a tuple"),
        ("logits", "a str"),
    ],
)
def test_f18_an_answer_without_outputs_is_refused(result, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        outputs_of(result)


class Answering(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": self.fc(x.flatten(1)), "features": x}


def test_f18_inside_a_network_and_its_copies_answer_with_a_tensor_and_afterwards_as_before() -> None:
    import copy

    model, images = Answering(), torch.rand(2, 1, 2, 2)
    expected = model(images)["logits"]
    with pytest.raises(KeyError), plain_outputs(model):
        assert torch.equal(model(images), expected) and torch.equal(copy.deepcopy(model)(images), expected)
        raise KeyError
    assert isinstance(model(images), dict)


def test_f18_teachers_and_taps_read_outputs_in_every_form() -> None:
    model, images = Answering(), torch.rand(2, 1, 2, 2)
    expected = model(images)["logits"].detach()
    outputs, (pooled,) = Taps(model, ["fc:input"])(images)
    assert torch.equal(outputs, expected) and pooled.shape == (2, 4)
    teacher = Teacher(model, Normalize(torch.zeros(1), torch.ones(1)))
    assert torch.equal(teacher(images), expected)
    assert torch.equal(teacher.outputs_and_features(images)[0], expected)


def test_f15_outputs_that_are_not_finite_are_an_error_with_a_name() -> None:
    """G: logits of -inf are among them where they are measured; for a teacher's see test_handed_over."""
    check_numbers(OUTPUTS, "the teacher")
    outputs = OUTPUTS.clone()
    outputs[1, 2] = float("nan")
    with pytest.raises(ValueError, match=r"the teacher: the outputs of 1 of 2 images hold NaN \(check its weights"):
        check_numbers(outputs, "the teacher")
    outputs = OUTPUTS.clone()
    outputs[:, 1] = float("-inf")
    with pytest.raises(ValueError, match="hold infinite values .always in outputs 1; masked classes need a finite"):
        check_numbers(outputs, "the teacher")
    with pytest.raises(ValueError, match="1 of 2 images hold infinite"):
        check_numbers(torch.tensor([0.0, float("inf")]), "the student")
