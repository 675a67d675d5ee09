"""Users' own networks through the library: trained as they are, given back as they were lent (F10, F12, F13, F18, F20)."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn

import gankd
from gankd.data.sets import ImageSet
from gankd.models import SmallResNet
from gankd.models.inputs import Normalize, card_of, normalization_of, remember
from tests.models.test_state import Flattening, layout


class Dictionary(nn.Module):
    """Answers as networks of Hugging Face do."""

    def __init__(self):
        super().__init__()
        self.network = Flattening(auxiliary=False)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"loss": None, "logits": self.network(x)}


def data(count: int = 24) -> ImageSet:
    """Three classes of images that differ in their brightness."""
    labels = torch.arange(count) % 3
    noise = torch.randint(40, (count, 3, 8, 8), generator=torch.Generator().manual_seed(0))
    return ImageSet((noise + 80 * labels.view(-1, 1, 1, 1)).to(torch.uint8), labels, name="real")


def teacher() -> nn.Module:
    torch.manual_seed(0)
    model = SmallResNet(3, widths=(4, 8))
    remember(model, Normalize.of(data().images))
    return model


def lent(network: nn.Module) -> list:
    """What has to be the same afterwards."""
    flags = [parameter.requires_grad for parameter in network.parameters()]
    return [layout(network), flags, [part.training for part in network.modules()]]


@pytest.mark.parametrize("method", ["kd", "at", "dml"])
@pytest.mark.parametrize("network", [Flattening, Dictionary])
def test_f10_f18_a_network_of_any_form_is_trained_and_keeps_its_form(network, method: str) -> None:
    student, asked = network(), teacher()
    shape, before, weights = layout(student), lent(asked), [each.clone() for each in student.parameters()]
    body = "body" if network is Flattening else "network.body"
    settings = {"student_taps": [body], "teacher_taps": ["stages"]} if method == "at" else {}
    trained = gankd.distill(
        student,
        None if method == "dml" else asked,
        real=data(),
        method={"name": method, **settings},
        steps=3,
        batch_size=6,
    )
    assert trained is student and layout(student) == shape and lent(asked) == before
    assert any(not torch.equal(old, new) for old, new in zip(weights, student.parameters(), strict=True))
    assert isinstance(student.train()(torch.rand(2, 3, 8, 8)), tuple if network is Flattening else dict)
    assert 0 <= gankd.evaluate(student, data())["top1"] <= 100


def test_f20_a_batch_norm_that_its_owner_froze_is_not_moved() -> None:
    student = SmallResNet(3, widths=(4, 8)).train()
    student.stem[1].eval()
    student.stages[1].bn1.requires_grad_(False)
    moved = {"fixed": student.stem[1], "without gradient": student.stages[1].bn1, "free": student.stages[0].bn1}
    before = {name: part.running_mean.clone() for name, part in moved.items()}
    gankd.distill(student, teacher(), real=data(), steps=2, batch_size=6)
    assert {name: not torch.equal(part.running_mean, before[name]) for name, part in moved.items()} == {
        "fixed": False,
        "without gradient": False,
        "free": True,
    }


def test_f12_a_teacher_is_asked_with_its_own_statistics_or_it_is_said() -> None:
    theirs = Normalize(torch.tensor([0.1] * 3), torch.tensor([0.9] * 3))
    known, unknown = teacher(), SmallResNet(3, widths=(4, 8))
    known.input_normalization = card_of(theirs)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message="the teacher is right on")
        gankd.distill(Flattening(), known, real=data(), steps=1, batch_size=6)
    with pytest.warns(UserWarning, match=r"the teacher \(SmallResNet\) does not say how its inputs were normalised"):
        gankd.distill(Flattening(), unknown, real=data(), steps=1, batch_size=6)


def test_f13_a_reloaded_student_is_not_evaluated_by_other_statistics_in_silence() -> None:
    student = gankd.distill(Flattening(), teacher(), real=data(), steps=1, batch_size=6)
    fresh = Flattening()
    fresh.load_state_dict(student.state_dict())
    with pytest.raises(ValueError, match="does not say how its input is normalised"):
        gankd.evaluate(fresh, data())
    assert gankd.evaluate(fresh, data(), normalize=normalization_of(student)) == gankd.evaluate(student, data())


def test_f15_outputs_that_are_not_finite_have_no_accuracy() -> None:
    student = Flattening()
    nn.init.constant_(student.head.bias, float("nan"))
    with pytest.raises(ValueError, match="24 of 24 images with NaN"):
        gankd.evaluate(student, data(), normalize=Normalize.of(data().images))
