"""Labels before a training: refusals in one sentence, and the guarded rule for kappa (F14, F24, F31)."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from torch import Tensor

import generators
from generators.config import GeneratorConfig
from generators.labels import ScalarLabels
from generators.networks.sngan import SNGANGenerator
from generators.vicinity import kappa_rule_of_thumb

CONFIG = GeneratorConfig(sigma=1.0)


def plan(labels: Tensor, **settings) -> ScalarLabels:
    low, high = labels.min().item(), labels.max().item()
    return ScalarLabels(labels, (low, high), CONFIG.replace(**{"sigma": (high - low) / 100, **settings}))


def ages() -> Tensor:
    """0 to 60, ten of each, and one of 116."""
    return torch.cat([torch.arange(61).repeat(10), torch.tensor([116])]).float()


@pytest.mark.parametrize("vicinity", ["hard", "soft"])
def test_f14_one_isolated_label_does_not_make_the_generator_unconditional(vicinity: str) -> None:
    with pytest.warns(UserWarning, match=r"gives 280, .* up to 56 apart; 5 is used, and 110 of the 611 real images"):
        guarded = plan(ages(), vicinity=vicinity)
    width = guarded.kappa if vicinity == "hard" else guarded.kappa**-0.5
    assert width * 116 == pytest.approx(5)


def test_f14_a_window_reaches_a_quarter_of_the_range_at_most() -> None:
    """Of two or three labels the paper's rule makes one: every image stands for each of them."""
    for labels in (torch.tensor([0.0, 1.0]).repeat(50), torch.tensor([0.0, 5.0, 10.0]).repeat(50)):
        with pytest.warns(UserWarning, match="Set generator.kappa"):
            guarded = plan(labels)
        assert guarded.kappa == 0.25
        batch = guarded.discriminator_batch(500, torch.Generator().manual_seed(0))
        assert (batch["real_labels"] - batch["real_y"]).abs().max() <= 0.26


@pytest.mark.parametrize("vicinity", ["hard", "soft"])
@pytest.mark.parametrize("seed", range(5))
def test_f14_ordinary_labels_have_the_papers_rule(vicinity: str, seed: int) -> None:
    labels = torch.rand(400, generator=torch.Generator().manual_seed(seed)) * 180 - 90
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        guarded = plan(labels, vicinity=vicinity)
    assert guarded.kappa == kappa_rule_of_thumb(labels=guarded.labels, multiplier=5.0, vicinity=vicinity)


def test_f14_a_kappa_that_holds_almost_every_image_is_warned_of() -> None:
    with pytest.warns(UserWarning, match="kappa 40 makes .* of the 611 real images stand for one label"):
        plan(ages(), kappa=40.0)


# --- refusals before anything is trained ------------------------------------------------------------------------------


def pixels(count: int = 20) -> Tensor:
    return torch.zeros(count, 1, 8, 8, dtype=torch.uint8)


SCALARS = {"labels": torch.linspace(0, 1, 20), "label_range": (0.0, 1.0)}
CLASSES = {"labels": torch.arange(20) % 3, "num_classes": 3}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({**CLASSES, "seed": -1}, r"seed -1 is no whole number from 0 to 2\^63 - 1"),
        ({**CLASSES, "seed": 2**64}, "seed 18446744073709551616 is no whole number"),
        ({**CLASSES, "seed": 0.5}, "seed 0.5 is no whole number"),
        (
            {**CLASSES, "labels": torch.ones(20, dtype=torch.int64)},
            "all 20 labels are 1; .* at least two distinct labels",
        ),
        ({**SCALARS, "labels": torch.full((20,), 0.5)}, "all 20 labels are 0.5; .* at least two distinct labels"),
        ({**SCALARS, "label_range": (1.0, 0.0)}, r"label_range \(1, 0\) is upside down; give \(min, max\)"),
        ({**SCALARS, "label_range": (0.0, math.inf)}, r"label_range \(0, inf\) has an end that is not finite"),
        ({**SCALARS, "label_range": (math.nan, 1.0)}, r"label_range \(nan, 1\) has an end that is not finite"),
        ({**CLASSES, "labels": torch.zeros(0, dtype=torch.int64), "images": pixels(0)}, "no labels; .* at least two"),
    ],
)
def test_f24_what_cannot_be_trained_is_refused_in_one_sentence(arguments: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as caught:
        generators.train(**{"images": pixels(), **arguments}, steps=1)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.int64, torch.float64, torch.float32])
def test_f31_labels_that_float32_does_not_tell_apart_are_refused(dtype: torch.dtype) -> None:
    labels = (1_000_000_000 + torch.arange(20)).to(dtype)
    with pytest.raises(
        ValueError, match="not told apart in float32, where such numbers lie 119 apart .*subtract a const"
    ):
        generators.train(pixels(), labels, label_range=(1e9, 1e9 + 19), steps=1)


def test_f31_a_few_neighbours_of_many_that_float32_joins_are_no_reason_to_refuse() -> None:
    labels = torch.rand(20_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert len(labels.float().unique()) < len(labels.unique())
    generators.labels.check_labels(labels, None, (0.0, 1.0))


@pytest.mark.parametrize("scale", [1e-30, 1e-9, 1e9, 1e30])
def test_f24_labels_of_any_size_train_the_same_generator(scale: float) -> None:
    settings = {"widths": (8, 8), "discriminator_widths": (8,), "batch_size": 8, "steps": 2}
    images = torch.randint(256, (20, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    labels = torch.linspace(-2, 2, 20, dtype=torch.float64)
    drawn = []
    for factor in (1.0, scale):
        units = {"label_range": (-2 * factor, 2 * factor), "sigma": 0.1 * factor, "kappa": 0.5 * factor}
        generator = generators.train(images, labels * factor, **units, **settings)
        drawn.append(generator.sample(labels * factor, torch.ones(20, 128)))
    torch.testing.assert_close(drawn[0], drawn[1], rtol=1e-3, atol=1e-4)


def test_f31_labels_in_float64_are_scaled_before_they_are_rounded() -> None:
    generator = SNGANGenerator(8, 1, (8, 8), label_range=(1e8, 1e8 + 16), label_input="fourier")
    y = generator.condition(torch.arange(17, dtype=torch.float64) + 1e8)
    torch.testing.assert_close(y, torch.arange(17) / 16)
