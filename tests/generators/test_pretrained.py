"""Generators of other projects: files written here in their layouts, drawn by formulas written here, loaded and compared.

A formula asks `Weights` for every tensor it needs under the file's own name; what it asked for is what the file holds.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from generators import load_generator
from generators.conditioning import LabelNetwork
from generators.networks.biggan import BigGANGenerator


class Weights(dict):
    """A state dictionary that draws a tensor when it is first asked for."""

    def __call__(self, name: str, *shape: int, positive: bool = False) -> Tensor:
        if name not in self:
            scale = torch.Size(shape[1:]).numel() ** -0.5 if len(shape) > 1 else 0.3
            self[name] = torch.rand(shape) + 0.5 if positive else torch.randn(shape) * scale
        assert self[name].shape == shape
        return self[name]


# --- how others compute -----------------------------------------------------------------------------------------------


def sigma_biggan(w: Weights, name: str, weight: Tensor) -> Tensor:
    """One power iteration from the stored u0; sv0 is a log."""
    u0, _ = w(f"{name}.u0", 1, len(weight)), w(f"{name}.sv0", 1)
    matrix = weight.reshape(len(weight), -1)
    v = F.normalize(u0 @ matrix)
    u = F.normalize(v @ matrix.T)
    return (v @ matrix.T @ u.T).squeeze()


def sigma_torch(w: Weights, name: str, weight: Tensor) -> Tensor:
    """u^T W v of the stored vectors."""
    matrix = weight.reshape(len(weight), -1)
    if f"{name}.weight_u" not in w:  # what training leaves: near the singular vectors, not on them
        left, _, right = torch.linalg.svd(matrix, full_matrices=False)
        w[f"{name}.weight_u"] = F.normalize(left[:, 0] + 0.1 * torch.randn(len(left)), dim=0)
        w[f"{name}.weight_v"] = F.normalize(right[0] + 0.1 * torch.randn(right.shape[1]), dim=0)
    return w[f"{name}.weight_u"] @ matrix @ w[f"{name}.weight_v"]


def linear(w: Weights, name: str, x: Tensor, out: int, spectral: str = "", bias: bool = True) -> Tensor:
    return convolution(w, name, x[:, :, None, None], out, None, spectral, bias)[:, :, 0, 0]


def convolution(
    w: Weights, name: str, x: Tensor, out: int, kernel: int | None, spectral: str = "", bias: bool = True
) -> Tensor:
    """A convolution, or (kernel None) a linear map; `spectral` is "", "biggan" or "torch"."""
    shape = (out, x.shape[1], *((kernel, kernel) if kernel else ()))
    weight = w(f"{name}.weight_orig" if spectral == "torch" else f"{name}.weight", *shape)
    if spectral:
        weight = weight / {"biggan": sigma_biggan, "torch": sigma_torch}[spectral](w, name, weight)
    weight = weight if kernel else weight[:, :, None, None]
    return F.conv2d(x, weight, w(f"{name}.bias", out) if bias else None, padding=(kernel or 1) // 2)


def batch_norm(w: Weights, name: str, x: Tensor, eps: float, statistics: str = "running") -> Tensor:
    channels = x.shape[1]
    if statistics == "running":
        w[f"{name}.num_batches_tracked"] = torch.tensor(7)
    mean, variance = w(f"{name}.{statistics}_mean", channels), w(f"{name}.{statistics}_var", channels, positive=True)
    return (x - mean[:, None, None]) / (variance[:, None, None] + eps).sqrt()


def attention(w: Weights, names: list[str], x: Tensor, gamma: Tensor, spectral: str, bias: bool) -> Tensor:
    theta, phi, g, o = names
    channels, (height, width) = x.shape[1], x.shape[2:]
    query = convolution(w, theta, x, channels // 8, 1, spectral, bias).flatten(2)
    key = F.max_pool2d(convolution(w, phi, x, channels // 8, 1, spectral, bias), 2).flatten(2)
    value = F.max_pool2d(convolution(w, g, x, channels // 2, 1, spectral, bias), 2).flatten(2)
    shares = torch.einsum("ncq,nck->nqk", query, key).softmax(2)
    attended = torch.einsum("nck,nqk->ncq", value, shares).unflatten(2, (height, width))
    return x + gamma * convolution(w, o, attended, channels, 1, spectral, bias)


def up(x: Tensor) -> Tensor:
    return x.repeat_interleave(2, 2).repeat_interleave(2, 3)


def residual(x: Tensor, out: int, norm: Callable, convolve: Callable, prefix: str, names: str) -> Tensor:
    norm1, norm2, conv1, conv2, shortcut = (f"{prefix}.{name}" for name in names.split())
    h = convolve(conv1, up(norm(norm1, x).relu()), out, 3)
    h = convolve(conv2, norm(norm2, h).relu(), out, 3)
    return h + convolve(shortcut, up(x), out, 1)


# --- the layouts ------------------------------------------------------------------------------------------------------


def biggan_norm(w: Weights, name: str, x: Tensor, code: Tensor, num_classes: int) -> Tensor:
    """Tables of unshared embeddings are not normalised; maps of a shared code are."""
    channels = x.shape[1]
    if code.ndim == 1:
        gain, bias = (w(f"{name}.{part}.weight", num_classes, channels)[code] for part in ("gain", "bias"))
    else:
        gain, bias = (linear(w, f"{name}.{part}", code, channels, "biggan", bias=False) for part in ("gain", "bias"))
    x = batch_norm(w, name, x, 1e-5, "stored")
    return x * (1 + gain[:, :, None, None]) + bias[:, :, None, None]


def biggan_output(w: Weights, h: Tensor) -> Tensor:
    h = batch_norm(w, "output_layer.0", h, 1e-5, "stored")
    gain, bias = (w(f"output_layer.0.{name}", h.shape[1])[:, None, None] for name in ("gain", "bias"))
    return convolution(w, "output_layer.2", (h * gain + bias).relu(), 3, 3, "biggan").tanh()


def draw_biggan(
    w: Weights,
    z: Tensor,
    y: Tensor,
    *,
    resolution: int,
    channels: int,
    num_classes: int,
    attention: tuple[int, ...] = (),
    shared_dim: int = 0,
    hierarchical: bool = False,
) -> Tensor:
    widths = {32: [4, 4, 4, 4], 64: [16, 16, 8, 4, 2]}[resolution]
    slices = z.chunk(len(widths), dim=1) if hierarchical else [z] * len(widths)
    code = w("shared.weight", num_classes, shared_dim)[y] if shared_dim else y
    h = linear(w, "linear", slices[0], widths[0] * channels * 16, "biggan").unflatten(1, (-1, 4, 4))
    for index, width in enumerate(widths[1:]):
        name = f"blocks.{index}"
        block_code = torch.cat([code, slices[index + 1]], 1) if hierarchical else code
        norm = partial(biggan_norm, w, code=block_code, num_classes=num_classes)
        convolve = partial(convolution, w, spectral="biggan")
        h = residual(h, width * channels, norm, convolve, f"{name}.0", "bn1 bn2 conv1 conv2 conv_sc")
        if 8 * 2**index in attention:
            h = attend_biggan(w, name, h)
    return biggan_output(w, h)


def attend_biggan(w: Weights, name: str, h: Tensor) -> Tensor:
    names = [f"{name}.1.{part}" for part in ("theta", "phi", "g", "o")]
    return attention(w, names, h, w(f"{name}.1.gamma"), "biggan", bias=False)


def draw_biggan_deep(
    w: Weights,
    z: Tensor,
    y: Tensor,
    *,
    channels: int,
    num_classes: int,
    attention: tuple[int, ...],
    shared_dim: int,
    depth: int,
) -> Tensor:
    code = torch.cat([w("shared.weight", num_classes, shared_dim)[y], z], 1)
    h = linear(w, "linear", code, 4 * channels * 16, "biggan").unflatten(1, (-1, 4, 4))
    for stage in range(3):
        for inner in range(depth):
            name, last = f"blocks.{stage * depth + inner}.0", inner == depth - 1
            grow = up if last else lambda x: x
            hidden, skip = h.shape[1] // 4, h[:, : 4 * channels]
            h = biggan_norm(w, f"{name}.bn1", h, code, num_classes).relu()
            h = convolution(w, f"{name}.conv1", h, hidden, 1, "biggan")
            h = grow(biggan_norm(w, f"{name}.bn2", h, code, num_classes).relu())
            h = convolution(w, f"{name}.conv2", h, hidden, 3, "biggan")
            h = biggan_norm(w, f"{name}.bn3", h, code, num_classes).relu()
            h = convolution(w, f"{name}.conv3", h, hidden, 3, "biggan")
            h = biggan_norm(w, f"{name}.bn4", h, code, num_classes).relu()
            h = convolution(w, f"{name}.conv4", h, 4 * channels, 1, "biggan") + grow(skip)
        if 8 * 2**stage in attention:
            h = attend_biggan(w, f"blocks.{stage * depth + depth - 1}", h)
    return biggan_output(w, h)


def draw_label_code(w: Weights, y: Tensor, embed_dim: int) -> Tensor:
    h = y[:, None] + 1e-8
    for index in range(5):
        h = linear(w, f"main.{3 * index}", h, embed_dim)
        if index < 4:
            gain, bias = w(f"main.{3 * index + 1}.weight", embed_dim), w(f"main.{3 * index + 1}.bias", embed_dim)
            h = F.group_norm(h, 8, gain, bias)
        h = h.relu()
    return h


def ccgan_norm(w: Weights, name: str, x: Tensor, code: Tensor) -> Tensor:
    gain, bias = (linear(w, f"{name}.embed_{part}", code, x.shape[1], bias=False) for part in ("gamma", "beta"))
    x = batch_norm(w, f"{name}.bn", x, 1e-5)
    return x + x * gain[:, :, None, None] + bias[:, :, None, None]


def affine(w: Weights, name: str, x: Tensor, eps: float = 1e-5) -> Tensor:
    gain, bias = (w(f"{name}.{part}", x.shape[1])[:, None, None] for part in ("weight", "bias"))
    return batch_norm(w, name, x, eps) * gain + bias


def draw_ccgan_sagan(w: Weights, z: Tensor, code: Tensor, *, resolution: int, channels: int) -> Tensor:
    widths = {64: [16, 8, 4, 2, 1], 128: [16, 16, 8, 4, 2, 1]}[resolution]
    h = linear(w, "snlinear0", z, widths[0] * channels * 16, "torch").unflatten(1, (-1, 4, 4))
    for index, width in enumerate(widths[1:], start=1):
        norm, convolve = partial(ccgan_norm, w, code=code), partial(convolution, w, spectral="torch")
        names = "cond_bn1 cond_bn2 snconv2d1 snconv2d2 snconv2d0"
        h = residual(h, width * channels, norm, convolve, f"block{index}", names)
        if h.shape[-1] == 32:
            names = [f"self_attn.snconv1x1_{part}" for part in ("theta", "phi", "g", "attn")]
            h = attention(w, names, h, w("self_attn.sigma", 1), "torch", bias=True)
    return convolution(w, "snconv2d1", affine(w, "bn", h).relu(), 3, 3, "torch").tanh()


def draw_ccgan_sngan(w: Weights, z: Tensor, code: Tensor, *, channels: int) -> Tensor:
    h = linear(w, "dense", z, 16 * channels * 16).unflatten(1, (-1, 4, 4))
    for index, width in enumerate([8, 4, 2, 1]):
        name, norm, convolve = f"genblock{index}", partial(ccgan_norm, w, code=code), partial(convolution, w)
        h = residual(h, width * channels, norm, convolve, name, "condbn1 condbn2 conv1 conv2 bypass_conv")
        for copy, original in (("model.3", "conv1"), ("model.6", "conv2"), ("bypass.1", "bypass_conv")):
            for part in ("weight", "bias"):
                w[f"{name}.{copy}.{part}"] = w[f"{name}.{original}.{part}"]
        affine(w, f"{name}.model.4", h)  # the unconditional path, which nothing uses
    return convolution(w, "final.2", affine(w, "final.0", h).relu(), 3, 3).tanh()


def draw_studiogan_biggan(
    w: Weights,
    z: Tensor,
    y: Tensor,
    *,
    channels: int,
    num_classes: int,
    attention_after: tuple[int, ...],
    shared_dim: int,
) -> Tensor:
    def norm_of(name: str, x: Tensor, code: Tensor) -> Tensor:
        gain, bias = (linear(w, f"{name}.{part}", code, x.shape[1], "torch", bias=False) for part in ("gain", "bias"))
        return batch_norm(w, f"{name}.bn", x, 1e-4) * (1 + gain[:, :, None, None]) + bias[:, :, None, None]

    slices = z.split(z.shape[1] // 4, dim=1)
    shared, out, entry = w("shared.weight", num_classes, shared_dim)[y], 4 * channels, 0
    h = linear(w, "linear0", slices[0], out * 16, "torch").unflatten(1, (-1, 4, 4))
    for index in range(3):
        norm = partial(norm_of, code=torch.cat([shared, slices[index + 1]], 1))
        convolve = partial(convolution, w, spectral="torch")
        h = residual(h, out, norm, convolve, f"blocks.{entry}.0", "bn1 bn2 conv2d1 conv2d2 conv2d0")
        entry += 1
        if index + 1 in attention_after:
            names = [f"blocks.{entry}.0.conv1x1_{part}" for part in ("theta", "phi", "g", "attn")]
            h = attention(w, names, h, w(f"blocks.{entry}.0.sigma", 1), "torch", bias=False)
            entry += 1
    return convolution(w, "conv2d5", affine(w, "bn4", h, 1e-4).relu(), 3, 3, "torch").tanh()


def draw_studiogan_sngan(w: Weights, z: Tensor, y: Tensor, *, channels: int, num_classes: int, tables: bool) -> Tensor:
    def norm(name: str, x: Tensor) -> Tensor:
        if tables:
            gain, bias = (w(f"{name}.embed{n}.weight", num_classes, x.shape[1])[y] for n in (0, 1))
        else:
            code = F.one_hot(y, num_classes).float()
            gain, bias = (linear(w, f"{name}.{part}", code, x.shape[1], bias=False) for part in ("gain", "bias"))
        return batch_norm(w, f"{name}.bn", x, 1e-4) * (1 + gain[:, :, None, None]) + bias[:, :, None, None]

    out = 4 * channels
    h = linear(w, "linear0", z, out * 16).unflatten(1, (-1, 4, 4))
    for index in range(3):
        h = residual(h, out, norm, partial(convolution, w), f"blocks.{index}.0", "bn1 bn2 conv2d1 conv2d2 conv2d0")
    return convolution(w, "conv2d5", affine(w, "bn4", h, 1e-4).relu(), 3, 3).tanh()


# --- equal images -----------------------------------------------------------------------------------------------------

BIGGAN = {"resolution": 32, "channels": 2, "num_classes": 5}
SHARED = {"resolution": 64, "channels": 2, "num_classes": 5, "attention": (16, 32)}
DEEP = {"channels": 4, "num_classes": 4, "attention": (8,), "shared_dim": 6, "depth": 3}
STUDIO = {"channels": 2, "num_classes": 5, "shared_dim": 6}

# architecture, the formula with its settings, what load_generator is told, latents; labels are classes
CLASSES = {
    "biggan": ("biggan", draw_biggan, BIGGAN, BIGGAN, 7),
    "biggan, shared": (
        "biggan",
        draw_biggan,
        {**SHARED, "shared_dim": 6},
        {**SHARED, "shared_embedding": True, "shared_dim": 6},
        7,
    ),
    "biggan, hierarchical": (
        "biggan",
        draw_biggan,
        {**SHARED, "shared_dim": 6, "hierarchical": True},
        {**SHARED, "shared_embedding": True, "shared_dim": 6, "hierarchical": True},
        15,
    ),
    "biggan_deep": ("biggan_deep", draw_biggan_deep, DEEP, {**DEEP, "resolution": 32}, 7),
    "studiogan_biggan": (
        "studiogan_biggan",
        draw_studiogan_biggan,
        {**STUDIO, "attention_after": (1, 2)},
        {**STUDIO, "attention": (8, 16)},
        8,
    ),
    "studiogan_sngan": (
        "studiogan_sngan",
        draw_studiogan_sngan,
        {"channels": 2, "num_classes": 5, "tables": False},
        {"channels": 2, "num_classes": 5},
        7,
    ),
    "studiogan_sngan, tables": (
        "studiogan_sngan",
        draw_studiogan_sngan,
        {"channels": 2, "num_classes": 5, "tables": True},
        {"channels": 2, "num_classes": 5},
        7,
    ),
}
SCALARS = {
    "ccgan_sagan": (draw_ccgan_sagan, {"resolution": 64, "channels": 4}),
    "ccgan_sagan, 128": (draw_ccgan_sagan, {"resolution": 128, "channels": 2}),
    "ccgan_sngan": (draw_ccgan_sngan, {"channels": 2}),
}


def write_classes(case: str, path: Path) -> tuple[Weights, Tensor, Tensor, Tensor]:
    """The weights, latents, labels and images of a file written to `path`."""
    _, draw, settings, _, z_dim = CLASSES[case]
    torch.manual_seed(0)
    weights, z, y = Weights(), torch.randn(4, z_dim), torch.arange(4)
    images = draw(weights, z, y, **settings)
    torch.save(dict(weights), path)
    return weights, z, y, images


def load_classes(case: str, path: Path, **changes):
    architecture, _, _, settings, z_dim = CLASSES[case]
    return load_generator(path, architecture=architecture, **{"z_dim": z_dim, **settings, **changes})


@pytest.mark.parametrize("case", CLASSES)
def test_a_class_conditional_generator_draws_as_it_did_at_home(case: str, tmp_path: Path) -> None:
    _, z, y, images = write_classes(case, tmp_path / "G.pth")
    generator = load_classes(case, tmp_path / "G.pth")
    assert images.std() > 0.1 and images.abs().mean() < 0.9, "a saturated image would hide differences"
    torch.testing.assert_close(generator(z, y), images, rtol=0, atol=2e-5)
    drawn, features = generator.sample_with_features(y, z)
    torch.testing.assert_close(drawn, images, rtol=0, atol=2e-5)
    assert len(features) >= 3 and all(values.shape[0] == 4 for values in features.values())


@pytest.mark.parametrize("with_label_network", [True, False])
@pytest.mark.parametrize("case", SCALARS)
def test_a_ccgan_generator_draws_as_it_did_at_home(case: str, with_label_network: bool, tmp_path: Path) -> None:
    draw, settings = SCALARS[case]
    torch.manual_seed(0)
    weights, label_weights, z, y = Weights(), Weights(), torch.randn(3, 7), torch.tensor([0.0, 0.3, 1.0])
    code = draw_label_code(label_weights, y, 32)
    images = draw(weights, z, code, **settings)
    file = {f"module.{name}": value for name, value in weights.items()}
    torch.save({"netG_state_dict": file, "netD_state_dict": {"module.x": torch.ones(1)}}, tmp_path / "netG.pth")
    torch.save({"net_state_dict": {f"module.{k}": v for k, v in label_weights.items()}}, tmp_path / "y2h.pth")
    extra = {"label_embedding": tmp_path / "y2h.pth", "label_range": (-80, 80)} if with_label_network else {}
    architecture = case.split(",")[0]
    generator = load_generator(
        tmp_path / "netG.pth", architecture=architecture, **settings, z_dim=7, embed_dim=32, **extra
    )
    assert images.std() > 0.1 and images.abs().mean() < 0.9
    torch.testing.assert_close(generator(z, y if with_label_network else code), images, rtol=0, atol=2e-5)
    labels = y * 160 - 80 if with_label_network else code  # in the user's units
    torch.testing.assert_close(generator.sample(labels, z), images, rtol=0, atol=2e-5)
    torch.testing.assert_close(generator.label_code(generator.condition(labels)), code, rtol=0, atol=1e-5)


def test_both_ways_in_which_torch_stores_its_spectral_norm_are_read(tmp_path: Path) -> None:
    torch.manual_seed(0)
    weights, z, code = Weights(), torch.randn(3, 7), torch.rand(3, 32)
    images = draw_ccgan_sagan(weights, z, code, resolution=64, channels=4)
    newer = {"weight_orig": "weight.original", "weight_u": "weight.0._u", "weight_v": "weight.0._v"}
    renamed = {
        re.sub(r"(weight_\w+)$", lambda match: f"parametrizations.{newer[match[1]]}", name): value
        for name, value in weights.items()
    }
    assert set(renamed) != set(weights)
    torch.save({"netG_state_dict": renamed}, tmp_path / "netG.pth")
    settings = {"resolution": 64, "channels": 4, "z_dim": 7, "embed_dim": 32}
    generator = load_generator(tmp_path / "netG.pth", architecture="ccgan_sagan", **settings)
    torch.testing.assert_close(generator(z, code), images, rtol=0, atol=2e-5)


# --- how it comes -----------------------------------------------------------------------------------------------------


def test_a_loaded_generator_is_frozen_ready_and_can_be_saved_as_ours(tmp_path: Path) -> None:
    for case in ("biggan, shared", "studiogan_biggan", "studiogan_sngan"):
        _, z, y, _images = write_classes(case, tmp_path / "G.pth")
        generator = load_classes(case, tmp_path / "G.pth")
        assert not any(module.training for module in generator.modules())
        assert not any(parameter.requires_grad for parameter in generator.parameters())
        generator.save_pretrained(tmp_path / case)
        assert torch.equal(load_generator(tmp_path / case).sample(y, z), generator.sample(y, z))


@pytest.mark.parametrize(
    "wrapping",
    [
        lambda weights, other: {"G_ema": weights, "G": other, "step": 7},
        lambda weights, other: {"netG_state_dict": other, "ema": weights, "rng_state": torch.get_rng_state()},
        lambda weights, other: {"state_dict": weights, "optimizer": {"state": {}}, "run_name": "big", "best_fid": 4.0},
        lambda weights, other: {f"module.{name}": value for name, value in weights.items()},
        lambda weights, other: {"netG_state_dict": {f"module.{name}": value for name, value in weights.items()}},
        lambda weights, other: {"model_state_dict": {f"_orig_mod.module.{name}": v for name, v in weights.items()}},
        lambda weights, other: {f"net.{name}": value for name, value in weights.items()},
        lambda weights, other: {"n_averaged": torch.tensor(3), **{f"module.{name}": v for name, v in weights.items()}},
    ],
)
def test_weights_are_found_however_they_are_wrapped_and_averaged_ones_preferred(wrapping, tmp_path: Path) -> None:
    weights, z, y, images = write_classes("biggan", tmp_path / "G.pth")
    torch.save(wrapping(dict(weights), {name: value + 1 for name, value in weights.items()}), tmp_path / "wrapped.pth")
    generator = load_classes("biggan", tmp_path / "wrapped.pth")
    torch.testing.assert_close(generator(z, y), images, rtol=0, atol=2e-5)


def test_safetensors_are_read_too(tmp_path: Path) -> None:
    weights, z, y, images = write_classes("biggan", tmp_path / "G.pth")
    save_file({name: value.contiguous() for name, value in weights.items()}, tmp_path / "G.safetensors")
    torch.testing.assert_close(load_classes("biggan", tmp_path / "G.safetensors")(z, y), images, rtol=0, atol=2e-5)


def test_averaged_weights_of_a_folder_are_preferred(tmp_path: Path) -> None:
    torch.manual_seed(0)
    raw, averaged = (BigGANGenerator(channels=2, num_classes=3, latent_dim=4).eval() for _ in range(2))
    averaged.to(memory_format=torch.channels_last)  # as it is loaded: sums are rounded in that order
    raw.save_pretrained(tmp_path)
    averaged.save_pretrained(tmp_path, variant="ema")
    labels, latents = torch.arange(3), torch.randn(3, 4)
    assert torch.equal(load_generator(tmp_path).sample(labels, latents), averaged.sample(labels, latents))


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("case", "changes", "sentence"),
    [
        ("biggan", {"channels": 3}, r"'linear.weight' is \(128, 7\), but a biggan generator .* has \(192, 7\) there"),
        ("biggan", {"z_dim": 9}, r"'linear.weight' is \(128, 7\), but a biggan generator \(z_dim=9, .* has \(128, 9\)"),
        ("biggan", {"num_classes": 6}, r"'blocks.0.0.bn1.gain.weight' is \(5, 8\), but .* has \(6, 8\) there"),
        ("biggan", {"shared_embedding": True}, "lacks 'shared.weight' of a biggan generator .*another architecture"),
        ("biggan", {"attention": (8,)}, "lacks 'blocks.0.1.gamma' of a biggan generator"),
        ("biggan, shared", {"attention": (16,)}, "holds 'blocks.2.1.*', for which a biggan generator .* has no place"),
        ("biggan, shared", {"resolution": 32}, r"'linear.weight' is \(512, 7\), but .* has \(128, 7\) there"),
        ("biggan_deep", {"depth": 2}, "lacks 'blocks.1.1.gamma' of a biggan_deep generator .*other settings"),
        (
            "biggan_deep",
            {"num_classes": 9},
            r"'shared.weight' is \(4, 6\), but a biggan_deep generator .* has \(9, 6\)",
        ),
        ("studiogan_biggan", {"attention": ()}, "lacks 'blocks.1.0.bn1.bn.running_mean'"),
        ("studiogan_sngan", {"num_classes": 4}, r"'blocks.0.0.bn1.gain.weight' is \(8, 5\), but .* has \(8, 4\) there"),
        ("biggan", {"resolution": 48}, "an image size of 48 pixels does not fit the BigGAN networks"),
        ("biggan", {"chanels": 2}, "chanels does not describe the architecture 'biggan'; did you mean 'channels'"),
        ("biggan_deep", {"hierarchical": False}, "biggan_deep always has a shared embedding and hierarchical latents"),
        ("biggan", {"label_embedding": "y2h.pth"}, "label_embedding does not go with the architecture 'biggan'"),
    ],
)
def test_what_differs_from_the_description_is_named(case: str, changes: dict, sentence: str, tmp_path: Path) -> None:
    write_classes(case, tmp_path / "G.pth")
    with pytest.raises(ValueError, match=sentence) as caught:
        load_classes(case, tmp_path / "G.pth", **changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("other", [name for name in CLASSES if name != "biggan"])
def test_a_file_of_another_architecture_is_refused(other: str, tmp_path: Path) -> None:
    write_classes(other, tmp_path / "G.pth")
    with pytest.raises(ValueError, match=re.escape(str(tmp_path / "G.pth")) + ".*'.*a biggan generator"):
        load_classes("biggan", tmp_path / "G.pth")


def test_every_key_is_needed_and_none_may_be_left_over(tmp_path: Path) -> None:
    weights, *_ = write_classes("biggan", tmp_path / "G.pth")
    for missing in ("linear.bias", "blocks.1.0.bn2.stored_var", "output_layer.2.u0"):
        torch.save({name: value for name, value in weights.items() if name != missing}, tmp_path / "part.pth")
        with pytest.raises(ValueError, match=f"lacks '{missing}' of a biggan generator"):
            load_classes("biggan", tmp_path / "part.pth")
    torch.save({**weights, "blocks.3.0.conv1.weight": torch.ones(2)}, tmp_path / "more.pth")
    with pytest.raises(ValueError, match="holds 'blocks.3.0.conv1.weight', for which a biggan generator .* no place"):
        load_classes("biggan", tmp_path / "more.pth")


class Bomb:
    """What unpickling would run."""

    def __reduce__(self):
        return (Path.touch, (Path("exploded"),))


def test_a_pickle_is_refused_with_reason_and_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    weights, *_ = write_classes("biggan", tmp_path / "G.pth")
    torch.save({**weights, "bomb": Bomb()}, "bomb.pth")
    torch.save(BigGANGenerator(channels=1, num_classes=2), "module.pth")
    for name in ("bomb.pth", "module.pth"):
        with pytest.raises(
            ValueError, match=r"pickled Python objects, which could run any code.*torch.save\(generator"
        ):
            load_classes("biggan", Path(name))
    assert not Path("exploded").exists()


def test_what_is_no_checkpoint_is_named(tmp_path: Path) -> None:
    write_classes("biggan", tmp_path / "G.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "G.pth").read_bytes()[:5000])
    (tmp_path / "cut.safetensors").write_bytes(b"12345678")
    (tmp_path / "empty.pth").write_bytes(b"")
    torch.save({"epoch": 3, "names": ["a"]}, tmp_path / "other.pth")
    torch.save([torch.ones(2)], tmp_path / "list.pth")
    for name, sentence in {
        "cut.pth": "is cut off or no checkpoint",
        "cut.safetensors": "is cut off or no checkpoint",
        "empty.pth": "is cut off or no checkpoint",
        "other.pth": r"holds no weights of a generator \(only: epoch, names\)",
        "list.pth": r"holds no weights of a generator \(only: list\)",
        "nowhere.pth": "is no file",
        ".": "is no file",
    }.items():
        with pytest.raises(ValueError, match=sentence) as caught:
            load_classes("biggan", tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)


def test_an_unknown_architecture_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="architecture 'bigan' is not known; did you mean 'biggan'"):
        load_generator(tmp_path / "G.pth", architecture="bigan")


def test_a_file_needs_its_architecture_and_a_folder_no_description(tmp_path: Path) -> None:
    write_classes("biggan", tmp_path / "G.pth")
    with pytest.raises(ValueError, match="or a checkpoint file together with its architecture"):
        load_generator(tmp_path / "G.pth")
    load_classes("biggan", tmp_path / "G.pth").save_pretrained(tmp_path / "ours")
    with pytest.raises(ValueError, match="has its own config.json; leave out channels"):
        load_generator(tmp_path / "ours", channels=2)
    with pytest.raises(ValueError, match="label_embedding belongs to a CcGAN checkpoint"):
        load_generator(tmp_path / "ours", label_embedding=tmp_path / "y2h.pth")


@pytest.fixture
def sngan_files(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    weights = Weights()
    draw_ccgan_sngan(weights, torch.randn(1, 7), torch.randn(1, 32), channels=1)
    torch.save({"netG_state_dict": dict(weights)}, tmp_path / "netG.pth")
    torch.save({"net_state_dict": LabelNetwork(32).state_dict()}, tmp_path / "y2h.pth")
    torch.save({"net_state_dict": LabelNetwork(16).state_dict()}, tmp_path / "narrow.pth")
    return tmp_path


def load_sngan(folder: Path, **extra):
    settings = {"resolution": 64, "channels": 1, "z_dim": 7, "embed_dim": 32}
    return load_generator(folder / "netG.pth", architecture="ccgan_sngan", **settings, **extra)


def test_a_label_network_must_fit_and_labels_stay_in_range(sngan_files: Path) -> None:
    with pytest.raises(
        ValueError, match=r"narrow.pth: 'main.0.weight' is \(16, 1\), but a label network of embed_dim 32"
    ):
        load_sngan(sngan_files, label_embedding=sngan_files / "narrow.pth")
    with pytest.raises(ValueError, match="netG.pth lacks 'main.0.weight' of a label network"):
        load_sngan(sngan_files, label_embedding=sngan_files / "netG.pth")
    generator = load_sngan(sngan_files, label_embedding=sngan_files / "y2h.pth", label_range=(0, 90))
    assert generator.sample(torch.tensor([0.0, 90.0])).shape == (2, 3, 64, 64)
    with pytest.raises(ValueError, match=r"labels span \[0, 91\]; this generator knows \[0, 90\]"):
        generator.sample(torch.tensor([0.0, 91.0]))
    with pytest.raises(ValueError, match=r"latents are \(2, 8\); expected \(2, 7\)"):
        generator.sample(torch.tensor([0.0, 90.0]), torch.randn(2, 8))


def test_without_a_label_network_codes_are_asked_for(sngan_files: Path) -> None:
    generator = load_sngan(sngan_files)
    for wrong in (torch.tensor([0.5]), torch.rand(2, 31)):
        with pytest.raises(ValueError, match=r"takes codes \[N, 32\]: give load_generator the label_embedding"):
            generator.sample(wrong)


def test_a_hub_name_that_cannot_be_reached_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="nobody/nothing holds no generator: no such folder here, nor on the hub"):
        load_generator("nobody/nothing")
