"""A generator network of a user's own: registered, chosen by name, trained, saved, loaded (R5)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import generators
from generators.config import GeneratorConfig
from generators.model import GeneratorModel, register_to_config
from generators.networks import NETWORKS
from generators.settings import Count
from tests.commands import run


class DotsGenerator(GeneratorModel):
    """One linear layer from latents and label to pixels."""

    @register_to_config
    def __init__(self, resolution: int, image_channels: int, num_classes=None, label_range=None, latent_dim: int = 4):
        super().__init__()
        columns = num_classes or 1
        self.layer = nn.Linear(latent_dim + columns, image_channels * resolution**2)
        self.feature_names = ("layer",)

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        pixels = self.layer(torch.cat([z, self.label_code(y)], dim=1)).tanh()
        return pixels.unflatten(1, (self.config.image_channels, self.config.resolution, self.config.resolution))


class DotsDiscriminator(nn.Module):
    def __init__(self, num_pixels: int, width: int):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(num_pixels + 1, width), nn.LeakyReLU(0.2), nn.Linear(width, 1))

    def forward(self, images: Tensor, y: Tensor) -> Tensor:
        return self.layers(torch.cat([images.flatten(1), y.float()[:, None]], dim=1)).squeeze(1)


def dots(resolution, image_channels, num_classes, label_range, *, latent_dim: Count = 4, width: Count = 8):
    """Single dots, to see the door work."""
    generator = DotsGenerator(resolution, image_channels, num_classes, label_range, latent_dim)
    return generator, DotsDiscriminator(image_channels * resolution**2, width)


class NearestDots(DotsGenerator):
    """The same without a discriminator: the nearest of four draws should be the image (implicit maximum likelihood)."""

    def training_loss(self, images: Tensor, y: Tensor) -> Tensor:
        draws = torch.stack([self(torch.randn(len(y), self.config.latent_dim), y) for _ in range(4)])
        return (draws - images).square().mean(dim=(2, 3, 4)).min(dim=0).values.mean()


def nearest_dots(resolution, image_channels, num_classes, label_range, *, latent_dim: Count = 4):
    return NearestDots(resolution, image_channels, num_classes, label_range, latent_dim), None


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    """As `@NETWORKS.register("dots")` above the function does, but for these tests alone."""
    NETWORKS.register("dots")(dots)
    NETWORKS.register("nearest_dots", learning_rate=0.02, decay=0.25)(nearest_dots)
    yield
    del NETWORKS["dots"], NETWORKS["nearest_dots"]


SETTINGS = {"network": "dots", "options": {"latent_dim": 3}, "steps": 2, "batch_size": 8, "log_every": 1}
KINDS = {
    "classes": (torch.arange(20) % 3, {"num_classes": 3}),
    "scalars": (torch.linspace(-30, 60, 20), {"label_range": (-40.0, 60.0), "sigma": 3.0, "kappa": 6.0}),
}


def pixels() -> Tensor:
    return torch.randint(256, (20, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@pytest.mark.parametrize("kind", KINDS)
def test_an_own_network_is_trained_saved_and_loaded(kind: str, tmp_path: Path) -> None:
    labels, settings = KINDS[kind]
    logged: list[dict] = []
    trained = generators.train(pixels(), labels, **settings, **SETTINGS, directory=tmp_path, log=logged.append)
    assert isinstance(trained, DotsGenerator) and trained.config.latent_dim == 3
    assert [values["step"] for values in logged] == [1, 2]
    loaded = generators.load_generator(tmp_path)
    latents = torch.randn(20, 3)
    images, features = loaded.sample_with_features(labels, latents)
    assert torch.equal(images, trained.sample(labels, latents)) and set(features) == {"layer"}
    assert images.shape == (20, 1, 8, 8) and not loaded.training
    assert json.loads((tmp_path / "config.json").read_text())["_module"] == __name__


@pytest.mark.parametrize("kind", KINDS)
def test_an_own_generator_with_an_own_loss_needs_no_discriminator(kind: str, tmp_path: Path) -> None:
    labels, of_labels = KINDS[kind]
    logged: list[dict] = []
    settings = {**SETTINGS, **of_labels, "network": "nearest_dots", "steps": 30}
    trained = generators.train(pixels(), labels, **settings, directory=tmp_path, log=logged.append)
    assert logged[-1]["loss"] < logged[0]["loss"] and set(logged[0]) == {"stage", "step", "loss"}
    latents = torch.randn(20, 3)
    assert torch.equal(generators.load_generator(tmp_path).sample(labels, latents), trained.sample(labels, latents))
    config = GeneratorConfig(network="nearest_dots")
    assert (config.learning_rate, config.decay, config.betas) == (0.02, 0.25, (0.0, 0.9))
    with pytest.raises(ValueError, match="mode_seeking is for a game .* network 'nearest_dots' has none"):
        generators.train(pixels(), labels, **settings, mode_seeking=0.1)


def test_a_folder_whose_network_is_not_imported_names_the_plugin(tmp_path: Path) -> None:
    DotsGenerator(8, 1, num_classes=3).save_pretrained(tmp_path / "folder")
    (tmp_path / "load.py").write_text("import generators; generators.load_generator('folder')")
    told = run("load.py", cwd=tmp_path, status=1).splitlines()[-1]
    assert "names the architecture 'DotsGenerator'; defined in tests.generators.test_own_network" in told
    assert "import it first (in a YAML, plugins: [tests.generators.test_own_network])" in told


def test_options_are_validated_and_in_the_schema() -> None:
    with pytest.raises(ValueError, match="options.unknown key 'widht'; did you mean 'width'"):
        GeneratorConfig(network="dots", options={"widht": 3})
    with pytest.raises(ValueError, match="options.width: .* greater than 0, got 0"):
        GeneratorConfig(network="dots", options={"width": 0})
    with pytest.raises(ValueError, match="channels does not shape the network 'dots', which takes options: latent_dim"):
        GeneratorConfig(network="dots", channels=32)
    with pytest.raises(ValueError, match="options are for a network of your own; the settings of 'sngan' stand beside"):
        GeneratorConfig(options={"width": 3})
    with pytest.raises(ValueError, match="unknown generator network 'dotss'; did you mean 'dots'"):
        GeneratorConfig(network="dotss")
    fields = GeneratorConfig.model_json_schema()["properties"]
    assert {"sngan", "dots"} <= set(fields["network"]["enum"])
    (shown,) = [entry for entry in fields["options"]["anyOf"] if entry.get("title") == "dots"]
    assert set(shown["properties"]) == {"latent_dim", "width"} and "Single dots" in shown["description"]


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda **data: (nn.Linear(2, 2), nn.Identity()), "returns a Linear first; return a GeneratorModel"),
        (
            lambda resolution, image_channels, **labels: (DotsGenerator(resolution, 7, **labels), nn.Identity()),
            "has image_channels 7 in its config, where the data has 1",
        ),
        (
            lambda **data: (DotsGenerator(**data), None),
            r"returns no discriminator, and its DotsGenerator has no training_loss\(images, y\)",
        ),
    ],
)
def test_a_network_that_is_no_generator_for_the_data_is_refused(build, sentence: str, monkeypatch) -> None:
    monkeypatch.setitem(NETWORKS, "wrong", build)
    with pytest.raises(ValueError, match=sentence):
        generators.train(pixels(), KINDS["classes"][0], num_classes=3, network="wrong")


def test_a_name_that_is_taken_is_refused() -> None:
    with pytest.raises(ValueError, match="generator network 'sngan' of .*dots exists already"):
        NETWORKS.register("sngan")(dots)
