"""The experiment end to end, as a user runs it: from YAML to report, killed and resumed, on several processes."""

import json
import shutil
import signal
import time

import pytest
import yaml
from accelerate import Accelerator

from gankd.experiment.config import load_config
from gankd.pipeline import Run
from gankd.synthesis.store import load_store, read_manifest
from tests.commands import TWO_PROCESSES, run, run_two, start

SCRIPT = "scripts/gen_then_distill.py"


def execute(path, until="report"):
    return Run(load_config(path), Accelerator(cpu=True)).run(until)


def numbers(directory):
    """What must not depend on how a run came about: every arm's metrics, and the synthetic data's digests."""
    metrics = json.loads((directory / "metrics.json").read_text())
    arms = {name: (arm["test"], arm["validation"]) for name, arm in metrics["arms"].items()}
    return arms, [shard["sha256"] for shard in read_manifest(directory / "synthetic")["shards"]]


@pytest.mark.parametrize("kind", ["tiny", "tiny_regression"])
def test_every_stage_leaves_what_it_promises(kind, request, write_config, tmp_path):
    experiment = request.getfixturevalue(kind)
    metrics = execute(write_config(experiment))
    directory = tmp_path / "runs" / "tiny"
    for file in ("config.yaml", "metrics.json", "metrics.jsonl", "report.html", "generator/config.json"):
        assert (directory / file).stat().st_size > 0, file
    assert list(metrics["arms"]) == ["real", "real_kd", "synthetic", "synthetic_kd"]
    for arm in metrics["arms"].values():
        assert len(arm["test"][metrics["task"]["metric"]]["values"]) == 2
    store = load_store(directory / "synthetic")
    assert len(store) == 60 and store.teacher_outputs.shape[0] == 60
    stages = {json.loads(line)["stage"] for line in (directory / "metrics.jsonl").read_text().splitlines()}
    assert {"generator", "teacher", "density_ratio", "student real seed 0"} <= stages
    assert not (directory / "synthetic" / "candidates").exists()


def test_the_resolved_configuration_repeats_the_run(tiny, write_config, tmp_path):
    execute(write_config(tiny))
    directory = tmp_path / "runs" / "tiny"
    resolved = yaml.safe_load((directory / "config.yaml").read_text())
    resolved["name"] = "again"
    execute(write_config(resolved, "resolved.yaml"))
    assert numbers(directory.with_name("again")) == numbers(directory)


def test_finished_stages_are_skipped_and_other_settings_refused(tiny, write_config, tmp_path):
    execute(write_config(tiny), until="teacher")
    weights = tmp_path / "runs" / "tiny" / "teacher" / "model.safetensors"
    written = weights.stat().st_mtime_ns
    execute(write_config(tiny), until="teacher")
    assert weights.stat().st_mtime_ns == written
    tiny["teacher"]["steps"] = 21
    with pytest.raises(ValueError, match=r"teacher was made with other settings \(config.steps: 20 there, 21 here\)"):
        execute(write_config(tiny), until="teacher")
    assert weights.stat().st_mtime_ns == written


def test_settings_that_change_no_result_reuse_the_stages(tiny, write_config):
    execute(write_config(tiny), until="teacher")
    tiny["teacher"]["log_every"] = 7
    execute(write_config(tiny), until="teacher")  # no complaint


def test_rho_is_chosen_on_the_validation_split(tiny, write_config, tmp_path):
    tiny["synthesis"] |= {"rho": "validation", "rho_grid": [0.5, 0.9]}
    tiny["student"] |= {"seeds": [0]}
    execute(write_config(tiny))
    directory = tmp_path / "runs" / "tiny"
    tried = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    errors = {line["rho"]: line["validation_error"] for line in tried if line["stage"] == "rho"}
    assert set(errors) == {0.5, 0.9}
    lowest = min(errors.values())
    assert read_manifest(directory / "synthetic")["rho"] == max(rho for rho, error in errors.items() if error == lowest)


def test_a_killed_run_continues_to_the_same_numbers(tiny, write_config, tmp_path):
    """SIGKILL in the middle of the generator and of a student; the numbers are those of a run that was left alone."""
    config = write_config(tiny)
    run(SCRIPT, "--config", config, "name=whole")
    moments = [
        "generator/checkpoint.pt",
        "synthetic/candidates/chunk-00000.safetensors",
        "students/real_kd/seed-0/checkpoint.pt",
    ]
    killed = tmp_path / "runs" / "killed"
    for moment in moments:
        process = start(SCRIPT, "--config", config, "name=killed")
        deadline = time.monotonic() + 120
        while process.poll() is None and not (killed / moment).exists():
            assert time.monotonic() < deadline
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert process.returncode == -signal.SIGKILL  # the last one was cut off too, not finished
    run(SCRIPT, "--config", config, "name=killed")
    assert numbers(killed) == numbers(tmp_path / "runs" / "whole")


def test_two_processes_make_the_same_store_and_one_report(tiny, write_config, tmp_path):
    config = write_config(tiny)
    run("scripts/train_teacher.py", "--config", config)
    directory = tmp_path / "runs" / "tiny"
    copy = directory.with_name("two")
    for stage in ("generator", "teacher"):
        shutil.copytree(directory / stage, copy / stage)
    run("scripts/synthesize.py", "--config", config)
    output = run(SCRIPT, "--config", config, "name=two", launcher=TWO_PROCESSES)
    assert "2 processes" in output
    one, two = read_manifest(directory / "synthetic"), read_manifest(copy / "synthetic")
    assert [shard["sha256"] for shard in one["shards"]] == [shard["sha256"] for shard in two["shards"]]
    arms = json.loads((copy / "metrics.json").read_text())["arms"]
    assert all(len(arm["test"]["top1"]["values"]) == 2 for arm in arms.values())
    assert output.count("metrics.json") == 1  # one process speaks


def test_two_processes_train_a_generator_together(tiny, write_config, tmp_path):
    run_two("scripts/train_generator.py", "--config", write_config(tiny))
    assert (tmp_path / "runs" / "tiny" / "generator" / "config.json").exists()


@pytest.mark.parametrize("kind", ["tiny", "tiny_regression"])
def test_bfloat16_runs_every_stage(kind, request, write_config):
    experiment = request.getfixturevalue(kind)
    experiment["runtime"] = {"mixed_precision": "bf16"}
    experiment["student"]["seeds"] = [0]
    output = run(SCRIPT, "--config", write_config(experiment))
    assert "mixed precision bf16" in output


def test_a_larger_set_than_the_budget_is_read_by_workers(tiny, write_config):
    tiny["data"] |= {"memory_budget": 0, "workers": 1}
    tiny["student"] |= {"seeds": [0], "arms": {"both": {"synthetic": "union"}}}
    metrics = execute(write_config(tiny))
    assert len(metrics["arms"]["both"]["test"]["top1"]["values"]) == 1
