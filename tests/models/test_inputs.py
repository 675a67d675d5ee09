"""By what a network's inputs are normalised: read where somebody says it, never assumed in silence (F12, F13)."""

from __future__ import annotations

import json
import types
import warnings
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn
from torchvision import transforms

from gankd.models import SmallResNet, build_model, load_checkpoint
from gankd.models.checkpoints import read_card
from gankd.models.config import ModelConfig
from gankd.models.inputs import Normalize, card_of, normalization_for, normalization_of, remember
from gankd.models.store import save_model
from gankd.models.teacher import Teacher
from gankd.tasks import Classification, Regression

MEAN, STD = [0.5, 0.25, 0.125], [0.25, 0.5, 0.75]
OURS = Normalize(torch.tensor(MEAN), torch.tensor(STD))
PROCESSOR = {"image_mean": MEAN, "image_std": STD, "size": {"height": 32, "width": 48}, "rescale_factor": 1 / 255}


class Plain(nn.Module):
    """A user's own class, of which nothing is known."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(12, 2)

    def forward(self, x):
        return self.fc(x.flatten(1))


def saying(**attributes) -> nn.Module:
    model = Plain()
    for name, value in attributes.items():
        setattr(model, name, value)
    return model


@pytest.mark.parametrize(
    ("model", "source", "size"),
    [
        (saying(input_normalization=(MEAN, STD)), "input_normalization", None),
        (saying(pretrained_cfg={"mean": MEAN, "std": STD, "input_size": (3, 32, 48)}), "timm", (32, 48)),
        (saying(default_cfg=types.SimpleNamespace(mean=MEAN, std=STD, input_size=(3, 8, 8))), "timm", (8, 8)),
        (types.SimpleNamespace(**PROCESSOR), "image processor", (32, 48)),
        (types.SimpleNamespace(image_processor=types.SimpleNamespace(**PROCESSOR)), "image processor", (32, 48)),
        (transforms.Compose([transforms.ToTensor(), transforms.Normalize(MEAN, STD)]), "transforms", None),
        (transforms.Normalize(MEAN, STD), "transforms", None),
        (OURS, "given", None),
    ],
    ids=["gankd", "timm", "timm object", "processor", "both processors", "compose", "transform", "itself"],
)
def test_f12_whoever_says_it_is_heard(model, source: str, size: tuple | None) -> None:
    known = normalization_of(model)
    assert card_of(known) == (MEAN, STD) and known.image_size == size and source in known.source


def test_f12_weights_of_torchvision_say_it() -> None:
    known = normalization_of(torchvision.models.VGG16_Weights.IMAGENET1K_FEATURES)
    assert known.mean.flatten().tolist() == pytest.approx([0.48235, 0.45882, 0.40784])
    assert known.std.flatten().tolist() == pytest.approx([1 / 255] * 3) and known.image_size == (224, 224)


@pytest.mark.parametrize(
    ("changes", "mean", "std"),
    [
        ({}, MEAN, STD),
        ({"do_normalize": False}, [0.0] * 3, [1.0] * 3),
        ({"rescale_factor": 2 / 255}, [value / 2 for value in MEAN], [value / 2 for value in STD]),
        ({"do_rescale": False}, [value / 255 for value in MEAN], [value / 255 for value in STD]),
    ],
)
def test_f12_a_processor_of_hugging_face_says_it_for_images_up_to_1(changes: dict, mean: list, std: list) -> None:
    settings = PROCESSOR | changes
    known = normalization_of(types.SimpleNamespace(**settings))
    pixels = torch.tensor([0.0, 100.0, 255.0]).view(1, 3, 1, 1)
    scaled = pixels * (settings["rescale_factor"] if settings.get("do_rescale", True) else 1)
    theirs = scaled if settings.get("do_normalize") is False else OURS(scaled)
    torch.testing.assert_close(known(pixels / 255), theirs)
    assert card_of(known)[0] == pytest.approx(mean) and card_of(known)[1] == pytest.approx(std)


def test_f12_the_folder_of_a_network_of_hugging_face_is_read(tmp_path: Path) -> None:
    model = saying(config=types.SimpleNamespace(_name_or_path=str(tmp_path)))
    assert normalization_of(model) is None
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    known = normalization_of(model)
    assert card_of(known) == (MEAN, STD) and str(tmp_path) in known.source


def test_f12_networks_of_timm_say_it() -> None:
    timm = pytest.importorskip("timm")
    known = normalization_of(timm.create_model("resnet18", num_classes=2))
    assert known.mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406]) and known.image_size == (224, 224)


def test_f12_statistics_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="must be one a channel"):
        normalization_of(saying(input_normalization=([0.5], [0.0])))
    with pytest.raises(ValueError, match="timm's pretrained_cfg"):
        normalization_of(saying(pretrained_cfg={"mean": MEAN, "std": STD[:2]}))


def test_f12_a_network_that_says_nothing_is_asked_for_it() -> None:
    assert normalization_of(Plain()) is None
    assert normalization_of(build_model("torchvision:resnet18", 2)) is None
    with pytest.raises(
        ValueError, match=r"Plain does not say how its inputs are normalised: give Teacher\(network, Norm"
    ):
        Teacher(Plain())
    with pytest.warns(
        UserWarning,
        match=r"the teacher \(Plain\) does not say how .* taken are the statistics given: mean 0\.500, 0\.250",
    ):
        assert normalization_for(Plain(), OURS, "the teacher") is OURS
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert card_of(normalization_for(saying(input_normalization=(MEAN, STD)), Normalize(OURS.std, OURS.mean))) == (
            MEAN,
            STD,
        )


TASKS = [
    Classification(class_names=("a", "b", "c")),
    Regression(label_min=0, label_max=4, mean=3.5, std=0.25, unit="years", head="bins"),
]


def trained(task) -> SmallResNet:
    model = SmallResNet(3, widths=(4, 8))
    remember(model, OURS, task)
    return model


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.kind)
@pytest.mark.parametrize("how", ["load_state_dict", "load_checkpoint", "user's class", "data-parallel", "again"])
def test_f13_statistics_and_units_travel_with_the_weights(tmp_path: Path, task, how: str) -> None:
    model, fresh = trained(task), build_model("small_resnet", 3, widths=[4, 8])
    saved = nn.DataParallel(model) if how == "data-parallel" else model
    assert list(model.state_dict()) == list(SmallResNet(3, widths=(4, 8)).state_dict())  # no key of ours
    torch.save(saved.state_dict(), tmp_path / "weights.pt")
    if how == "load_state_dict":
        fresh.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    elif how == "user's class":
        fresh = load_checkpoint(SmallResNet(3, widths=(4, 8)), tmp_path / "weights.pt")
    else:
        load_checkpoint(fresh, tmp_path / "weights.pt")
    if how == "again":  # the copy's copy
        torch.save(fresh.state_dict(), tmp_path / "again.pt")
        fresh = load_checkpoint(build_model("small_resnet", 3, widths=[4, 8]), tmp_path / "again.pt")
    assert fresh.input_normalization == model.input_normalization and fresh.output_task == task
    assert card_of(normalization_of(fresh)) == (MEAN, STD)


def test_f13_a_network_that_lost_them_says_so(tmp_path: Path) -> None:
    fresh = SmallResNet(3, widths=(4, 8))  # as a user's own class: nobody reads the metadata
    fresh.load_state_dict(trained(TASKS[0]).state_dict())
    with pytest.warns(UserWarning, match="does not say how its inputs were normalised"):
        normalization_for(fresh, OURS)


def test_f1_f12_a_network_of_a_run_says_what_it_is_wherever_its_weights_are_used(tmp_path: Path) -> None:
    """Weights beside a run's model.json, used in another experiment, do not answer in that one's units."""
    model = trained(TASKS[1])
    (tmp_path / "teacher").mkdir()
    config = ModelConfig(options={"widths": [4, 8]})
    save_model(tmp_path / "teacher", model, config, OURS, num_outputs=3, image_shape=(3, 8, 8), task=TASKS[1])
    fresh = load_checkpoint(SmallResNet(3, widths=(4, 8)), tmp_path / "teacher" / "model.safetensors")
    assert fresh.output_task == TASKS[1] and card_of(normalization_of(fresh)) == (MEAN, STD)
    assert read_card(tmp_path / "teacher" / "model.safetensors")["output_task"]["mean"] == TASKS[1].mean
