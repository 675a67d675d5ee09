"""Experiments that train backbones without labels, end to end, as a user runs them."""

from __future__ import annotations

import json

import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from gankd.experiment.config import load_config
from gankd.models.store import load_model
from gankd.pipeline import Run
from tests.commands import run, run_two

SCRIPT = "scripts/gen_then_distill.py"
NARROW = {"embedding_width": 8, "projector_width": 8}
ARMS = {
    "squeeze_and_span": {"synthetic": 0.5, "method": {"name": "squeeze_and_span", "squeeze_width": 8, **NARROW}},
    "squeeze": {"synthetic": 1, "method": {"name": "squeeze_and_span", "squeeze_width": 8, **NARROW}},
    "vicreg": {"method": {"name": "vicreg", **NARROW}},
    "simreg": {"method": {"name": "simreg"}},
}


@pytest.fixture
def backbones(tiny) -> dict:
    """The tiny experiment with four backbones and a student that starts from one of them."""
    tiny["representation"] = {"arms": ARMS, "num_generated": 40, "steps": 6, "batch_size": 16, "seeds": [0, 1]}
    tiny["representation"] |= {"log_every": 2, "checkpoint_every": 2}
    arms = {"scratch": {}, "started": {"initial": "squeeze_and_span"}}
    tiny["student"] |= {"arms": arms, "steps": 6}
    return tiny


@pytest.fixture
def backbones_of_scalars(backbones, tiny_regression) -> dict:
    """The same on rotated digits."""
    return tiny_regression


def execute(path, **settings):
    return Run(load_config(path, [f"{key}={value}" for key, value in settings.items()]), Accelerator(cpu=True)).run()


@pytest.mark.parametrize(
    ("kind", "probes"), [("backbones", ["linear", "knn_200", "knn_1"]), ("backbones_of_scalars", ["ridge", "knn_20"])]
)
def test_every_backbone_is_probed_and_a_student_starts_from_one(kind, probes, request, write_config, tmp_path):
    metrics = execute(write_config(request.getfixturevalue(kind)))
    representation = metrics["representation"]
    assert set(representation["arms"]) == set(ARMS)
    for values in [representation["untrained"], *(arm["test"] for arm in representation["arms"].values())]:
        assert list(values) == probes and all(len(value["values"]) == 2 for value in values.values())
    assert set(representation["protocols"]) == set(probes)
    scratch, started = (metrics["arms"][arm]["test"] for arm in ("scratch", "started"))
    assert scratch != started
    page = (tmp_path / "runs/tiny/report.html").read_text()
    assert all(protocol in page for protocol in representation["protocols"].values())


def test_a_second_run_skips_backbones_and_other_settings_are_refused(backbones, write_config):
    backbones["representation"]["seeds"] = backbones["student"]["seeds"] = [0]
    path = write_config(backbones)
    execute(path)
    again = run(SCRIPT, "--config", path)
    assert again.count("done before, skipped") == again.count("skipped") == 3 + 4 + 2  # no arm reads a synthetic image
    refused = run(SCRIPT, "--config", path, "representation.steps=7", status=2)
    assert "/seed-0 was made with other settings (config.steps: 6 there, 7 here" in refused
    more = "representation.num_generated=50"
    assert "tiny/generated was made with other settings" in run(SCRIPT, "--config", path, more, status=2)
    assert "generated: running" in run("scripts/pretrain.py", "--config", path, more, "--replace")


def test_without_students_there_is_no_synthesis_and_live_samples_leave_no_store(backbones, write_config, tmp_path):
    metrics = execute(write_config(backbones), **{"student.arms": "{}", "representation.live": "true"})
    directory = tmp_path / "runs/tiny"
    assert metrics["arms"] == {} and metrics["synthesis"] is None
    assert not (directory / "synthetic").exists() and not (directory / "generated").exists()
    assert json.loads((directory / "metrics.json").read_text())["representation"] == metrics["representation"]


def test_a_folder_of_images_without_labels_takes_the_place_of_the_data(backbones, write_config, tmp_path):
    folder = tmp_path / "photographs" / "2024"
    folder.mkdir(parents=True)
    for index in range(5):  # fewer than a batch
        pixels = torch.randint(256, (20, 20), generator=torch.Generator().manual_seed(index), dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(folder / f"{index}.png")
    backbones["representation"] |= {"unlabelled": str(folder.parent), "arms": {"vicreg": ARMS["vicreg"]}}
    backbones["student"]["arms"] = {}
    metrics = execute(write_config(backbones))
    assert metrics["representation"]["real"] == 5


def test_two_processes_train_backbones_together(backbones, write_config, tmp_path):
    backbones["student"]["arms"] = {}
    backbones["representation"] |= {"seeds": [0], "arms": {name: ARMS[name] for name in ("squeeze_and_span", "simreg")}}
    run_two(SCRIPT, "--config", write_config(backbones))
    directory = tmp_path / "runs/tiny"
    single = execute(write_config({**backbones, "output": str(tmp_path / "single")}))
    together = json.loads((directory / "metrics.json").read_text())
    assert list(together["representation"]["arms"]) == list(single["representation"]["arms"])
    backbone, _ = load_model(directory / "representation/squeeze_and_span/seed-0")
    assert all(tensor.isfinite().all() for tensor in backbone.state_dict().values())


def test_an_initial_backbone_that_is_not_there_is_refused(backbones, write_config):
    backbones["student"]["arms"]["started"]["initial"] = "squeez"
    refused = run(SCRIPT, "--config", write_config(backbones), status=2)
    assert "student.arms.started.initial: 'squeez' is no arm of representation; did you mean 'squeeze'?" in refused


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("unlabelled=nowhere", "representation.unlabelled: nowhere holds no images"),
        ("arms.simreg.method.teachers=[{checkpoint: nothing.pt}]", "arms.simreg: there is no file nothing.pt"),
    ],
)
def test_what_is_missing_is_said_before_anything_is_trained(setting, sentence, backbones, write_config, tmp_path):
    refused = run(SCRIPT, "--config", write_config(backbones), f"representation.{setting}", status=2)
    assert sentence in refused and not (tmp_path / "runs").exists()
