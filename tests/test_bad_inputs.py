"""What a user gets wrong, and the one sentence that comes back: what is wrong, where, and the way out."""

import sys

import pytest
from PIL import Image

from gankd.cli import main


@pytest.fixture
def complaint(write_config, monkeypatch, capsys):
    """A function that runs an experiment as a command and returns its complaint."""

    def complain(experiment: dict, *arguments: str, until: str = "report") -> str:
        monkeypatch.setattr(sys, "argv", ["gen_then_distill.py", "--config", str(write_config(experiment)), *arguments])
        assert main("test", until=until) == 2
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1
        return lines[0].removeprefix("error: ")

    return complain


@pytest.fixture
def csv_experiment(tiny, tmp_path):
    """The experiment on a CSV file of grey images with labels 0, 1, 2; and a function that writes the file."""
    tiny["data"] = {"name": "csv", "root": str(tmp_path / "labels.csv"), "validation": 0.2, "test": 0.2}
    for index in range(30):
        Image.new("L", (8, 8), 8 * index).save(tmp_path / f"{index}.png")

    def write(rows=None):
        rows = rows or [f"{index}.png,{index % 3}" for index in range(30)]
        (tmp_path / "labels.csv").write_text("\n".join(["path,label", *rows]))
        return rows

    write()
    return tiny, write


def test_an_unknown_key(tiny, complaint):
    tiny["student"]["epochz"] = 20
    message = complaint(tiny)
    assert "student: unknown key 'epochz'; did you mean 'epochs'?" in message


def test_an_unknown_key_in_an_override(tiny, complaint):
    assert "synthesis: unknown key 'roh'; did you mean 'rho'?" in complaint(tiny, "synthesis.roh=0.5")


def test_a_value_of_the_wrong_type(tiny, complaint):
    tiny["generator"]["steps"] = "many"
    message = complaint(tiny)
    assert "generator.steps" in message and "'many'" in message


def test_a_missing_data_folder(tiny, complaint, tmp_path):
    tiny["data"] = {"name": "image_folder", "root": str(tmp_path / "nowhere")}
    message = complaint(tiny)
    assert "data.root" in message and str(tmp_path / "nowhere") in message


def test_a_label_outside_the_range(tiny_regression, complaint):
    tiny_regression["task"] |= {"label_min": -10, "label_max": 10}
    message = complaint(tiny_regression)
    assert "outside [-10, 10]" in message and "task.label_min" in message


def test_an_image_that_does_not_decode(csv_experiment, complaint, tmp_path):
    experiment, _ = csv_experiment
    (tmp_path / "7.png").write_bytes(b"not a picture")
    assert "7.png" in complaint(experiment)


def test_a_csv_row_without_a_file(csv_experiment, complaint):
    experiment, write = csv_experiment
    rows = write()
    write([*rows, "gone.png,1"])
    message = complaint(experiment)
    assert "gone.png" in message and "32" in message  # the line of the file, header included


def test_a_class_without_samples(tiny, complaint, tmp_path):
    root = tmp_path / "tree"
    for name in ("cat", "dog", "emu"):
        (root / name).mkdir(parents=True)
        for index in range(10 if name != "emu" else 0):
            Image.new("L", (8, 8), 9 * index).save(root / name / f"{index}.png")
    tiny["data"] = {"name": "image_folder", "root": str(root), "validation": 0.2, "test": 0.2}
    assert "emu" in complaint(tiny)


def test_a_truncated_shard(tiny, complaint, write_config, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["synthesize.py", "--config", str(write_config(tiny))])
    assert main("test", until="synthesis") == 0
    shard = tmp_path / "runs" / "tiny" / "synthetic" / "shard-00001.safetensors"
    shard.write_bytes(shard.read_bytes()[:-100])
    message = complaint(tiny)
    assert str(shard) in message and "cut off" in message and "run the same command again" in message


@pytest.mark.parametrize("file", ["teacher/stage.json", "teacher/model.json", "synthetic/manifest.json"])
def test_a_truncated_record(tiny, complaint, write_config, monkeypatch, tmp_path, file):
    monkeypatch.setattr(sys, "argv", ["synthesize.py", "--config", str(write_config(tiny))])
    assert main("test", until="synthesis") == 0
    path = tmp_path / "runs" / "tiny" / file
    path.write_text(path.read_text()[:50])
    message = complaint(tiny)
    assert str(path) in message and f"delete {path.parent}" in message


def test_an_output_folder_that_is_a_file(tiny, complaint, tmp_path):
    (tmp_path / "mine").write_text("a file")
    assert str(tmp_path / "mine") in complaint(tiny, f"output={tmp_path / 'mine'}")
    assert (tmp_path / "mine").read_text() == "a file"


def test_a_run_directory_of_another_configuration(tiny, complaint, write_config, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["train_generator.py", "--config", str(write_config(tiny))])
    assert main("test", until="generator") == 0
    weights = tmp_path / "runs" / "tiny" / "generator" / "diffusion_pytorch_model.safetensors"
    before = weights.read_bytes()
    message = complaint(tiny, "generator.latent_dim=9")
    assert "config.latent_dim: 8 there, 9 here" in message and "--replace" in message
    assert weights.read_bytes() == before  # nothing is lost
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--replace"])
    assert main("test", until="generator") == 0
    assert weights.read_bytes() != before


@pytest.mark.parametrize("size", [20, 12])
def test_an_image_size_that_the_networks_cannot_take(tiny, complaint, size):
    message = complaint(tiny, f"data.image_size={size}")
    assert f"image size of {size} pixels" in message and "[8, 16, 32, 64, 128]" in message


def test_more_synthetic_samples_than_survive(tiny, complaint):
    message = complaint(tiny, "synthesis.max_candidates=80", until="synthesis")
    assert "synthesis.num_samples = 60" in message and "synthesis.max_candidates" in message


def test_a_teacher_file_that_would_have_to_be_unpickled(tiny, complaint, tmp_path):
    import pickle

    path = tmp_path / "teacher.pth"
    path.write_bytes(pickle.dumps(print))
    tiny["teacher"]["model"] = tiny["teacher"]["model"] | {"checkpoint": str(path)}
    message = complaint(tiny, "teacher.train=false", until="teacher")
    assert str(path) in message and "not unpickled" in message


@pytest.mark.parametrize(
    ("method", "sentence"),
    [
        ({"name": "dml", "deploy": "ensemble"}, "deploy: ensemble makes a module of several networks"),
        ({"name": "at", "student_taps": ["stages.9"], "teacher_taps": ["stages.1"]}, "has no module 'stages.9'"),
        ({"name": "at", "student_taps": ["stages.1"]}, "as many of the one as of the other"),
        ({"name": "mcl", "positives": "vicinal"}, "classes have positives: class"),
    ],
)
def test_an_arm_that_could_not_be_trained_stops_before_anything_runs(tiny, complaint, tmp_path, method, sentence):
    tiny["student"]["arms"] = {"mine": {"method": method}}
    message = complaint(tiny)
    assert "student.arms.mine" in message and sentence in message
    assert not (tmp_path / "runs").exists()


def test_a_method_that_does_not_exist(tiny, complaint):
    tiny["student"]["arms"] = {"real": {"method": {"name": "kdd"}}}
    assert "student.arms.real.method: unknown method 'kdd'; did you mean 'kd'?" in complaint(tiny)
