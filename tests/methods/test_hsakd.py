"""Branches on classes and rotations: how they are built, trained, stored and copied by a student."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import nn

import gankd
from gankd.data.loader import BatchSource
from gankd.losses import hsakd_student_loss, hsakd_teacher_loss, rotation_batch
from gankd.methods import METHODS, Setup, check_method, method_config
from gankd.methods.teacher.rotation_branches import Branches, stage_paths
from gankd.models import Taps, build_model
from gankd.training import RunContext, TrainingConfig, fit
from tests.methods.common import fixed_batch, image_sets, make, network, source_of

NETWORKS = {
    "small_resnet": 3,
    "resnet8": 3,
    "wrn_16_1": 3,
    "vgg8": 4,
    "MobileNetV2": 4,
    "ShuffleV1": 3,
    "ShuffleV2": 3,
}


def train(distiller, steps: int = 4, look=lambda values: None) -> list[dict]:
    logged: list[dict] = []

    def log(values: dict) -> None:
        logged.append(values)
        look(values)

    config = TrainingConfig(steps=steps, batch_size=6, log_every=1, checkpoint_every=1)
    source = BatchSource(*image_sets(fixed_batch("classification")), batch_size=6)
    fit(distiller, source, config, RunContext(accelerator=Accelerator(), seed=0, log=log))
    return logged


# --- branches ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "num_stages"), NETWORKS.items())
def test_every_stage_of_every_network_gets_a_branch_that_trains_alone(name: str, num_stages: int) -> None:
    model = build_model(name, num_classes=3, in_channels=1)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    branches = Branches(model, (1, 16, 16), num_classes=3, num_stages=9)
    assert len(branches.paths) == len(branches) == num_stages
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert not {id(p) for p in model.parameters()} & {id(p) for p in branches.parameters()}
    images = torch.rand(2, 1, 16, 16)
    with torch.no_grad():
        _, features = Taps(model, branches.paths)(images)
    logits = branches(features, images)
    assert [stage.shape for stage in logits] == [(2, 12)] * num_stages
    sum(stage.sum() for stage in logits).backward()
    assert all(parameter.grad is not None for parameter in branches.parameters())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_branch_is_as_deep_as_the_network_and_the_last_one_a_stage_deeper() -> None:
    branches = Branches(build_model("resnet20", num_classes=3), (3, 16, 16), num_classes=3, num_stages=3)
    blocks = [sum(type(module).__name__ == "BasicBlock" for module in branch.modules()) for branch in branches.values()]
    assert blocks == [6, 3, 3]  # of nine; behind layer1, layer2, layer3


@pytest.mark.parametrize(
    ("name", "millions"), [("vgg13", 37.05), ("ResNet50", 77.0), ("wrn_40_2", 5.8), ("MobileNetV2", 4.7)]
)
def test_f22_branches_have_the_published_numbers_of_parameters(name: str, millions: float) -> None:
    with torch.no_grad():
        branches = Branches(build_model(name, num_classes=100), (3, 32, 32), num_classes=100, num_stages=4)
    count = sum(parameter.numel() for parameter in branches.parameters()) / 1e6
    assert count == pytest.approx(millions, abs=0.06)


def test_f22_shufflev2s_last_branch_begins_with_a_unit_that_sees_the_whole_input() -> None:
    model = build_model("ShuffleV2", num_classes=3)
    units = [type(unit).__name__ for unit in model.extra_stage()]
    assert units == ["DownUnitV2", "UnitV2", "UnitV2", "UnitV2"]
    assert model.extra_stage()(torch.rand(2, 464, 4, 4)).shape == (2, 464, 4, 4)


def test_branches_do_not_start_from_the_weights_of_a_trained_network() -> None:
    model = network("classification", 0).requires_grad_(False).eval()
    branches = Branches(model, (1, 8, 8), num_classes=3, num_stages=3)
    theirs = [p for p in model.parameters() if p.ndim > 1]
    assert not any(torch.equal(p, q) for p in branches.parameters() for q in theirs if p.shape == q.shape)
    assert all(parameter.requires_grad for parameter in branches.parameters())


# --- the losses -------------------------------------------------------------------------------------------------------


def test_the_student_copies_classes_and_pairs_of_class_and_rotation() -> None:
    batch = fixed_batch("classification")
    distiller, teacher = make("hsakd", "classification")
    view, _ = rotation_batch(images=batch.images.float() / 255, labels=batch.labels)
    logits, features = Taps(distiller.student, stage_paths(distiller.student, (1, 8, 8)))(distiller.normalize(view))
    teacher_logits, teacher_features = teacher.outputs_and_taps(view, stage_paths(teacher.module, (1, 8, 8)))
    total, task, kd, auxiliary = hsakd_student_loss(
        student_logits=logits,
        student_auxiliary_logits=distiller.branches(features, view),
        teacher_logits=teacher_logits,
        teacher_auxiliary_logits=distiller.fixed_branches(teacher_features, view),
        labels=batch.labels,
    )
    terms = distiller(batch)
    for name, value in {"loss": total, "task": task, "divergence": kd, "auxiliary": auxiliary}.items():
        assert terms[name].item() == pytest.approx(value.item(), rel=1e-5)


def test_a_teacher_learns_classes_and_pairs_together() -> None:
    batch = fixed_batch("classification")
    distiller, _ = make("hsakd_teacher", "classification")
    view, _ = rotation_batch(images=batch.images.float() / 255, labels=batch.labels)
    logits, features = Taps(distiller.student, stage_paths(distiller.student, (1, 8, 8)))(distiller.normalize(view))
    total, *_ = hsakd_teacher_loss(
        logits=logits, auxiliary_logits=distiller.branches(features, view), labels=batch.labels
    )
    terms = distiller(batch)
    assert terms["loss"].item() == pytest.approx(total.item(), rel=1e-5)
    (first, *_) = distiller.student.parameters()
    alone = torch.autograd.grad(terms["auxiliary"], first)[0]
    assert alone.abs().sum() > 0, "branches train the stages before them"


def test_branches_of_the_last_stages_are_paired() -> None:
    distiller, _ = make("hsakd", "classification", student_widths=(4, 8), teacher_widths=(4, 8, 16))
    assert distiller.branches.paths == ["stages.0", "stages.1"]
    assert distiller.fixed_branches.paths == ["stages.1", "stages.2"]
    distiller, _ = make("hsakd", "classification", {"stages": 1})
    assert distiller.branches.paths == distiller.fixed_branches.paths == ["stages.2"]
    with pytest.raises(ValueError, match="stages is 4, but the networks have 3 in common"):
        make("hsakd", "classification", {"stages": 4})


# --- the first stage, and files ---------------------------------------------------------------------------------------


def test_the_first_stage_trains_the_branches_of_the_teacher_and_the_second_leaves_them_alone() -> None:
    distiller, _ = make("hsakd", "classification")
    start = {key: value.clone() for key, value in distiller.state_dict().items()}
    first: dict[str, torch.Tensor] = {}  # the branches as the first stage left them

    def look(values: dict) -> None:
        if values["stage"] != "training":
            first.update({key: value.clone() for key, value in distiller.fixed_branches.state_dict().items()})

    logged = train(distiller, steps=12, look=look)
    assert [values["step"] for values in logged if values["stage"] != "training"] == [1, 2, 3, 4, 5]  # 100 / 240 of 12
    assert set(logged[0]) >= {"auxiliary"} and "task" not in logged[0]
    end = distiller.state_dict()
    moved = {key.split(".")[0] for key in end if not torch.equal(end[key], start[key])}
    assert moved == {"student", "branches", "fixed_branches"}
    assert first and all(torch.equal(end[f"fixed_branches.{key}"], value) for key, value in first.items())
    assert not any(parameter.requires_grad for parameter in distiller.fixed_branches.parameters())


def test_stored_branches_are_read_instead_of_trained(tmp_path: Path) -> None:
    path = tmp_path / "of" / "teacher.safetensors"
    distiller, _ = make("hsakd", "classification", {"branches": path})
    train(distiller)
    written = distiller.fixed_branches.state_dict()
    again, _ = make("hsakd", "classification", {"branches": path, "stages": 2})
    assert {values["stage"] for values in train(again)} == {"training"}
    assert again.fixed_branches.paths == ["stages.1", "stages.2"]
    assert all(torch.equal(written[key], value) for key, value in again.fixed_branches.state_dict().items())


def test_branches_of_another_teacher_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "teacher.safetensors"
    train(make("hsakd", "classification", {"branches": path})[0])
    with pytest.raises(ValueError, match="teacher.safetensors holds the branches of another network than this teacher"):
        train(make("hsakd", "classification", {"branches": path}, teacher_seed=2)[0])
    path.write_bytes(b"cut off")
    with pytest.raises(ValueError, match="cannot be read as a safetensors file.*delete it to train anew"):
        train(make("hsakd", "classification", {"branches": path})[0])


def test_a_teacher_trained_with_its_branches_hands_them_to_its_students(tmp_path: Path) -> None:
    path, logged = tmp_path / "teacher.safetensors", []
    real, synthetic = image_sets(fixed_batch("classification"))
    settings = {"real": real, "synthetic": synthetic, "steps": 2, "batch_size": 6, "log_every": 1}
    teacher = network("classification", 1, (8, 16, 16))
    method = {"name": "hsakd_teacher", "branches": str(path)}
    teacher = gankd.distill(teacher, method=method, **settings)
    method = {"name": "hsakd", "branches": str(path)}
    gankd.distill(network("classification", 0), teacher, method=method, log=logged.append, **settings)
    assert [values["stage"] for values in logged] == ["student", "student"], "no first stage"


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["hsakd", "hsakd_teacher"])
def test_scalars_have_no_pairs_of_class_and_rotation(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} is not defined for regression.*pairs of class and rotation"):
        check_method(method_config(name), "regression", has_teacher=True)


@pytest.mark.parametrize("name", ["hsakd", "hsakd_teacher"])
def test_images_must_be_square(name: str) -> None:
    batch = fixed_batch("classification")
    oblong = dataclasses.replace(batch, images=batch.images[:, :, :6])
    with pytest.raises(ValueError, match=f"method {name} turns images by 90 degrees, and 6 x 8 pixels are not square"):
        make(name, "classification", data=oblong)


@pytest.mark.parametrize("name", ["hsakd", "hsakd_teacher"])
def test_a_foreign_network_gets_branches_behind_its_maps(name: str) -> None:
    distiller, teacher = make(name, "classification")
    foreign = nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    data = source_of(fixed_batch("classification"), "classification", distiller.config, 6)
    setup = Setup(foreign, teacher, distiller.task, data, distiller.augment, distiller.normalize)
    built = METHODS[name](METHODS[name].Config(), setup)
    built(fixed_batch("classification"))["loss"].backward()
    assert built.branches.paths == ["0"] and foreign[0].weight.grad.any()
