"""LARS against its equation, and the settings of the optimiser that large batches need."""

from __future__ import annotations

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from gankd.training import RunContext, TrainingConfig, build_optimizer, fit
from gankd.training.lars import LARS
from tests.methods.common import fixed_batch, make, source_of

RATE, MOMENTUM, DECAY, TRUST, EPS = 0.3, 0.8, 0.05, 0.02, 1e-3


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 4)).double()


def draw(module: nn.Module, step: int) -> None:
    """Give every parameter a random gradient, that of `step`."""
    generator = torch.Generator().manual_seed(step)
    for parameter in module.parameters():
        parameter.grad = torch.randn(parameter.shape, dtype=parameter.dtype, generator=generator)


def lars(module: nn.Module, **changes) -> LARS:
    settings = {"momentum": MOMENTUM, "weight_decay": DECAY, "trust_coefficient": TRUST, "eps": EPS}
    return LARS(module.parameters(), RATE, **settings | changes)


def norm(values: Tensor) -> float:
    return sum(value**2 for value in values.flatten().tolist()) ** 0.5


def test_three_steps_are_those_of_the_equation() -> None:
    module, twin = network(), network()
    optimizer, moments = lars(module), [torch.zeros_like(parameter) for parameter in twin.parameters()]
    for step in range(3):
        draw(module, step)
        draw(twin, step)
        optimizer.step()
        for parameter, moment in zip(twin.parameters(), moments, strict=True):
            weights = parameter.data
            update = parameter.grad + DECAY * weights
            if weights.ndim > 1:
                update = update * (TRUST * norm(weights) / (norm(update) + EPS))
            moment.copy_(MOMENTUM * moment + update)
            weights -= RATE * moment
    for parameter, expected in zip(module.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(parameter, expected, rtol=1e-12, atol=1e-12)


def test_the_first_step_of_a_kernel_is_as_long_as_its_weights_say_whatever_its_gradient() -> None:
    lengths = []
    for scale in (1e-4, 1.0, 1e4):
        module = network()
        draw(module, 0)
        kernel = module[0].weight
        kernel.grad *= scale
        before = kernel.detach().clone()
        lars(module, weight_decay=1e-12, eps=0).step()
        lengths.append(float((kernel.detach() - before).norm() / before.norm()))
    assert lengths == pytest.approx([RATE * TRUST] * 3)


@pytest.mark.parametrize("decay", [0.0, DECAY])
def test_vectors_are_trained_by_plain_sgd_and_matrices_are_not_decayed_or_not(decay: float) -> None:
    module, twin = network(), network()
    optimizer = lars(module, weight_decay=decay)
    plain = torch.optim.SGD(twin.parameters(), RATE, momentum=MOMENTUM, weight_decay=decay)
    for step in range(3):
        draw(module, step)
        draw(twin, step)
        optimizer.step()
        plain.step()
    for parameter, expected in zip(module.parameters(), twin.parameters(), strict=True):
        same = torch.allclose(parameter, expected, rtol=1e-12, atol=1e-12)
        assert same == (parameter.ndim == 1)


def test_weights_or_gradients_of_zero_take_the_plain_step() -> None:
    zero, still, absent = (nn.Parameter(torch.zeros(2, 3)) for _ in range(3))
    zero.grad, still.grad = torch.ones(2, 3), torch.zeros(2, 3)
    LARS([zero, still, absent], 0.5, weight_decay=0.1, eps=0).step()
    assert torch.equal(zero.detach(), torch.full((2, 3), -0.5))
    assert torch.equal(still.detach(), torch.zeros(2, 3)) and torch.equal(absent.detach(), torch.zeros(2, 3))


def test_half_precision_weights_have_their_momentum_in_float32() -> None:
    module = network().to(torch.bfloat16)
    optimizer = lars(module)
    draw(module, 0)
    optimizer.step()
    assert {state["momentum"].dtype for state in optimizer.state.values()} == {torch.float32}


def test_the_state_goes_on_where_it_was_saved() -> None:
    whole, module = network(), network()
    optimizer = lars(whole)
    for step in range(4):
        draw(whole, step)
        optimizer.step()
    first = lars(module)
    for step in range(2):
        draw(module, step)
        first.step()
    second = lars(module)
    second.load_state_dict(first.state_dict())
    for step in range(2, 4):
        draw(module, step)
        second.step()
    for parameter, expected in zip(module.parameters(), whole.parameters(), strict=True):
        assert torch.equal(parameter, expected)


# --- the settings -----------------------------------------------------------------------------------------------------


def trained(config: TrainingConfig, directory=None, log=None) -> dict[str, Tensor]:
    """The student after `fit` under `config`; an exception in `log` ends the run."""
    distiller, _ = make("supervised", "classification")
    source = source_of(fixed_batch("classification"), "classification", distiller.config, config.batch_size)
    watch = {"log": log} if log else {}
    fit(distiller, source, config, RunContext(accelerator=Accelerator(cpu=True), seed=0, directory=directory, **watch))
    return distiller.student.state_dict()


CONFIG = TrainingConfig(optimizer="lars", steps=4, batch_size=6, learning_rate=0.5, log_every=1, checkpoint_every=2)


def test_training_by_lars_resumes_bit_for_bit(tmp_path) -> None:
    def interrupt(values: dict) -> None:
        if values["step"] == 3:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        trained(CONFIG, tmp_path, interrupt)
    resumed, whole = trained(CONFIG, tmp_path), trained(CONFIG)
    assert all(torch.equal(resumed[key], whole[key]) for key in whole)
    other = trained(CONFIG.replace(optimizer="sgd"))
    assert not all(torch.equal(other[key], whole[key]) for key in whole)


def test_lars_is_built_with_the_settings_of_the_training() -> None:
    optimizer = build_optimizer(network(), CONFIG.replace(weight_decay=0.1, momentum=0.7))
    assert isinstance(optimizer, LARS)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
    assert {(group["lr"], group["momentum"], group["trust_coefficient"]) for group in optimizer.param_groups} == {
        (0.5, 0.7, 1e-3)
    }


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "lars"])
def test_the_learning_rate_grows_with_the_batch_where_it_is_one_for_a_batch_size(optimizer: str) -> None:
    config = CONFIG.replace(optimizer=optimizer, learning_rate=0.02, schedule="steps", milestones=(0.5,))
    scaled, logged = config.replace(learning_rate_per=3), []
    trained(scaled, log=lambda values: logged.append(values["learning_rate"]))
    assert logged == pytest.approx([0.04, 0.04, 0.004, 0.004])
    assert build_optimizer(network(), scaled).param_groups[0]["lr"] == pytest.approx(0.04)
    assert config.peak_rate == 0.02 and config.replace(learning_rate_per=12).peak_rate == pytest.approx(0.01)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "lars"])
def test_decay_all_decays_vectors_too(optimizer: str) -> None:
    groups = build_optimizer(
        network(), CONFIG.replace(optimizer=optimizer, decay_all=True, weight_decay=0.1)
    ).param_groups
    assert [group["weight_decay"] for group in groups] == [0.1, 0.1]
    assert sum(len(group["params"]) for group in groups) == 6


def test_decay_all_leaves_a_method_its_own_decay() -> None:
    distiller, _ = make("ctkd", "classification", {"temperature": {"weight_decay": 0.25}})
    groups = build_optimizer(distiller, CONFIG.replace(decay_all=True, weight_decay=0.1)).param_groups
    assert [group["weight_decay"] for group in groups] == [0.1, 0.1, 0.25]
