"""The benchmark times what it says: whole steps against their floors, in turn, on the same passes through the networks."""

from __future__ import annotations

import json

import benchmark
import pytest
import torch
from accelerate import Accelerator
from benchmarks import games, methods, timing
from torch import Tensor, nn

from gankd.data.loader import BatchSource
from gankd.data.sets import ImageSet
from gankd.methods import METHODS, Distiller, method_config, sampling_of
from gankd.models import ModelConfig
from gankd.training import TrainingConfig
from generators.config import GeneratorConfig
from generators.game import Game
from generators.labels import ClassLabels
from generators.networks import build_networks
from tests.commands import run

TINY = {"widths": (4, 4), "discriminator_widths": (4,), "latent_dim": 4, "label_dim": 8, "batch_size": 4}
CASES = [(name, kind) for name in METHODS for kind in methods.kinds(name)]
every_case = pytest.mark.parametrize(("name", "kind"), CASES)


def make_game(**settings) -> Game:
    """A tiny game on 8-pixel images of three classes."""
    config, accelerator = GeneratorConfig(**TINY | settings), Accelerator()
    networks = [network.to(accelerator.device).train() for network in build_networks(config, (3, 8, 8), 3, None)]
    return Game(*networks, ClassLabels(torch.arange(12) % 3), config, accelerator)


def pixels(count: int = 12) -> Tensor:
    return torch.randint(256, (count, 3, 8, 8), dtype=torch.uint8)


def dataset(kind: str) -> ImageSet:
    labels = torch.arange(12) % 3
    if kind == "classification":
        return ImageSet(pixels(), labels, class_names=("a", "b", "c"))
    return ImageSet(pixels(), labels.float())


def make_distiller(name: str, kind: str) -> tuple[Distiller, BatchSource, TrainingConfig, Accelerator]:
    """A method with tiny networks, and what its step and its floor are made from beside it."""
    training, data, accelerator = TrainingConfig(batch_size=4), dataset(kind), Accelerator()
    drawn = sampling_of(method_config(name), kind)
    source = BatchSource(data, batch_size=4, device=accelerator.device, sampling=drawn)
    widths = {"teacher": (8, 8), "student": (4, 8)}
    networks = {role: ModelConfig(options={"widths": each}) for role, each in widths.items()}
    return methods.fresh_distiller(name, data, source, training, **networks), source, training, accelerator


def networks_of(distiller: Distiller) -> list[nn.Module]:
    """The student, its teacher and its peers, as far as there are any."""
    teacher = [] if distiller.teacher is None else [distiller.teacher.module]
    return [distiller.student, *teacher, *getattr(distiller, "others", [])]


def reached(distiller: Distiller) -> set[str]:
    """Names of the parameters that the last backward pass has given a gradient."""
    return {name for name, parameter in distiller.named_parameters() if parameter.grad is not None}


def weights(module: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])


def passes(networks: list[nn.Module], call) -> list[tuple[int, int, bool]]:
    """The forward passes that a call makes: which network, how many images, whether a gradient comes back to it."""
    seen = []
    hooks = [
        network.register_forward_hook(
            lambda module, inputs, outputs, index=index: seen.append((index, len(inputs[0]), outputs.requires_grad))
        )
        for index, network in enumerate(networks)
    ]
    call()
    for hook in hooks:
        hook.remove()
    return seen


# --- the clock --------------------------------------------------------------------------------------------------------


def test_the_alternatives_take_turns() -> None:
    calls = []
    alternatives = {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}
    seconds = timing.interleaved(alternatives, repeats=3, device=torch.device("cpu"), least_seconds=0)
    assert "".join(calls).endswith("ababab") and calls.count("a") == calls.count("b") == 5  # two of each come first
    assert list(seconds) == ["a", "b"] and all(len(times) == 3 for times in seconds.values())


def test_a_short_call_is_repeated_until_its_turn_is_long_enough() -> None:
    calls = []
    alternatives = {"a": lambda: calls.append("a"), "b": lambda: None}
    timing.interleaved(alternatives, repeats=2, device=torch.device("cpu"), least_seconds=0.01)
    assert len(calls) > 2 + 2


def test_a_ratio_is_taken_within_its_round() -> None:
    seconds = {"step": [1.0, 20.0, 3.0, 40.0, 5.0], "floor": [1.0, 10.0, 1.0, 10.0, 1.0]}  # 1, 2, 3, 4, 5
    measurement = timing.Measurement("sngan", "<= 1.1", seconds, images=8, peak_memory=3 << 20)
    assert measurement.quartiles == (2.0, 3.0, 4.0)
    for words in ("step / floor", "3.000 [2.000, 4.000], want <= 1.1", "2 and 8 images/s", "3 MiB"):
        assert words in str(measurement)


# --- generators -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scalars", [False, True], ids=["classes", "scalars"])
def test_a_generator_is_timed_at_sampling_and_at_training(scalars: bool) -> None:
    config, accelerator = GeneratorConfig(**TINY), Accelerator()
    measurements = games.measure_generator(config, scalars=scalars, size=8, accelerator=accelerator, repeats=2)
    sampling, training = measurements
    assert list(sampling.seconds) == ["bare forward", "sample"] and list(training.seconds) == ["training step", "floor"]
    assert sampling.images == games.NUM_CHUNKS * 4 and training.images == 4
    for measurement in (sampling, training):
        assert measurement.subject == "sngan" and measurement.peak_memory > 1 << 20
        assert all(len(times) == 2 and min(times) > 0 for times in measurement.seconds.values())


def test_a_generator_without_a_discriminator_is_timed_too() -> None:
    config = GeneratorConfig(network="unet", widths=(8,), label_dim=8, sampling_steps=1, batch_size=4)
    _, training = games.measure_generator(config, scalars=False, size=8, accelerator=Accelerator(), repeats=2)
    assert list(training.seconds) == ["training step", "floor"] and training.images == 4


def test_both_ways_to_sample_make_the_same_batches() -> None:
    generator = make_game().generator.eval()
    forward, sample = games.sampling(generator, torch.arange(10) % 3, 4).values()
    assert passes([generator], forward) == passes([generator], sample) == [(0, 4, False), (0, 4, False), (0, 2, False)]


def test_the_floor_makes_the_passes_of_a_step_and_trains_nothing() -> None:
    game = make_game(discriminator_steps=2)
    networks = [game.generator, game.discriminator]
    before = [weights(network) for network in networks]
    floor = passes(networks, games.game_floor(game, 8))
    assert all(torch.equal(weights(network), old) for network, old in zip(networks, before, strict=True))
    with games.game_step(game, pixels()) as step:
        assert passes(networks, step) == floor
    assert floor == [(0, 4, False), (1, 8, True)] * 2 + [(0, 4, True), (1, 4, True)]
    assert not any(torch.equal(weights(network), old) for network, old in zip(networks, before, strict=True))
    assert all(parameter.requires_grad for parameter in game.discriminator.parameters())


# --- distillers -------------------------------------------------------------------------------------------------------


@every_case
def test_a_floor_makes_the_passes_of_its_methods_step_and_trains_nothing(name: str, kind: str) -> None:
    """Through the same networks, on as many images, forwards and backwards; the heads beside them are left to the step."""
    parts = make_distiller(name, kind)
    distiller = parts[0]
    networks, before = networks_of(distiller), weights(distiller.student)
    step, floor = methods.distiller_step(*parts), methods.distiller_floor(*parts)
    expected = passes(networks, floor)
    assert torch.equal(weights(distiller.student), before)
    assert passes(networks, step) == expected
    assert not torch.equal(weights(distiller.student), before)
    trained = reached(distiller)
    floor()
    assert reached(distiller) <= trained
    whole = ("student.", "others.")
    assert {key for key in reached(distiller) if key.startswith(whole)} == {
        key for key in trained if key.startswith(whole)
    }


STUDENT, TEACHER = (0, 4, True), (1, 4, False)  # network, images, whether it is trained


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("supervised", [STUDENT]),
        ("kd", [STUDENT, TEACHER]),
        ("fsp", [STUDENT]),  # its teacher is asked in the first stage only
        ("ab", [STUDENT]),
        ("cs_kd", [STUDENT]),
        ("tf_kd_self", [STUDENT, TEACHER]),
        ("hsakd", [(0, 16, True), (1, 16, False)]),  # four rotations
        ("hsakd_teacher", [(0, 16, True)]),
        ("mixskd", [(0, 8, True)]),  # images and mixtures
        ("ddgsd", [(0, 8, True)]),  # two views
        ("dml", [STUDENT, (1, 4, True)]),
        ("one", [STUDENT, (1, 4, True), (2, 4, True)]),
    ],
)
def test_a_floor_asks_each_network_as_often_as_the_method_does(name: str, expected: list) -> None:
    parts = make_distiller(name, "classification")
    assert sorted(passes(networks_of(parts[0]), methods.distiller_floor(*parts))) == expected


MIXSKD = ["branches.0", *["discriminators.0"] * 2, *["discriminators.1"] * 2, "fusion", "fusion"]
MIXSKD += ["self_teacher_head", "self_teacher_head", "student"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("hsakd", ["branches", "fixed_branches", "student"]),
        ("byot", ["student", "terms.byot.branches.0"]),
        ("frskd", ["student", "terms.frskd.self_teacher"]),
        ("lmcl", ["others.0", "peers.0.branches.0", "peers.1.branches.0", "student"]),
        ("mixskd", MIXSKD),
        ("fitnet", ["student"]),  # a regressor is what the method costs
    ],
)
def test_branches_belong_to_the_floor_and_small_heads_do_not(name: str, expected: list[str]) -> None:
    distiller, source, *_ = make_distiller(name, "classification")
    names = {module: path for path, module in distiller.named_modules()}
    calls = methods.calls_of(distiller, source.batch(0))
    assert sorted(names[call.network] for call in calls if call.network in names) == expected


def test_a_pass_that_does_not_train_its_network_is_repeated_without_its_weights_gradient() -> None:
    """The students of `afd` are judged by frozen discriminators, which are then trained on detached maps."""
    distiller, source, *_ = make_distiller("afd", "classification")
    calls = [
        call for call in methods.calls_of(distiller, source.batch(0)) if call.network is distiller.discriminators[0]
    ]
    fooling, *telling = calls
    for call, trains in [(fooling, False), *((call, True) for call in telling)]:
        distiller.zero_grad()
        call.repeat()[0].mean().backward()
        assert all((weight.grad is not None) == trains for weight in call.network.parameters())
        assert call.inputs[0].requires_grad != trains


def test_every_method_is_timed_on_images_enough_for_its_negatives() -> None:
    counts = {name: methods.num_images_of(name) for name, _ in CASES}
    assert counts["kd"] == timing.NUM_IMAGES and counts["crd"] == 50_000
    for name, count in counts.items():
        of_other_classes = count - count // timing.NUM_CLASSES
        assert of_other_classes >= getattr(method_config(name), "num_negatives", 0)


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_prints_a_line_a_measurement_and_writes_all_rounds(tmp_path) -> None:
    settings = ["widths=[4,4]", "discriminator_widths=[4]", "latent_dim=4", "label_dim=8"]
    command = ["scripts/benchmark.py", "generators", "--size", 8, "--batch-size", 4, "--repeats", 2, "--device", "cpu"]
    output = run(*command, "--json", tmp_path / "times.json", "--set", *settings)
    assert [line.split()[0] for line in output.splitlines()[-2:]] == ["sngan", "sngan"]
    written = json.loads((tmp_path / "times.json").read_text())
    assert written["machine"]["torch"] == torch.__version__ and written["machine"]["threads"] == 1
    assert written["settings"]["batch_size"] == 4
    for row in written["measurements"]:
        assert len(row["quartiles"]) == 3 and all(len(times) == 2 for times in row["seconds"].values())


def test_the_networks_of_a_method_have_names(tmp_path, capsys) -> None:
    command = "distillers --method kd --teacher resnet14 --student resnet8 --size 8 --batch-size 4 --num-samples 40"
    assert (
        benchmark.main([*command.split(), "--repeats", "2", "--device", "cpu", "--json", str(tmp_path / "times")]) == 0
    )
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[-2:]] == ["kd", "kd"]
    settings = json.loads((tmp_path / "times").read_text())["settings"]
    assert (settings["teacher"], settings["student"], settings["num_samples"]) == ("resnet14", "resnet8", 40)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["generators", "--repeats", "1"], "--repeats 1 gives no quartiles"),
        (["generators", "--network", "sagan"], "32 pixels"),
        (["generators", "--set", "width=[4]"], "did you mean 'widths'?"),
        (
            ["distillers", "--method", "kd", "--student", "resnet8x5", "--num-samples", "20"],
            "unknown network 'resnet8x5'",
        ),
    ],
)
def test_a_mistake_is_one_sentence(arguments: list[str], words: str, capsys) -> None:
    assert benchmark.main(arguments) == 2
    assert words in capsys.readouterr().err
