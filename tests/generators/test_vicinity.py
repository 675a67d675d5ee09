"""Label vicinities: the vectorised sampler equals a search one target at a time."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from generators.vicinity import (
    denormalize_labels,
    kappa_rule_of_thumb,
    normalize_labels,
    sample_vicinity,
    sigma_rule_of_thumb,
    soft_weights,
)


def draws(seed: int, num_labels: int, num_targets: int, num_tries: int, num_distinct: int) -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    values = torch.rand(num_distinct, generator=rng, dtype=torch.float64)
    train_labels = values[torch.randint(num_distinct, (num_labels,), generator=rng)]
    distinct = torch.unique(train_labels)
    return {
        "train_labels": train_labels,
        "centres": distinct[torch.randint(len(distinct), (num_targets,), generator=rng)],
        "noise": torch.randn(num_targets, num_tries, generator=rng, dtype=torch.float64),
        "pick": torch.rand(num_targets, generator=rng, dtype=torch.float64),
        "place": torch.rand(num_targets, generator=rng, dtype=torch.float64),
    }


def half_width(kappa: float, vicinity: str) -> float:
    return kappa if vicinity == "hard" else math.sqrt(math.log(1000) / kappa)


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(
    seed=st.integers(0, 2**31),
    num_labels=st.integers(1, 70),
    num_distinct=st.integers(1, 30),
    num_tries=st.integers(1, 8),
    kappa=st.sampled_from([1e-3, 0.01, 0.05, 0.3]),
    sigma=st.sampled_from([0.0, 0.02, 0.2]),
    vicinity=st.sampled_from(["hard", "soft"]),
)
def test_equals_a_search_one_target_at_a_time(
    seed: int, num_labels: int, num_distinct: int, num_tries: int, kappa: float, sigma: float, vicinity: str
) -> None:
    numbers = draws(seed, num_labels, 9, num_tries, num_distinct)
    kappa = kappa if vicinity == "hard" else 1 / kappa**2
    width = half_width(kappa, vicinity)
    got = sample_vicinity(**numbers, kappa=kappa, vicinity=vicinity, sigma=sigma)
    targets, indices, fakes, counts = (values.tolist() for values in got)

    labels = numbers["train_labels"].numpy()
    centres, noise, pick, place = (numbers[name].numpy() for name in ("centres", "noise", "pick", "place"))
    for b in range(9):
        for k in range(num_tries):
            target = centres[b] + sigma * noise[b, k]
            window = np.flatnonzero(np.abs(labels - target) <= width)
            if len(window):
                break
        else:  # every try was empty
            target = labels[np.abs(labels - target).argmin()]
            window = np.flatnonzero(np.abs(labels - target) <= width)
        lower, upper = max(target - width, 0), min(target + width, 1)
        assert targets[b] == pytest.approx(target, abs=1e-12)
        assert counts[b] == len(window)
        assert indices[b] == window[int(pick[b] * len(window))]
        assert fakes[b] == pytest.approx(lower + place[b] * (upper - lower), abs=1e-12)


@pytest.mark.parametrize("vicinity", ["hard", "soft"])
def test_every_sample_lies_in_the_window_of_its_target(vicinity: str) -> None:
    numbers = draws(0, num_labels=500, num_targets=2000, num_tries=5, num_distinct=80)
    kappa = 0.03 if vicinity == "hard" else 1 / 0.03**2
    targets, indices, fakes, counts = sample_vicinity(**numbers, kappa=kappa, vicinity=vicinity, sigma=0.1)
    width = half_width(kappa, vicinity) + 1e-12
    assert ((numbers["train_labels"][indices] - targets).abs() <= width).all()
    assert ((fakes - targets).abs() <= width).all()
    assert ((fakes >= 0) & (fakes <= 1)).all()
    assert (counts >= 1).all()


def test_picks_uniformly_among_the_window_in_index_order() -> None:
    train_labels = torch.tensor([0.52, 0.9, 0.50, 0.1, 0.51])  # the window of 0.5 holds indices 0, 2, 4
    _, indices, _, counts = sample_vicinity(
        train_labels=train_labels,
        centres=torch.full((6,), 0.5),
        noise=torch.zeros(6, 1),
        pick=torch.tensor([0.0, 0.3, 0.34, 0.6, 0.67, 1 - 2**-24]),
        place=torch.zeros(6),
        kappa=0.05,
        vicinity="hard",
        sigma=0.1,
    )
    assert indices.tolist() == [0, 0, 2, 2, 4, 4]
    assert counts.tolist() == [3] * 6


def test_both_edges_of_the_window_belong_to_it() -> None:
    _, _, _, counts = sample_vicinity(
        train_labels=torch.tensor([0.0, 0.25, 0.5, 0.75, 0.75, 1.0]),  # exact in binary
        centres=torch.tensor([0.0, 0.5, 1.0]),
        noise=torch.zeros(3, 1),
        pick=torch.zeros(3),
        place=torch.zeros(3),
        kappa=0.25,
        vicinity="hard",
        sigma=0.1,
    )
    assert counts.tolist() == [2, 4, 3]


def test_redraws_the_noise_until_the_window_holds_a_label() -> None:
    arguments = {
        "train_labels": torch.tensor([0.2, 0.8]),
        "centres": torch.tensor([0.2]),
        "pick": torch.zeros(1),
        "place": torch.full((1,), 0.5),
        "kappa": 0.01,
        "vicinity": "hard",
        "sigma": 0.1,
    }
    targets, indices, _, _ = sample_vicinity(noise=torch.tensor([[3.0, -1.0, 6.05, 0.0]]), **arguments)
    assert targets.item() == pytest.approx(0.805)  # the third try is the first near a label, here the other one
    assert indices.item() == 1
    targets, indices, fakes, counts = sample_vicinity(noise=torch.tensor([[3.0, -1.0, 4.0]]), **arguments)
    assert targets.item() == pytest.approx(0.8)  # no try is near a label: the label nearest to the last try, 0.6
    assert (indices.item(), counts.item()) == (1, 1)
    assert fakes.item() == pytest.approx(0.8)


def test_results_keep_the_precision_of_the_centres() -> None:
    numbers = {name: values.float() for name, values in draws(1, 50, 8, 4, 20).items()}
    targets, indices, fakes, counts = sample_vicinity(**numbers, kappa=0.1, vicinity="hard", sigma=0.05)
    assert (targets.dtype, fakes.dtype) == (torch.float32, torch.float32)
    assert (indices.dtype, counts.dtype) == (torch.int64, torch.int64)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vicinity": "medium"}, "'medium': use 'hard' or 'soft'"),
        ({"kappa": -2.0}, "kappa must be positive, got -2.0"),
        ({"vicinity": "soft", "weight_threshold": 1.0}, "weight_threshold must lie between 0 and 1"),
        ({"train_labels": torch.tensor([-88.0, 97.0])}, r"span \[-88, 97\]; normalise them"),
        ({"train_labels": torch.zeros(0)}, "at least one training label"),
    ],
)
def test_refuses_what_has_no_vicinity(change: dict, message: str) -> None:
    arguments = {**draws(0, 5, 3, 2, 5), "kappa": 0.1, "vicinity": "hard", "sigma": 0.1}
    with pytest.raises(ValueError, match=message):
        sample_vicinity(**{**arguments, **change})


def test_rules_of_thumb() -> None:
    labels = torch.tensor([0.0, 0.0, 0.1, 0.4, 1.0], dtype=torch.float64)  # widest gap 0.6
    deviation = math.sqrt(sum((y - 0.3) ** 2 for y in labels.tolist()) / 5)
    assert sigma_rule_of_thumb(labels=labels) == pytest.approx(1.06 * deviation / 5**0.2)
    assert kappa_rule_of_thumb(labels=labels, multiplier=2, vicinity="hard") == pytest.approx(1.2)
    assert kappa_rule_of_thumb(labels=labels, multiplier=2, vicinity="soft") == pytest.approx(1 / 1.44)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"labels": torch.ones(4), "multiplier": 2.0, "vicinity": "hard"}, "two distinct labels"),
        ({"labels": torch.arange(4) / 4, "multiplier": -2.0, "vicinity": "hard"}, "must be positive, got -2.0"),
        ({"labels": torch.arange(4) / 4, "multiplier": 2.0, "vicinity": "medium"}, "use 'hard' or 'soft'"),
    ],
)
def test_kappa_rule_refuses(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kappa_rule_of_thumb(**arguments)


def test_soft_weights_fall_to_the_threshold_at_the_edge_of_the_window() -> None:
    targets = torch.full((3,), 0.5, dtype=torch.float64)
    edge = half_width(2500.0, "soft")
    weights = soft_weights(labels=0.5 + torch.tensor([0.0, edge, -edge]).double(), target_labels=targets, kappa=2500.0)
    assert weights.tolist() == pytest.approx([1, 1e-3, 1e-3], rel=1e-5)


@settings(derandomize=True, database=None)
@given(low=st.floats(-1e3, 1e3), span=st.floats(1e-2, 1e3), position=st.floats(0, 1))
def test_normalising_is_undone_by_denormalising(low: float, span: float, position: float) -> None:
    bounds = {"label_min": low, "label_max": low + span}
    raw = torch.tensor([low, low + span, low + position * span], dtype=torch.float64)
    normalised = normalize_labels(labels=raw, **bounds)
    assert normalised.tolist() == pytest.approx([0, 1, position], abs=1e-9)
    torch.testing.assert_close(denormalize_labels(labels=normalised, **bounds), raw)


def test_normalising_integer_labels_gives_float32() -> None:
    normalised = normalize_labels(labels=torch.tensor([0, 30, 60]), label_min=0, label_max=60)
    torch.testing.assert_close(normalised, torch.tensor([0.0, 0.5, 1.0]))


def test_normalising_refuses_an_empty_range() -> None:
    with pytest.raises(ValueError, match=r"label_max \(3\) must be above label_min \(3\)"):
        normalize_labels(labels=torch.zeros(2), label_min=3, label_max=3)
