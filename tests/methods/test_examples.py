"""The example in every method's docstring runs, and the loss that it names is there."""

from __future__ import annotations

import doctest
import functools
import importlib
import re

import pytest

import gankd
from gankd.methods import METHODS
from tests.methods.common import STUDENT, TEACHER, fixed_batch, image_sets, network

OF_TEACHERS = {name: method for name, method in METHODS.items() if ".teacher." in method.__module__}


def examples_of(method: type) -> list[doctest.Example]:
    return doctest.DocTestParser().get_examples(method.__doc__ or "")


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if examples_of(method)])
def test_the_example_of_a_method_runs(name: str, tmp_path, monkeypatch) -> None:
    method = METHODS[name]
    kind = "classification" if "classification" in method.tasks else "regression"
    if not {"classification", "regression"} & method.tasks:
        kind = "representation"
    real, synthetic = image_sets(fixed_batch(kind, 24))
    for door in ("distill", "pretrain"):
        short = functools.partial(getattr(gankd, door), steps=2, batch_size=12)
        monkeypatch.setattr(gankd, door, short)
    names = {"gankd": gankd, "train": real, "synthetic": synthetic}
    names |= {"student": network(kind, 0, STUDENT), "teacher": network(kind, 1, TEACHER)}
    monkeypatch.chdir(tmp_path)  # an example may write a file
    test = doctest.DocTest(examples_of(method), names, name, None, 0, method.__doc__)
    said: list[str] = []
    assert doctest.DocTestRunner(verbose=False).run(test, out=said.append).failed == 0, "".join(said)


@pytest.mark.parametrize("name", OF_TEACHERS)
def test_a_method_shows_its_use_and_names_its_loss(name: str) -> None:
    lines = OF_TEACHERS[name].__doc__.strip().splitlines()
    assert 1 <= len(examples_of(OF_TEACHERS[name])) <= 6
    assert lines[-1].strip().startswith("Loss: losses.")
    for module, function in re.findall(r"losses\.(\w+)\.(\w+)", lines[-1]):
        assert callable(getattr(importlib.import_module(f"gankd.losses.{module}"), function))


@pytest.mark.parametrize("name", OF_TEACHERS)
def test_r4_a_tooltip_stands_alone(name: str) -> None:
    for key, field in OF_TEACHERS[name].Config.model_fields.items():
        assert field.description and not field.description.startswith(("Of ", "Its ")), f"{name}.{key}"
