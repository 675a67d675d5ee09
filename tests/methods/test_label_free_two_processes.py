"""Methods without labels on two processes: with half of the batch each, they have the gradients of one with all of it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed
from torch.nn.parallel import DistributedDataParallel

from gankd.data.loader import Batch
from gankd.methods import Distiller
from tests.methods.common import fixed_batch, found_by_two_processes, make

CASES = {
    "squeeze_and_span": ("squeeze_and_span", "representation", {}),
    "squeeze_and_span, labels": ("squeeze_and_span", "classification", {"task_weight": 0.5}),
    "vicreg": ("vicreg", "representation", {}),
    "simsiam": ("simsiam", "representation", {}),
    "simreg": ("simreg", "representation", {}),
}


def built(label: str) -> Distiller:
    """In double precision, with batch norms in student, projector, squeezing network and heads."""
    name, kind, settings = CASES[label]
    distiller, teacher = make(name, kind, settings)
    teacher.module.double()
    return distiller.double()


def share_of(label: str, rows: slice = slice(None)) -> Batch:
    """Rows of the real images of a batch, and the same of the synthetic ones."""
    batch = fixed_batch(CASES[label][1])  # six real images, six synthetic ones
    picked = torch.cat([torch.arange(6)[rows], 6 + torch.arange(6)[rows]])
    fields = {name: getattr(batch, name)[picked] for name in ("images", "labels", "indices", "is_synthetic")}
    return dataclasses.replace(batch, **fields, generator_features=batch.generator_features[rows].double())


def step(distiller: Distiller, module, batch: Batch) -> dict[str, Tensor]:
    """The gradients of a step, and the running statistics after it."""
    module(batch)["loss"].backward()
    gradients = {name: each.grad for name, each in distiller.named_parameters() if each.grad is not None}
    return gradients | dict(distiller.named_buffers())


def main(rank: int, directory: Path) -> None:
    """One of two processes."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{directory}/meeting", rank=rank, world_size=2)
    results = {}
    for label in CASES:
        distiller = built(label)
        results[label] = step(distiller, DistributedDataParallel(distiller), share_of(label, slice(rank, None, 2)))
    torch.save(results, directory / f"{rank}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> list[dict[str, dict[str, Tensor]]]:
    """What either of two processes found."""
    return found_by_two_processes(main, tmp_path_factory.mktemp("processes"))


@pytest.mark.parametrize("label", CASES)
def test_two_processes_have_the_gradients_of_one_with_the_whole_batch(results, label: str) -> None:
    distiller = built(label)
    expected = step(distiller, distiller, share_of(label))
    assert any(name.startswith("student.") and expected[name].abs().sum() > 0 for name, _ in distiller.named_parameters()
               if name in expected)  # fmt: skip
    for found in (result[label] for result in results):
        assert list(found) == list(expected)
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-8, msg=name)
