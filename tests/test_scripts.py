"""Every command answers, and a dry run touches nothing."""

import json

import pytest
import yaml

from gankd.experiment.config import load_config
from tests.commands import ROOT, run

CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
BUNDLED = [path for path in CONFIGS if yaml.safe_load(path.read_text())["data"]["name"] in ("digits", "rotated_digits")]


@pytest.mark.parametrize("path", BUNDLED, ids=lambda path: path.stem)
def test_a_dry_run_says_what_would_happen_and_touches_nothing(path, tmp_path):
    output = run("scripts/gen_then_distill.py", "--config", path, "--dry-run", f"output={tmp_path / 'runs'}")
    config = load_config(path)
    stages = ["teacher", "synthesis", "students"] * bool(config.student.arms)
    stages += ["representation"] * bool(config.representation.arms)
    for word in ("generator", *stages, "parameters", "steps", "1 process", "(new)"):
        assert word in output
    assert list(tmp_path.iterdir()) == []


def test_without_a_config_the_digits_experiment_runs(tmp_path):
    assert "digits" in run("scripts/gen_then_distill.py", "--dry-run", f"output={tmp_path}", fresh=True)


def test_the_schema_names_every_group_of_settings(tmp_path):
    schema = json.loads(run("scripts/config_schema.py"))
    assert set(schema["properties"]) >= {"data", "task", "teacher", "generator", "synthesis", "student", "runtime"}
    assert all("description" in field for field in schema["properties"].values())


def test_an_obvious_flag_that_starts_one_process_is_pointed_out(tiny, write_config):
    launcher = ("-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2")
    output = run("scripts/train_generator.py", "--config", write_config(tiny), "--dry-run", launcher=launcher)
    assert "warning: 2 processes were asked for, 1 started" in output
    assert "--multi_gpu --num_processes 2" in output


def test_epochs_count_passes_over_the_real_data(tiny, write_config):
    assert load_config(write_config(tiny), ["student.epochs=20"]).student.epochs == 20
    output = run("scripts/distill.py", "--config", write_config(tiny), "--dry-run", "student.epochs=20")
    assert "60 steps of 16 each" in output  # 40 labelled images are 3 steps of 16
