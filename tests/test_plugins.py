"""Doors: a user's own file is named in a YAML, and what it registers is validated, used and fingerprinted like ours."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from accelerate import Accelerator

import gankd
from gankd import plugins
from gankd.experiment.config import load_config
from gankd.pipeline import Run

MINE = '''
"""A method, a network, an optimiser and a report section of a user."""
from typing import Literal

import torch
from torch import nn

import gankd
from gankd.methods.terms import Term, TermConfig
from gankd.report import as_section


class HalvesConfig(TermConfig):
    """Halves of the differences."""

    name: Literal["mine_halves"] = "mine_halves"
    """The method."""
    power: float = 2.0
    """The power of a difference."""


class Halves(Term):
    """mean |student - teacher|^power / 2"""

    Config = HalvesConfig
    tasks = frozenset({"classification"})
    reads_teacher_outputs = True

    def forward(self, outputs):
        return (outputs.student - outputs.teacher).abs().pow(self.config.power).mean() / 2


@gankd.register("network", "mine_linear")
def linear(num_classes: int, in_channels: int, *, width: int = 4) -> nn.Module:
    """A pooled linear network."""
    return nn.Sequential(
        nn.Conv2d(in_channels, width, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(width, num_classes),
    )


@gankd.register("optimizer", "mine_signs")
def signs(groups, learning_rate, *, decay: float = 0.9):
    """Adam without a second mean."""
    return torch.optim.RMSprop(groups, lr=learning_rate, alpha=decay)


@gankd.register("report_section", "mine_section")
def section(run) -> str:
    return as_section("Mine", "<p>mine it is</p>")
'''


@pytest.fixture
def mine(tiny, tmp_path, monkeypatch):
    """An experiment whose student, method and optimiser are of a file beside its YAML."""
    (tmp_path / "mine_of_a_user.py").write_text(MINE)
    tiny["plugins"] = ["mine_of_a_user.py"]
    tiny["teacher"]["steps"] = 3
    tiny["student"] |= {
        "model": {"name": "mine_linear", "options": {"width": 5}},
        "optimizer": "mine_signs",
        "optimizer_options": {"decay": 0.8},
        "steps": 3,
        "seeds": [0],
        "arms": {"mine": {"method": {"name": "mine_halves", "power": 1.5}}},
    }
    yield tiny
    forget("mine_of_a_user")


def forget(module: str) -> None:
    """Undo what a plugin has registered, for the other tests."""
    for kind in plugins.REGISTRIES:
        registry = plugins.registry(kind)
        for name in [name for name, thing in registry.items() if getattr(thing, "__module__", None) == module]:
            del registry[name]
    plugins.PLUGINS.pop(module, None)
    sys.modules.pop(module, None)


def test_a_file_beside_the_yaml_brings_a_method_a_network_an_optimizer_and_a_section(mine, write_config, tmp_path):
    path = write_config(mine)
    metrics = Run(load_config(path), Accelerator(cpu=True)).run()
    assert metrics["arms"]["mine"]["method"]["power"] == 1.5 and metrics["student"]["network"] == "mine_linear"
    assert "mine it is" in (tmp_path / "runs/tiny/report.html").read_text()
    resolved = load_config(tmp_path / "runs/tiny/config.yaml")  # elsewhere than beside the plugin
    assert resolved.plugins == (str(tmp_path / "mine_of_a_user.py"),)


def test_a_changed_plugin_refuses_the_stages_that_read_it_and_no_others(mine, write_config, tmp_path) -> None:
    path = write_config(mine)
    Run(load_config(path), Accelerator(cpu=True)).run("students")
    (tmp_path / "mine_of_a_user.py").write_text(MINE.replace("/ 2\n", "/ 3\n"))
    refusing = {stage.name: stage.refusal() for stage in Run(load_config(path), Accelerator(cpu=True)).stages()}
    assert refusing["teacher"] is None and "plugins.mine_of_a_user" in refusing["students/mine/seed-0"]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            "student.optimizer_options={decya: 1}",
            "student.optimizer_options: unknown key 'decya'; did you mean 'decay'",
        ),
        (
            "student.optimizer=mine_sings",
            "student.optimizer: unknown optimizer 'mine_sings'; did you mean 'mine_signs'",
        ),
        ("student.arms.mine.method={name: mine_halfs}", "unknown method 'mine_halfs'; did you mean 'mine_halves'"),
        ("plugins=[nowhere.py]", "plugins: there is no file .*nowhere.py; paths are relative to the YAML"),
        ("plugins=[nowhere_at_all]", "plugins: there is no module 'nowhere_at_all', neither beside the YAML nor"),
    ],
)
def test_settings_of_a_plugin_are_validated_like_ours(mine, write_config, change: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        load_config(write_config(mine), [change])


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("import nothing_of_this_name", "needs the module 'nothing_of_this_name', which is not installed"),
        ("1 / 0", "raises ZeroDivisionError: division by zero"),
        ("def broken(", "raises SyntaxError"),
        (
            'import gankd\n@gankd.register("optimizer", "sgd")\ndef mine(groups, learning_rate): ...',
            "take another name",
        ),
        ('import gankd\n@gankd.register("optimiser", "x")\ndef mine(): ...', "unknown kind 'optimiser'; did you mean"),
        ('import gankd\n@gankd.register("method", "x")\ndef mine(): ...', "a method registers itself"),
    ],
)
def test_a_plugin_that_cannot_be_imported_says_why(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "broken_plugin.py").write_text(text)
    with pytest.raises(ValueError, match=sentence):
        gankd.load_plugins(["broken_plugin.py"], beside=tmp_path)
    forget("broken_plugin")


def test_a_module_by_name_is_found_beside_the_yaml_too(tmp_path: Path) -> None:
    (tmp_path / "by_name_only.py").write_text("VALUE = 3")
    assert gankd.load_plugins(["by_name_only"], beside=tmp_path) == [str(tmp_path / "by_name_only.py")]
    assert sys.modules["by_name_only"].VALUE == 3
    forget("by_name_only")


def test_a_plugin_does_not_replace_a_module_that_is_in_use(tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("")
    with pytest.raises(ValueError, match="has the name of the module json, which is in use; rename the file"):
        gankd.load_plugins(["json.py"], beside=tmp_path)
