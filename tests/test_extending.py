"""Every file of docs/extending.md does what the page says (R5)."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import gankd
from tests.conftest import ROOT, environment

PAGE = (ROOT / "docs" / "extending.md").read_text()
FILES = dict(re.findall(r"^```(?:python|yaml) (\S+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the files of the page."""
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def start(folder: Path, *command: str) -> str:
    """What a command prints that is started there, in a process of its own: names are registered for good."""
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env={**environment(), "PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_an_experiment_is_made_of_things_that_are_the_users_alone(folder: Path) -> None:
    output = start(folder, str(ROOT / "scripts" / "gen_then_distill.py"), "--config", "own.yaml")
    run = folder / "runs" / "own"
    page = (run / "report.html").read_text()
    assert "test images</p>" in page
    for arm in ("hinge", "hint", "two", "both"):
        assert arm in output and list(run.glob(f"students/{arm}/seed-0/model.safetensors"))


ASK = """
import sys
from gankd.experiment.config import load_config
for override in sys.argv[2:]:
    try:
        print("accepted", load_config(sys.argv[1], [override]).name)
    except ValueError as error:
        print(error)
"""


def test_a_dry_run_knows_them_and_what_is_misspelt_is_said(folder: Path) -> None:
    script = str(ROOT / "scripts" / "gen_then_distill.py")
    start(folder, script, "--config", "own.yaml", "--dry-run")
    sentences = {
        "student.arms.hinge.method.margn=1": "did you mean 'margin'",
        "data.numbr=3": "did you mean 'number'",
        "student.model.options.wdth=3": "did you mean 'width'",
        "student.optimizer_options.alph=0.5": "did you mean 'alpha'",
    }
    command = [sys.executable, "-c", ASK, "own.yaml", *sentences]  # one process for all: it has the user's files in it
    paths = {**environment(), "PYTHONPATH": str(ROOT)}
    answers = subprocess.run(command, cwd=folder, env=paths, capture_output=True, text=True, check=True).stdout
    for answer, sentence in zip(answers.splitlines(), sentences.values(), strict=True):
        assert sentence in answer


def test_the_library_takes_them_by_name_and_as_they_are(folder: Path) -> None:
    assert "top1" in start(folder, "own_library.py")


@pytest.mark.skipif(not hasattr(gankd, "distiller"), reason="until gankd.distiller is there")
def test_a_distiller_is_trained_in_a_loop_of_the_users(folder: Path) -> None:
    start(folder, "own_loop.py")
