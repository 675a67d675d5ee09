"""Batch norm of all processes: two of them have the outputs, gradients and running statistics of one with all rows."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from gankd.distributed.batch_norm import synchronized
from tests.methods.common import found_by_two_processes

SPLITS = [(4, 4), (3, 5), (1, 1)]  # rows of the first process and of the second
STEPS = 2


class Own(nn.BatchNorm1d):
    """A user's norm, which may do what it likes."""


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Flatten(2),
            nn.BatchNorm1d(4, momentum=None),
            nn.Flatten(),
            nn.Linear(64, 5),
            nn.BatchNorm1d(5, affine=False),
            nn.Linear(5, 6),
            nn.BatchNorm1d(6, track_running_stats=False),
        ).double()
        for parameter in module.parameters():  # not the ones and zeros that norms start with
            nn.init.normal_(parameter, mean=0.3)
        return module


def batch(size: int, step: int) -> tuple[Tensor, Tensor]:
    """Images far from mean zero, and targets, the same in every process."""
    generator = torch.Generator().manual_seed(step)
    images = torch.randn(size, 2, 4, 4, dtype=torch.float64, generator=generator) * 3 + 10
    return images, torch.randn(size, 6, dtype=torch.float64, generator=generator)


def loss_of(outputs: Tensor, targets: Tensor) -> Tensor:
    """Per row, and not linear."""
    return ((outputs - targets).square() + torch.sin(outputs)).mean(dim=1)


def trained(module: nn.Module, size: int, rows: slice, processes: int) -> dict[str, Tensor]:
    """Outputs and gradients of the last of some steps of SGD on `rows`, and the state after it."""
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05)
    for step in range(STEPS):
        images, targets = batch(size, step)
        with synchronized(module):
            outputs = module(images[rows])
        optimizer.zero_grad()
        (
            loss_of(outputs, targets[rows]).sum() * processes / size
        ).backward()  # the mean over processes is over all rows
        optimizer.step()
    plain = getattr(module, "module", module)
    gradients = {f"gradient of {name}": parameter.grad for name, parameter in plain.named_parameters()}
    return {"outputs": outputs.detach(), **gradients, **plain.state_dict()}


def mixed_precision(rows: Tensor) -> dict[str, Tensor]:
    """Outputs and state of a norm that bfloat16 rows were passed to under autocast."""
    module = nn.BatchNorm2d(2)
    with torch.autocast("cpu", dtype=torch.bfloat16), synchronized(module):
        outputs = module(rows.bfloat16())
    return {"outputs": outputs.detach(), **module.state_dict()}


def types(module: nn.Module) -> list[type]:
    return [type(part) for part in module.modules()]


def main(rank: int, directory: Path) -> None:
    """One of two processes."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{directory}/meeting", rank=rank, world_size=2)
    results = {}
    for first, second in SPLITS:
        size, rows = first + second, slice(0, first) if rank == 0 else slice(first, None)
        plain = network()
        results[f"{first} and {second}"] = trained(DistributedDataParallel(plain), size, rows, 2)
        assert types(plain) == types(network())

    own = slice(4 * rank, 4 * rank + 4)
    results["bfloat16"] = mixed_precision(batch(8, 0)[0][own])

    evaluated, twin = network().eval(), network().eval()  # but a norm without running statistics has those of its rows
    with synchronized(evaluated):
        assert torch.equal(evaluated(batch(8, 0)[0][own]), twin(batch(8, 0)[0][own]))

    module = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm2d(3), Own(3), nn.BatchNorm3d(3), nn.LayerNorm(3))
    before, keys = types(module), list(module.state_dict())
    with pytest.raises(ValueError, match="2D or 3D input"), synchronized(module, nn.ModuleList([module[0]])):
        with synchronized(module):  # what is inside of a method that does it itself
            pass
        assert [one is other for one, other in zip(types(module), before, strict=True)] == [
            True,
            False,
            False,
            *[True] * 3,
        ]
        assert isinstance(module[0], nn.BatchNorm1d) and isinstance(module[1], nn.BatchNorm2d)
        assert list(module.state_dict()) == keys
        module[0](torch.zeros(2, 3, 4, 4))
    assert types(module) == before

    torch.save(results, directory / f"{rank}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> list[dict[str, dict[str, Tensor]]]:
    """What either of two processes found."""
    return found_by_two_processes(main, tmp_path_factory.mktemp("processes"))


@pytest.mark.parametrize(("first", "second"), SPLITS)
def test_two_processes_train_like_one_with_all_rows(results, first: int, second: int) -> None:
    found = [result[f"{first} and {second}"] for result in results]
    expected = trained(network(), first + second, slice(None), 1)
    outputs = torch.cat([result["outputs"] for result in found])
    torch.testing.assert_close(outputs, expected["outputs"], rtol=1e-9, atol=1e-9)
    assert list(found[0]) == list(expected)
    for key in set(expected) - {"outputs"}:  # gradients, weights, running statistics, and how many batches they are of
        assert torch.equal(found[0][key], found[1][key]), key
        torch.testing.assert_close(found[0][key], expected[key], rtol=1e-9, atol=1e-9, msg=key)


def test_under_autocast_statistics_are_exact_and_outputs_of_the_inputs_precision(results) -> None:
    rows, plain = batch(8, 0)[0].bfloat16(), nn.BatchNorm2d(2)
    expected = plain(rows.float()).bfloat16()
    found = [result["bfloat16"] for result in results]
    torch.testing.assert_close(torch.cat([result["outputs"] for result in found]), expected, rtol=1e-2, atol=1e-2)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(found[0][name], value, rtol=1e-6, atol=1e-6)


def test_in_one_process_it_is_the_plain_norm() -> None:
    module, twin = network(), network()
    with synchronized(module):
        assert types(module) == types(twin)
        assert torch.equal(module(batch(6, 0)[0]), twin(batch(6, 0)[0]))
    assert all(torch.equal(value, twin.state_dict()[key]) for key, value in module.state_dict().items())
