"""What a stage reads is what it is made of: nothing is made that nobody reads, nothing is taken for what it is not."""

from __future__ import annotations

import json
import re
import signal
import time

import pytest
import torch
import yaml
from accelerate import Accelerator

from gankd.experiment.config import load_config
from gankd.pipeline import Run
from gankd.pipeline.time_left import TimeLeft
from gankd.synthesis.stage import Synthesis
from tests.commands import run
from tests.commands import start as run_command


def start(path, *overrides: str, **settings) -> Run:
    return Run(load_config(path, list(overrides)), Accelerator(cpu=True), **settings)


@pytest.fixture
def short(tiny) -> dict:
    """The tiny experiment with one seed and two arms: one that reads everything, one that reads real images alone."""
    arms = {"real": {}, "synthetic_kd": {"synthetic": 0.5, "method": {"name": "kd"}}}
    tiny["student"] |= {"steps": 3, "seeds": [0], "arms": arms}
    tiny["teacher"]["steps"] = tiny["generator"]["steps"] = 3
    tiny["synthesis"] |= {"num_samples": 20, "rho": None, "subsample": {"enabled": False}, "force": True}
    return tiny


@pytest.fixture
def short_regression(short, tiny_regression) -> dict:
    tiny_regression["synthesis"]["subsample"] = {"enabled": False}
    return tiny_regression


# --- F4: what is not read is not made ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arms", "made"),
    [
        ({"real": {}}, set()),
        ({"real_kd": {"method": {"name": "kd"}}}, {"teacher"}),
        ({"real_smooth": {"method": {"name": "label_smoothing"}}}, set()),
        ({"synthetic": {"synthetic": "union"}}, {"generator", "teacher", "synthetic"}),
    ],
)
def test_f4_an_experiment_makes_what_its_arms_read(short, arms, made, write_config, tmp_path) -> None:
    short["student"]["arms"] = arms
    metrics = start(write_config(short)).run()
    folders = {path.name for path in (tmp_path / "runs/tiny").iterdir() if path.is_dir()}
    assert folders == made | {"students"}
    assert {key for key in ("generator", "teacher") if metrics[key]} == made - {"synthetic"}
    assert all(arm["test"]["top1"]["std"] is None for arm in metrics["arms"].values()), "H: one seed has no spread"
    assert (metrics["synthesis"] is not None) == ("synthetic" in made)
    assert (tmp_path / "runs/tiny/report.html").stat().st_size > 0


def test_f4_a_failing_synthesis_does_not_stop_the_arms_that_never_read_it(short, write_config, tmp_path, monkeypatch):
    def fail(self):
        raise ValueError("too few survive")

    monkeypatch.setattr(Synthesis, "run", fail)
    with pytest.raises(ValueError, match="too few survive"):
        start(write_config(short)).run()
    assert json.loads((tmp_path / "runs/tiny/students/real/seed-0/stage.json").read_text())["finished"]


def test_a_file_that_a_method_reads_is_among_its_inputs_and_one_that_it_made_is_not(
    short, write_config, tmp_path
) -> None:
    """F9: hsakd's branches, which the first student writes and the second reads; any path among a method's settings."""
    file = tmp_path / "branches.safetensors"
    short["student"] |= {"seeds": [0, 1], "arms": {"turned": {"method": {"name": "hsakd", "branches": str(file)}}}}
    path = write_config(short)
    start(path).run("students")
    assert file.exists()
    assert {stage.refusal() for stage in start(path).stages("students")} == {None}
    file.write_bytes(file.read_bytes() + b" ")
    refusals = {stage.name: stage.refusal() for stage in start(path).stages("students")}
    assert refusals["students/turned/seed-0"] is None
    assert f"files.{file}" in refusals["students/turned/seed-1"]


def test_f4_what_is_asked_for_by_name_is_made_though_no_arm_reads_it(short, write_config, tmp_path) -> None:
    short["student"]["arms"] = {"real": {}}
    start(write_config(short)).run("generator")
    assert (tmp_path / "runs/tiny/generator/config.json").exists()
    assert not (tmp_path / "runs/tiny/students").exists()


# --- F1, F2: a finished stage is refused when anything that it read has changed ---------------------------------------


def changed_labels(run: Run) -> None:
    run.data.train.labels[0] = (run.data.train.labels[0] + 1) % 10


def changed_images(run: Run) -> None:
    run.data.train.images[0, 0, 0, 0] += 1


CHANGES = {  # what is changed, and the stages that have read it
    "task.label_max=61": {"teacher", "generator", "synthetic", "students/synthetic_kd/seed-0", "students/real/seed-0"},
    "task.unit=radians": {"teacher", "synthetic", "students/synthetic_kd/seed-0", "students/real/seed-0"},
    "task.head=bins": {"teacher", "synthetic", "students/synthetic_kd/seed-0", "students/real/seed-0"},
    "data.labelled=39": {"teacher", "generator", "synthetic", "students/synthetic_kd/seed-0", "students/real/seed-0"},
    "data.validation=61": {"teacher", "generator", "synthetic", "students/synthetic_kd/seed-0", "students/real/seed-0"},
    "teacher.mean=[0.5] teacher.std=[0.5]": {"teacher"},
    "teacher.steps=4": {"teacher"},
    "teacher.head=gaussian": {"teacher"},
    "generator.kappa=7": {"generator"},
    "synthesis.rho=0.9": {"synthetic"},
    "student.learning_rate=0.02": {"students/synthetic_kd/seed-0", "students/real/seed-0"},
    "student.arms.synthetic_kd.method.alpha=0.5": {"students/synthetic_kd/seed-0"},
    "student.arms.synthetic_kd.synthetic=0.25": {"students/synthetic_kd/seed-0"},
    "runtime.mixed_precision=bf16": set(),  # the accelerator's, see below
}


def test_f1_f2_whatever_a_finished_stage_read_is_compared(short_regression, write_config, tmp_path) -> None:
    path = write_config(short_regression)
    start(path).run("students")
    assert all(stage.refusal() is None and stage.state() == "done" for stage in start(path).stages())
    for change, readers in CHANGES.items():
        refusing = {stage.name for stage in start(path, *change.split()).stages() if stage.refusal()}
        assert refusing == readers, change
    for change in (changed_labels, changed_images):
        run = start(path)
        change(run)
        refusing = {stage.name for stage in run.stages() if stage.refusal()}
        assert refusing == {"teacher", "generator", "synthetic", "students/synthetic_kd/seed-0", "students/real/seed-0"}
    run = start(path)
    run.normalize.std.mul_(2)
    assert {"teacher", "students/real/seed-0"} <= {stage.name for stage in run.stages() if stage.refusal()}
    for accelerator in (Accelerator(cpu=True, gradient_accumulation_steps=2),):
        run = Run(load_config(path), accelerator)
        assert all(stage.refusal() for stage in run.stages())


@pytest.mark.parametrize("stage", ["teacher", "generator"])
def test_f1_another_network_in_the_place_of_an_upstream_one_is_noticed(stage, short, write_config, tmp_path) -> None:
    """Made again with the same settings, as on another machine: its own record is whole, its readers' are not."""
    path = write_config(short)
    start(path).run("students")
    directory = tmp_path / "runs/tiny" / stage
    weights = next(directory.glob("*.safetensors"))
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    record = json.loads((directory / "stage.json").read_text())
    assert "is not the file that was written" in getattr(start(path), stage).refusal()
    from gankd.fingerprints import file_hash

    record["files"][weights.name] = file_hash(weights)
    (directory / "stage.json").write_text(json.dumps(record))
    refusing = {each.name: each.refusal() for each in start(path).stages() if each.refusal()}
    assert stage not in refusing and f"reads.{stage}" in refusing["synthetic"]


def test_f30_correcting_the_teachers_features_does_not_retrain_the_teacher(short, write_config) -> None:
    short["synthesis"]["subsample"] = {"widths": [16], "steps": 2, "burn_in": 2, "batch_size": 8}
    path = write_config(short)
    start(path).run("teacher")
    run = start(path, "teacher.features=head:input")
    assert run.teacher.refusal() is None and run.teacher.state() == "done"
    assert run.synthetic.inputs()["features"] == "head:input"


# --- F25: nothing is written before every stage has agreed ------------------------------------------------------------


def test_f25_a_refused_run_has_written_nothing(short, write_config, tmp_path) -> None:
    path = write_config(short)
    start(path).run("students")
    directory = tmp_path / "runs/tiny"
    before = {file: file.read_bytes() for file in directory.rglob("*") if file.is_file()}
    with pytest.raises(ValueError, match="students/real/seed-0 was made with other settings"):
        start(path, "student.steps=4", "title=another").run()
    assert {file: file.read_bytes() for file in directory.rglob("*") if file.is_file()} == before


def test_f25_a_folder_of_somebody_else_keeps_its_config(short, write_config, tmp_path) -> None:
    mine = tmp_path / "runs/tiny/generator"
    mine.mkdir(parents=True)
    (mine / "thesis.txt").write_text("mine")
    (mine.parent / "config.yaml").write_text("mine too")
    with pytest.raises(ValueError, match="was not made by gankd"):
        start(write_config(short)).run()
    assert (mine.parent / "config.yaml").read_text() == "mine too"


# --- F18: a dry run says what will become of every stage --------------------------------------------------------------


def test_a_generator_of_so_many_minutes_is_made_once_and_keeps_its_steps(short, write_config, tmp_path) -> None:
    settings = {"widths": [8, 16], "label_dim": 8, "sampling_steps": 1, "batch_size": 8}
    short["generator"] = {"network": "unet", "minutes": 0.02, **settings}
    path, folder = write_config(short), tmp_path / "runs/tiny/generator"
    assert any(re.search(r"unet, [\d,]+ parameters; 0.02 minutes of batches of 8", line) for line in start(path).plan())
    hours = start(path, "generator.minutes=150")
    assert TimeLeft(hours).line([hours.generator]) == "  time left: about 2:30:00"
    start(path).run("generator")
    record = json.loads((folder / "stage.json").read_text())
    assert (record["inputs"]["config"]["minutes"], record["inputs"]["config"]["steps"]) == (0.02, None)
    assert record["results"]["steps"] == json.loads((folder / "config.json").read_text())["_trained_steps"] > 0
    assert states(start(path))["generator"] == "done"
    assert "minutes: 0.02 there, 3.0 here" in states(start(path, "generator.minutes=3"))["generator"]
    with pytest.raises(ValueError, match=r"generator\.steps: 5 is set beside minutes"):
        start(path, "generator.steps=5")


def states(run: Run) -> dict[str, str]:
    return {stage.name: stage.state() for stage in run.stages()}


def test_f18_a_dry_run_says_for_each_stage_what_will_become_of_it(short, write_config) -> None:
    path = write_config(short)
    assert set(states(start(path)).values()) == {"new"}
    start(path).run("teacher")
    assert states(start(path))["teacher"] == states(start(path))["generator"] == "done"
    start(path).run("students")
    assert set(states(start(path)).values()) == {"done"}
    refused = start(path, "teacher.steps=4")
    assert (
        states(refused)["teacher"].startswith("will refuse: ")
        and "config.steps: 3 there, 4 here" in (states(refused)["teacher"])
    )
    assert any("will refuse" in line for line in refused.plan())
    replaced = states(start(path, "teacher.steps=4", replace=True))
    assert replaced["teacher"] == "will be made again (--replace)"
    assert replaced["students/real/seed-0"] == "done"
    assert replaced["synthetic"] == "is there; compared with teacher once that is made"


@pytest.mark.parametrize("group", ["teacher", "student"])
def test_f18_a_missing_checkpoint_is_said_before_anything_runs(group, short, write_config, tmp_path) -> None:
    short[group]["model"] = {**short[group]["model"], "checkpoint": "nowhere.pt"}
    run = start(write_config(short))
    for act in (run.plan, run.run):
        with pytest.raises(ValueError, match=rf"{group}\.model\.checkpoint: there is no file nowhere\.pt"):
            act()
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("arm", "sentence"),
    [
        ({"synthetic": 0.5}, "rounds to no synthetic sample|rounds to no real sample"),
        ({"method": {"name": "cs_kd"}}, "batch_size 1 does not split into pairs"),
    ],
)
def test_f24_a_batch_that_cannot_be_is_said_before_anything_runs(arm, sentence, short, write_config, tmp_path) -> None:
    short["student"] |= {"batch_size": 1, "arms": {"mine": arm}}
    with pytest.raises(ValueError, match=rf"student\.arms\.mine: .*({sentence})"):
        start(write_config(short)).run()
    assert not (tmp_path / "runs").exists()


def test_f18_a_network_that_cannot_make_a_training_step_is_named(short, write_config, monkeypatch, tmp_path) -> None:
    """What passes in evaluation mode may fail in training: here a classifier that raises."""
    from gankd.pipeline import rehearsal

    class OnlyAsked(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.body = torch.nn.Linear(64, 10)

        def forward(self, images):
            if self.training:
                raise RuntimeError("only in training")
            return self.body(images.flatten(1))

    run = start(write_config(short))
    monkeypatch.setattr(run, "network", lambda *_, **__: OnlyAsked())
    monkeypatch.setattr(rehearsal, "check_arms", lambda run: None)
    with pytest.raises(ValueError, match=r"teacher\.model: small_resnet .*only in training"):
        run.run()
    assert not (tmp_path / "runs").exists()


def test_f27_a_score_that_cannot_be_had_is_a_line_and_the_numbers_are_there(short, write_config, tmp_path) -> None:
    short["data"]["validation"] = 4  # the scores of generators want six images
    metrics = start(write_config(short)).run()
    assert set(metrics["arms"]) == {"real", "synthetic_kd"}
    unavailable = metrics["generator"].get("unscored") or str(metrics["generator"]["scores"])
    assert "6 images" in unavailable or "too few" in unavailable
    assert json.loads((tmp_path / "runs/tiny/metrics.json").read_text())["arms"] == metrics["arms"]
    assert (tmp_path / "runs/tiny/report.html").exists()


@pytest.mark.parametrize(("number", "fresh"), [(signal.SIGTERM, True), (signal.SIGINT, False)])
def test_f29_a_signal_ends_with_a_sentence_and_the_run_continues(number, fresh, short, write_config, tmp_path) -> None:
    short["student"] |= {"steps": 100_000, "arms": {"real": {}}}
    process = run_command("scripts/gen_then_distill.py", "--config", write_config(short), fresh=fresh)
    deadline = time.monotonic() + 120
    while process.poll() is None and not (tmp_path / "runs/tiny/students/real/seed-0/checkpoint.pt").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert output.strip().splitlines()[-1].endswith("; the same command continues where this one stopped.")
    assert "Traceback" not in output


def test_under_a_launcher_our_sentence_comes_last(short, write_config) -> None:
    """G: `accelerate launch` prints the traceback of a CalledProcessError after it."""
    launcher = ("-m", "accelerate.commands.launch", "--cpu")
    path = write_config(short)
    output = run("scripts/gen_then_distill.py", "--config", path, "student.stepz=3", launcher=launcher, status=1)
    assert output.strip().splitlines()[-1].startswith("error: ") and "unknown key 'stepz'" in output.splitlines()[-1]


def test_f29_two_runs_in_one_directory(short, write_config, tmp_path) -> None:
    import fcntl

    path = write_config(short)
    (tmp_path / "runs/tiny").mkdir(parents=True)
    with open(tmp_path / "runs/tiny/.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match="another run is at work in .*tiny; wait for it"):
            start(path).run("teacher")
    start(path).run("teacher")


def test_the_resolved_configuration_names_everything(short, write_config, tmp_path) -> None:
    start(write_config(short)).run("generator")
    resolved = yaml.safe_load((tmp_path / "runs/tiny/config.yaml").read_text(encoding="utf-8"))
    assert resolved["name"] == "tiny" and resolved["plugins"] == []


def test_f1_f12_a_loaded_teacher_answers_in_the_units_in_which_it_was_trained(short_regression, write_config) -> None:
    """Its weights remember the labels and the images that it was trained on; those of this experiment are others."""
    first = start(write_config(short_regression))
    first.run(until="teacher")
    short_regression["data"]["labelled"] = 16
    short_regression["teacher"]["train"] = False
    checkpoint = f"teacher.model.checkpoint={first.teacher.path / 'model.safetensors'}"
    second = start(write_config(short_regression | {"name": "second"}), checkpoint)
    second.run(until="teacher")
    assert second.teacher_task.mean != second.task.mean
    assert second.teacher.results["validation"] == first.teacher.results["validation"]


# --- H: how long it will take -----------------------------------------------------------------------------------------


def test_h_the_time_that_a_run_has_left_is_said_when_it_begins_and_after_every_stage(short, write_config) -> None:
    """Not the seconds, which are the machine's: what is known, what is timed and what is not known."""
    short["student"]["seeds"] = [0, 1]

    def said() -> list[str]:
        run, lines = start(write_config(short)), []
        run.say = lines.append
        run.run("students")
        return [re.sub(r"\d+:\d\d:\d\d", "TIME", line.strip()) for line in lines if "time left" in line]

    timed = " (training by a timed step of each network)"
    begin, *ends = said()
    assert begin == f"time left: at least TIME{timed}, unknown for generator, synthetic"
    assert ends[0] == f"time left: at least TIME{timed}, unknown for synthetic"
    assert ends[-1] == "time left: about TIME" and len(ends) == 6, "after every stage but the last"
    assert said() == [], "nothing is left to do"
