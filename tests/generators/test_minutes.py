"""`minutes` in place of `steps`: what is decided after a timed beginning, and that it holds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

import generators
from generators import schedule
from generators.checkpoints import read_checkpoint
from generators.config import GeneratorConfig
from tests.generators.test_unet import Interruption, equal

TINY = {
    "sngan": {"widths": (16, 8), "discriminator_widths": (8,), "latent_dim": 6, "discriminator_steps": 2},
    "unet": {"network": "unet", "widths": (8, 16), "sampling_steps": 1},
}
every_network = pytest.mark.parametrize("network", TINY)


def train(network: str, **settings):
    images = torch.randint(256, (20, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    common = {"num_classes": 3, "label_dim": 8, "batch_size": 8, "log_every": 1, "checkpoint_every": 2, "decay": 0.5}
    return generators.train(images, torch.arange(20) % 3, **{**common, **TINY[network], **settings})


class Clock:
    """Time that passes only in steps: the first three take 2 seconds each, later ones a half."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def step(self, number: int) -> dict[str, Tensor]:
        self.now += 2.0 if number < 3 else 0.5
        return {"loss": torch.zeros(())}


@pytest.mark.parametrize(
    ("minutes", "timed"),
    [(10.0, 5), (100.0, 5), (0.5, 1), (0.01, 1)],  # ten seconds of steps that seem to take two; a tenth of less
)
def test_the_number_of_steps_is_what_the_rest_of_the_time_holds(minutes: float, timed: int, monkeypatch) -> None:
    clock = Clock()
    monkeypatch.setattr(schedule, "time", clock)
    steps = schedule.steps_within(minutes, clock.step, Accelerator(cpu=True))
    assert clock.now == 3 * 2 + timed * 0.5
    assert steps == max(1, int((60 * minutes - clock.now) / 0.5))


@every_network
def test_minutes_that_hold_seven_steps_make_what_seven_steps_make(network: str, tmp_path: Path, monkeypatch) -> None:
    """The steps that are timed leave no trace; a run that is killed goes on to the number that was fixed."""
    expected, within, logged = train(network, steps=7), schedule.steps_within, []

    def seven(*arguments) -> int:
        assert within(*arguments) >= 1
        return 7

    def die(values: dict) -> None:
        logged.append(values)
        if values["step"] == 3:
            raise Interruption

    monkeypatch.setattr("generators.training.steps_within", seven)
    assert equal(train(network, minutes=0.01), expected)
    with pytest.raises(Interruption):
        train(network, minutes=0.01, directory=tmp_path, log=die)
    assert logged[0] == {"stage": "generator", "step": 0, "minutes": 0.01, "steps": 7}
    monkeypatch.setattr("generators.training.steps_within", lambda *arguments: pytest.fail("it was decided before"))
    resumed = train(network, minutes=0.01, directory=tmp_path)
    assert equal(resumed, expected) and resumed.trained_steps == 7
    assert generators.load_generator(tmp_path).trained_steps == 7


def test_the_decision_is_stored_before_the_first_step(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("generators.training.steps_within", lambda *arguments: 5)

    def die(values: dict) -> None:
        if values["step"] == 1:
            raise Interruption

    with pytest.raises(Interruption):
        train("unet", minutes=3, directory=tmp_path, log=die)
    state = read_checkpoint(tmp_path / "checkpoint.pt")
    assert (state["step"], state["steps"], state["run"]["minutes"], state["run"]["steps"]) == (0, 5, 3, None)
    with pytest.raises(ValueError, match=r"belongs to another run \(minutes: 3\.0 there, 4\.0 here\)"):
        train("unet", minutes=4, directory=tmp_path)


def test_steps_beside_minutes_are_refused() -> None:
    with pytest.raises(
        ValueError, match="steps: 20 is set beside minutes, which stand in its place; leave one of the two"
    ):
        GeneratorConfig.of({"steps": 20, "minutes": 5})
    assert GeneratorConfig(minutes=5).steps is None and GeneratorConfig().steps == 20_000
    assert GeneratorConfig.of(GeneratorConfig(minutes=5).model_dump()).minutes == 5
