"""What a user lends comes back as it was, whatever happens; what continues from a directory is the same in everything."""

from __future__ import annotations

import copy
import random
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

import gankd
from gankd.data.augment import AugmentationConfig
from gankd.data.sets import ImageSet
from gankd.models.rehearsal import check_trainable
from gankd.training import TrainingConfig

TRAINING = TrainingConfig(steps=3, batch_size=8, log_every=1, checkpoint_every=1, learning_rate=0.01)


class Interruption(Exception):
    """Stands for a killed process."""


def network(seed: int = 0, *, flatten: str = "flatten", dropout: float = 0.0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Small(flatten, dropout)


class Small(nn.Module):
    """A convolution, a batch norm and a linear layer; flattened as users do."""

    def __init__(self, flatten: str, dropout: float):
        super().__init__()
        self.conv, self.norm, self.drop = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Dropout(dropout)
        self.fc, self.how = nn.Linear(4 * 36, 3), flatten

    def forward(self, images: Tensor) -> Tensor:
        maps = self.drop(self.norm(self.conv(images)).relu())
        return self.fc(maps.view(len(maps), -1) if self.how == "view" else maps.flatten(1))


def data(seed: int = 0, size: int = 16) -> ImageSet:
    random_ = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (size, 3, 6, 6), generator=random_, dtype=torch.uint8)
    return ImageSet(images, torch.arange(size) % 3, class_names=tuple("abc"))


def equal(one: nn.Module, other: nn.Module) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return all(torch.equal(first[name], second[name]) for name in first)


def distill(student: nn.Module, teacher: nn.Module | None = None, **settings) -> nn.Module:
    settings = {"real": data(), "training": TRAINING, "method": "kd" if teacher else "supervised", **settings}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the teachers here know nothing
        return gankd.distill(student, teacher, **settings)


# --- F10: any network trains, and comes back in its memory format -----------------------------------------------------


def test_f10_a_student_that_flattens_with_view_trains_as_one_that_does_not() -> None:
    one, other = (distill(network(flatten=way), optimizer="sgd", learning_rate=0.1) for way in ("view", "flatten"))
    for name, weights in one.state_dict().items():
        torch.testing.assert_close(weights, other.state_dict()[name], rtol=1e-4, atol=1e-5)
    assert not equal(one, network())


def test_f10_a_student_with_kernels_of_three_dimensions_trains() -> None:
    class Deep(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc = nn.Conv3d(1, 2, (3, 3, 3), padding=(0, 1, 1)), nn.Linear(72, 3)

        def forward(self, images: Tensor) -> Tensor:
            return self.fc(self.conv(images[:, None]).flatten(1))

    torch.manual_seed(0)
    student = Deep()
    before = copy.deepcopy(student)
    assert not equal(distill(student), before)


@pytest.mark.parametrize("interrupted", [False, True])
def test_f10_the_memory_format_comes_back(interrupted: bool) -> None:
    student = network()
    assert student.conv.weight.is_contiguous()
    try:
        distill(student, log=lambda values: fail(values) if interrupted else None)
    except Interruption:
        pass
    assert student.conv.weight.is_contiguous()
    student = network().to(memory_format=torch.channels_last)
    distill(student)
    assert student.conv.weight.is_contiguous(memory_format=torch.channels_last)


def fail(values: dict) -> None:
    raise Interruption


# --- F20: modes, what is trainable, the accelerator, the random state -------------------------------------------------


@pytest.mark.parametrize("interrupted", [False, True])
def test_f20_a_frozen_batch_norm_does_not_move_and_modes_come_back(interrupted: bool) -> None:
    student, teacher = network(), network(1).train()
    student.norm.eval()
    teacher.fc.weight.requires_grad_(False)
    before = copy.deepcopy(student.norm.state_dict())
    modes = {name: part.training for name, part in student.named_modules()}
    try:
        distill(student, teacher, log=lambda values: fail(values) if interrupted else None)
    except Interruption:
        assert {name: part.training for name, part in student.named_modules()} == modes
    else:
        assert not any(part.training for part in student.modules())
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        assert torch.equal(student.norm.state_dict()[name], before[name])
    assert all(part.training for part in teacher.modules())
    assert [name for name, parameter in teacher.named_parameters() if not parameter.requires_grad] == ["fc.weight"]


@pytest.mark.parametrize("interrupted", [False, True])
def test_f20_the_users_accelerator_keeps_what_it_holds_and_nothing_more(interrupted: bool) -> None:
    accelerator = Accelerator(cpu=True)
    mine = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(mine.parameters(), lr=0.1)
    mine, optimizer = accelerator.prepare(mine, optimizer)
    try:
        distill(network(), accelerator=accelerator, log=lambda values: fail(values) if interrupted else None)
    except Interruption:
        pass
    assert accelerator._models == [mine] and accelerator._optimizers == [optimizer]


@pytest.mark.parametrize("interrupted", [False, True])
def test_f20_random_states_and_data_come_back(interrupted: bool) -> None:
    dataset = data()
    images = dataset.images.clone()
    random.seed(3), np.random.seed(3), torch.manual_seed(3)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    try:
        distill(network(dropout=0.2), real=dataset, log=lambda values: fail(values) if interrupted else None)
    except Interruption:
        pass
    assert torch.equal(torch.get_rng_state(), states[0]) and random.getstate() == states[1]
    assert np.array_equal(np.random.get_state()[1], states[2]) and torch.equal(dataset.images, images)


def test_f20_evaluating_leaves_modes_alone() -> None:
    model = network().train()
    model.norm.eval()
    gankd.evaluate(model, data(), normalize=gankd.Normalize(torch.zeros(3), torch.ones(3)))
    assert model.training and model.conv.training and not model.norm.training


def test_a_trial_leaves_no_trace() -> None:
    student, state = network(dropout=0.5), torch.get_rng_state()
    student.conv.weight.grad = torch.ones_like(student.conv.weight)
    before = copy.deepcopy(student)
    check_trainable(student, torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0)), 3, "it")
    assert equal(student, before) and student.training and torch.equal(torch.get_rng_state(), state)
    assert (
        torch.equal(student.conv.weight.grad, torch.ones_like(student.conv.weight)) and student.fc.weight.grad is None
    )


# --- F6: accumulated gradients ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["supervised", "kd"])
@pytest.mark.parametrize("passes", [2, 3, 8, 100])
def test_f6_a_step_is_the_same_in_any_number_of_passes(method: str, passes: int) -> None:
    """SGD of a network whose batch norm is frozen: the gradient of the mean over a batch, cut as one likes."""

    def trained(accelerator: Accelerator) -> nn.Module:
        student, teacher = network(), network(1) if method == "kd" else None
        student.norm.eval()
        training = TRAINING.replace(optimizer="sgd", learning_rate=0.1)
        return distill(student, teacher, training=training, accelerator=accelerator, log=logged.append)

    logged: list[dict] = []
    whole = trained(Accelerator(cpu=True))
    parts = trained(Accelerator(cpu=True, gradient_accumulation_steps=passes))
    for name, weights in whole.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[name], weights, rtol=1e-5, atol=1e-6)
    assert [values["loss"] for values in logged[3:]] == pytest.approx(
        [values["loss"] for values in logged[:3]], rel=1e-5
    )


def test_f6_less_of_a_batch_passes_at_once() -> None:
    sizes, student = [], network()
    student.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])) if module.training else None)
    distill(student, accelerator=Accelerator(cpu=True, gradient_accumulation_steps=4))
    assert sizes[-12:] == [2] * 12  # three steps of eight images


def test_f6_an_accelerator_in_the_middle_of_the_users_own_accumulation_steps_all_the_same() -> None:
    accelerator = Accelerator(cpu=True)
    accelerator.gradient_state._set_sync_gradients(False)
    try:
        assert equal(distill(network(), accelerator=accelerator), distill(network()))
        assert accelerator.gradient_state.sync_gradients is False
    finally:
        accelerator.gradient_state._set_sync_gradients(True)


# --- F9: a directory belongs to one run -------------------------------------------------------------------------------

OTHERS = {
    "student": lambda: {"student": network(5)},
    "teacher": lambda: {"teacher": network(6)},
    "real": lambda: {"real": data(1)},
    "synthetic": lambda: {"synthetic": data(2)},
    "normalize": lambda: {"normalize": gankd.Normalize(torch.full((3,), 0.5), torch.ones(3))},
    "seed": lambda: {"seed": 1},
    "learning_rate": lambda: {"learning_rate": 0.5},
}


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize("other", OTHERS)
def test_f9_another_run_is_not_taken_for_this_one(other: str, finished: bool, tmp_path: Path) -> None:
    def call(student=None, teacher=None, log=None, **settings) -> nn.Module:
        first = {"synthetic": data(3), "synthetic_fraction": 0.5, "directory": tmp_path, **settings}
        return distill(student or network(), teacher or network(1), log=log, **first)

    def until_the_second(values: dict) -> None:
        if values["step"] == 2:
            raise Interruption

    if finished:
        whole = call()
    else:
        whole = call(directory=None)
        with pytest.raises(Interruption):
            call(log=until_the_second)
    named = "normalize|real" if other == "real" else other  # the statistics of other images are others
    with pytest.raises(ValueError, match=rf"checkpoint\.pt belongs to another run \(({named}): "):
        call(**OTHERS[other]())
    assert equal(call(), whole)


def test_f9_backbones_too(tmp_path: Path) -> None:
    vicreg = {"name": "vicreg", "embedding_width": 8, "projector_width": 8}
    training = TRAINING.replace(augmentation=AugmentationConfig(brightness=0.4))
    settings = {"method": vicreg, "training": training, "directory": tmp_path}
    gankd.pretrain(network(), real=data().images, **settings)
    for change, sentence in (
        ({"real": data(1).images}, "normalize|real"),
        ({"real": data().images, "seed": 1}, "seed"),
    ):
        with pytest.raises(ValueError, match=rf"belongs to another run \(({sentence}): "):
            gankd.pretrain(network(), **settings, **change)


# --- settings in a call, and a teacher that knows nothing -------------------------------------------------------------


def test_settings_of_the_method_may_stand_in_the_call() -> None:
    """G: `method="kd", temperature=2`."""
    one = distill(network(), network(1), temperature=2, steps=2)
    other = distill(network(), network(1), method={"name": "kd", "temperature": 2}, steps=2)
    assert equal(one, other) and not equal(one, distill(network(), network(1), steps=2))
    with pytest.raises(ValueError, match="unknown setting 'temprature'; did you mean 'temperature'"):
        distill(network(), network(1), temprature=2)
    with pytest.raises(ValueError, match="unknown setting 'step'; did you mean 'steps'"):
        distill(network(), step=2)


def test_f12_a_teacher_near_chance_is_pointed_out_before_students_learn_from_it() -> None:
    with pytest.warns(UserWarning, match=r"the teacher is right on .* % of the real images \(chance: 33.3 %\)"):
        gankd.distill(network(), Constant(), real=data(), training=TRAINING)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        teacher = gankd.distill(
            network(), method="supervised", real=data(), steps=60, batch_size=16, learning_rate=0.01
        )
        gankd.distill(network(), teacher, real=data(), training=TRAINING)


class Constant(nn.Module):
    """Answers the first class, whatever it sees."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, 0.0, 0.0]))

    def forward(self, images: Tensor) -> Tensor:
        return self.weight.expand(len(images), 3) + 0 * images.mean()


@pytest.mark.parametrize("seed", [1.5, -1, 2**32, 2**70])
def test_f24_a_seed_beyond_what_the_libraries_take_is_refused(seed: int) -> None:
    with pytest.raises(ValueError, match=rf"seed {seed} .*0 to 4294967295"):
        distill(network(), seed=seed)
