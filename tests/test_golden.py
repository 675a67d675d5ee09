"""Our functions return what the original implementations returned, gradients included (vectors in tests/golden).

Each FILE.json lists cases over the arrays of FILE.npz: a dotted callable, its keyword arguments, the expected outputs
in order and the expected gradients of outputs[0].sum().
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.golden.adapters import ADAPTERS

FOLDER = Path(__file__).parent / "golden"
CASES = [(index, case) for index in sorted(FOLDER.glob("*.json")) for case in json.loads(index.read_text())]


@pytest.mark.parametrize(("index", "case"), CASES, ids=[case["id"] for _, case in CASES])
def test_golden_case(index: Path, case: dict) -> None:
    with np.load(index.with_suffix(".npz"), allow_pickle=False) as arrays:
        arguments = {name: load(arrays, keys) for name, keys in case["tensors"].items()}
        expected = list(tensors(load(arrays, case["outputs"])))
        gradients = {name: load(arrays, keys) for name, keys in case["grads"].items()}
    for name in gradients:
        for leaf in tensors(arguments[name]):
            leaf.requires_grad_()

    outputs = list(tensors(resolve(case["callable"])(**arguments, **case["scalars"])))
    assert len(outputs) >= len(expected)
    for position, wanted in enumerate(expected):
        assert_matches(outputs[position], wanted, case, f"output {position}")

    if gradients:
        outputs[0].sum().backward()
    for name, wanted in gradients.items():
        for leaf, gradient in zip(tensors(arguments[name]), tensors(wanted), strict=True):
            assert leaf.grad is not None, f"no gradient reaches {name}"
            assert_matches(leaf.grad, gradient, case, f"gradient of {name}")


def load(arrays: np.lib.npyio.NpzFile, keys: str | list) -> Tensor | list:
    return [load(arrays, key) for key in keys] if isinstance(keys, list) else torch.from_numpy(arrays[keys])


def tensors(value: object) -> Iterator[Tensor]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors(item)
    else:
        yield torch.as_tensor(value)


def resolve(dotted: str) -> Callable:
    if dotted in ADAPTERS:
        return ADAPTERS[dotted]
    module, _, name = dotted.rpartition(".")
    return getattr(importlib.import_module(module), name)


def assert_matches(got: Tensor, wanted: Tensor, case: dict, what: str) -> None:
    got = got.detach()
    if got.numel() == wanted.numel() == 1:  # a scalar may come as [] or [1]
        got = got.reshape(wanted.shape)
    assert got.shape == wanted.shape, f"{what}: shape {list(got.shape)}, expected {list(wanted.shape)}"
    if wanted.is_floating_point():
        torch.testing.assert_close(
            got.double(), wanted.double(), rtol=case["rtol"], atol=case["atol"], msg=lambda text: f"{what}: {text}"
        )
    else:
        assert (got == wanted).all(), f"{what}: {got.tolist()}, expected {wanted.tolist()}"
