"""A generator looked at before anything is built on it (F15), and given back as it was (F10, F20)."""

from __future__ import annotations

import copy
import random

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

import generators
from generators import check_generator, wrap

SIZES = {"resolution": 8, "image_channels": 1, "latent_dim": 2}
CLASSES, SCALARS = torch.arange(30) % 3, torch.linspace(-40, 60, 30)
DARK = torch.arange(30 * 64).view(30, 1, 8, 8).remainder(256).to(torch.uint8)


def paint(z: Tensor, y: Tensor) -> Tensor:
    """Values in [-1, 1]."""
    return torch.linspace(-1, 1, 64).view(1, 1, 8, 8) * (0.5 + 0.1 * y.view(-1, 1, 1, 1))


def test_a_sound_generator_passes_and_leaves_no_trace() -> None:
    state = torch.get_rng_state()
    check_generator(wrap(paint, num_classes=3, **SIZES), CLASSES, num_classes=3, real_images=DARK)
    check_generator(wrap(paint, label_range=(-40, 60), **SIZES), SCALARS, real_images=DARK)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("source", "settings", "arguments", "sentence"),
    [
        (lambda z, y: paint(z, y) / 2 + 0.5, {}, {}, r"nothing below 0: .* Return 2 \* image - 1: the real images do"),
        (lambda z, y: paint(z, y) * torch.nan, {}, {}, "nan"),
        (lambda z, y: paint(z, y) * 127 + 128, {}, {}, r"expected \[-1, 1\]|lie in \[-1, 1\]"),
        (paint, {"num_classes": 5}, {}, "knows 5 classes, the data has 3"),
        (
            paint,
            {"num_classes": None, "label_range": (0, 2)},
            {},
            "takes scalar labels, and the data has the other kind",
        ),
        (paint, {"resolution": 16}, {}, r"images of \(1, 16, 16\), the data has \(1, 8, 8\)"),
        (lambda z, y: paint(z, y).expand(-1, 3, -1, -1), {}, {}, r"images \(64, 3, 8, 8\); expected \(64, 1, 8, 8\)"),
        (
            lambda z, y: paint(z, y).expand(-1, 3, -1, -1),
            {"image_channels": 3},
            {},
            r"\(3, 8, 8\), the data has \(1, 8",
        ),
        (paint, {}, {"labels": torch.tensor([0, 7])}, r"labels span \[0, 7\]; this generator knows \[0, 2\]"),
    ],
)
def test_f15_what_would_be_a_wrong_result_is_refused(source, settings: dict, arguments: dict, sentence: str) -> None:
    generator = wrap(source, **{**SIZES, "num_classes": 3, **settings})
    with pytest.raises(ValueError, match=sentence):
        check_generator(generator, **{"labels": CLASSES, "num_classes": 3, "real_images": DARK, **arguments})


def test_f15_bright_images_are_refused_only_where_the_real_ones_are_not_bright() -> None:
    generator = wrap(lambda z, y: paint(z, y) / 2 + 0.5, num_classes=3, **SIZES)
    check_generator(generator, CLASSES, num_classes=3, real_images=DARK // 4 + 180)
    with pytest.warns(UserWarning, match="nothing below 0: .* unless the images are meant to be this bright"):
        check_generator(generator, CLASSES, num_classes=3)


# --- what is lent comes back --------------------------------------------------------------------------------------------


class Lent(nn.Module):
    """A network in the middle of its training, one part of which is frozen in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = nn.Linear(2, 64), nn.BatchNorm1d(64)
        self.norm.eval().requires_grad_(False)

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        assert not self.training and not self.norm.training
        return self.norm(self.layer(z)).tanh().view(-1, 1, 8, 8)


def state_of(module: nn.Module) -> list:
    modes = [part.training for part in module.modules()]
    trainable = [weight.requires_grad for weight in module.parameters()]
    return [modes, trainable, copy.deepcopy(list(module.state_dict().values()))]


@pytest.mark.parametrize("fails", [False, True])
def test_f20_what_is_wrapped_keeps_its_modes_and_gradients(fails: bool) -> None:
    lent = Lent()
    before = state_of(lent)
    generator = wrap(lent, num_classes=3, **SIZES)
    if fails:
        with pytest.raises(ValueError):
            generator.sample(torch.tensor([9]))
        with pytest.raises(RuntimeError):
            generator(torch.zeros(2, 7), torch.zeros(2, dtype=torch.int64))
    else:
        generators.sample_grid(generator, rows=2)
        check_generator(generator, CLASSES, num_classes=3, real_images=DARK)
        generator.sample_with_features(torch.tensor([0, 1]))
    after = state_of(lent)
    assert after[:2] == before[:2] and all(map(torch.equal, after[2], before[2]))
    assert lent.training and not lent.norm.training


class Refusal(Exception):
    pass


@pytest.mark.parametrize("fails", [False, True])
def test_f10_a_training_gives_back_what_it_was_lent(fails: bool) -> None:
    def score(generator) -> float:
        torch.rand(3)
        if fails:
            raise Refusal
        return 1.0

    accelerator = Accelerator()
    own = accelerator.prepare(nn.Linear(2, 2))
    prepared = list(accelerator._models)
    images, labels = DARK.clone(), SCALARS.clone()
    torch.manual_seed(5), random.seed(5), np.random.seed(5)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    settings = {"widths": (8, 8), "discriminator_widths": (8,), "batch_size": 8, "steps": 2, "sigma": 3.0, "kappa": 6.0}
    arguments = {"label_range": (-40.0, 60.0), "accelerator": accelerator, "score": score, "score_every": 1, **settings}
    if fails:
        with pytest.raises(Refusal):
            generators.train(images, labels, **arguments)
    else:
        generators.train(images, labels, **arguments)
    assert torch.equal(images, DARK) and torch.equal(labels, SCALARS)
    assert accelerator._models == prepared and not accelerator._optimizers and own.training
    assert torch.equal(torch.get_rng_state(), states[0]) and random.getstate() == states[1]
    assert np.array_equal(np.random.get_state()[1], states[2])
