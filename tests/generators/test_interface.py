"""What every conditional generator can do: draw, draw with features, refuse, save and load."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

import generators
from generators import load_generator
from generators.conditioning import FourierEncoder, LabelNetwork
from generators.networks.sngan import SNGANDiscriminator, SNGANGenerator

KINDS = {
    "embedding": {"num_classes": 3, "label_input": "embedding"},
    "fourier": {"label_range": (-40.0, 60.0), "label_input": "fourier"},
    "ili": {"label_range": (-40.0, 60.0), "label_input": "ili"},
    "nli": {"label_range": (-40.0, 60.0), "label_input": "nli"},
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def make(kind: str, **settings) -> SNGANGenerator:
    """Untrained, with weights and batch norm statistics that are not the initial ones."""
    settings = {"resolution": 16, "image_channels": 1, "widths": (8, 8), "latent_dim": 4, "label_dim": 32} | settings
    torch.manual_seed(0)
    generator = SNGANGenerator(**settings, **KINDS[kind])
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.mul_(2)
        generator.train()(torch.randn(64, 4), generator.condition(labels(kind, 64)))
    # in the memory format in which generators are trained and loaded: sums are rounded in its order
    return generator.to(memory_format=torch.channels_last).eval().requires_grad_(False)


def labels(kind: str, count: int = 6) -> Tensor:
    return torch.arange(count) % 3 if kind == "embedding" else torch.linspace(-40, 60, count)


def latents(count: int = 6) -> Tensor:
    return torch.randn(count, 4, generator=torch.Generator().manual_seed(1))


# --- drawing ----------------------------------------------------------------------------------------------------------


@every_kind
def test_images_are_in_range_and_a_function_of_labels_and_latents(kind: str) -> None:
    generator = make(kind)
    images = generator.sample(labels(kind), latents())
    assert images.shape == (6, 1, 16, 16) and images.abs().max() <= 1 and not images.requires_grad
    assert torch.equal(generator.sample(labels(kind), latents()), images)
    assert not torch.allclose(generator.sample(labels(kind), latents().flip(0)), images, atol=1e-3)
    assert not torch.allclose(generator.sample(labels(kind).flip(0), latents()), images, atol=1e-3)


@every_kind
def test_an_image_does_not_depend_on_its_companions(kind: str) -> None:
    generator = make(kind)
    together = generator.sample(labels(kind), latents())
    alone = torch.cat([generator.sample(labels(kind)[[i]], latents()[[i]]) for i in range(6)])
    torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-5)


def test_fresh_latents_come_from_the_random_stream_that_is_given() -> None:
    generator = make("embedding")
    draw = lambda: generator.draw_latents(5, generator=torch.Generator().manual_seed(3))  # noqa: E731
    assert draw().shape == (5, 4) and torch.equal(draw(), draw())
    torch.manual_seed(3)
    first = generator.sample(labels("embedding"))
    assert not torch.equal(generator.sample(labels("embedding")), first)
    torch.manual_seed(3)
    assert torch.equal(generator.sample(labels("embedding")), first)


def test_no_label_gives_no_image() -> None:
    assert make("embedding").sample(torch.empty(0, dtype=torch.int64)).shape == (0, 1, 16, 16)


def test_labels_may_be_plain_numbers() -> None:
    for kind, plain in (("embedding", [0, 2]), ("fourier", [-40, 60])):
        expected = make(kind).sample(torch.tensor(plain), latents(2))
        assert torch.equal(make(kind).sample(plain, latents(2)), expected)


def test_scalars_are_conditioned_on_as_numbers_in_zero_to_one() -> None:
    generator = make("fourier")
    torch.testing.assert_close(generator.condition(torch.tensor([-40.0, 10.0, 60.0])), torch.tensor([0.0, 0.5, 1.0]))
    assert generator.condition(torch.tensor([60], dtype=torch.int64)).dtype == torch.float32
    assert not generator.is_class_conditional and make("embedding").is_class_conditional


@every_kind
def test_the_code_of_a_label_is_a_row(kind: str) -> None:
    generator = make(kind)
    codes = generator.label_code(generator.condition(labels(kind)))
    assert codes.shape == (6, 1 if kind == "nli" else 32)
    assert not torch.equal(codes[0], codes[1])


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "wrong", "span"),
    [
        ("embedding", [0, 3], r"\[0, 3\]; this generator knows \[0, 2\]"),
        ("embedding", [-1, 2], r"\[-1, 2\]; this generator knows \[0, 2\]"),
        ("fourier", [0.0, 60.5], r"\[0, 60\.5\]; this generator knows \[-40, 60\]"),
        ("fourier", [0.0, math.nan], r"this generator knows \[-40, 60\]"),
    ],
)
def test_labels_out_of_range_are_refused(kind: str, wrong: list, span: str) -> None:
    with pytest.raises(ValueError, match=f"labels span .*{span}" if "nan" not in str(wrong) else span):
        make(kind).sample(torch.tensor(wrong))


def test_scalars_are_no_class_ids() -> None:
    with pytest.raises(ValueError, match="labels are torch.float32; this generator takes class ids"):
        make("embedding").sample(torch.tensor([0.0, 1.0]))


@pytest.mark.parametrize("wrong", [torch.tensor(1), torch.tensor([[0, 1]])])
def test_labels_are_one_number_an_image(wrong: Tensor) -> None:
    with pytest.raises(ValueError, match="labels"):
        make("embedding").sample(wrong)


@pytest.mark.parametrize("shape", [(5, 4), (6, 5), (6,), (6, 4, 1)])
def test_latents_of_another_size_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=rf"latents are {re.escape(str(shape))}; expected \(6, 4\)"):
        make("embedding").sample(labels("embedding"), torch.zeros(shape))


# --- features ---------------------------------------------------------------------------------------------------------


@every_kind
def test_features_come_by_name_with_their_images(kind: str) -> None:
    generator = make(kind, widths=(8, 12, 6))
    images, features = generator.sample_with_features(labels(kind), latents())
    assert torch.equal(images, generator.sample(labels(kind), latents()))
    assert {name: tuple(values.shape) for name, values in features.items()} == {
        "blocks.0": (6, 12, 8, 8),
        "blocks.1": (6, 6, 16, 16),
    }
    assert tuple(features) == generator.feature_names
    last = torch.tanh(generator.to_image(torch.relu(generator.norm(features["blocks.1"]))))
    torch.testing.assert_close(last, images)


def test_hooks_are_removed_also_after_a_refusal() -> None:
    generator = make("embedding")
    generator.sample_with_features(labels("embedding"), latents())
    with pytest.raises(ValueError):
        generator.sample_with_features(torch.tensor([9]))
    assert not any(module._forward_hooks for module in generator.modules())


# --- networks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("resolution", [8, 16, 32, 64, 128])
@pytest.mark.parametrize("kind", ["embedding", "nli"])
def test_generator_and_discriminator_fit_at_every_size(resolution: int, kind: str) -> None:
    generator = make(kind, resolution=resolution, widths=(8, 4))
    images = generator.sample(labels(kind, 2), latents(2))
    assert images.shape == (2, 1, resolution, resolution)
    discriminator = SNGANDiscriminator(
        resolution=resolution,
        image_channels=1,
        widths=(4,),
        label_dim=16,
        num_classes=KINDS[kind].get("num_classes"),
        label_input=kind,
    )
    assert discriminator(images, generator.condition(labels(kind, 2))).shape == (2,)


@every_kind
def test_the_discriminators_answer_depends_on_image_and_label_also_at_zero(kind: str) -> None:
    torch.manual_seed(0)
    arguments = dict(KINDS[kind])
    arguments.pop("label_range", None)
    discriminator = SNGANDiscriminator(
        resolution=8, image_channels=1, widths=(8,), label_dim=32, **{"num_classes": None, **arguments}
    ).eval()
    images, zero = torch.rand(2, 1, 8, 8) * 2 - 1, torch.zeros(2)
    other = torch.ones(2)
    if kind == "embedding":
        zero, other = zero.long(), other.long()
    logits = discriminator(images, zero)
    assert (discriminator(images, other) - logits).abs().min() > 1e-4
    assert (logits[0] - logits[1]).abs() > 1e-4
    base = discriminator.linear(torch.relu(discriminator.blocks(images)).sum(dim=(2, 3))).squeeze(1)
    assert (logits - base).abs().min() > 1e-5, "the projection must not vanish at label 0"


def test_weights_of_the_discriminator_have_spectral_norm_one() -> None:
    torch.manual_seed(0)
    discriminator = SNGANDiscriminator(
        resolution=8, image_channels=1, widths=(8,), label_dim=16, num_classes=3, label_input="embedding"
    )
    for _ in range(50):  # every forward in training mode is a power iteration
        discriminator(torch.rand(2, 1, 8, 8), torch.tensor([0, 1]))
    discriminator.eval()
    layers = [module for module in discriminator.modules() if hasattr(module, "parametrizations")]
    assert len(layers) >= 7
    for layer in layers:
        assert torch.linalg.matrix_norm(layer.weight.flatten(1), 2).item() == pytest.approx(1, abs=0.05)


def test_fourier_codes_of_near_labels_are_nearer_than_those_of_far_ones() -> None:
    torch.manual_seed(0)
    codes = FourierEncoder(16)(torch.linspace(0, 1, 11))
    distances = torch.cdist(codes, codes)
    assert (distances.diagonal(1) > 0).all()
    assert distances.diagonal(1).max() < distances[0, 5] and distances.diagonal(1).max() < distances[5, 10]


def test_the_label_network_is_built_as_published() -> None:
    network = LabelNetwork(16)
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    assert [name for name in shapes if len(shapes[name]) == 2] == [f"main.{index}.weight" for index in (0, 3, 6, 9, 12)]
    assert shapes["main.0.weight"] == (16, 1) and shapes["main.12.weight"] == (16, 16)
    assert all(f"main.{index}.weight" in shapes for index in (1, 4, 7, 10))
    assert (network(torch.linspace(0, 1, 5)) >= 0).all()


# --- on disk ----------------------------------------------------------------------------------------------------------


@every_kind
def test_a_generator_comes_back_bit_for_bit_ready_to_draw(kind: str, tmp_path: Path) -> None:
    generator = make(kind)
    generator.save_pretrained(tmp_path)
    for loaded in (load_generator(tmp_path), load_generator(str(tmp_path))):
        assert not any(module.training for module in loaded.modules())
        assert not any(parameter.requires_grad for parameter in loaded.parameters())
        assert torch.equal(loaded.sample(labels(kind), latents()), generator.sample(labels(kind), latents()))
        assert loaded.feature_names == generator.feature_names
        state = loaded.state_dict()
        assert all(torch.equal(value, state[name]) for name, value in generator.state_dict().items())


def test_a_generator_saved_in_training_mode_is_loaded_in_evaluation_mode(tmp_path: Path) -> None:
    generator = make("embedding")
    expected = generator.sample(labels("embedding"), latents())
    generator.train().save_pretrained(tmp_path)
    assert torch.equal(load_generator(tmp_path).sample(labels("embedding"), latents()), expected)


def test_what_is_saved_is_plain_data(tmp_path: Path) -> None:
    make("embedding").save_pretrained(tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors"}


def refusal(path: Path) -> str:
    with pytest.raises(ValueError) as caught:
        load_generator(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_a_folder_without_a_generator_is_named(tmp_path: Path) -> None:
    assert "holds no generator (no config.json)" in refusal(tmp_path)
    assert "holds no generator" in refusal(tmp_path / "nowhere")
    (tmp_path / "file.pt").write_bytes(b"")
    assert "holds no generator" in refusal(tmp_path / "file.pt")


def test_another_architecture_is_named_with_those_that_are_known(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "UNet2DModel"}))
    assert "names the architecture 'UNet2DModel'; known: SNGANGenerator" in refusal(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", "3"])
def test_a_configuration_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    refusal(tmp_path)


def test_a_generator_that_lost_its_weights_is_refused(tmp_path: Path) -> None:
    make("embedding").save_pretrained(tmp_path)
    next(tmp_path.glob("*.safetensors")).unlink()
    refusal(tmp_path)


@pytest.mark.parametrize("length", [0, 5, 500])
def test_a_generator_whose_weights_are_cut_off_is_refused(tmp_path: Path, length: int) -> None:
    make("embedding").save_pretrained(tmp_path)
    weights = next(tmp_path.glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:length])
    refusal(tmp_path)


class Bomb:
    """What unpickling would run."""

    def __reduce__(self):
        return (Path.touch, (Path("exploded"),))


@pytest.mark.parametrize("harmless", [True, False])
def test_pickled_weights_are_not_read(tmp_path: Path, harmless: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    generator = make("embedding")
    generator.save_pretrained(tmp_path)
    weights = next(tmp_path.glob("*.safetensors"))
    weights.unlink()
    torch.save({**generator.state_dict(), **({} if harmless else {"bomb": Bomb()})}, weights.with_suffix(".bin"))
    refusal(tmp_path)
    assert not (tmp_path / "exploded").exists()


def test_weights_of_another_shape_are_refused(tmp_path: Path) -> None:
    make("embedding").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "latent_dim": 7}))
    refusal(tmp_path)


# --- imports ----------------------------------------------------------------------------------------------------------


def test_importing_costs_no_more_than_torch() -> None:
    heavy = {"diffusers", "torchvision", "accelerate", "matplotlib", "sklearn", "h5py", "torchmetrics", "pydantic"}
    code = "import sys, torch; before = set(sys.modules); import generators, gankd; print(*set(sys.modules) - before)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert {"generators", "gankd"} <= set(loaded)
    assert not heavy & {name.split(".")[0] for name in loaded}


LIGHT = [
    "checkpoints",
    "config",
    "images",
    "interface",
    "labels",
    "randomness",
    "registry",
    "settings",
    "vicinity",
    "wrapping",
]


def test_what_everybody_imports_costs_no_more_than_torch() -> None:
    """H: pydantic is allowed, for settings; diffusers alone costs as much as torch."""
    heavy = {
        "diffusers",
        "torchvision",
        "accelerate",
        "matplotlib",
        "sklearn",
        "h5py",
        "torchmetrics",
        "huggingface_hub",
    }
    names = ", ".join(f"generators.{name}" for name in LIGHT)
    code = f"import sys, torch; before = set(sys.modules); import {names}; print(*set(sys.modules) - before)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not heavy & {name.split(".")[0] for name in loaded}


def test_completion_sees_the_public_names_and_the_type_checker_the_same() -> None:
    assert set(generators.__all__) == set(generators._HOMES) <= set(dir(generators))
    source = Path(generators.__file__).read_text()
    for name, home in generators._HOMES.items():
        assert (
            f"    from generators.{home} import {name} as {name}\n" in source and getattr(generators, name) is not None
        )


def test_the_generators_do_not_speak_of_students_and_teachers() -> None:
    """R3: what only an experiment means is a setting of the experiment."""
    package = Path(__file__).parents[2] / "generators"
    assert not [path for path in package.rglob("*.py") if re.search("student|teacher", path.read_text(), re.IGNORECASE)]


def test_the_generators_know_nothing_of_distillation() -> None:
    package = Path(__file__).parents[2] / "generators"
    assert not [path for path in package.rglob("*.py") if re.search(r"^\s*(import|from) gankd", path.read_text(), re.M)]
