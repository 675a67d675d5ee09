"""G: parameters that no output depends on do not stop two processes; `main` below is what either of them runs."""

from __future__ import annotations

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

import gankd
from gankd.data.sets import ImageSet
from tests.commands import run_two


class WithIdleLayer(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.idle = nn.Linear(192, 3), nn.Linear(5, 5)

    def forward(self, images: Tensor) -> Tensor:
        return self.layer(images.flatten(1))


def trained() -> float:
    images = torch.randint(0, 256, (16, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    torch.manual_seed(0)
    student, data = WithIdleLayer(), ImageSet(images, torch.arange(16) % 3)
    idle = student.idle.weight.clone()
    gankd.distill(student, real=data, method="supervised", steps=3, batch_size=8, accelerator=Accelerator(cpu=True))
    assert torch.equal(student.idle.weight, idle)
    return student.layer.weight.norm().item()


def test_g_two_processes_train_a_student_with_parameters_without_gradient_as_one_does() -> None:
    lines = run_two("tests.test_idle_parameters").splitlines()
    assert [float(line.split()[1]) for line in lines if line.startswith("norm ")] == [
        pytest.approx(trained(), rel=1e-5)
    ]


def main() -> None:
    norm, accelerator = trained(), Accelerator(cpu=True)
    if accelerator.is_main_process:
        print("norm", norm, flush=True)
    accelerator.end_training()


if __name__ == "__main__":
    main()
