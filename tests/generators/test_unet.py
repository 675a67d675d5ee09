"""The flow: its loss and its sampler against their formulas, every size and label, and training without a discriminator."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, distributed, nn

import generators
from generators.config import GeneratorConfig
from generators.images import to_generator_range
from generators.labels import ClassLabels
from generators.networks import NETWORKS, build_networks
from generators.networks.unet import FlowGenerator
from generators.own_loss import OwnLoss
from generators.randomness import mix
from generators.schedule import rate_share
from generators.training import prefetch
from tests.conftest import run

LAUNCHER = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "--module")
TINY = {"network": "unet", "widths": (8, 16), "label_dim": 16, "sampling_steps": 2}
SETTINGS = {**TINY, "steps": 4, "batch_size": 8, "horizontal_flip": True, "log_every": 1, "checkpoint_every": 2}
KINDS = {
    "classes": (torch.arange(20) % 3, {"num_classes": 3}),
    "scalars": (torch.linspace(-30, 60, 20), {"label_range": (-40.0, 60.0), "sigma": 3.0, "kappa": 6.0}),
}


class Interruption(Exception):
    """Stands for a killed process."""


def pixels(channels: int = 1, size: int = 8) -> Tensor:
    random = torch.Generator().manual_seed(0)
    return torch.randint(256, (20, channels, size, size), generator=random, dtype=torch.uint8)


def train(kind: str = "classes", **settings) -> FlowGenerator:
    labels, of_labels = KINDS[kind]
    return generators.train(**{"images": pixels(), "labels": labels, **of_labels, **SETTINGS, **settings})


def awake(**settings) -> FlowGenerator:
    """Untrained, with weights in the layers that are 0 at first."""
    torch.manual_seed(0)
    generator = FlowGenerator(**{"resolution": 8, "image_channels": 1, "widths": (8, 16), "num_classes": 3, **settings})
    for parameter in generator.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return generator.eval()


def equal(first: nn.Module, second: nn.Module) -> bool:
    one, other = first.state_dict(), second.state_dict()
    return list(one) == list(other) and all(torch.equal(one[key], other[key]) for key in one)


# --- the loss ---------------------------------------------------------------------------------------------------------


def test_the_loss_is_the_mean_squared_error_of_the_velocity(monkeypatch) -> None:
    monkeypatch.setattr("generators.networks.unet.UNLABELLED", 0.5)
    generator = awake().double()
    images, y = to_generator_range(pixels()).double(), KINDS["classes"][0]
    torch.manual_seed(3)
    loss = generator.training_loss(images, y)
    torch.manual_seed(3)
    t, noise, hidden = 1 / (1 + torch.exp(-torch.randn(20))), torch.randn_like(images), torch.rand(20) < 0.5
    expected = 0.0
    for x, n, time, label, without in zip(images, noise, t, y, hidden, strict=True):
        code = generator.no_label if without else generator.encoder.weight[label]
        velocity = generator.network(((1 - time) * x + time * n)[None], time[None].double(), code[None])[0]
        expected += (velocity - (n - x)).square().sum() / images.numel()
    assert 0 < hidden.sum() < 20
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_every_weight_learns() -> None:
    generator = awake()
    generator.training_loss(to_generator_range(pixels()), KINDS["classes"][0]).backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in generator.parameters())


# --- the sampler ------------------------------------------------------------------------------------------------------


class Straight(nn.Module):
    """The velocity towards one image, (x - image) / t, and how often it was asked."""

    def __init__(self, image: Tensor):
        super().__init__()
        self.image, self.times = image, []

    def forward(self, x: Tensor, t: Tensor, code: Tensor) -> Tensor:
        self.times.append(t[0].item())
        return (x - self.image) / t[:, None, None, None]


class Narrowing(nn.Module):
    """The velocity of images that are normal with standard deviation 1/4: x ends as a quarter of the noise."""

    def forward(self, x: Tensor, t: Tensor, code: Tensor) -> Tensor:
        t = t[:, None, None, None]
        return x * (t - (1 - t) / 16) / ((1 - t) ** 2 / 16 + t**2)


def test_straight_paths_are_followed_exactly() -> None:
    generator, image = awake(num_steps=6), to_generator_range(pixels())[:4]
    generator.network = Straight(image.repeat(2, 1, 1, 1))
    drawn = generator.sample(torch.tensor([0, 1, 2, 0]), torch.randn(4, 64))
    torch.testing.assert_close(drawn, image, rtol=0, atol=1e-5)
    times = generator.network.times
    assert len(times) == 11 and times[0] == 1 and times[-1] == pytest.approx(1 / 6)


def test_the_error_of_the_sampler_is_of_second_order() -> None:
    latents, errors = torch.randn(50, 64).clamp(-3, 3), []
    for steps in (20, 40):
        generator = awake(num_steps=steps)
        generator.network = Narrowing()
        errors.append((generator.sample(torch.zeros(50).long(), latents) - latents.view(-1, 1, 8, 8) / 4).abs().max())
    assert errors[0] < 0.02 and errors[0] / errors[1] > 3


def test_an_image_is_a_function_of_label_and_latents() -> None:
    generator, latents = awake(), torch.randn(1, 64).repeat(3, 1)
    first, again = (generator.sample(torch.tensor([0, 1, 0]), latents) for _ in range(2))
    assert torch.equal(first, again) and torch.allclose(first[0], first[2], atol=1e-6)
    assert not torch.allclose(first[0], first[1], atol=1e-3) and first.abs().max() <= 1


def test_guidance_goes_from_no_label_through_the_label() -> None:
    """Velocities at one time are a line in the guidance: 0 is no label, 1 the label itself."""
    velocities, x = [], torch.randn(3, 1, 8, 8)
    for guidance in (0.0, 1.0, 2.0):
        generator = awake(guidance=guidance)
        code = generator.label_code(torch.arange(3))
        codes = code if guidance == 1 else torch.cat([code, generator.no_label.expand_as(code)])
        velocities.append(generator.velocity(x, 0.7, codes))
    alone = generator.network(x, torch.full((3,), 0.7), generator.no_label.expand_as(code))
    torch.testing.assert_close(velocities[0], alone, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(velocities[2] - velocities[1], velocities[1] - velocities[0], rtol=1e-3, atol=1e-5)
    assert not torch.allclose(velocities[0], velocities[1], atol=1e-3)


def test_features_are_those_of_the_label_at_the_decoders_levels() -> None:
    plain, guided = awake(guidance=1.0, num_steps=1), awake(guidance=3.0, num_steps=1)
    latents = torch.randn(2, 64)
    (_, expected), (_, found) = (each.sample_with_features(torch.tensor([0, 2]), latents) for each in (plain, guided))
    shapes = {"network.decoder.0": (2, 16, 4, 4), "network.decoder.1": (2, 8, 8, 8)}
    assert {name: tuple(values.shape) for name, values in found.items()} == shapes
    for name in shapes:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-5)


# --- sizes, labels, settings ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "patch"), [(8, 1), (16, 1), (28, 2), (30, 2), (27, 2), (32, 2), (64, 4), (128, 4)])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_size_has_its_patch(size: int, patch: int, channels: int) -> None:
    generator, discriminator = build_networks(
        GeneratorConfig(**TINY | {"widths": (8, 8, 8)}), (channels, size, size), 3, None
    )
    assert discriminator is None and generator.config.patch == patch
    assert generator.sample(torch.tensor([2])).shape == (1, channels, size, size)


def test_its_defaults_are_its_own_and_told_with_their_settings() -> None:
    config = GeneratorConfig(network="unet")
    assert (config.widths, config.learning_rate, config.decay) == ((64, 96, 128), 1e-3, 0.5)
    assert config.replace(network="sngan").learning_rate == GeneratorConfig().learning_rate == 2e-4
    assert GeneratorConfig.of(config.model_dump()) == config and GeneratorConfig.of(GeneratorConfig().model_dump())
    described = GeneratorConfig.model_json_schema()["properties"]
    for network in ("sngan", "unet"):
        for name, value in NETWORKS.defaults(network).items():
            words = ", ".join(map(str, value)) if isinstance(value, tuple) else f"{value}"
            if network == "unet" or name != "depth":
                assert words in described[name]["description"], (network, name)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"latent_dim": 16}, "latent_dim does not shape the network 'unet', which takes widths, depth"),
        ({"network": "sngan", "widths": None, "patch": 2}, "patch does not shape the network 'sngan'"),
        ({"widths": (8, 12)}, r"widths \[8, 12\] do not suit the unet network; use multiples of 8"),
        ({"widths": ()}, r"widths \[\] do not suit"),
        ({"widths": (8,) * 5}, "an image size of 8 pixels does not fit the unet .* use one of 16 or more"),
        ({"label_input": "fourier"}, "label_input 'fourier' does not fit these labels; use 'embedding'"),
        ({"r1": 1.0}, "r1 is for a game with a discriminator, and the generator network 'unet' has none; leave r1 out"),
        ({"discriminator_steps": 2}, "discriminator_steps is for a game"),
        ({"guidance": {"weight": 1.0}}, "guidance is for a game"),
        (
            {"guide": lambda images, y: images.mean()},
            "guide is for a game, and the network 'unet' has no discriminator",
        ),
        ({"discriminator_widths": (8,)}, "discriminator_widths does not shape the network 'unet'"),
    ],
)
def test_settings_that_have_no_meaning_are_refused(settings: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        train(**settings)


def test_the_bare_number_is_no_label_for_it() -> None:
    with pytest.raises(ValueError, match="label_input nli, the bare number, does not go with the unet network"):
        train("scalars", label_input="nli")


# --- training ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "label_input"), [("classes", None), ("scalars", None), ("scalars", "ili")])
def test_it_is_trained_saved_and_loaded(kind: str, label_input: str | None, tmp_path: Path) -> None:
    logged: list[dict] = []
    trained = train(kind, label_input=label_input, directory=tmp_path, log=logged.append, accumulate=2)
    assert [values["step"] for values in logged] == [1, 2, 3, 4] and all(
        set(v) == {"stage", "step", "loss"} for v in logged
    )
    assert (tmp_path / "samples" / "step-000004.png").exists()
    loaded, labels, latents = generators.load_generator(tmp_path), KINDS[kind][0][:5], torch.randn(5, 64)
    assert torch.equal(loaded.sample(labels, latents), trained.sample(labels, latents))
    assert loaded.trained_steps == 4 and (loaded.config.num_steps, loaded.config.guidance) == (2, 2.0)
    other = generators.load_generator(tmp_path, num_steps=5, guidance=1.0)
    assert equal(other, loaded) and (other.config.num_steps, other.config.guidance) == (5, 1.0)
    with pytest.raises(ValueError, match="has its own config.json; leave out widths"):
        generators.load_generator(tmp_path, widths=(8,), num_steps=5)
    with pytest.raises(ValueError, match="num_steps 0 and guidance 2.0 draw no images"):
        generators.load_generator(tmp_path, num_steps=0)


def test_it_learns_the_images() -> None:
    """All images of a class are alike, so that the loss can fall far, and samples are them."""
    labels = KINDS["classes"][0]
    images = (labels * 110).byte()[:, None, None, None].expand(-1, 1, 8, 8)
    generator = train(images=images, steps=150, learning_rate=5e-3, log_every=150, sampling_steps=4)
    drawn = generator.sample(torch.arange(3), generator.draw_latents(3, generator=torch.Generator().manual_seed(0)))
    assert drawn.mean(dim=(1, 2, 3)).tolist() == pytest.approx([-1, -0.137, 0.725], abs=0.25)


@pytest.mark.parametrize("kind", KINDS)
def test_two_steps_and_two_more_equal_four_bit_for_bit(kind: str, tmp_path: Path) -> None:
    def die(values: dict) -> None:
        if values["step"] == 3:
            raise Interruption

    whole = train(kind)
    with pytest.raises(Interruption):
        train(kind, directory=tmp_path, log=die)
    assert equal(train(kind, directory=tmp_path), whole)


def test_the_rate_rises_and_falls_in_its_shares_of_the_steps() -> None:
    config = GeneratorConfig(network="unet", steps=100, warmup=0.1, decay=0.5)
    shares = [rate_share(config, step) for step in range(100)]
    assert shares[0] == pytest.approx(1 / 11) and shares[10:50] == [1.0] * 40
    assert shares[75] == pytest.approx(0.5, abs=0.02) and 0 < shares[99] < 0.03
    assert all(rate_share(GeneratorConfig(steps=100), step) == 1 for step in (0, 50, 99))


def test_a_gradient_longer_than_one_is_cut() -> None:
    generator = awake()
    images, y = to_generator_range(pixels()), KINDS["classes"][0]
    generator.training_loss(images, y).backward()
    norm = math.sqrt(sum(parameter.grad.square().sum().item() for parameter in generator.parameters()))
    assert norm > 1, "or the test means nothing"
    config = GeneratorConfig(**TINY, betas=(0.0, 0.9), learning_rate=1e-12)  # Adam's first moment is the gradient
    game = OwnLoss(awake(), ClassLabels(y), config, Accelerator(cpu=True))
    game.step([{"images": pixels(), "real_y": y}], y)
    gradients = [state["exp_avg"] for state in game.player.optimizer.state.values()]
    assert math.sqrt(sum(gradient.square().sum().item() for gradient in gradients)) == pytest.approx(1, rel=1e-3)


# --- two processes ----------------------------------------------------------------------------------------------------


def test_two_processes_train_as_one_with_the_noise_of_both() -> None:
    lines = [line for line in run("tests.generators.test_unet", launcher=LAUNCHER).splitlines() if "result" in line]
    assert lines == ["result: as one True, the same everywhere True, minutes alike True"]


def trained_by_hand(world: int) -> FlowGenerator:
    """What `world` processes make together: in every step the mean gradient of their batches with their noise."""
    labels = KINDS["classes"][0]
    config, plan = GeneratorConfig(**SETTINGS), ClassLabels(labels)
    torch.manual_seed(mix(0, "generator networks"))
    generator, _ = build_networks(config, (1, 8, 8), 3, None)
    generator.to(memory_format=torch.channels_last)
    average = copy.deepcopy(generator)
    optimizer = torch.optim.Adam(generator.parameters(), lr=1e-4, betas=(0.9, 0.99))
    readers = [
        prefetch(pixels(), plan, config, seed=0, rank=rank, size=8 // world, first_step=0) for rank in range(world)
    ]
    for step in range(4):
        for rank, reader in enumerate(readers):
            torch.manual_seed(mix(0, "generator step", step, rank))
            (batch,) = next(reader)
            mirrored = torch.rand(8 // world, 1, 1, 1) < 0.5
            images = to_generator_range(torch.where(mirrored, batch["images"].flip(3), batch["images"]))
            (generator.training_loss(images, batch["real_y"]) / world).backward()
        nn.utils.clip_grad_norm_(generator.parameters(), 1.0)
        optimizer.param_groups[0]["lr"] = 1e-4 * rate_share(config, step)
        optimizer.step()
        optimizer.zero_grad()
        decay = (1 + step) / (10 + step) if step else 0.0
        for kept, new in zip(average.parameters(), generator.parameters(), strict=True):
            kept.data.lerp_(new.data, 1 - decay)
    return average


def test_one_process_trains_as_by_hand() -> None:
    for found, expected in zip(train(learning_rate=1e-4).parameters(), trained_by_hand(1).parameters(), strict=True):
        torch.testing.assert_close(found, expected.detach(), rtol=1e-5, atol=1e-5)


def main() -> None:
    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True)
    generator, expected = train(accelerator=accelerator, learning_rate=1e-4), trained_by_hand(2)
    pairs = zip(generator.parameters(), expected.parameters(), strict=True)
    as_one = all(torch.allclose(found, wanted, rtol=1e-5, atol=1e-5) for found, wanted in pairs)
    flat = torch.cat([parameter.flatten() for parameter in generator.parameters()])[None]
    timed = train(accelerator=accelerator, steps=None, minutes=0.01).trained_steps
    found, steps = accelerator.gather(flat), accelerator.gather(torch.tensor([timed]))
    if accelerator.is_main_process:
        alike = bool(torch.equal(found[0], found[1])), bool(steps[0] == steps[1])
        print(f"result: as one {as_one}, the same everywhere {alike[0]}, minutes alike {alike[1]}", flush=True)
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
