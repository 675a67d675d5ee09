"""Adversarial training, three steps long: every kind of label and loss, exact resume, refusals, and the end of a bad run."""

from __future__ import annotations

import math
import random
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

import generators
from generators.checkpoints import read_checkpoint
from generators.config import GeneratorConfig
from generators.game import Game
from generators.interface import ConditionalGenerator
from generators.labels import ClassLabels, ScalarLabels
from generators.monitor import GeneratorDiverged, check_health
from generators.networks import build_networks
from generators.networks.sngan import SNGANGenerator
from generators.statistics import recalibrate_batch_norm

CONFIG = GeneratorConfig(
    widths=(16, 8),
    discriminator_widths=(8,),
    latent_dim=6,
    label_dim=32,
    steps=4,
    batch_size=8,
    discriminator_steps=2,
    mode_seeking=0.1,
    horizontal_flip=True,
    augment="color,translation,cutout",
    log_every=1,
    checkpoint_every=2,
)
CLASSES = {"num_classes": 3}
SCALARS = {"label_range": (-40.0, 60.0)}
SCALAR_SETTINGS = {"sigma": 3.0, "kappa": 6.0}


class Interruption(Exception):
    """Stands for a killed process."""


def images(count: int = 20, channels: int = 1, size: int = 8) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (count, channels, size, size), generator=generator, dtype=torch.uint8)


def labels(kind: dict, count: int = 20) -> Tensor:
    return torch.arange(count) % 3 if kind is CLASSES else torch.linspace(-30, 60, count)


def train(kind: dict, *, interrupt_at: int | None = None, log=lambda values: None, **arguments) -> ConditionalGenerator:
    """A generator after `train`; with `interrupt_at`, None after a run that died when that step had been computed."""
    arguments = {"images": images(), "config": CONFIG, **(SCALAR_SETTINGS if kind is SCALARS else {}), **arguments}
    arguments.setdefault("labels", labels(kind))

    def watch(values: dict) -> None:
        log(values)
        if values["step"] == interrupt_at:
            raise Interruption

    if interrupt_at is None:
        return generators.train(**kind, **arguments, log=watch)
    with pytest.raises(Interruption):
        generators.train(**kind, **arguments, log=watch)
    return None


def equal(first: nn.Module, second: nn.Module) -> bool:
    one, other = first.state_dict(), second.state_dict()
    return list(one) == list(other) and all(torch.equal(one[key], other[key]) for key in one)


def check(generator: ConditionalGenerator, kind: dict) -> None:
    """What everybody may expect of a trained generator."""
    assert not any(module.training for module in generator.modules())
    assert not any(parameter.requires_grad for parameter in generator.parameters())
    assert all(value.isfinite().all() for value in generator.state_dict().values())
    for norm in generator.modules():
        if isinstance(norm, nn.BatchNorm2d):
            assert (norm.running_var > 0).all()
            assert not torch.equal(norm.running_mean, torch.zeros_like(norm.running_mean))
            assert norm.momentum is not None
    drawn = generator.sample(labels(kind)[:5])
    assert drawn.shape == (5, 1, 8, 8) and drawn.isfinite().all() and drawn.abs().max() <= 1
    assert drawn.std(dim=0).max() > 1e-3


# --- every kind of label and loss -------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["hinge", "nonsaturating"])
def test_class_ids(loss: str) -> None:
    check(train(CLASSES, loss=loss, steps=3), CLASSES)


@pytest.mark.parametrize("vicinity", ["hard", "soft"])
@pytest.mark.parametrize("loss", ["hinge", "nonsaturating"])
@pytest.mark.parametrize("label_input", ["fourier", "nli"])
def test_scalars(vicinity: str, loss: str, label_input: str) -> None:
    check(train(SCALARS, loss=loss, vicinity=vicinity, label_input=label_input, steps=3), SCALARS)


def test_scalars_through_a_label_network() -> None:
    torch.manual_seed(7)
    state = torch.get_rng_state()
    generator = train(SCALARS, label_input="ili", vicinity="soft", loss="nonsaturating")
    assert torch.equal(torch.get_rng_state(), state)
    check(generator, SCALARS)
    codes = generator.label_code(torch.linspace(0, 1, 5))
    assert codes.shape == (5, 32) and codes.std(dim=0).max() > 0.05


def test_a_label_network_is_frozen_in_both_networks() -> None:
    networks = build_networks(CONFIG.replace(label_input="ili"), (1, 8, 8), None, (0.0, 1.0))
    for network in networks:
        assert not any(parameter.requires_grad for parameter in network.encoder.parameters())


@pytest.mark.parametrize("augment", ["", "color", "translation,cutout"])
def test_every_augmentation(augment: str) -> None:
    check(train(CLASSES, augment=augment, steps=1), CLASSES)


def test_a_coloured_image_of_which_the_generator_draws_a_quarter() -> None:
    generator = train(CLASSES, images=images(channels=3, size=16), steps=2)
    assert generator.sample(torch.arange(3)).shape == (3, 3, 16, 16)


def test_labels_reach_the_image() -> None:
    for kind, label_input in ((CLASSES, None), (SCALARS, "fourier"), (SCALARS, "nli")):
        generator = train(kind, label_input=label_input, learning_rate=0.01)
        latents = torch.randn(1, 6).repeat(2, 1)
        first, last = generator.sample(labels(kind)[[0, 19]] if kind is SCALARS else torch.tensor([0, 1]), latents)
        assert not torch.allclose(first, last, atol=1e-4)


@pytest.mark.parametrize("widths", [(), (16,)])
def test_a_generator_without_a_block_would_not_see_its_label_and_is_refused(widths: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="widths"):
        train(CLASSES, widths=widths)


# --- resume -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "settings"), [(CLASSES, {}), (SCALARS, {}), (SCALARS, {"label_input": "nli"})])
def test_two_steps_and_two_more_equal_four_bit_for_bit(tmp_path: Path, kind: dict, settings: dict) -> None:
    whole = train(kind, **settings)
    train(kind, **settings, directory=tmp_path, interrupt_at=3)  # the third step is lost
    logged: list[dict] = []
    resumed = train(kind, **settings, directory=tmp_path, log=logged.append)
    assert [values["step"] for values in logged] == [3, 4]
    assert equal(resumed, whole)
    assert not equal(whole, train(kind, **settings, steps=2)), "the comparison means nothing unless the steps matter"


def test_a_run_that_died_after_its_last_step_needs_no_more_steps(tmp_path: Path) -> None:
    whole = train(CLASSES, directory=tmp_path)
    logged: list[dict] = []
    assert equal(train(CLASSES, directory=tmp_path, log=logged.append), whole)
    assert logged == []


@pytest.mark.parametrize("change", [{"seed": 1}, {"steps": 2}, {"learning_rate": 0.1}])
def test_a_checkpoint_of_another_run_is_not_continued(tmp_path: Path, change: dict) -> None:
    """It would be a generator that no settings describe, or one that took more steps than were asked."""
    train(CLASSES, directory=tmp_path)
    with pytest.raises(ValueError, match=re.escape(str(tmp_path))):
        train(CLASSES, directory=tmp_path, **change)


def test_a_damaged_checkpoint_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "checkpoint.pt").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"checkpoint\.pt cannot be read .*delete it"):
        train(CLASSES, directory=tmp_path)


# --- randomness -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [CLASSES, SCALARS])
def test_the_same_seed_gives_the_same_generator_and_another_seed_another(kind: dict) -> None:
    assert equal(train(kind, seed=3), train(kind, seed=3))
    assert not equal(train(kind, seed=3), train(kind, seed=4))


@pytest.mark.parametrize("kind", [CLASSES, SCALARS])
def test_the_draws_of_the_caller_do_not_matter_and_stay_untouched(kind: dict) -> None:
    expected = train(kind)
    random.seed(7)
    np.random.seed(7)
    torch.manual_seed(7)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    assert equal(train(kind), expected)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.array_equal(np.random.get_state()[1], states[2])


def test_an_interrupted_run_restores_the_callers_random_stream() -> None:
    torch.manual_seed(7)
    state = torch.get_rng_state()
    train(CLASSES, interrupt_at=2)
    assert torch.equal(torch.get_rng_state(), state)


# --- the average ------------------------------------------------------------------------------------------------------


def test_without_memory_the_average_is_the_last_generator_and_with_perfect_memory_the_first(tmp_path: Path) -> None:
    for decay, expected in ((0.0, "last"), (1.0, "first")):
        train(CLASSES, ema_decay=decay, directory=tmp_path / expected)
    last = read_checkpoint(tmp_path / "last" / "checkpoint.pt")
    first = read_checkpoint(tmp_path / "first" / "checkpoint.pt")
    average = last["average"]
    network = last["game"]["generator"]["network"]
    assert all(torch.equal(average[key], network[key]) for key in network)
    kept, trained = first["average"]["dense.weight"], first["game"]["generator"]["network"]["dense.weight"]
    assert not torch.equal(kept, trained)


def test_the_returned_generator_is_the_average(tmp_path: Path) -> None:
    generator = train(CLASSES, ema_decay=0.5, directory=tmp_path)
    average = read_checkpoint(tmp_path / "checkpoint.pt")["average"]
    for name, parameter in generator.named_parameters():
        assert torch.equal(parameter, average[name])


def test_batch_norms_are_recalibrated_to_the_averaged_weights() -> None:
    """Then evaluation mode is training mode on a large batch, whatever the momentum of the training was."""
    generator = train(CLASSES, ema_decay=0.9)
    z, y = torch.randn(4000, 6), torch.arange(4000) % 3
    evaluated = generator(z, y)
    trained = generator.train()(z, y)
    assert (evaluated - trained).abs().max() < 0.1


def test_recalibration_is_a_function_of_the_weights_and_the_seed() -> None:
    plan, states = ClassLabels(labels(CLASSES)), []
    for start in (0.0, 5.0):
        generator = train(CLASSES, steps=1)
        for norm in generator.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.running_mean.fill_(start)
        recalibrate_batch_norm(generator, plan.generator_batch, seed=0, batch_size=16, num_batches=2)
        states.append({key: value.clone() for key, value in generator.state_dict().items()})
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


# --- what comes in ----------------------------------------------------------------------------------------------------


class UserDataset(Dataset):
    """As users write them: a float image in [0, 1] and a Python number."""

    def __init__(self, kind: dict):
        self.pixels, self.labels_of_images = images(), labels(kind)

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int):
        return self.pixels[index].float() / 255, self.labels_of_images[index].item()


@pytest.mark.parametrize("kind", [CLASSES, SCALARS])
def test_a_data_set_trains_the_same_generator_as_its_tensors(kind: dict) -> None:
    expected = train(kind)
    assert equal(train(kind, images=UserDataset(kind), labels=None), expected)
    assert equal(train(kind, images=TensorDataset(images(), labels(kind)), labels=None), expected)


def test_images_that_are_read_batch_by_batch_train_the_same_generator() -> None:
    class Lazy:
        shape = images().shape

        def __len__(self) -> int:
            return 20

        def __getitem__(self, indices: Tensor) -> Tensor:
            return images()[indices]

    expected = train(CLASSES)
    assert equal(train(CLASSES, images=Lazy()), expected)
    assert equal(train(CLASSES, memory_budget=0), expected)


@pytest.mark.parametrize(
    ("kind", "position", "label", "span"),
    [
        (CLASSES, 4, 3, r"\[0, 2\]"),
        (CLASSES, 4, -1, r"\[0, 2\]"),
        (SCALARS, 19, 60.5, r"\[-40, 60\]"),
        (SCALARS, 0, math.nan, r"\[-40, 60\]"),
    ],
)
def test_a_label_out_of_range_is_refused_with_its_place(kind: dict, position: int, label: float, span: str) -> None:
    wrong = labels(kind).clone()
    wrong[position] = label
    with pytest.raises(ValueError, match=rf"label {label:g} of sample {position} lies outside {span}"):
        train(kind, labels=wrong)


@pytest.mark.parametrize("kind", [{}, {**CLASSES, **SCALARS}])
def test_labels_are_of_exactly_one_kind(kind: dict) -> None:
    with pytest.raises(ValueError, match="exactly one of num_classes .* and label_range"):
        generators.train(images(), labels(CLASSES), config=CONFIG, **kind)


def test_scalars_are_no_class_ids() -> None:
    with pytest.raises(ValueError, match="class ids|int64"):
        train(CLASSES, labels=labels(CLASSES).float())


@pytest.mark.parametrize("count", [19, 21])
def test_as_many_labels_as_images_are_needed(count: int) -> None:
    with pytest.raises(ValueError, match=f"20.*{count}|{count}.*20"):
        train(CLASSES, labels=torch.arange(count) % 3)


def test_one_label_is_no_condition() -> None:
    with pytest.raises(ValueError, match="at least two different labels"):
        train({"num_classes": 1}, labels=torch.zeros(20, dtype=torch.int64))


def test_scalars_that_are_all_equal_need_a_vicinity_of_the_users() -> None:
    with pytest.raises(ValueError, match="at least two distinct labels"):
        train(SCALARS, labels=torch.zeros(20), kappa=None)


@pytest.mark.parametrize("size", [4, 9, 10, 24, 28, 256])
def test_an_image_size_that_the_networks_cannot_take_names_those_they_can(size: int) -> None:
    with pytest.raises(ValueError, match=rf"image size of {size} pixels.*\[8, 16, 32, 64, 128\]"):
        train(CLASSES, images=images(2, size=size), labels=torch.tensor([0, 1]))


def test_images_that_are_not_square_are_refused() -> None:
    with pytest.raises(ValueError, match=r"images are 8x16; the generators need square images: set data\.image_size"):
        train(CLASSES, images=torch.zeros(20, 1, 8, 16, dtype=torch.uint8))


def test_images_that_are_not_bytes_are_refused() -> None:
    """Floats in [0, 1] would be taken for bytes, and all be black."""
    with pytest.raises(ValueError, match="float32.*uint8|uint8.*float32"):
        train(CLASSES, images=images().float() / 255)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"widths": (8, 8, 8)}, "3 generator widths reach 16 pixels, beyond the image size 8"),
        ({"discriminator_widths": (8, 8, 8)}, "3 discriminator widths do not fit an image size of 8; give 1 or 2"),
        ({"label_input": "fourier"}, "label_input 'fourier' does not fit these labels; use 'embedding' for classes"),
        ({"batch_size": 7}, "batch_size 7 does not split into pairs"),
        ({"augment": "rotation"}, "augment names 'rotation'"),
        ({"step": 3}, "unknown key 'step'; did you mean 'steps'"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        train(CLASSES, **settings)


def test_a_scalar_has_no_class_embedding() -> None:
    with pytest.raises(ValueError, match="label_input 'embedding' does not fit these labels; use 'fourier', 'ili'"):
        train(SCALARS, label_input="embedding")


def test_a_label_network_that_could_tell_no_labels_apart_is_refused() -> None:
    """Eight groups: a width that they do not divide is impossible, and with one channel a group every code is the same."""
    for label_dim in (8, 12):
        with pytest.raises(ValueError, match="label_dim"):
            train(SCALARS, label_input="ili", label_dim=label_dim)


# --- which labels a step uses -----------------------------------------------------------------------------------------


def test_the_rule_of_thumb_warns_when_it_would_blur_the_labels() -> None:
    with pytest.warns(UserWarning, match="over a tenth of the label range.*Set generator.sigma"):
        ScalarLabels(labels(SCALARS), (-40.0, 60.0), CONFIG)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ScalarLabels(labels(SCALARS), (-40.0, 60.0), CONFIG.replace(sigma=20.0))


@pytest.mark.parametrize("vicinity", ["hard", "soft"])
def test_sigma_and_kappa_are_in_the_units_of_the_labels(vicinity: str) -> None:
    config = CONFIG.replace(vicinity=vicinity, **SCALAR_SETTINGS)
    plan = ScalarLabels(labels(SCALARS), (-40.0, 60.0), config)
    assert plan.sigma == pytest.approx(0.03)
    assert plan.kappa == pytest.approx(0.06 if vicinity == "hard" else 1 / 0.06**2)


def test_a_hard_vicinity_keeps_real_and_fake_labels_near_the_target() -> None:
    plan = ScalarLabels(labels(SCALARS), (-40.0, 60.0), CONFIG.replace(**SCALAR_SETTINGS))
    batch = plan.discriminator_batch(500, torch.Generator().manual_seed(0))
    assert torch.equal(batch["real_y"], batch["fake_y"])
    assert (batch["real_labels"] - batch["real_y"]).abs().max() <= 0.06 + 1e-6
    inside = (batch["real_y"] >= 0) & (batch["real_y"] <= 1)
    assert (batch["fake_input"] - batch["fake_y"])[inside].abs().max() <= 0.06 + 1e-6
    assert batch["fake_input"].min() >= 0 and batch["fake_input"].max() <= 1
    normalised = (labels(SCALARS) + 40) / 100
    torch.testing.assert_close(batch["real_labels"], normalised[batch["indices"]])
    y = plan.generator_batch(500, torch.Generator().manual_seed(0))
    assert y.min() >= 0 and y.max() <= 1 and y.std() > 0.1


def test_rare_scalars_are_targets_as_often_as_common_ones() -> None:
    plan = ScalarLabels(torch.tensor([0.0] * 99 + [10.0]), (0.0, 10.0), CONFIG.replace(sigma=0.1, kappa=0.5))
    batch = plan.discriminator_batch(1000, torch.Generator().manual_seed(0))
    assert (batch["indices"] == 99).float().mean().item() == pytest.approx(0.5, abs=0.06)


def test_classes_are_drawn_as_often_as_they_occur() -> None:
    plan = ClassLabels(torch.tensor([0] * 9 + [2]))
    random = torch.Generator().manual_seed(0)
    batch = plan.discriminator_batch(2000, random)
    assert torch.equal(plan.labels[batch["indices"]], batch["real_y"])
    for drawn in (batch["real_y"], batch["fake_y"], plan.generator_batch(2000, random)):
        assert torch.bincount(drawn).tolist() == pytest.approx([1800, 0, 200], abs=60)


# --- options of the training ------------------------------------------------------------------------------------------


def first_weight(generator: ConditionalGenerator) -> float:
    """A score as good as any, for tests that are not about quality."""
    return generator.dense.weight[0, 0].item()


@pytest.mark.parametrize("kind", [CLASSES, SCALARS])
def test_a_resumed_run_with_everything_switched_on_repeats_an_uninterrupted_one(kind: dict, tmp_path: Path) -> None:
    settings = {"r1": 1.0, "r1_every": 2, "orthogonal": 1e-4, "augment_target": 0.6, "augment_images": 50}
    settings |= {"discriminator_learning_rate": 5e-4, "balanced": True, "accumulate": 2, "score": first_weight}
    settings |= {"score_every": 1, "sample_every": 2, "collapse_ratio": None}
    expected = train(kind, **settings, directory=tmp_path / "whole")
    train(kind, **settings, directory=tmp_path / "cut", interrupt_at=3)
    assert equal(train(kind, **settings, directory=tmp_path / "cut"), expected)
    assert (tmp_path / "cut" / "samples" / "step-000004.png").stat().st_size > 0


def game_at_rest(**settings) -> Game:
    """Networks in evaluation mode: no batch statistics and no power iterations, nothing random but the latents."""
    quiet = {"latent_dim": 8, "mode_seeking": 0, "augment": "", "horizontal_flip": False}
    config = CONFIG.replace(**{**quiet, **settings})
    torch.manual_seed(0)
    generator, discriminator = build_networks(config, (1, 8, 8), 3, None)
    return Game(generator.eval(), discriminator.eval(), ClassLabels(labels(CLASSES)), config, Accelerator())


def batch_of_ones(game: Game) -> dict[str, Tensor]:
    ones = torch.ones(8, dtype=torch.int64)
    return {"images": images()[:8], "real_y": ones, "fake_y": ones, "fake_input": ones}


def test_a_batch_in_passes_gives_the_gradient_of_the_whole() -> None:
    gradients = []
    for passes in (1, 2):
        game = game_at_rest(
            accumulate=passes, betas=(0.0, 0.9), learning_rate=1e-12
        )  # Adam's first moment: the gradient
        batch = batch_of_ones(game)
        game.discriminator_step(batch)
        game.generator_step(batch["fake_y"][:4])
        gradients.append(
            [
                player.optimizer.state[parameter]["exp_avg"]
                for player in (game.discriminator_player, game.generator_player)
                for parameter in player.parameters
            ]
        )
    for whole, summed in zip(*gradients, strict=True):
        torch.testing.assert_close(summed, whole, rtol=1e-4, atol=1e-6)


def test_the_penalty_is_half_gamma_times_the_squared_gradient_at_the_real_images() -> None:
    game = game_at_rest(r1=4.0, r1_every=3)
    batch, losses = batch_of_ones(game), []
    for penalise in (False, True):
        torch.manual_seed(1)
        losses.append(game.discriminator_loss(batch, penalise)[0])
    real = (batch["images"] / 127.5 - 1).requires_grad_()
    (gradient,) = torch.autograd.grad(game.discriminator(real, batch["real_y"]).sum(), real)
    expected = 4.0 / 2 * 3 * gradient.square().sum(dim=(1, 2, 3)).mean()
    torch.testing.assert_close(losses[1] - losses[0], expected, rtol=1e-4, atol=1e-6)


def test_the_penalty_is_taken_every_so_many_updates_also_after_a_resume() -> None:
    game, taken = game_at_rest(r1=1.0, r1_every=3), []
    original = game.discriminator_loss
    game.discriminator_loss = lambda batch, penalise: (taken.append(penalise), original(batch, penalise))[1]
    for _ in range(4):
        game.discriminator_step(batch_of_ones(game))
    assert taken == [True, False, False, True]
    resumed = game_at_rest(r1=1.0, r1_every=3)
    resumed.load_state_dict(game.state_dict())
    assert resumed.discriminator_updates == 4


def test_orthogonal_regularisation_leaves_only_the_tables_alone() -> None:
    player = game_at_rest().generator_player
    for parameter in player.parameters:
        parameter.grad = torch.zeros_like(parameter)
    player.add_orthogonal_gradient(0.1)
    tables = {id(module.weight) for module in player.network.modules() if isinstance(module, nn.Embedding)}
    assert tables
    for parameter in player.parameters:
        assert bool(parameter.grad.any()) == (parameter.ndim > 1 and id(parameter) not in tables and len(parameter) > 1)


def test_adaptive_augmentation_follows_the_discriminators_certainty() -> None:
    game = game_at_rest(augment="translation", augment_target=0.6, augment_images=80)
    assert game.augment_probability == 0
    for sign, expected in ((0.9, 0.1), (1.0, 0.2), (0.5, 0.1), (-1.0, 0.0), (0.0, 0.0)):
        game.adapt_augmentation(torch.tensor(sign), 8)
        assert game.augment_probability.item() == pytest.approx(expected, abs=1e-6)


def test_balanced_classes_are_drawn_equally_often_and_every_image_of_a_class_too() -> None:
    plan = ClassLabels(torch.tensor([0] * 9 + [2] * 3), balanced=True)
    batch = plan.discriminator_batch(6000, torch.Generator().manual_seed(0))
    assert torch.equal(plan.labels[batch["indices"]], batch["real_y"])
    for drawn in (batch["real_y"], batch["fake_y"], plan.generator_batch(6000, torch.Generator().manual_seed(1))):
        assert torch.bincount(drawn).tolist() == pytest.approx([3000, 0, 3000], abs=150)
    counts = torch.bincount(batch["indices"], minlength=12)
    assert counts[:9].tolist() == pytest.approx([333] * 9, abs=80)
    assert counts[9:].tolist() == pytest.approx([1000] * 3, abs=120)


def test_the_best_generator_by_score_is_kept_in_memory_and_on_disk(tmp_path: Path) -> None:
    """Scores 3, 1, 2, 4 at steps 1 to 4: what comes back is what a run of two steps returns."""
    expected = train(CLASSES, steps=2)
    for directory in (None, tmp_path):
        scores, logged = iter([3.0, 1.0, 2.0, 4.0]), []
        settings = {"score_every": 1, "collapse_ratio": None, "directory": directory, "log": logged.append}
        assert equal(train(CLASSES, score=lambda generator, scores=scores: next(scores), **settings), expected)
        assert [line["best_step"] for line in logged if "score" in line] == [1, 2, 2, 2]


def test_a_score_far_above_the_best_stops_the_run_and_rolls_it_back() -> None:
    scores = iter([3.0, 1.0, 2.0, 4.5])
    with pytest.warns(
        UserWarning, match=r"collapsed by step 4: its score is 4\.5, after 1 at step 2\. Rolled back to step 2"
    ):
        generator = train(CLASSES, steps=9, score_every=1, score=lambda generator: next(scores))
    assert equal(generator, train(CLASSES, steps=2))


def test_scores_need_something_to_score_with() -> None:
    with pytest.raises(ValueError, match="score_every is set, but there is nothing to score with"):
        train(CLASSES, score_every=1)


def test_a_discriminator_that_answers_all_alike_stops_the_run() -> None:
    with pytest.raises(GeneratorDiverged, match="standstill by step .*discriminator_steps"):
        check_health({"logit_spread": 1e-5, "image_spread": 1.0, "generator_loss": 0.0}, 7)
    check_health({"logit_spread": 1e-2, "image_spread": 1.0, "generator_loss": 0.0}, 7)


def test_grids_have_a_column_a_label_and_a_row_a_latent() -> None:
    for kind, columns in ((CLASSES, 3), (SCALARS, 5)):
        generator = train(kind, steps=1)
        sheet = generators.sample_grid(generator, rows=2, columns=5)
        assert sheet.size == (columns * 10, 2 * 10) and not generator.training
        assert sheet.getpixel((0, 0)) == (255, 255, 255)


def test_standing_statistics_are_those_of_the_generators_own_samples() -> None:
    generator = train(CLASSES, steps=2)
    norm = next(module for module in generator.modules() if isinstance(module, nn.BatchNorm2d))
    expected = norm.running_mean.clone()
    norm.running_mean.fill_(7.0)
    generators.standing_statistics(generator, labels(CLASSES), seed=1)
    torch.testing.assert_close(norm.running_mean, expected, rtol=0.1, atol=0.05)
    assert not generator.training


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"accumulate": 3}, "batch_size 8 does not split into accumulate 3 passes of pairs; use a multiple of 6"),
        ({"augment_target": 0.6, "augment": ""}, "augment_target adapts the changes that augment names"),
        ({"sync_batch_norm": True}, "sync_batch_norm synchronises GPUs, and there is none here"),
    ],
)
def test_options_that_do_not_fit_are_refused(settings: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        train(CLASSES, **settings)


# --- what it says, and where it ends ----------------------------------------------------------------------------------


def test_the_log_holds_the_terms_of_the_game() -> None:
    logged: list[dict] = []
    train(CLASSES, steps=5, log_every=2, log=logged.append)
    assert [values["step"] for values in logged] == [2, 4, 5]
    for values in logged:
        assert set(values) == {
            "stage",
            "step",
            "discriminator_loss",
            "real_accuracy",
            "fake_accuracy",
            "logit_spread",
            "generator_loss",
            "image_spread",
        }
        assert 0 <= values["real_accuracy"] <= 1 and 0 <= values["fake_accuracy"] <= 1


def test_the_discriminator_learns_to_tell_real_from_fake() -> None:
    logged: list[dict] = []
    pixels = torch.full((20, 1, 8, 8), 250, dtype=torch.uint8)
    train(CLASSES, images=pixels, steps=15, augment="", learning_rate=5e-3, mode_seeking=0, log=logged.append)
    assert max(values["real_accuracy"] + values["fake_accuracy"] for values in logged) > 1.5


def test_a_generator_of_one_image_stops_with_the_sentence_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    """A run is continued whose generator has forgotten how to draw: its last layer is 0, and it hardly learns."""
    settings = {"learning_rate": 1e-12, "mode_seeking": 0, "checkpoint_every": 2}
    train(CLASSES, **settings, directory=tmp_path, interrupt_at=3)
    checkpoint = tmp_path / "checkpoint.pt"
    state = read_checkpoint(checkpoint)
    state["game"]["generator"]["network"]["to_image.weight"].zero_()
    torch.save(state, checkpoint)
    before = checkpoint.read_bytes()
    with pytest.raises(GeneratorDiverged) as caught:
        train(CLASSES, **settings, directory=tmp_path)
    sentence = str(caught.value)
    assert re.match(r"the generator (collapsed|diverged) by step 3: it draws the same image always\.", sentence)
    assert f"The last good checkpoint is {checkpoint}." in sentence and "Lower generator.learning_rate" in sentence
    assert checkpoint.read_bytes() == before and not (tmp_path / "config.json").exists()


def test_a_loss_that_is_not_finite_stops_with_the_sentence() -> None:
    with pytest.raises(GeneratorDiverged) as caught:
        train(CLASSES, learning_rate=1e30, steps=60)
    sentence = str(caught.value)
    assert re.match(
        r"the generator diverged by step \d+: a loss is no longer finite\. Lower generator\.learning_rate", sentence
    )
    assert "checkpoint" not in sentence, "none was written, so none is promised"


def test_a_checkpoint_that_is_called_good_is_good(tmp_path: Path) -> None:
    """The check may be seldom and the checkpoint frequent."""
    settings = {"learning_rate": 1e30, "log_every": 6, "checkpoint_every": 1}
    with pytest.raises(GeneratorDiverged) as caught:
        train(CLASSES, **settings, steps=60, directory=tmp_path)
    if "last good checkpoint" in str(caught.value):
        average = read_checkpoint(tmp_path / "checkpoint.pt")["average"]
        assert all(value.isfinite().all() for value in average.values())


def test_a_trained_generator_is_saved_where_it_was_asked_to(tmp_path: Path) -> None:
    generator = train(SCALARS, directory=tmp_path)
    loaded = generators.load_generator(tmp_path)
    assert isinstance(loaded, SNGANGenerator) and equal(loaded, generator)
    assert tuple(loaded.config.label_range) == (-40, 60)
