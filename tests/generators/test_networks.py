"""The architectures by name: what every generator and its discriminator must do, and what each must be."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from generators import load_generator
from generators.conditioning import ConditionalBatchNorm
from generators.config import NETWORK_SETTINGS, GeneratorConfig
from generators.interface import ConditionalGenerator
from generators.layers import SelfAttention, SNConv2d, SNEmbedding, SNLinear, spectral_normalize
from generators.networks import NETWORKS, build_networks, network_classes
from generators.networks.biggan import BigGANDiscriminator, BigGANGenerator
from generators.networks.biggan_deep import (
    BigGANDeepDiscriminator,
    BigGANDeepGenerator,
    BottleneckDown,
    BottleneckUp,
)
from generators.networks.sagan import SAGANDiscriminator, SAGANGenerator

CLASSES, SCALARS = (3, None), (None, (-40.0, 60.0))

# network, image size, kind of label, settings
CASES = {
    "sngan": ("sngan", 32, CLASSES, {"widths": (16, 8, 8, 4), "discriminator_widths": (8,)}),
    "sngan, fourier": ("sngan", 16, SCALARS, {"widths": (8, 8, 4), "discriminator_widths": (4, 8, 8)}),
    "sagan": ("sagan", 64, CLASSES, {"channels": 2}),
    "sagan, fourier": ("sagan", 64, SCALARS, {"channels": 2}),
    "sagan, ili": ("sagan", 64, SCALARS, {"channels": 2, "label_input": "ili"}),
    "sagan, nli": ("sagan", 64, SCALARS, {"channels": 2, "label_input": "nli"}),
    "biggan": ("biggan", 32, CLASSES, {"channels": 4}),
    "biggan, shared": ("biggan", 32, CLASSES, {"channels": 4, "shared_embedding": True, "attention": (8, 16)}),
    "biggan, hierarchical": (
        "biggan",
        64,
        CLASSES,
        {"channels": 2, "shared_embedding": True, "hierarchical": True, "attention": (32,)},
    ),
    "biggan_deep": ("biggan_deep", 32, CLASSES, {"channels": 4, "attention": (16,)}),
    "biggan_deep, depth 1": ("biggan_deep", 32, CLASSES, {"channels": 4, "depth": 1}),
    "dcgan": ("dcgan", 32, CLASSES, {"channels": 4}),
    "dcgan, nli": ("dcgan", 16, SCALARS, {"channels": 4, "label_input": "nli"}),
}
every_case = pytest.mark.parametrize("case", CASES)


def build(case: str, channels: int = 3) -> tuple[ConditionalGenerator, nn.Module]:
    """Untrained, in evaluation mode; attention is given a part in the result, which it has not at first."""
    network, size, kind, settings = CASES[case]
    torch.manual_seed(0)
    config = GeneratorConfig(network=network, latent_dim=10, label_dim=64, **settings)
    pair = build_networks(config, (channels, size, size), *kind)
    for module in [module for network in pair for module in network.modules()]:
        if isinstance(module, SelfAttention):
            nn.init.constant_(module.gamma, 0.7)
    return pair[0].eval(), pair[1].eval()


def labels(case: str, count: int = 4) -> Tensor:
    return torch.arange(count) % 3 if CASES[case][2] is CLASSES else torch.linspace(-40, 60, count)


def other_labels(case: str) -> Tensor:
    return (labels(case) + 1) % 3 if CASES[case][2] is CLASSES else labels(case).flip(0)


def latents(count: int = 4) -> Tensor:
    return torch.randn(count, 10, generator=torch.Generator().manual_seed(1))


def num_parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)


# --- every network ----------------------------------------------------------------------------------------------------


def test_every_network_is_exercised_and_has_its_settings() -> None:
    games = {network for network, *_ in CASES.values()}
    assert set(NETWORKS) == games | {"unet"} == set(NETWORK_SETTINGS)  # which has tests of its own
    for name in NETWORKS:
        generator, discriminator = network_classes(name)
        assert issubclass(generator, ConditionalGenerator) and (discriminator is not None) == (name in games)


@every_case
@pytest.mark.parametrize("channels", [1, 3])
def test_images_and_logits_have_their_shapes_and_range(case: str, channels: int) -> None:
    generator, discriminator = build(case, channels)
    images = generator.sample(labels(case), latents())
    size = CASES[case][1]
    assert images.shape == (4, channels, size, size)
    assert images.abs().max() <= 1 and images.std() > 0
    logits = discriminator(images, generator.condition(labels(case)))
    assert logits.shape == (4,) and logits.isfinite().all()


@every_case
def test_label_and_latents_reach_the_image(case: str) -> None:
    generator, _ = build(case)
    images = generator.sample(labels(case), latents())
    assert torch.equal(generator.sample(labels(case), latents()), images)
    for other in (generator.sample(labels(case), latents().flip(0)), generator.sample(other_labels(case), latents())):
        assert (other - images).flatten(1).abs().amax(dim=1).min() > 1e-6 * images.std()


@every_case
def test_an_image_does_not_depend_on_its_companions(case: str) -> None:
    generator, _ = build(case)
    together = generator.sample(labels(case), latents())
    alone = torch.cat([generator.sample(labels(case)[[i]], latents()[[i]]) for i in range(4)])
    torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-5)


@every_case
def test_label_and_image_reach_the_logit(case: str) -> None:
    _, discriminator = build(case)
    size = CASES[case][1]
    images = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(2)) * 2 - 1
    y = torch.zeros(2, dtype=torch.int64) if CASES[case][2] is CLASSES else torch.zeros(2)
    logits = discriminator(images, y)
    scale = logits.abs().max()
    assert (discriminator(images, y + 1) - logits).abs().min() > 1e-5 * scale
    assert (logits[0] - logits[1]).abs() > 1e-5 * scale


@every_case
def test_a_gradient_reaches_every_parameter(case: str) -> None:
    generator, discriminator = build(case)
    y = generator.condition(labels(case, 6))
    discriminator(generator(latents(6), y), y).sum().backward()
    for network in (generator, discriminator):
        silent = [
            name
            for name, parameter in network.named_parameters()
            if parameter.requires_grad and (parameter.grad is None or not parameter.grad.abs().sum() > 0)
        ]
        assert not silent


@every_case
def test_half_precision_changes_little(case: str) -> None:
    for network in build(case):
        inputs = network_inputs(case, network)
        expected = network(*inputs)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            result = network(*inputs).float()
        assert (result - expected).abs().max() < 0.1 * expected.abs().max()


@every_case
def test_training_mode_moves_statistics_and_singular_vectors_evaluation_does_not(case: str) -> None:
    for network in build(case):
        before = {name: value.clone() for name, value in network.named_buffers()}
        inputs = network_inputs(case, network)
        network(*inputs)
        assert all(torch.equal(value, before[name]) for name, value in network.named_buffers())
        network.train()(*inputs)
        moved = {name for name, value in network.named_buffers() if not torch.equal(value, before[name])}
        assert {name for name in before if name.endswith(("running_mean", "running_var"))} <= moved
        assert {name for name, value in before.items() if name.endswith("u0") and value.numel() > 1} <= moved


def network_inputs(case: str, network: nn.Module) -> tuple[Tensor, Tensor]:
    y = labels(case) if CASES[case][2] is CLASSES else torch.linspace(0, 1, 4)
    size = CASES[case][1]
    return (latents() if isinstance(network, ConditionalGenerator) else torch.randn(4, 3, size, size)), y


@every_case
def test_a_saved_generator_draws_the_same_images(case: str, tmp_path: Path) -> None:
    generator, _ = build(case)
    generator.to(memory_format=torch.channels_last)  # as it is trained and loaded
    generator.train()(latents(), generator.condition(labels(case)))  # statistics that are not the initial ones
    expected = generator.eval().sample(labels(case), latents())
    generator.train().save_pretrained(tmp_path)
    loaded = load_generator(tmp_path)
    assert type(loaded) is type(generator) and loaded.feature_names == generator.feature_names
    assert not any(module.training for module in loaded.modules())
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert torch.equal(loaded.sample(labels(case), latents()), expected)


@every_case
def test_features_are_maps_that_grow_to_the_image(case: str) -> None:
    generator, _ = build(case)
    images, features = generator.sample_with_features(labels(case), latents())
    assert torch.equal(images, generator.sample(labels(case), latents()))
    assert tuple(features) == generator.feature_names
    sizes = [values.shape[-1] for values in features.values()]
    assert all(values.shape[0] == 4 and values.ndim == 4 for values in features.values())
    last = CASES[case][1] // (2 if CASES[case][0] == "dcgan" else 1)
    assert sizes == [2**exponent for exponent in range(3, last.bit_length())]


@pytest.mark.parametrize("case", ["sagan", "biggan, hierarchical", "biggan_deep"])
def test_a_feature_is_what_follows_attention(case: str) -> None:
    generator, _ = build(case)
    attention = next(module for module in generator.modules() if isinstance(module, SelfAttention))
    seen = []
    attention.register_forward_hook(lambda module, inputs, output: seen.append(output))
    _, features = generator.sample_with_features(labels(case), latents())
    assert any(torch.equal(values, seen[0]) for values in features.values())


@every_case
def test_the_code_of_a_label_is_a_row(case: str) -> None:
    generator, _ = build(case)
    codes = generator.label_code(generator.condition(labels(case)))
    assert codes.ndim == 2 and len(codes) == 4 and codes.dtype == torch.float32
    assert not torch.equal(codes[0], codes[1])


# --- each network -----------------------------------------------------------------------------------------------------


def test_the_sizes_are_the_published_ones() -> None:
    images = {"image_channels": 3}
    cifar = {"resolution": 32, "channels": 64, "num_classes": 100}
    assert round(num_parameters(BigGANGenerator(**cifar)) / 1e6, 1) == 4.6
    assert round(num_parameters(BigGANDiscriminator(**cifar, **images)) / 1e6, 1) == 4.2
    with torch.device("meta"):  # counted, not drawn
        imagenet = {"resolution": 128, "channels": 128, "num_classes": 100, "attention": (64,)}
        assert round(num_parameters(BigGANDeepGenerator(**imagenet)) / 1e6) == 50
        imagenet = {"resolution": 128, "channels": 96, "num_classes": 1000, "attention": (64,)}
        generator = BigGANGenerator(**imagenet, latent_dim=120, shared_embedding=True, hierarchical=True)
        assert round(num_parameters(generator) / 1e6, 1) == 70.4
        assert round(num_parameters(BigGANDiscriminator(**imagenet, **images)) / 1e6, 1) == 88.0
        deep = BigGANDeepDiscriminator(**{**imagenet, "channels": 128}, **images)
        assert round(num_parameters(deep) / 1e6, 1) == 34.6
    scalar = {"channels": 64, "label_input": "ili"}
    generator = SAGANGenerator(**scalar, latent_dim=256, label_range=(0, 1))
    discriminator = SAGANDiscriminator(**scalar, **images, resolution=64, label_dim=128, num_classes=None)
    assert round(num_parameters(generator) / 1e6, 1) == 15.1
    assert round(num_parameters(discriminator) / 1e6, 1) == 21.7


@pytest.mark.parametrize(
    ("network", "sizes", "settings"),
    [
        ("sagan", (64, 128), {"channels": 1}),
        ("biggan", (32, 64, 128, 256), {"channels": 1}),
        ("biggan_deep", (32, 64, 128, 256), {"channels": 4, "depth": 1}),
        ("dcgan", (8, 16, 32, 64, 128), {"channels": 1}),
    ],
)
def test_every_size_that_is_promised_works_and_others_are_refused(network: str, sizes: tuple, settings: dict) -> None:
    config = GeneratorConfig(network=network, latent_dim=8, label_dim=8, **settings)
    for size in sizes:
        generator, discriminator = build_networks(config, (3, size, size), 3, None)
        images = generator.eval().sample(torch.tensor([2]))
        assert images.shape == (1, 3, size, size)
        assert discriminator(images, torch.tensor([2])).shape == (1,)
    for size in (48, 512):
        with pytest.raises(ValueError, match=f"an image size of {size} pixels does not fit the .*; use one of"):
            build_networks(config, (3, size, size), 3, None)


def test_hierarchical_latents_go_slice_by_slice_to_their_block() -> None:
    case = "biggan, hierarchical"  # four blocks and the 4x4 image share ten numbers: two each
    generator, _ = build(case)
    _, before = generator.sample_with_features(labels(case), latents())
    for slice_, first_changed in ((1, 0), (2, 1), (3, 2), (4, 3)):
        changed = latents()
        changed[:, 2 * slice_ : 2 * slice_ + 2] += 1
        _, after = generator.sample_with_features(labels(case), changed)
        same = [torch.equal(before[name], after[name]) for name in generator.feature_names]
        assert same == [index < first_changed for index in range(4)]


def test_shortcuts_of_biggan_deep_drop_and_join_channels() -> None:
    torch.manual_seed(0)
    up, down = BottleneckUp(16, 8, code_dim=3, double=True).eval(), BottleneckDown(8, 16, halve=True).eval()
    with torch.no_grad():  # silence the residuals: nothing passes their last ReLU
        up.bn4.bn.running_mean.fill_(1e6)
        down.conv3.bias.fill_(-1e6)
        nn.init.zeros_(up.conv4.bias)
        nn.init.zeros_(down.conv4.bias)
    x = torch.randn(2, 16, 4, 4)
    assert torch.equal(up(x, torch.zeros(2, 3)), x[:, :8].repeat_interleave(2, 2).repeat_interleave(2, 3))
    pooled = nn.functional.avg_pool2d(x[:, :8], 2)
    assert torch.equal(down(x[:, :8]), torch.cat([pooled, down.conv_sc(pooled)], dim=1))
    assert BottleneckDown(16, 16, halve=False).conv_sc is None


def test_weights_are_drawn_as_the_papers_say() -> None:
    torch.manual_seed(0)
    for network in (BigGANGenerator(num_classes=10), *build("dcgan")):
        for module in network.modules():
            if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)) and module.weight.numel() > 4000:
                assert module.weight.std().item() == pytest.approx(0.02, rel=0.1)
    for network in build("sagan"):
        for module in network.modules():
            if hasattr(module, "parametrizations"):
                weight = module.parametrizations.weight.original
                bound = math.sqrt(6 / (weight.shape[0] + weight.shape[1]) / math.prod(weight.shape[2:]))
                assert weight.abs().max() <= bound
                assert weight.numel() < 100 or weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.2)


# --- layers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "arguments", "options", "inputs"),
    [
        (SNConv2d, (3, 8, 3), {"padding": 1}, torch.randn(2, 3, 5, 5)),
        (SNLinear, (6, 8), {}, torch.randn(2, 6)),
        (SNEmbedding, (8, 6), {}, torch.tensor([0, 7])),
    ],
)
def test_a_normalised_layer_has_spectral_norm_one_after_some_steps(layer, arguments, options, inputs: Tensor) -> None:
    torch.manual_seed(0)
    layer = layer(*arguments, **options)
    assert layer.u0.shape == (1, 8)
    for _ in range(100):
        layer(inputs)
    layer.eval()
    assert torch.linalg.matrix_norm(layer.normalized_weight().flatten(1), 2).item() == pytest.approx(1, abs=1e-3)
    plain = type(layer).__mro__[2](*arguments, **options)  # torch's own layer
    plain.load_state_dict({**layer.state_dict(), "weight": spectral_normalize(layer.weight, layer.u0)[0]}, strict=False)
    torch.testing.assert_close(layer(inputs), plain(inputs))


def test_a_layer_scaled_by_any_number_is_the_same_layer() -> None:
    layer = SNLinear(6, 8, bias=False).eval()
    x = torch.randn(3, 6)
    expected = layer(x)
    with torch.no_grad():
        layer.weight.mul_(37)
    torch.testing.assert_close(layer(x), expected)


def test_attention_starts_as_the_identity_and_follows_its_formula() -> None:
    torch.manual_seed(0)
    attention = SelfAttention(16).double().eval()
    x = torch.randn(2, 16, 4, 4, dtype=torch.float64)
    assert torch.equal(attention(x), x)
    nn.init.constant_(attention.gamma, 0.5)
    weights = {name: getattr(attention, name).normalized_weight()[:, :, 0, 0] for name in ("theta", "phi", "g", "o")}
    for n in range(2):
        maps = {name: torch.einsum("dc,chw->dhw", weights[name], x[n]) for name in ("theta", "phi", "g")}
        pooled = {name: maps[name].unfold(1, 2, 2).unfold(2, 2, 2).amax(dim=(3, 4)).flatten(1) for name in ("phi", "g")}
        for row, column in ((0, 0), (1, 3), (3, 2)):
            scores = torch.stack([maps["theta"][:, row, column] @ pooled["phi"][:, j] for j in range(4)])
            share = scores.exp() / scores.exp().sum()
            expected = x[n, :, row, column] + 0.5 * weights["o"] @ (pooled["g"] @ share)
            torch.testing.assert_close(attention(x)[n, :, row, column], expected)


def test_attention_has_a_second_derivative() -> None:
    attention = SelfAttention(8).double().eval()
    nn.init.constant_(attention.gamma, 0.5)
    x = torch.randn(1, 8, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(attention, (x,))


@pytest.mark.parametrize("of_classes", [True, False])
def test_conditional_batch_norm_follows_its_formula(of_classes: bool) -> None:
    torch.manual_seed(0)
    norm = ConditionalBatchNorm(5, 3, nn.Embedding) if of_classes else ConditionalBatchNorm(5, 3)
    ids = torch.tensor([0, 2, 1, 1])
    code = nn.functional.one_hot(ids, 3).float()
    gain, bias = norm.gain.weight, norm.bias.weight  # [3, 5] tables or [5, 3] maps
    gain, bias = (gain[ids], bias[ids]) if of_classes else (code @ gain.T, code @ bias.T)
    x = torch.randn(4, 5, 6, 6) * 3 + 2
    mean, variance = x.mean(dim=(0, 2, 3), keepdim=True), x.var(dim=(0, 2, 3), keepdim=True, correction=0)
    expected = (x - mean) / (variance + 1e-5).sqrt() * (1 + gain[:, :, None, None]) + bias[:, :, None, None]
    torch.testing.assert_close(norm(x, ids if of_classes else code), expected)


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"network": "biggan", "widths": (8, 8)}, "widths does not shape the network 'biggan', which takes channels"),
        ({"network": "sngan", "channels": 32}, "channels does not shape the network 'sngan', which takes widths"),
        (
            {"network": "biggan_deep", "shared_embedding": True},
            "shared_embedding does not shape the network 'biggan_deep'",
        ),
        ({"network": "dcgann"}, "unknown generator network 'dcgann'; did you mean 'dcgan'"),
    ],
)
def test_settings_of_another_network_are_refused(settings: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        GeneratorConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "kind", "sentence"),
    [
        ({"network": "biggan"}, SCALARS, "BigGAN networks take class ids; for a scalar label use the network sngan"),
        ({"network": "biggan_deep"}, SCALARS, "BigGAN networks take class ids"),
        (
            {"network": "biggan", "attention": (64,)},
            CLASSES,
            r"attention at 64 pixels does not fit .* use \[8, 16, 32\]",
        ),
        ({"network": "biggan", "hierarchical": True}, CLASSES, "hierarchical latents need shared_embedding"),
        (
            {"network": "biggan", "hierarchical": True, "shared_embedding": True, "latent_dim": 3},
            CLASSES,
            "latent_dim 3 does not cut into 4 slices",
        ),
        ({"network": "dcgan", "label_input": "fourier"}, CLASSES, "label_input 'fourier' does not fit these labels"),
    ],
)
def test_networks_say_what_they_cannot_do(settings: dict, kind: tuple, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        build_networks(GeneratorConfig(**settings), (3, 32, 32), *kind)


def test_images_must_be_square() -> None:
    with pytest.raises(ValueError, match="images are 32x64; the generators need square images"):
        build_networks(GeneratorConfig(network="biggan"), (3, 32, 64), *CLASSES)
