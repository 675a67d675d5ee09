"""Every method on two processes, which train one student together: `main` below is what either of them runs."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch import Tensor, distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm

from gankd.training import RunContext, TrainingConfig, fit
from tests.commands import run_two
from tests.methods.common import CASES, fixed_batch, make, source_of

TRAINING = TrainingConfig(steps=2, batch_size=8, log_every=1)


def test_two_processes_end_with_equal_students_heads_and_banks() -> None:
    output = run_two("tests.methods.test_two_processes")
    lines = [line.removeprefix("result: ") for line in output.splitlines() if line.startswith("result: ")]
    assert lines == [f"{name} {kind}, 2 processes, unlike: nothing" for name, kind in CASES]


def shared_state(module: nn.Module) -> dict[str, Tensor]:
    """Weights and buffers, without the statistics of batch norms, which are those of a process' own samples."""
    own = {
        f"{path}.{name}".lstrip(".")
        for path, part in module.named_modules()
        if isinstance(part, _BatchNorm)
        for name, _ in part.named_buffers()
    }
    return {name: value for name, value in module.state_dict().items() if name not in own}


def unlike(module: nn.Module) -> list[str]:
    """Names of the tensors that differ between the processes."""
    names = []
    for name, value in shared_state(module).items():
        copies = [torch.empty_like(value) for _ in range(distributed.get_world_size())]
        distributed.all_gather(copies, value.contiguous())
        if not all(torch.equal(copies[0], copy) for copy in copies):
            names.append(name)
    return names


def main() -> None:
    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True)
    for name, kind in CASES:
        distiller, _ = make(name, kind)
        processes = {"rank": accelerator.process_index, "world_size": accelerator.num_processes}
        source = source_of(fixed_batch(kind), kind, distiller.config, TRAINING.batch_size, **processes)
        fit(distiller, source, TRAINING, RunContext(accelerator=accelerator, seed=0))
        differing = unlike(distiller)
        if accelerator.is_main_process:
            found = ", ".join(differing) or "nothing"
            print(f"result: {name} {kind}, {accelerator.num_processes} processes, unlike: {found}", flush=True)
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
