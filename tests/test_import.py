"""H: what it costs to import gankd, and what an editor sees of it."""

from __future__ import annotations

import subprocess
import sys

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


@pytest.mark.parametrize("name", ["distill", "distill_chain", "pretrain", "synthesize", "evaluate", "register"])
def test_the_doors_import_nothing_heavy(name: str) -> None:
    """Looking at a function of the library costs less than importing torch: its work is imported when it is called."""
    code = f"import sys, gankd; gankd.{name}; print(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    heavy = {"diffusers", "accelerate", "sklearn", "torchvision", "torch_fidelity", "transformers", "matplotlib"}
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not heavy & set(found)
