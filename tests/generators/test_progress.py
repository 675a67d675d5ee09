"""Progress of long loops (H): a line now and then in a log, a bar in a terminal."""

from __future__ import annotations

import re
import sys

import pytest
import torch

import generators
from generators.progress import Progress, clock


def test_a_log_gets_a_plain_line_every_so_many_steps(capfd: pytest.CaptureFixture) -> None:
    with Progress(range(40, 100), title="generator", first=40, every=25) as progress:
        for step in progress:
            progress.note(D=step / 3, G="low")
    told = capfd.readouterr()
    assert told.out == "" and "\r" not in told.err
    lines = told.err.splitlines()
    assert [line.split(",")[0] for line in lines] == [f"generator: {done}/100 steps" for done in (50, 75, 100)]
    assert all(re.search(r"D \d+\.\d\d, G low, 0:00:0\d elapsed, 0:00:0\d left$", line) for line in lines)


def test_a_terminal_gets_a_bar(capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert list(Progress("abc", title="images", unit="image")) == ["a", "b", "c"]
    assert "images: 100%" in capfd.readouterr().err


def test_silent_processes_are_silent(capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    for terminal in (True, False):
        monkeypatch.setattr(sys.stderr, "isatty", lambda terminal=terminal: terminal)
        assert list(Progress(range(3), title="quiet", every=1, shown=False)) == [0, 1, 2]
    assert capfd.readouterr().err == ""


def test_a_training_writes_a_line_each_log_every(capfd: pytest.CaptureFixture) -> None:
    images = torch.randint(256, (20, 1, 8, 8), dtype=torch.uint8)
    settings = {"widths": (8, 8), "discriminator_widths": (8,), "batch_size": 8, "steps": 5, "log_every": 2}
    generators.train(images, torch.arange(20) % 3, num_classes=3, **settings)
    lines = capfd.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == [f"generator: {done}/5 steps" for done in (2, 4, 5)]
    assert all(re.search(r"D -?\d.*, G -?\d", line) for line in lines)


def test_hours_minutes_and_seconds() -> None:
    assert [clock(seconds) for seconds in (0, 61.4, 36000)] == ["0:00:00", "0:01:01", "10:00:00"]
