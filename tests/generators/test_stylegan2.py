"""StyleGAN2: our drawing against a slow one of the paper's equations, and the converter against a repository laid out as
NVIDIA's is."""

from __future__ import annotations

import importlib
import json
import math
import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from generators import load_generator
from generators.networks.stylegan2 import StyleGAN2Generator, low_pass
from tests.commands import run

SCRIPT = Path(__file__).parents[2] / "scripts" / "convert_stylegan2.py"
SMALL = {"resolution": 16, "widths": (6, 5, 4), "latent_dim": 7, "w_dim": 8, "mapping_layers": 2}


def make(**settings) -> StyleGAN2Generator:
    torch.manual_seed(0)
    generator = StyleGAN2Generator(**{**SMALL, **settings})
    with torch.no_grad():
        for name, parameter in generator.named_parameters():
            if name.endswith(("bias", "noise_strength")):
                parameter.add_(0.3 * torch.randn_like(parameter))
        for name, parameter in generator.named_parameters():
            if "torgb" in name:
                parameter.mul_(0.3)  # far from the bounds of the image
        generator.mapping.w_avg.normal_()
    return generator.eval()


# --- a slow drawing ---------------------------------------------------------------------------------------------------


def zeros_between(x: Tensor) -> Tensor:
    doubled = torch.zeros(*x.shape[:2], 2 * x.shape[2], 2 * x.shape[3], dtype=x.dtype)
    doubled[:, :, ::2, ::2] = x
    return doubled


def filtered(x: Tensor) -> Tensor:
    """Every value becomes the weighted sum of the 4x4 that begin there; gain 4."""
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=x.dtype)
    height, width = x.shape[2] - 3, x.shape[3] - 3
    total = sum(taps[i] * taps[j] / 64 * x[:, :, i : i + height, j : j + width] for i in range(4) for j in range(4))
    return 4 * total


def slow_linear(state: dict, name: str, x: Tensor, multiplier: float = 1.0) -> Tensor:
    weight = state[f"{name}.weight"] * multiplier / math.sqrt(x.shape[1])
    return x @ weight.T + state[f"{name}.bias"] * multiplier


def slow_convolution(state: dict, name: str, x: Tensor, w: Tensor, doubled: bool, clamp: float | None) -> Tensor:
    style, weight, outputs = slow_linear(state, f"{name}.affine", w), state[f"{name}.weight"], []
    for n in range(len(x)):
        modulated = weight * style[n][None, :, None, None]
        modulated = modulated / (modulated.square().sum(dim=(1, 2, 3), keepdim=True) + 1e-8).sqrt()
        if doubled:
            image = filtered(F.pad(zeros_between(x[[n]]), (3, 2, 3, 2)))
            outputs.append(F.conv2d(image, modulated.flip(2, 3)))
        else:
            outputs.append(F.conv2d(x[[n]], modulated, padding=1))
    h = torch.cat(outputs) + state[f"{name}.noise_const"] * state[f"{name}.noise_strength"]
    h = h + state[f"{name}.bias"][:, None, None]
    h = torch.where(h > 0, h, 0.2 * h) * math.sqrt(2)
    return h if clamp is None else h.clamp(-clamp, clamp)


def slow_drawing(generator: StyleGAN2Generator, z: Tensor, y: Tensor) -> Tensor:
    state = {name: value.double() for name, value in generator.state_dict().items()}
    config, z = generator.config, z.double()
    x = z / (z.square().mean(1, keepdim=True) + 1e-8).sqrt()
    if config.num_classes > 1:
        code = slow_linear(state, "mapping.embed", F.one_hot(y, config.num_classes).double())
        x = torch.cat([x, code / (code.square().mean(1, keepdim=True) + 1e-8).sqrt()], 1)
    for index in range(config.mapping_layers):
        x = slow_linear(state, f"mapping.fc{index}", x, 0.01)
        x = torch.where(x > 0, x, 0.2 * x) * math.sqrt(2)
    mean = state["mapping.w_avg"]
    w, image = mean + config.truncation * (x - mean), None
    for index, channels in enumerate(config.widths):
        name = f"synthesis.b{4 * 2**index}"
        if index == 0:
            h = state[f"{name}.const"].expand(len(w), -1, -1, -1)
        else:
            h = slow_convolution(state, f"{name}.conv0", h, w, True, config.clamp)
        h = slow_convolution(state, f"{name}.conv1", h, w, False, config.clamp)
        style = slow_linear(state, f"{name}.torgb.affine", w) / math.sqrt(channels)
        share = torch.einsum("oc,nc,nchw->nohw", state[f"{name}.torgb.weight"][:, :, 0, 0], style, h)
        share = share + state[f"{name}.torgb.bias"][:, None, None]
        share = share if config.clamp is None else share.clamp(-config.clamp, config.clamp)
        image = share if image is None else filtered(F.pad(zeros_between(image), (2, 1, 2, 1))) + share
    return image.clamp(-1, 1).float()


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"num_classes": 3},
        {"truncation": 0.5},
        {"clamp": 0.7},
        {"resolution": 32, "widths": (4, 4, 4, 4), "image_channels": 1, "mapping_layers": 8},
    ],
)
def test_a_drawing_follows_the_equations(settings: dict) -> None:
    generator = make(**settings)
    z, y = torch.randn(3, 7), torch.arange(3) % generator.config.num_classes
    expected = slow_drawing(generator, z, y)
    assert expected.std() > 0.05 and (expected.abs() == 1).float().mean() < 0.5
    torch.testing.assert_close(generator(z, y), expected, rtol=0, atol=2e-5)


def test_doubling_keeps_a_constant_and_a_slope_inside() -> None:
    slope = torch.arange(8.0).expand(1, 2, 8, 8)
    doubled = low_pass(slope, double=True)
    assert doubled.shape == (1, 2, 16, 16)
    torch.testing.assert_close(doubled[0, 0, 8, 3:13].diff(), torch.full((9,), 0.5))
    torch.testing.assert_close(low_pass(torch.ones(1, 1, 6, 6), double=True)[0, 0, 3:9, 3:9], torch.ones(6, 6))


# --- as a generator ---------------------------------------------------------------------------------------------------


def test_it_is_a_generator_with_features(tmp_path: Path) -> None:
    generator = make(num_classes=3).to(memory_format=torch.channels_last)  # as it is loaded
    labels, latents = torch.tensor([0, 2]), torch.randn(2, 7)
    images, features = generator.sample_with_features(labels, latents)
    assert images.shape == (2, 3, 16, 16) and images.abs().max() <= 1
    assert {name: tuple(values.shape) for name, values in features.items()} == {
        "synthesis.b8.conv1": (2, 5, 8, 8),
        "synthesis.b16.conv1": (2, 4, 16, 16),
    }
    assert not torch.allclose(generator.sample(labels.flip(0), latents), images, atol=1e-3)
    generator.save_pretrained(tmp_path)
    assert torch.equal(load_generator(tmp_path).sample(labels, latents), images)
    with pytest.raises(ValueError, match=r"labels span \[3, 3\]; this generator knows \[0, 2\]"):
        generator.sample(torch.tensor([3]))


def test_noise_is_stored_fresh_or_absent() -> None:
    labels, latents = torch.zeros(2, dtype=torch.int64), torch.randn(2, 7)
    draw = {noise: make(noise=noise) for noise in ("const", "random", "none")}
    for noise, repeats in (("const", True), ("random", False), ("none", True)):
        first, second = (draw[noise].sample(labels, latents) for _ in range(2))
        assert torch.equal(first, second) is repeats
    assert not torch.allclose(draw["const"].sample(labels, latents), draw["none"].sample(labels, latents), atol=1e-3)


def test_full_truncation_draws_one_image() -> None:
    images = make(truncation=0.0, num_classes=3).sample(torch.arange(3))
    torch.testing.assert_close(images[[0, 0, 0]], images)


def test_widths_must_reach_the_image() -> None:
    with pytest.raises(ValueError, match="3 widths make 16 pixels, not 32"):
        make(resolution=32)


# --- the converter ----------------------------------------------------------------------------------------------------

REPOSITORY = {
    "dnnlib/__init__.py": "from . import util",
    "dnnlib/util.py": "def open_url(path): return open(path, 'rb')",
    "legacy.py": "import pickle\ndef load_network_pkl(file): return pickle.load(file)",
    # NVIDIA's names of attributes, parameters and buffers, without what it computes
    "layout_of_networks.py": """
import torch
from torch import nn

def attributes(module, **values):
    for name, value in values.items():
        setattr(module, name, value)
    return module

def low_pass(module):
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0])
    module.register_buffer("resample_filter", torch.outer(taps, taps) / 64)
    return module

def layer(weight, bias):
    return attributes(nn.Module(), weight=nn.Parameter(weight), bias=nn.Parameter(bias))

def dense(ins, outs, multiplier=1.0):
    module = layer(torch.randn(outs, ins) / multiplier, torch.randn(outs))
    return attributes(module, weight_gain=multiplier / ins**0.5, bias_gain=multiplier)

def convolution(ins, outs, w_dim, size, clamp):
    module = low_pass(layer(torch.randn(outs, ins, 3, 3), torch.randn(outs)))
    module.register_buffer("noise_const", torch.randn(size, size))
    noise = nn.Parameter(torch.randn(()))
    return attributes(module, affine=dense(w_dim, ins), noise_strength=noise, conv_clamp=clamp)

def block(ins, outs, w_dim, size, clamp, architecture):
    module = attributes(low_pass(nn.Module()), architecture=architecture)
    if ins:
        module.conv0 = convolution(ins, outs, w_dim, size, clamp)
    else:
        module.const = nn.Parameter(torch.randn(outs, size, size))
    module.conv1 = convolution(outs, outs, w_dim, size, clamp)
    torgb = layer(torch.randn(3, outs, 1, 1) / 4, torch.zeros(3))
    module.torgb = attributes(torgb, affine=dense(w_dim, outs))
    return module

def generator(c_dim, widths, architecture="skip", clamp=256, z_dim=7, w_dim=8, num_layers=2):
    mapping = attributes(nn.Module(), num_layers=num_layers)
    for index in range(num_layers):
        ins = w_dim if index else z_dim + (w_dim if c_dim else 0)
        setattr(mapping, f"fc{index}", dense(ins, w_dim, 0.01))
    if c_dim:
        mapping.embed = dense(c_dim, w_dim)
    mapping.register_buffer("w_avg", torch.randn(w_dim))
    sizes = [4 * 2**index for index in range(len(widths))]
    synthesis = attributes(nn.Module(), block_resolutions=sizes)
    for index, size in enumerate(sizes):
        ins = widths[index - 1] if index else 0
        setattr(synthesis, f"b{size}", block(ins, widths[index], w_dim, size, clamp, architecture))
    whole = attributes(nn.Module(), z_dim=z_dim, c_dim=c_dim, w_dim=w_dim, img_resolution=sizes[-1], img_channels=3)
    return attributes(whole, synthesis=synthesis, mapping=mapping)
""",
}


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, text in REPOSITORY.items():
        (tmp_path / "repository" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "repository" / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path / "repository")
    return tmp_path / "repository"


def convert(repository: Path, *options: str, status: int = 0, **settings) -> tuple[torch.nn.Module, str]:
    torch.manual_seed(0)
    theirs = importlib.import_module("layout_of_networks").generator(**settings)
    with open(repository.parent / "network.pkl", "wb") as file:
        pickle.dump({"G_ema": theirs, "G": None}, file)
    command = [SCRIPT, repository.parent / "network.pkl", repository.parent / "converted", "--repository", repository]
    fresh = settings["c_dim"] == 0  # what it imports is found without the path of this process
    return theirs, run(*command, *options, status=status, fresh=fresh)


@pytest.mark.parametrize("c_dim", [0, 3])
def test_what_is_converted_is_loaded_and_drawn(c_dim: int, repository: Path) -> None:
    theirs, said = convert(repository, "--truncation", "0.7", c_dim=c_dim, widths=(6, 5, 4))
    assert f"16x16 images, {max(c_dim, 1)} classes" in said
    folder = repository.parent / "converted"
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "diffusion_pytorch_model.safetensors"]
    generator = load_generator(folder)
    expected = {key: value for key, value in theirs.state_dict().items() if not key.endswith("resample_filter")}
    assert set(generator.state_dict()) == set(expected)
    assert all(torch.equal(value, expected[key]) for key, value in generator.state_dict().items())
    assert {**json.loads((folder / "config.json").read_text()), "widths": (6, 5, 4)} == {
        **SMALL,
        "_class_name": "StyleGAN2Generator",
        "image_channels": 3,
        "num_classes": max(c_dim, 1),
        "truncation": 0.7,
        "noise": "const",
        "clamp": 256,
    }
    z, y = torch.randn(3, 7), torch.arange(3) % max(c_dim, 1)
    torch.testing.assert_close(generator.sample(y, z), slow_drawing(generator, z, y), rtol=0, atol=2e-4)


def test_another_architecture_is_not_converted(repository: Path) -> None:
    _, said = convert(repository, c_dim=3, widths=(6, 5), architecture="resnet", status=1)
    assert "only generators of the architecture 'skip'" in said
    assert not (repository.parent / "converted").exists()


def test_the_pickle_itself_is_refused_and_the_converter_named(repository: Path) -> None:
    convert(repository, c_dim=3, widths=(6, 5))
    with pytest.raises(ValueError, match="pickled Python objects.*scripts/convert_stylegan2.py"):
        load_generator(repository.parent / "network.pkl", architecture="biggan")
