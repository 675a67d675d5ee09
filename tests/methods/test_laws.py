"""The laws that every distillation method keeps, on every task that it declares."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import nn

import gankd
from gankd.data.augment import AugmentationConfig
from gankd.data.loader import Batch
from gankd.methods import METHODS, Distiller, Term
from gankd.training import RunContext, TrainingConfig, build_optimizer, fit
from tests.methods.common import (
    CASES,
    HEAD_CASES,
    STUDENT,
    TEACHER,
    fixed_batch,
    image_sets,
    make,
    network,
    source_of,
)

AUGMENTATION = AugmentationConfig(crop_padding=1, horizontal_flip=True, rotation=10, cutout=0.25, brightness=0.2)
TRAINING = TrainingConfig(steps=4, batch_size=7, log_every=1, checkpoint_every=2, augmentation=AUGMENTATION)
every_case = pytest.mark.parametrize(("name", "kind"), CASES)
TERMS = {name for name, method in METHODS.items() if issubclass(method, Term)}
STAGED = {
    name
    for name, method in METHODS.items()
    if (method.first_stage_loss is not Term.first_stage_loss if name in TERMS else "first_stage" in vars(method))
}
every_term = pytest.mark.parametrize(("name", "kind"), [case for case in CASES if case[0] in TERMS])
every_first_stage = pytest.mark.parametrize(("name", "kind"), [case for case in CASES if case[0] in STAGED])


class Interruption(Exception):
    """Stands for a killed process."""


def train(
    distiller: Distiller,
    *,
    training: TrainingConfig = TRAINING,
    directory: Path | None = None,
    until: Callable[[dict], bool] = lambda values: False,
    log: Callable[[dict], None] = lambda values: None,
) -> None:
    """`fit` on batches of odd size, cut off behind the step for whose log line `until` holds."""

    def watch(values: dict) -> None:
        log(values)
        if until(values):
            raise Interruption

    kind = distiller.task.kind
    batches = source_of(fixed_batch(kind), kind, distiller.config, training.batch_size)  # of real and synthetic samples
    fit(distiller, batches, training, RunContext(accelerator=Accelerator(), seed=0, directory=directory, log=watch))


def interrupted(distiller: Distiller, **arguments) -> None:
    with pytest.raises(Interruption):
        train(distiller, **arguments)


def loss_of(distiller: Distiller, batch: Batch) -> float:
    """The loss in the middle of the training, always with the same draws."""
    torch.manual_seed(0)
    distiller.start_step(10, 20, 1)
    return distiller(batch)["loss"].item()


def assert_equal_state(one: nn.Module, other: nn.Module) -> None:
    first, second = one.state_dict(), other.state_dict()
    assert list(first) == list(second)
    assert [key for key in first if not torch.equal(first[key], second[key])] == []


@functools.cache
def whole(name: str, kind: str) -> SimpleNamespace:
    """What a training ends with that nothing interrupts: the distiller and its teacher, the teacher's state before, and
    whether the caller's random numbers are what they were."""
    torch.manual_seed(5)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    distiller, teacher = make(name, kind, augmentation=AUGMENTATION)
    before = {key: value.clone() for key, value in teacher.module.state_dict().items()}
    train(distiller)
    untouched = torch.equal(torch.get_rng_state(), states[0]), random.getstate() == states[1]
    untouched += (np.array_equal(np.random.get_state()[1], states[2]),)
    return SimpleNamespace(distiller=distiller, teacher=teacher, teacher_before=before, untouched=untouched)


def descend(distiller: Distiller, batch: Batch, steps: int = 10) -> None:
    """So many steps of Adam on one batch, at the rates of `parameter_groups`."""
    special = {id(parameter) for group in distiller.parameter_groups() for parameter in group["params"]}
    common = [p for p in distiller.parameters() if p.requires_grad and id(p) not in special]
    groups = [{"params": common}, *distiller.parameter_groups()]
    optimizer = torch.optim.Adam([{"params": group["params"], "lr": 1e-2 * group.get("rate", 1)} for group in groups])
    for step in range(steps):
        torch.manual_seed(step)
        optimizer.zero_grad()
        distiller(batch)["loss"].backward()
        optimizer.step()


# --- the loss ---------------------------------------------------------------------------------------------------------


@every_case
def test_the_loss_falls_on_a_batch_that_stays_the_same(name: str, kind: str) -> None:
    distiller, _ = make(name, kind)
    batch = fixed_batch(kind)
    before = loss_of(distiller, batch)
    descend(distiller, batch)
    assert loss_of(distiller, batch) < before - 0.1 * abs(before)


@pytest.mark.parametrize(("name", "head"), HEAD_CASES)
def test_the_loss_falls_with_the_other_heads_of_a_regressor(name: str, head: str) -> None:
    distiller, _ = make(name, "regression", head=head)
    batch = fixed_batch("regression")
    before = loss_of(distiller, batch)
    descend(distiller, batch)
    assert loss_of(distiller, batch) < 0.9 * before
    unreached = [key for key, parameter in distiller.student.named_parameters() if parameter.grad is None]
    assert unreached == []


@every_first_stage
def test_the_loss_of_a_first_stage_falls_too(name: str, kind: str) -> None:
    distiller, _ = make(name, kind)
    (first, _), batch = distiller.first_stage(TRAINING), fixed_batch(kind)
    before = first(batch)["loss"].item()
    descend(first, batch)
    assert first(batch)["loss"].item() < 0.9 * before


@every_case
@pytest.mark.parametrize(("size", "num_classes", "channels"), [(7, 2, 3), (2, 3, 1)])
def test_every_term_is_a_finite_scalar_and_the_total_reaches_the_whole_student(
    name: str, kind: str, size: int, num_classes: int, channels: int
) -> None:
    shapes = {"num_classes": max(num_classes, METHODS[name].fewest_classes), "channels": channels}
    distiller, _ = make(name, kind, **shapes)
    distiller.start_step(10, 20, 1)
    terms = distiller(fixed_batch(kind, max(size, METHODS[name].fewest_samples), **shapes))
    assert "loss" in terms and len(terms) > (0 if name == "simreg" else 1)  # of one teacher it has no other term
    assert all(term.shape == () and term.isfinite() for term in terms.values())
    terms["loss"].backward()
    for parameter_name, parameter in distiller.student.named_parameters():
        if kind == "representation" and parameter_name.startswith("head."):
            assert parameter.grad is None, "without labels, nothing is learnt behind the pooled feature"
            continue
        assert parameter.grad is not None, f"no gradient reaches {parameter_name}"
        assert parameter.grad.isfinite().all()


@pytest.mark.parametrize(("name", "kind"), [case for case in CASES if not METHODS[case[0]].needs_equal_widths])
@pytest.mark.parametrize(("student", "teacher"), [((8, 16), (8, 16, 32)), ((8, 16, 16), (16, 32))])
def test_student_and_teacher_may_have_unlike_numbers_of_stages(name: str, kind: str, student, teacher) -> None:
    distiller, _ = make(name, kind, student_widths=student, teacher_widths=teacher)
    terms = distiller(fixed_batch(kind))
    terms["loss"].backward()
    assert terms["loss"].isfinite()


@every_case
def test_a_batch_of_identical_images_is_finite(name: str, kind: str) -> None:
    distiller, _ = make(name, kind)
    batch = fixed_batch(kind, 4)
    batch.images[:] = batch.images[:1].clone()
    terms = distiller(batch)
    terms["loss"].backward()
    assert terms["loss"].isfinite()
    assert all(p.grad.isfinite().all() for p in distiller.parameters() if p.grad is not None)


@every_case
@pytest.mark.parametrize(("dtype", "rel"), [(torch.bfloat16, 0.1), (torch.float16, 0.02)], ids=["bfloat16", "float16"])
def test_the_loss_is_in_full_precision_inside_autocast(name: str, kind: str, dtype: torch.dtype, rel: float) -> None:
    distiller, batch = make(name, kind)[0], fixed_batch(kind)
    with torch.autocast("cpu", dtype=dtype):
        torch.manual_seed(0)
        terms = distiller(batch)
    terms["loss"].backward()
    assert all(term.dtype == torch.float32 and term.isfinite() for term in terms.values())
    assert all(p.grad.isfinite().all() for p in distiller.parameters() if p.grad is not None)
    assert terms["loss"].item() == pytest.approx(loss_in_full(name, kind), rel=rel, abs=rel / 5)


@functools.cache
def loss_in_full(name: str, kind: str) -> float:
    """Without autocast."""
    distiller, _ = make(name, kind)
    torch.manual_seed(0)
    return distiller(fixed_batch(kind))["loss"].item()


@every_case
def test_the_same_draws_give_the_same_loss(name: str, kind: str) -> None:
    (one, _), (other, _) = make(name, kind, augmentation=AUGMENTATION), make(name, kind, augmentation=AUGMENTATION)
    batch = fixed_batch(kind)
    torch.manual_seed(1)  # of the caller: what a method is built from does not depend on it
    assert loss_of(one, batch) == loss_of(other, batch)


@every_case
def test_images_are_augmented_in_training_only(name: str, kind: str) -> None:
    losses = {}
    for mode in (True, False):
        distiller, _ = make(name, kind, augmentation=AUGMENTATION)
        views = []
        distiller.augment.register_forward_hook(lambda _, __, view, views=views: views.append(view))
        distiller.train(mode)
        distiller(fixed_batch(kind))
        losses[mode] = views
    plain = fixed_batch(kind).images.float() / 255
    parts = plain, *plain.chunk(2)  # some methods look at real and synthetic images apart
    is_plain = {mode: [any(torch.equal(view, part) for part in parts) for view in losses[mode]] for mode in losses}
    assert is_plain[True] and not any(is_plain[True])
    assert is_plain[False] and all(is_plain[False])


# --- what is trained, and what is not ---------------------------------------------------------------------------------


@every_case
def test_what_is_deployed_is_the_plain_student(name: str, kind: str) -> None:
    distiller, _ = make(name, kind)
    descend(distiller, fixed_batch(kind), steps=1)
    plain, deployed = network(kind, 0), distiller.deployable()
    assert type(deployed) is type(plain)
    assert list(deployed.state_dict()) == list(plain.state_dict())
    plain.load_state_dict(deployed.state_dict())
    images = torch.rand(2, 1, 8, 8)
    torch.testing.assert_close(plain.eval()(images), deployed.eval()(images))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in deployed.modules())


@every_case
def test_the_teacher_is_neither_trained_nor_stored_nor_put_in_training_mode(name: str, kind: str) -> None:
    trained = whole(name, kind)
    distiller, teacher, before = trained.distiller, trained.teacher, trained.teacher_before
    mine = {id(tensor) for tensor in (*teacher.module.parameters(), *teacher.module.buffers())}
    assert not mine & {id(tensor) for tensor in (*distiller.parameters(), *distiller.buffers())}
    assert not any(key.startswith("teacher.") for key in distiller.state_dict())
    after = teacher.module.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert not any(module.training for module in teacher.module.modules())
    assert not any(parameter.requires_grad for parameter in teacher.module.parameters())
    assert all(parameter.grad is None for parameter in teacher.module.parameters())


@every_case
def test_the_random_numbers_of_the_caller_are_not_touched(name: str, kind: str) -> None:
    assert whole(name, kind).untouched == (True, True, True), "of torch, of Python, of numpy"


@every_case
def test_every_trainable_parameter_has_one_place_in_the_optimiser(name: str, kind: str) -> None:
    distiller, _ = make(name, kind)
    groups = build_optimizer(distiller, TRAINING).param_groups
    optimised = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(optimised) == sorted(id(p) for p in distiller.parameters() if p.requires_grad)


def distilled(kind: str, method: str | dict, teacher: nn.Module | None = None) -> nn.Module:
    real, synthetic = image_sets(fixed_batch(kind))
    training = TRAINING.replace(steps=2)
    return gankd.distill(network(kind, 0), teacher, real=real, synthetic=synthetic, method=method, training=training)


@functools.lru_cache
def supervised(kind: str) -> nn.Module:
    return distilled(kind, "supervised")


@every_term
def test_a_term_of_weight_zero_is_plain_supervised_training(name: str, kind: str) -> None:
    """Bit for bit, through the library's door; with its own weight the student is another one."""
    settings = METHODS[name].Config.model_fields
    off = {"name": name, "task_weight": 1, "weight": 0} if "weight" in settings else {"name": name, "alpha": 0}
    teacher = network(kind, 1, STUDENT if METHODS[name].needs_equal_widths else TEACHER)
    plain, student = supervised(kind), distilled(kind, off, teacher)
    assert_equal_state(student, plain)
    weights = [torch.cat([p.flatten() for p in one.parameters()]) for one in (distilled(kind, name, teacher), plain)]
    assert not torch.equal(*weights)


# --- resume -----------------------------------------------------------------------------------------------------------


@every_case
def test_two_steps_and_two_more_equal_four_bit_for_bit(name: str, kind: str, tmp_path: Path) -> None:
    """Heads, banks and first stages included: everything that the distiller holds is compared."""
    killed, _ = make(name, kind, augmentation=AUGMENTATION)
    third = {"until": lambda values: values["stage"] == "training" and values["step"] == 3}
    interrupted(killed, directory=tmp_path, **third)  # the third step is lost, the checkpoint is of the second
    resumed, logged = make(name, kind, augmentation=AUGMENTATION)[0], []
    train(resumed, directory=tmp_path, log=logged.append)
    assert [(values["stage"], values["step"]) for values in logged] == [("training", 3), ("training", 4)]
    assert_equal_state(resumed, whole(name, kind).distiller)


@every_first_stage
def test_a_first_stage_is_resumed_where_it_was_cut_off(name: str, kind: str, tmp_path: Path) -> None:
    distiller, _ = make(name, kind, augmentation=AUGMENTATION)
    steps = next(n for n in range(4, 500) if distiller.first_stage(TRAINING.replace(steps=n))[1].steps > 3)
    training = TRAINING.replace(steps=steps)
    begun = {"until": lambda values: values["stage"] == "training"}  # behind the first step of the second stage
    interrupted(distiller, training=training, **begun)
    interrupted(
        make(name, kind, augmentation=AUGMENTATION)[0],
        training=training,
        directory=tmp_path,
        until=lambda values: values["step"] == 3,
    )
    resumed, logged = make(name, kind, augmentation=AUGMENTATION)[0], []
    interrupted(resumed, training=training, directory=tmp_path, log=logged.append, **begun)
    assert logged[0]["stage"] != "training" and logged[0]["step"] == 3
    assert_equal_state(resumed, distiller)


def test_a_finished_run_leaves_nothing_of_its_first_stage(tmp_path: Path) -> None:
    student, teacher = network("classification", 0), network("classification", 1, widths=(8, 16, 16))
    real = image_sets(fixed_batch("classification"))[0]
    gankd.distill(student, teacher, real=real, method="ft", steps=16, checkpoint_every=1, directory=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]
