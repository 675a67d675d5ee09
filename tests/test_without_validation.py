"""`data.validation: 0`: every image is trained on, as protocols of the literature have it; nothing is chosen or hidden."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from accelerate import Accelerator

from gankd.experiment.config import load_config
from gankd.pipeline import Run


@pytest.fixture
def everything(tiny) -> dict:
    """Students and backbones of every kind of stage, in a few steps, without a validation split."""
    tiny["data"]["validation"] = 0
    tiny["student"] |= {"seeds": [0], "steps": 3}
    tiny["teacher"]["steps"] = 5
    tiny["representation"] = {"seeds": [0], "steps": 2, "batch_size": 16, "num_generated": 20}
    tiny["representation"] |= {"arms": {"spans": {"synthetic": 0.5}}}
    return tiny


def make(path: Path, overrides: list[str] | None = None) -> tuple[dict, str]:
    """What the run's files hold: metrics.json and report.html."""
    config = load_config(path, overrides)
    Run(config, Accelerator(cpu=True)).run()
    return json.loads((config.directory / "metrics.json").read_text()), (config.directory / "report.html").read_text()


def test_a_run_without_validation_images_reaches_its_report(everything, write_config, capsys) -> None:
    path = write_config(everything)
    assert "0 validation" in "\n".join(Run(load_config(path), Accelerator(cpu=True)).plan())
    metrics, report = make(path)
    assert metrics["data"]["validation"] == 0 and metrics["data"]["pool"] == 1297  # all that is not for the test
    assert metrics["teacher"]["validation"] is None and metrics["teacher"]["test"]["top1"] > 0
    arms = [*metrics["arms"].values(), *metrics["representation"]["arms"].values()]
    assert len(arms) == 5 and all(arm["validation"] is None and arm["test"] for arm in arms)
    assert "no validation split, and nothing chosen" in metrics["protocol"]
    assert "scores" not in metrics["generator"] and "data.validation is 0" in metrics["generator"]["unscored"]
    assert metrics["generator"]["unscored"] in report and "is not available" not in report
    assert "without validation images none of them is chosen" in report
    assert "students, test split" in capsys.readouterr().out
    first = json.loads((load_config(path).directory / "students/real/seed-0/stage.json").read_text())
    make(path)  # done before, all of it
    assert json.loads((load_config(path).directory / "students/real/seed-0/stage.json").read_text()) == first


def test_one_arm_against_one_needs_no_choice(tiny_regression, write_config) -> None:
    tiny_regression["data"]["validation"] = 0
    tiny_regression["student"] |= {"seeds": [0], "steps": 3}
    tiny_regression["student"]["arms"] = {"plain": {}, "taught": {"synthetic": 0.5, "method": {"name": "kd"}}}
    metrics, report = make(write_config(tiny_regression))
    assert metrics["arms"]["plain"]["validation"] is None
    assert "mean absolute error of" in report and "none of them is chosen" not in report


@pytest.mark.parametrize(
    ("overrides", "choice"),
    [
        (["synthesis.rho=validation"], "synthesis.rho: validation"),
        (["generator.score_every=5"], "generator.score_every"),
    ],
)
def test_what_is_chosen_by_validation_images_is_refused_in_one_sentence(everything, write_config, overrides, choice):
    sentence = f"{choice} chooses by validation images, and data.validation: 0 leaves none"
    with pytest.raises(ValueError, match=sentence) as error:
        load_config(write_config(everything), overrides)
    assert "\n" not in str(error.value)


def test_a_scalar_teacher_of_students_with_bins_is_refused_before_anything_is_made(tiny_regression, write_config):
    tiny_regression["data"]["validation"] = 0
    tiny_regression["task"] |= {"head": "bins", "num_bins": 16}
    tiny_regression["teacher"]["head"] = "scalar"
    run = Run(load_config(write_config(tiny_regression)), Accelerator(cpu=True))
    with pytest.raises(ValueError, match="data.validation: 0 leaves nothing to measure by how much the teacher errs"):
        run.run()
    assert not run.directory.exists()
