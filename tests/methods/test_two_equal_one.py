"""F5: two processes with half of a batch each train as one process does with the whole batch, by every method.

Losses, the gradient of every parameter, banks and statistics agree to 1e-5. Student, peers and heads have batch norms, which
are synchronised so that only the method can make a difference. What a method draws at random is held still, as processes
draw apart on purpose: the partner of a sample is the next one of its process's share.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import traceback
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, distributed
from torch.nn.parallel import DistributedDataParallel

from gankd.distributed.batch_norm import synchronized
from gankd.methods import Distiller
from gankd.training import RunContext, TrainingConfig, fit
from tests.methods.common import (
    CASES,
    HEAD_CASES,
    fixed_batch,
    found_by_two_processes,
    make,
    source_of,
)

TRAINING = TrainingConfig(steps=4, batch_size=16)
OTHERWISE = [  # settings that change what is compared
    *[(name, {"task_weight": 0.5}) for name in ("squeeze_and_span", "vicreg", "simsiam", "simreg")],
    *[("kdcl", {"ensemble": ensemble, "held_out": 0.5}) for ensemble in ("best", "min_logit", "linear", "general")],
    *[("crd", {"memory": memory}) for memory in ("queue", "batch")],
    *[("mcl", {"form": form}) for form in ("memory", "queue")],
    ("cc", {"form": "kernel"}),
    ("crd", {"mode": "relax"}),
    ("cs_kd", {"learners": "both"}),
    ("ddgsd", {"mmd": "scalar"}),
    ("dml", {"target": "ensemble"}),
    ("kd", {"temperature": {"learn": "global"}}),
    ("lmcl", {"meta_every": 1, "vcl_weight": 5, "icl_weight": 5}),
    ("mixup", {"blended": "stages"}),
    ("okddip", {"share": "nothing"}),
    ("zipf_ls", {"only_correct": True}),
    ("zipf_ls", {"votes": "logits"}),
]
EVERY = {f"{name}, {kind}": (name, kind, "scalar", {}) for name, kind in CASES}
EVERY |= {
    f"{name}, {head}": (name, "regression", head, {}) for name, head in HEAD_CASES if (name, "regression") not in CASES
}
EVERY |= {f"{name}, {settings}": (name, "classification", "scalar", settings) for name, settings in OTHERWISE}


@contextlib.contextmanager
def held_still(share: int, processes: int) -> Iterator[None]:
    """Draws without a generator of their own are constants; processes' permutations of their shares are one of the batch."""
    permutation, integers = torch.randperm, torch.randint

    def next_one(count: int, **keywords) -> Tensor:
        if keywords.get("generator") is not None:
            return permutation(count, **keywords)
        rows = torch.arange(count)
        return rows.roll(-2 // processes) if count == share else rows

    def middle(high: int, size: tuple[int, ...], **keywords) -> Tensor:
        if keywords.get("generator") is not None:
            return integers(high, size, **keywords)
        return torch.full(size, high // 2)

    with (
        mock.patch.object(torch, "randperm", next_one),
        mock.patch.object(torch, "randint", middle),
        mock.patch.object(torch.distributions.Beta, "sample", lambda self: torch.tensor(0.3)),
    ):
        yield


def trained(label: str, rank: int = 0, world_size: int = 1) -> dict[str, Tensor]:
    """Two steps of SGD, after two of the first stage where there is one: losses, gradients of the last step, and the state
    that it leaves. In double precision, in which nothing is lost by adding in another order."""
    name, kind, head, settings = EVERY[label]
    data = fixed_batch(kind, 24)
    distiller, teacher = make(name, kind, settings, head=head, data=data, rank=rank, world_size=world_size)
    teacher.module.double()
    teacher.dtype = torch.float64
    distiller.double()
    source = source_of(data, kind, distiller.config, TRAINING.batch_size, rank=rank, world_size=world_size)
    found = {}
    if stage := distiller.first_stage(TRAINING):
        found |= {f"first stage, {key}": value for key, value in two_steps(stage[0], source).items()}
    distiller.prepare(source)
    return found | two_steps(distiller, source)


def two_steps(distiller: Distiller, source) -> dict[str, Tensor]:
    model = DistributedDataParallel(distiller) if source.world_size > 1 else distiller
    optimizer = torch.optim.SGD([each for each in distiller.parameters() if each.requires_grad], lr=0.01)
    found = {}
    for step in range(2):
        distiller.start_step(step, TRAINING.steps, 2)
        batch = source.batch(step)
        if batch.generator_features is not None:
            batch.generator_features.data = batch.generator_features.double()
        with synchronized(distiller), held_still(len(batch.images), source.world_size):
            loss = model(batch)["loss"]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        found[f"loss of step {step}"] = loss.detach()
    named = distiller.named_parameters()
    gradients = {f"gradient of {name}": each.grad for name, each in named if each.grad is not None}
    return found | gradients | {name: value.clone() for name, value in distiller.named_buffers()}


def fitted(accelerator: Accelerator, synchronize: bool) -> dict[str, Tensor]:
    """What `fit` makes of a student and of a peer with batch norms."""
    processes = {"rank": accelerator.process_index, "world_size": accelerator.num_processes}
    distiller, _ = make("dml", "classification", data=fixed_batch("classification", 24), **processes)
    source = source_of(fixed_batch("classification", 24), "classification", distiller.config, 16, **processes)
    settings = {"optimizer": "sgd", "learning_rate": 0.05, "synchronize_batch_norm": synchronize}
    fit(distiller, source, TRAINING.replace(**settings), RunContext(accelerator=accelerator, seed=0))
    return {key: value.clone() for key, value in distiller.state_dict().items()}


def main(rank: int, directory: Path) -> None:
    """One of two processes."""
    torch.set_num_threads(1)
    here = {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "1",
    }
    os.environ |= here  # so that accelerate sees both; the group is there already, and nobody uses the address
    limit = datetime.timedelta(seconds=60)
    meeting = f"file://{directory}/meeting"
    distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2, timeout=limit)
    results = {}
    for label in EVERY:
        try:
            results[label] = trained(label, rank, 2)
        except Exception:  # the other methods are to have their turn; the test of this one shows what happened
            results[label] = traceback.format_exc()
    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == 2
    for synchronize in (True, False):
        results[f"fit, {synchronize}"] = fitted(accelerator, synchronize)
    torch.save(results, directory / f"{rank}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> list[dict[str, dict[str, Tensor]]]:
    """What either of two processes found, which are started once for all methods."""
    return found_by_two_processes(main, tmp_path_factory.mktemp("processes"))


@pytest.mark.parametrize("label", EVERY)
def test_f5_two_processes_train_as_one_with_the_whole_batch(results, label: str) -> None:
    expected, (first, second) = trained(label), (result[label] for result in results)
    for found in (first, second):
        assert isinstance(found, dict), found
        assert list(found) == list(expected)
    assert any("gradient of student" in key and expected[key].abs().sum() > 0 for key in expected)
    for key, value in expected.items():
        pair = torch.stack([first[key], second[key]]).to(value.dtype if value.is_floating_point() else torch.float64)
        if not key.rpartition(", ")[2].startswith("loss of"):
            assert torch.equal(*pair), f"the processes have two versions of {key}"
        message = lambda text, key=key: f"{key}: {text}"  # noqa: E731
        torch.testing.assert_close(pair.mean(dim=0), value.to(pair.dtype), rtol=1e-5, atol=1e-8, msg=message)


def test_f5_batch_norms_of_all_processes_are_an_option_of_every_training(results) -> None:
    (first, second), alone = (result["fit, True"] for result in results), fitted(Accelerator(cpu=True), True)
    apart = results[0]["fit, False"]
    assert any(name.endswith("running_var") for name in alone)
    for name, value in alone.items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], value, rtol=1e-4, atol=1e-6, msg=name)
    assert not all(torch.allclose(apart[name], value, rtol=1e-3) for name, value in alone.items())
