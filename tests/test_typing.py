"""What a user imports, and how the documentation uses it, is sound in the eyes of a type checker."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.commands import ROOT


def test_a_type_checker_accepts_the_public_surface_and_finds_wrong_calls() -> None:
    """[tool.mypy] in pyproject.toml names the files; typing/public_surface.py marks what must be complained of."""
    pytest.importorskip("mypy")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])}
    checked = subprocess.run(
        [sys.executable, "-m", "mypy"], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
