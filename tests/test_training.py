"""The training loop: exact resume, randomness of its own, schedules, weight decay, and the end of a loss gone wrong."""

from __future__ import annotations

import itertools
import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import gankd
from gankd.data.augment import Augment, AugmentationConfig
from gankd.data.loader import BatchSource
from gankd.data.sets import ImageSet, LazyImages
from gankd.methods import build_distiller, method_config
from gankd.models.inputs import Normalize
from gankd.models.teacher import Teacher
from gankd.tasks import task_of
from gankd.training import OPTIMIZERS, RunContext, TrainingConfig, build_optimizer, fit, rate_factor

AUGMENTATION = AugmentationConfig(
    crop_padding=1, horizontal_flip=True, rotation=10, translation=0.1, scale=0.1, cutout=0.25, brightness=0.2
)
CONFIG = TrainingConfig(steps=4, batch_size=6, log_every=1, checkpoint_every=2, augmentation=AUGMENTATION)


class Interruption(Exception):
    """Stands for a killed process."""


def network(num_outputs: int = 3, seed: int = 0) -> nn.Module:
    """All that a resumed run could get wrong: batch norm's buffers, dropout's draws, weights with and without decay."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Dropout(0.3),
            nn.Flatten(),
            nn.Linear(4 * 36, num_outputs),
        )


def data(*, regression: bool = False, size: int = 10) -> ImageSet:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (size, 1, 6, 6), generator=generator, dtype=torch.uint8)
    labels = torch.arange(size) % 3
    return ImageSet(images, labels.float() if regression else labels, class_names=None if regression else tuple("abc"))


def train(
    config: TrainingConfig = CONFIG,
    *,
    student: nn.Module | None = None,
    dataset: ImageSet | None = None,
    synthetic: ImageSet | None = None,
    method: str = "supervised",
    seed: int = 0,
    directory: Path | None = None,
    interrupt_at: int | None = None,
    log=None,
) -> nn.Module:
    """The student after `fit`; with `interrupt_at`, the run dies when that step has been computed."""
    dataset = data() if dataset is None else dataset
    task = task_of(dataset)
    student = network(task.num_outputs) if student is None else student
    normalize = Normalize.of(dataset.images)
    fraction = None if synthetic is None else 0.5
    source = BatchSource(
        dataset, synthetic, batch_size=config.batch_size, synthetic_fraction=fraction, seed=seed, memory_budget=1 << 20
    )
    distiller = build_distiller(
        student,
        None if method == "supervised" else Teacher(network(task.num_outputs, seed=1), normalize),
        task,
        method_config(method),
        augment=Augment(config.augmentation),
        normalize=normalize,
        data=source,
    )

    def watch(values: dict) -> None:
        if log is not None:
            log(values)
        if values["step"] == interrupt_at:
            raise Interruption

    accelerator = Accelerator()
    if interrupt_at is None:
        fit(distiller, source, config, RunContext(accelerator=accelerator, seed=seed, directory=directory, log=watch))
    else:
        with pytest.raises(Interruption):
            fit(
                distiller,
                source,
                config,
                RunContext(accelerator=accelerator, seed=seed, directory=directory, log=watch),
            )
    return student


def equal(first: nn.Module, second: nn.Module) -> bool:
    one, other = first.state_dict(), second.state_dict()
    return list(one) == list(other) and all(torch.equal(one[key], other[key]) for key in one)


# --- resume -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("schedule", ["cosine", "steps", "constant"])
def test_two_steps_and_two_more_equal_four_bit_for_bit(tmp_path: Path, optimizer: str, schedule: str) -> None:
    config = CONFIG.replace(optimizer=optimizer, schedule=schedule, warmup=0.3, momentum=0.8)
    whole = train(config)
    train(config, directory=tmp_path, interrupt_at=3)  # the third step is lost, the checkpoint is of the second
    assert (tmp_path / "checkpoint.pt").exists()
    logged = []
    resumed = train(config, directory=tmp_path, log=logged.append)
    assert [values["step"] for values in logged] == [3, 4]
    assert equal(resumed, whole)
    assert not equal(whole, network()), "the comparison means nothing unless training changes the weights"


@pytest.mark.parametrize("regression", [False, True])
def test_distillation_with_synthetic_data_resumes_bit_for_bit(tmp_path: Path, regression: bool) -> None:
    arguments = {
        "dataset": data(regression=regression),
        "synthetic": data(regression=regression, size=7),
        "method": "kd",
    }
    whole = train(**arguments)
    train(**arguments, directory=tmp_path, interrupt_at=4)
    assert equal(train(**arguments, directory=tmp_path), whole)


def test_a_run_is_the_same_wherever_it_was_cut(tmp_path: Path) -> None:
    config = CONFIG.replace(steps=5, checkpoint_every=1)
    whole = train(config)
    for step in range(1, 6):
        train(config, directory=tmp_path / str(step), interrupt_at=step)
        assert equal(train(config, directory=tmp_path / str(step)), whole), f"cut at step {step}"


def test_images_that_are_read_lazily_train_the_same_student() -> None:
    dataset = data()
    lazy = ImageSet(LazyImages(dataset.images.__getitem__, tuple(dataset.images.shape)), dataset.labels)
    assert equal(train(dataset=lazy), train(dataset=dataset))


def test_a_checkpoint_of_another_length_is_not_taken_for_this_run(tmp_path: Path) -> None:
    """A cosine of eight steps is not the first half of one of sixteen, and twelve steps done are not eight."""
    train(CONFIG.replace(steps=4, checkpoint_every=4), directory=tmp_path)
    with pytest.raises(ValueError, match=r"checkpoint\.pt"):
        train(CONFIG.replace(steps=2, checkpoint_every=2), directory=tmp_path)


def test_a_checkpoint_of_another_seed_is_not_taken_for_this_run(tmp_path: Path) -> None:
    train(seed=0, directory=tmp_path, interrupt_at=3)
    with pytest.raises(ValueError, match=r"checkpoint\.pt"):
        train(seed=1, directory=tmp_path)


def test_a_checkpoint_of_another_method_is_not_taken_for_this_run(tmp_path: Path) -> None:
    train(method="supervised", directory=tmp_path, interrupt_at=3)
    with pytest.raises(ValueError, match=r"checkpoint\.pt"):
        train(method="kd", directory=tmp_path)


def test_a_damaged_checkpoint_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "checkpoint.pt").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"checkpoint\.pt cannot be read .*delete it"):
        train(directory=tmp_path)


# --- randomness -------------------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_student_and_another_seed_another() -> None:
    assert equal(train(seed=3), train(seed=3))
    assert not equal(train(seed=3), train(seed=4))


def test_the_draws_of_the_caller_do_not_change_the_student_and_stay_untouched() -> None:
    expected = train()
    random.seed(7)
    np.random.seed(7)
    torch.manual_seed(7)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    assert equal(train(), expected)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.array_equal(np.random.get_state()[1], states[2])


@pytest.mark.parametrize("interrupt_at", [None, 2])
def test_the_library_way_leaves_the_callers_random_stream_alone(interrupt_at: int | None) -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()

    def watch(values: dict) -> None:
        if values["step"] == interrupt_at:
            raise Interruption

    try:
        gankd.distill(network(), network(seed=1), real=data(), training=CONFIG, log=watch)
    except Interruption:
        assert interrupt_at is not None
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("regression", "num_outputs"), [(False, 2), (True, 3)])
def test_a_student_with_another_number_of_outputs_is_refused(regression: bool, num_outputs: int) -> None:
    with pytest.raises(ValueError, match=rf"\b{num_outputs}\b.*outputs|outputs.*\b{num_outputs}\b"):
        gankd.distill(network(num_outputs), method="supervised", real=data(regression=regression), training=CONFIG)


def test_what_was_trained_is_evaluated_in_the_units_it_was_trained_in() -> None:
    """The network answers in standardised units of the training labels, whatever the labels it is evaluated on."""
    dataset = data(regression=True)
    student = gankd.distill(network(1), method="supervised", real=dataset, training=CONFIG)
    whole = gankd.evaluate(student, dataset)
    half = (
        gankd.evaluate(student, dataset.subset(torch.arange(5))),
        gankd.evaluate(student, dataset.subset(torch.arange(5, 10))),
    )
    assert whole["mae"] == pytest.approx((half[0]["mae"] + half[1]["mae"]) / 2, rel=1e-5)
    assert whole["mae"] == pytest.approx(gankd.evaluate(student, dataset, task=task_of(dataset))["mae"])


# --- the learning rate ------------------------------------------------------------------------------------------------


def rates(**settings) -> list[float]:
    config = TrainingConfig(**settings)
    return [rate_factor(config, step, config.steps) for step in range(config.steps)]


def test_cosine_falls_from_one_towards_zero() -> None:
    found = rates(schedule="cosine", steps=8)
    assert found == pytest.approx([(1 + math.cos(math.pi * step / 8)) / 2 for step in range(8)])


def test_steps_fall_tenfold_at_the_milestones() -> None:
    found = rates(schedule="steps", steps=10, milestones=(0.5, 0.8))
    assert found == pytest.approx([1.0] * 5 + [0.1] * 3 + [0.01] * 2)


def test_constant_stays() -> None:
    assert rates(schedule="constant", steps=3) == [1, 1, 1]


def test_warmup_rises_linearly_and_then_the_schedule_begins() -> None:
    found = rates(schedule="cosine", steps=10, warmup=0.4)
    assert found[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert found[5:] == pytest.approx([(1 + math.cos(math.pi * step / 6)) / 2 for step in range(1, 6)])


@given(
    steps=st.integers(1, 60),
    warmup=st.floats(0, 0.99),
    schedule=st.sampled_from(["cosine", "steps", "constant"]),
)
def test_every_schedule_stays_in_zero_to_one_and_rises_before_it_falls(steps, warmup, schedule) -> None:
    found = rates(steps=steps, warmup=warmup, schedule=schedule)
    assert all(0 < value <= 1 for value in found)
    peak = found.index(max(found))
    assert all(a < b for a, b in itertools.pairwise(found[: peak + 1]))
    assert all(a >= b for a, b in itertools.pairwise(found[peak:]))


def test_the_loop_uses_the_schedule() -> None:
    logged = []
    config = CONFIG.replace(schedule="steps", milestones=(0.5,), learning_rate=0.02)
    train(config, log=logged.append)
    assert [values["learning_rate"] for values in logged] == pytest.approx([0.02, 0.02, 0.002, 0.002])


@pytest.mark.parametrize(("settings", "expected"), [({}, 1000), ({"epochs": 2.5}, 10), ({"epochs": 0.01}, 1)])
def test_epochs_replace_steps(settings: dict, expected: int) -> None:
    assert TrainingConfig(**settings).num_steps(steps_per_epoch=4) == expected


# --- the optimiser ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_only_matrices_and_kernels_decay(optimizer: str) -> None:
    module = network()
    module[2] = nn.Linear(3, 3).requires_grad_(False)
    groups = build_optimizer(module, TrainingConfig(optimizer=optimizer, weight_decay=0.1)).param_groups
    decayed = {parameter for group in groups if group["weight_decay"] == 0.1 for parameter in group["params"]}
    free = {parameter for group in groups if group["weight_decay"] == 0 for parameter in group["params"]}
    assert decayed == {module[0].weight, module[5].weight}
    assert free == {module[0].bias, module[1].weight, module[1].bias, module[5].bias}


def test_sgd_has_nesterov_momentum_where_there_is_momentum() -> None:
    for momentum, nesterov in ((0.9, True), (0.0, False)):
        group = build_optimizer(network(), TrainingConfig(optimizer="sgd", momentum=momentum)).param_groups[0]
        assert (group["momentum"], group["nesterov"]) == (momentum, nesterov)


def test_nesterovs_momentum_can_be_left_out() -> None:
    config = TrainingConfig(optimizer="sgd", optimizer_options={"nesterov": False})
    group = build_optimizer(network(), config).param_groups[0]
    assert (group["momentum"], group["nesterov"]) == (0.9, False)


@pytest.mark.parametrize(
    ("settings", "rate", "decay"),
    [
        ({}, 3e-3, 5e-2),
        ({"optimizer": "adamw", "learning_rate": None}, 3e-3, 5e-2),
        ({"optimizer": "sgd"}, 0.05, 5e-4),
        ({"optimizer": "sgd", "learning_rate": 0.2}, 0.2, 5e-4),
        ({"optimizer": "sgd", "weight_decay": 0}, 0.05, 0),
        ({"optimizer": "lars", "batch_size": 1024}, 1.2, 1e-6),
        ({"optimizer": "lars", "batch_size": 1024, "learning_rate_per": 256}, 1.2, 1e-6),
        ({"optimizer": "lars", "batch_size": 1024, "learning_rate": 0.2, "learning_rate_per": 256}, 0.8, 1e-6),
    ],
)
def test_rate_and_decay_that_are_not_given_are_the_optimizers_own(settings: dict, rate: float, decay: float) -> None:
    config = TrainingConfig.of(settings)
    groups = build_optimizer(network(), config).param_groups
    assert [group["lr"] for group in groups] == pytest.approx([rate] * len(groups))
    assert {group["weight_decay"] for group in groups} == {decay, 0}
    saved = config.model_dump(mode="json")  # which says what was trained with, and says the same when it is read
    assert saved["weight_decay"] == decay and TrainingConfig.of(saved) == config
    assert TrainingConfig().replace(**settings) == config  # as gankd.distill(..., optimizer="sgd") does


def test_an_optimizer_of_ones_own_says_its_rate_and_decay() -> None:
    def signs(groups, learning_rate): ...

    register = gankd.register("optimizer", "signs_of_ones_own", learning_rate=1e-4)
    try:
        register(signs)
        config = TrainingConfig(optimizer="signs_of_ones_own")
        assert (config.learning_rate, config.weight_decay) == (1e-4, 5e-2)
    finally:
        OPTIMIZERS.pop("signs_of_ones_own")
    with pytest.raises(ValueError, match="optimizer 'x': unknown default 'learning_rat'; did you mean 'learning_rate'"):
        gankd.register("optimizer", "x", learning_rat=1e-4)


def test_a_student_without_trainable_weights_is_refused() -> None:
    """A network that was a teacher before is frozen; training it would do nothing, or stop in the middle of autograd."""
    with pytest.raises(ValueError, match="frozen|trainable|requires_grad"):
        train(student=network().requires_grad_(False))


def test_a_network_may_be_a_teacher_first_and_a_student_then() -> None:
    """Born-again training: whoever lends a network as a teacher gets it back trainable."""
    first = gankd.distill(network(), method="supervised", real=data(), training=CONFIG)
    gankd.distill(network(seed=1), first, real=data(), training=CONFIG)
    before = {key: value.clone() for key, value in first.state_dict().items()}
    gankd.distill(first, method="supervised", real=data(), training=CONFIG)
    assert any(not torch.equal(before[key], value) for key, value in first.state_dict().items())


# --- what it logs, and where it ends ----------------------------------------------------------------------------------


def test_the_log_holds_every_named_term_as_a_mean_over_the_steps_since_the_last_line() -> None:
    every, seldom = [], []
    train(CONFIG.replace(steps=5), method="kd", log=every.append)
    train(CONFIG.replace(steps=5, log_every=2), method="kd", log=seldom.append)
    assert [values["step"] for values in seldom] == [2, 4, 5]
    assert [values["images"] for values in seldom] == [12, 24, 30]
    for name in ("loss", "task", "kd"):
        steps = [values[name] for values in every]
        expected = [(steps[0] + steps[1]) / 2, (steps[2] + steps[3]) / 2, steps[4]]
        assert [values[name] for values in seldom] == pytest.approx(expected, rel=1e-5)


def test_the_student_learns_and_is_left_in_evaluation_mode() -> None:
    dataset = data()
    student = train(TrainingConfig(steps=60, batch_size=10, learning_rate=0.01, schedule="constant"))
    assert not any(module.training for module in student.modules())
    outputs = student(Normalize.of(dataset.images)(dataset.images.float() / 255))
    assert (outputs.argmax(dim=1) == dataset.labels).all()


def test_a_loss_that_is_not_finite_stops_with_a_sentence() -> None:
    config = CONFIG.replace(optimizer="sgd", learning_rate=1e30, steps=8)
    with pytest.raises(
        ValueError, match=r"training: the loss is no longer finite at step \d; lower the learning rate\."
    ):
        train(config)


def test_no_checkpoint_is_written_of_weights_that_are_not_finite(tmp_path: Path) -> None:
    """Otherwise the run would be resumed from a wreck: here the log is seldom and the checkpoint frequent."""
    config = CONFIG.replace(optimizer="sgd", learning_rate=1e30, steps=40, log_every=40, checkpoint_every=2)
    with pytest.raises(ValueError, match="no longer finite"):
        train(config, directory=tmp_path)
    if (tmp_path / "checkpoint.pt").exists():
        state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["distiller"]
        broken = [key for key, value in state.items() if isinstance(value, Tensor) and not value.isfinite().all()]
        assert broken == []
