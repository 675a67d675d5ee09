"""Every file of docs/extending.md does what the page says (R5), in a process of its own: names are registered for good."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import gankd
from tests.commands import ROOT, run

SCRIPT = ROOT / "scripts" / "gen_then_distill.py"
PAGE = (ROOT / "docs" / "extending.md").read_text()
FILES = dict(re.findall(r"^```(?:python|yaml) (\S+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the files of the page."""
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def test_an_experiment_is_made_of_things_that_are_the_users_alone(folder: Path) -> None:
    output = run(SCRIPT, "--config", "own.yaml", cwd=folder)
    directory = folder / "runs" / "own"
    page = (directory / "report.html").read_text()
    assert "test images</p>" in page
    for arm in ("hinge", "hint", "two", "both"):
        assert arm in output and list(directory.glob(f"students/{arm}/seed-0/model.safetensors"))


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
    run(SCRIPT, "--config", "own.yaml", "--dry-run", cwd=folder)
    sentences = {
        "student.arms.hinge.method.margn=1": "did you mean 'margin'",
        "data.numbr=3": "did you mean 'number'",
        "student.model.options.wdth=3": "did you mean 'width'",
        "student.optimizer_options.alph=0.5": "did you mean 'alpha'",
    }
    (folder / "ask.py").write_text(ASK)
    answers = run("ask.py", "own.yaml", *sentences, cwd=folder)  # one process for all: it has the user's files in it
    for answer, sentence in zip(answers.splitlines(), sentences.values(), strict=True):
        assert sentence in answer


def test_the_library_takes_them_by_name_and_as_they_are(folder: Path) -> None:
    assert "top1" in run("own_library.py", cwd=folder)


@pytest.mark.skipif(not hasattr(gankd, "distiller"), reason="until gankd.distiller is there")
def test_a_distiller_is_trained_in_a_loop_of_the_users(folder: Path) -> None:
    run("own_loop.py", cwd=folder)
