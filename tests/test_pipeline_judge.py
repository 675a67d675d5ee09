"""Who judges the generator of a run: what is made for it, what is refused, what the report says."""

from __future__ import annotations

import json

import pytest
import torch
from accelerate import Accelerator

from gankd.experiment.config import load_config
from gankd.pipeline import Run
from gankd.pipeline.judge import judge_of
from tests.conftest import run as command

TWO_PROCESSES = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")


@pytest.fixture
def judged(tiny) -> dict:
    """The tiny experiment with one student, whose generator is scored."""
    tiny["student"] |= {"steps": 3, "seeds": [0], "arms": {"synthetic": {"synthetic": 0.5}}}
    tiny["teacher"]["steps"] = 3
    tiny["generator"] |= {"steps": 6, "score_every": 3, "score_samples": 80, "checkpoint_every": 2}
    student = {"num_samples": 60, "steps": 3, "batch_size": 16, "model": {"options": {"widths": [8]}}}
    backbone = {"steps": 6, "batch_size": 16, "checkpoint_every": 2, "model": {"options": {"widths": [8, 8]}}}
    tiny["generator"]["judge"] = {"student": student, "backbone": backbone}
    tiny["synthesis"] |= {"num_samples": 20, "rho": None, "subsample": {"enabled": False}}
    return tiny


def start(path, *overrides: str, **settings) -> Run:
    return Run(load_config(path, list(overrides)), Accelerator(cpu=True), **settings)


def names(run: Run, until: str = "report") -> list[str]:
    return [stage.name for stage in run.stages(until)]


def test_a_judge_is_made_where_somebody_reads_it(judged, write_config) -> None:
    path, arms = write_config(judged), ["generator", "teacher", "synthetic", "students/synthetic/seed-0"]
    assert names(start(path, "generator.score_every=null")) == arms
    assert names(start(path)) == ["judge", *arms, "judged"]
    assert names(start(path), "generator") == ["generator"]
    assert names(start(path, "generator.judge.by=backbone"), "generator") == ["judge", "generator"]
    assert names(start(path, "generator.judge.report=false")) == arms
    assert names(start(path, "generator.judge.report=true", "generator.score_every=null")) == ["judge", *arms, "judged"]
    read = {
        by: [stage.name for stage in start(path, f"generator.judge.by={by}").generator.reads]
        for by in ("student", "teacher")
    }
    assert read == {"student": [], "teacher": ["teacher"]}


def test_a_run_is_scored_judged_and_reported(judged, write_config, tmp_path) -> None:
    path, folder = write_config(judged), tmp_path / "runs/tiny"
    metrics = start(path).run()
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    scores = [line["score"] for line in lines if "score" in line]
    assert len(scores) == 2 and all(0 <= score <= 100 for score in scores)
    generator = metrics["generator"]
    assert generator["judged_by"] == "student" and 0 < generator["seconds_judging"] < generator["seconds"]
    assert set(generator["judged"]["helpers"]) == {"teacher"}
    assert {"student", "linear", "frechet", "coverage", "spread", "nearest"} <= set(generator["judged"]["generated"])
    page = (folder / "report.html").read_text()
    for words in (
        "The generator, judged",
        "label by the teacher",
        "nearest training image",
        "a little student that learnt",
    ):
        assert words in page
    json.loads((folder / "metrics.json").read_text())
    assert {stage.state() for stage in start(path).stages()} == {"done"}
    refusals = {stage.name: stage.refusal() for stage in start(path, "generator.judge.backbone.steps=7").stages()}
    assert [name for name, sentence in refusals.items() if sentence] == ["judge"]
    refusals = {stage.name: stage.refusal() for stage in start(path, "generator.judge.student.steps=4").stages()}
    assert [name for name, sentence in refusals.items() if sentence] == ["generator", "judged"]
    refusals = {stage.name: stage.refusal() for stage in start(path, "generator.judge.by=backbone").stages("generator")}
    assert "score" in refusals["generator"]
    output = command("scripts/evaluate_generator.py", "--run", folder, "--num-samples", 60, "--judge")
    assert "the generator, judged" in output
    assert "judged" in json.loads((folder / "generator_metrics.json").read_text())


def test_a_judge_and_a_generator_that_were_cut_off_continue_to_the_same_bits(
    judged, write_config, tmp_path, monkeypatch
):
    path = write_config(judged)
    whole = start(path, "generator.judge.by=backbone", "name=whole")
    whole.run("generator")

    class Killed(Exception):
        pass

    for stage in ("judge", "generator"):
        cut = start(path, "generator.judge.by=backbone")
        log = cut.log

        def die(values, stage=stage, log=log):
            log(values)
            if values["stage"] == stage and values["step"] >= 5:
                raise Killed

        monkeypatch.setattr(cut, "log", die)
        with pytest.raises(Killed):
            cut.run("generator")
        assert (tmp_path / "runs/tiny" / stage / "checkpoint.pt").exists()
    again = start(path, "generator.judge.by=backbone")
    again.run("generator")
    for stage in ("judge", "generator"):
        parts = [getattr(run, stage).result for run in (whole, again)]
        weights = [getattr(part, "module", part).state_dict().values() for part in parts]
        assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


def test_two_processes_judge_as_one(judged, write_config, tmp_path) -> None:
    """Both train the little student, and neither waits for the other."""
    judged["student"]["arms"] = {"plain": {"synthetic": 0.5}}
    command("scripts/gen_then_distill.py", "--config", write_config(judged), launcher=TWO_PROCESSES)
    folder = tmp_path / "runs/tiny"
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert len([line for line in lines if "score" in line]) == 2
    assert json.loads((folder / "metrics.json").read_text())["generator"]["judged"]["rows"]


def test_who_helps_does_not_judge(judged, write_config) -> None:
    path, help_by_backbone = write_config(judged), "generator.features.network=backbone"
    with pytest.raises(
        ValueError, match="generator.judge.by: backbone would be pleased by what generator.features.network asks"
    ):
        start(path, help_by_backbone, "generator.judge.by=backbone").plan()
    helped = start(path, help_by_backbone)
    helped.plan()
    assert names(helped)[-1] == "judged"
    assert helped.judged.judges == [] and judge_of(helped).extractor is None  # the little student judges alone


def test_a_report_without_validation_images_is_refused(judged, write_config) -> None:
    judged["data"]["validation"] = 0
    with pytest.raises(ValueError, match="generator.judge.report .*data.validation: 0 leaves none"):
        load_config(write_config(judged), ["generator.score_every=null", "generator.judge.report=true"])
