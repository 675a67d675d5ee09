"""Peers spread over two processes learn what they learn in one that has the whole batch: `main` is what either runs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import distributed

from gankd.methods import method_config
from gankd.training import RunContext, TrainingConfig, fit
from tests.commands import run_two
from tests.methods.common import fixed_batch, make, source_of

TRAINING = TrainingConfig(steps=4, batch_size=8, optimizer="sgd", learning_rate=0.05, log_every=1)
BATCH = 8  # of both processes
CHECKED = 2  # images on which a student is tried before it is trained
UNLIKE = {"peers": 2, "peer_models": [{"name": "small_resnet", "options": {"widths": [4, 16]}}]}
CASES = {
    "dml": ("dml", "classification", {"peers": 3, "deploy": "best"}),
    "dml, unlike peers": ("dml", "classification", UNLIKE),
    "dml, scalars": ("dml", "regression", {"peers": 2}),
    "kdcl": ("kdcl", "classification", {}),
    "kdcl, held-out samples": ("kdcl", "classification", {"ensemble": "general", "held_out": 0.5}),
    "mcl, 2 peers": ("mcl", "classification", {"logit_weight": 1}),
    "mcl, 3 peers": ("mcl", "classification", {"peers": 3}),
    "mcl, scalars": ("mcl", "regression", {"form": "batch", "positives": "vicinal", "kappa": 1}),
    "okddip": ("okddip", "classification", {"share": "nothing", "peers": 3}),
    "ffl, unlike peers": ("ffl", "classification", {"share": "nothing", **UNLIKE}),
    "mfef": ("mfef", "classification", {"share": "nothing", "scales": 2, "detach_fusion_input": True}),
    "afd": ("afd", "regression", {"peers": 3}),
}

MEMORY = {"mcl, memory": ("mcl", "classification", {"form": "memory"})}  # its negatives are drawn at random


def train(label: str, accelerator: Accelerator, **changes) -> dict:
    """Train a case and return what it ended with, and the sizes of the batches that every peer was run on in training."""
    name, kind, settings = (CASES | MEMORY)[label]
    distiller, _ = make(name, kind, {"spread_peers": True, **settings, **changes})
    sizes: list[list[int]] = [[] for _ in distiller.networks]
    for network, seen in zip(distiller.networks, sizes, strict=True):
        network.register_forward_pre_hook(
            lambda network, images, seen=seen: seen.append(len(images[0])) if network.training else None
        )
    processes = {"rank": accelerator.process_index, "world_size": accelerator.num_processes}
    source = source_of(fixed_batch(kind), kind, distiller.config, TRAINING.batch_size, **processes)
    lines: list[dict] = []
    fit(distiller, source, TRAINING, RunContext(accelerator=accelerator, seed=0, log=lines.append))
    return {
        "state": distiller.state_dict(),
        "deployed": distiller.deployable().state_dict(),
        "losses": [line["loss"] for line in lines],
        "sizes": [[size for size in seen if size != CHECKED] for seen in sizes],
    }


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory) -> dict[str, list[dict]]:
    """What the two processes end with in every case."""
    folder = tmp_path_factory.mktemp("two_processes")
    run_two("tests.methods.test_spread_peers", str(folder))
    found = [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]
    return {label: [each[label] for each in found] for label in CASES | MEMORY}


@pytest.mark.parametrize("label", CASES)
def test_two_processes_end_with_the_weights_and_statistics_of_one(label: str, two_processes) -> None:
    expected = train(label, Accelerator(cpu=True))
    start = make(*CASES[label])[0].state_dict()
    moved = [name for name, value in expected["state"].items() if not torch.allclose(value, start[name], atol=1e-4)]
    assert any("running_var" in name for name in moved) and any(name.startswith("others.0.") for name in moved)
    for found in two_processes[label]:
        for part in ("state", "deployed"):
            torch.testing.assert_close(found[part], expected[part], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(two_processes[label][0]["losses"], expected["losses"], rtol=1e-5, atol=1e-5)


def test_banks_end_equal_and_moved(two_processes) -> None:
    first, second = (found["state"] for found in two_processes["mcl, memory"])
    torch.testing.assert_close(second, first, rtol=0, atol=0)
    start = make(*MEMORY["mcl, memory"])[0].state_dict()
    for peer in range(2):
        name = f"banks.{peer}.rows"
        assert not torch.isclose(first[name], start[name]).all(1).any()


@pytest.mark.parametrize("label", CASES | MEMORY)
def test_a_process_runs_only_its_own_peers_and_on_the_whole_batch(label: str, two_processes) -> None:
    for rank, found in enumerate(two_processes[label]):
        for index, sizes in enumerate(found["sizes"]):
            assert sizes == ([BATCH] * TRAINING.steps if index % 2 == rank else [])


@pytest.mark.parametrize("label", ["dml", "kdcl", "mcl, 2 peers", "ffl, unlike peers"])
def test_in_one_process_the_setting_changes_nothing(label: str) -> None:
    spread, together = (train(label, Accelerator(cpu=True), spread_peers=value) for value in (True, False))
    torch.testing.assert_close(spread, together, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"name": "dml", "share": "trunk"}, "branches share a trunk; set share: nothing"),
        ({"name": "ffl"}, "branches share a trunk; set share: nothing"),
        ({"name": "one"}, "one cannot have spread_peers: its branches share a trunk; use okddip or ffl"),
        ({"name": "lmcl"}, "lmcl cannot have spread_peers: its meta step .* use mcl"),
    ],
)
def test_peers_that_cannot_be_spread_are_refused(settings: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        method_config({**settings, "spread_peers": True})


@pytest.mark.parametrize(("kind", "settings"), [("regression", {}), ("classification", {"form": "queue"})])
def test_the_queues_of_mcl_are_refused(kind: str, settings: dict) -> None:
    config = method_config({"name": "mcl", "spread_peers": True, **settings})
    with pytest.raises(ValueError, match="mcl's queues cannot have spread_peers.* set form: batch or memory"):
        config.check_task(kind)


def main() -> None:
    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True)
    found = {label: train(label, accelerator) for label in CASES | MEMORY}
    torch.save(found, Path(sys.argv[1]) / f"{accelerator.process_index}.pt")
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
