"""H: what it costs to import gankd, and what an editor sees of it."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
from pathlib import Path

import pytest

import gankd
import generators


@pytest.mark.parametrize("name", gankd.__all__)
def test_every_name_is_there_and_completion_sees_it(name: str) -> None:
    assert getattr(gankd, name) is not None and name in dir(gankd)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'gankd' has no attribute 'distil'"):
        gankd.distil  # noqa: B018
    with pytest.raises(AttributeError):
        generators.trains  # noqa: B018


def test_the_doors_import_nothing_heavy() -> None:
    """Looking at a function of the library costs less than importing torch: its work is imported when it is called."""
    doors = ["distill", "distill_chain", "pretrain", "synthesize", "evaluate", "register"]
    looks = "; ".join(f"gankd.{name}" for name in doors)
    code = f"import sys, gankd; {looks}; print(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    heavy = {"diffusers", "accelerate", "sklearn", "torchvision", "torch_fidelity", "transformers", "matplotlib"}
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not heavy & set(found)


def test_h_every_dependency_is_imported_somewhere() -> None:
    """What nothing imports is no dependency; what one feature imports is an extra, and its lack a sentence."""
    tomllib = pytest.importorskip("tomllib")  # of Python 3.11
    root, names = Path(__file__).parent.parent, {"pillow": "PIL", "pyyaml": "yaml", "scikit-learn": "sklearn"}
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    extras = {
        key: value for key, value in project["optional-dependencies"].items() if key not in ("dev", "tensorboard")
    }
    code = "\n".join(path.read_text() for folder in ("gankd", "generators") for path in (root / folder).rglob("*.py"))
    for requirement in [*project["dependencies"], *itertools.chain(*extras.values())]:
        package = re.match(r"[\w-]+", requirement).group()
        name = names.get(package, package.replace("-", "_"))
        assert re.search(rf"^ *(import|from) {name}\b", code, re.M), f"nothing imports {package}"
    for extra in [*extras, "tensorboard"]:
        assert f"gankd[{extra}]" in code, f"nothing says that {extra} is to be installed"
