"""The CIFAR networks of the distillation literature: their sizes, their checkpoints' keys, their initialisation."""

from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from gankd.models import NETWORKS, build_model, default_taps, feature_shapes, forward_with_features
from gankd.models.resnet import ResNet
from gankd.models.shufflenet import UnitV2, shuffle
from gankd.models.vgg import VGG
from gankd.models.wrn import WideResNet

RESNET = [(16, 32), (16, 32), (32, 16), (64, 8), 64]  # channels and height = width of the taps, and the pooled vector
RESNET_X4 = [(32, 32), (64, 32), (128, 16), (256, 8), 256]
WRN_1, WRN_2 = RESNET, [(16, 32), (32, 32), (64, 16), (128, 8), 128]
VGG_TAPS = [(64, 32), (128, 16), (256, 8), (512, 4), (512, 4), 512]

ZOO = {  # parameters, millions of multiply-adds, entries of the state dict, taps; at 100 classes and 32 pixels
    "resnet8": (83_892, 12.51, 56, RESNET),
    "resnet14": (181_108, 26.66, 92, RESNET),
    "resnet20": (278_324, 40.82, 128, RESNET),
    "resnet32": (472_756, 69.13, 200, RESNET),
    "resnet44": (667_188, 97.44, 272, RESNET),
    "resnet56": (861_620, 125.75, 344, RESNET),
    "resnet110": (1_736_564, 253.16, 668, RESNET),
    "resnet20_a": (275_572, 40.56, 116, RESNET),
    "resnet32_a": (470_004, 68.87, 188, RESNET),
    "resnet44_a": (664_436, 97.18, 260, RESNET),
    "resnet56_a": (858_868, 125.49, 332, RESNET),
    "resnet110_a": (1_733_812, 252.89, 656, RESNET),
    "resnet8x4": (1_233_540, 177.07, 62, RESNET_X4),
    "resnet32x4": (7_433_860, 1083.04, 206, RESNET_X4),
    "wrn_16_1": (180_916, 26.66, 82, WRN_1),
    "wrn_16_2": (703_284, 101.12, 83, WRN_2),
    "wrn_40_1": (569_780, 83.29, 226, WRN_1),
    "wrn_40_2": (2_255_156, 327.61, 227, WRN_2),
    "vgg8": (3_965_028, 96.19, 37, VGG_TAPS),
    "vgg11": (9_277_284, 209.44, 58, VGG_TAPS),
    "vgg13": (9_462_180, 284.94, 72, VGG_TAPS),
    "vgg16": (14_774_436, 398.18, 93, VGG_TAPS),
    "vgg19": (20_086_692, 511.43, 114, VGG_TAPS),
    "MobileNetV2": (812_836, 6.52, 320, [(16, 16), (12, 16), (16, 8), (48, 4), (160, 2), 1280]),
    "ShuffleV1": (949_258, 38.69, 296, [(24, 32), (240, 16), (480, 8), (960, 4), 960]),
    "ShuffleV2": (1_355_528, 44.50, 338, [(24, 32), (116, 16), (232, 8), (464, 4), 1024]),
    "ResNet50": (23_705_252, 1298.01, 320, [(64, 32), (256, 32), (512, 16), (1024, 8), (2048, 4), 2048]),
}

BN = r"(weight|bias|running_mean|running_var|num_batches_tracked)"
LINEAR = r"(weight|bias)"
KEYS = {  # every key of a published checkpoint's state dict
    "resnet": rf"conv1\.weight|bn1\.{BN}|layer[123]\.\d+\.(conv[12]\.weight|bn[12]\.{BN})"
    rf"|layer[123]\.0\.downsample\.(0\.weight|1\.{BN})|fc\.{LINEAR}",
    "ResNet50": rf"conv1\.weight|bn1\.{BN}|layer[1234]\.\d+\.(conv[123]\.weight|bn[123]\.{BN})"
    rf"|layer[1234]\.0\.shortcut\.(0\.weight|1\.{BN})|linear\.{LINEAR}",
    "wrn": rf"conv1\.weight|block[123]\.layer\.\d+\.(conv[12]\.weight|bn[12]\.{BN})"
    rf"|block[123]\.layer\.0\.convShortcut\.weight|bn1\.{BN}|fc\.{LINEAR}",
    "vgg": rf"block[0-4]\.([0369]\.{LINEAR}|(1|4|7|10)\.{BN})|classifier\.{LINEAR}",
    "MobileNetV2": rf"conv[12]\.(0\.weight|1\.{BN})|blocks\.[0-6]\.\d\.conv\.([036]\.weight|[147]\.{BN})"
    rf"|classifier\.0\.{LINEAR}",
    "ShuffleV1": rf"conv1\.weight|bn1\.{BN}|layer[123]\.\d\.(conv[123]\.weight|bn[123]\.{BN})|linear\.{LINEAR}",
    "ShuffleV2": rf"conv[12]\.weight|bn[12]\.{BN}|layer[123]\.0\.(conv[1-5]\.weight|bn[1-5]\.{BN})"
    rf"|layer[123]\.[1-7]\.(conv[123]\.weight|bn[123]\.{BN})|linear\.{LINEAR}",
}

ONE_OF_EACH_FAMILY = ["resnet8", "resnet8x4", "wrn_16_2", "vgg8", "MobileNetV2", "ShuffleV1", "ShuffleV2", "ResNet50"]


def weightless(name: str, **keywords) -> nn.Module:
    """On the meta device shapes are computed and numbers are not."""
    with torch.device("meta"):
        return build_model(name, **keywords)


def test_the_zoo_is_complete() -> None:
    assert set(NETWORKS) == {"small_resnet", *ZOO}


@pytest.mark.parametrize("name", ZOO)
def test_sizes_are_the_published_networks(name: str) -> None:
    parameters, multiply_adds, keys, taps = ZOO[name]
    model = weightless(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert len(model.state_dict()) == keys
    with FlopCounterMode(display=False) as counter:
        _, features = forward_with_features(model.eval(), torch.empty(1, 3, 32, 32, device="meta"))
    assert counter.get_total_flops() / 2e6 == pytest.approx(multiply_adds, abs=0.006)
    shapes = [(tap,) if isinstance(tap, int) else (tap[0], tap[1], tap[1]) for tap in taps]
    assert [tuple(feature.shape[1:]) for feature in features] == shapes


@pytest.mark.parametrize("name", ZOO)
def test_keys_are_those_of_published_checkpoints(name: str) -> None:
    family = re.match(r"resnet|wrn|vgg|.*", name).group()
    assert [key for key in weightless(name).state_dict() if not re.fullmatch(KEYS[family], key)] == []


@pytest.mark.parametrize("name", ZOO)
def test_a_scalar_from_large_grey_images(name: str) -> None:
    model = weightless(name, num_classes=1, in_channels=1)
    outputs, features = forward_with_features(model.eval(), torch.empty(2, 1, 64, 64, device="meta"))
    assert outputs.shape == (2, 1)
    assert [feature.shape[1] for feature in features] == [
        tap if isinstance(tap, int) else tap[0] for tap in ZOO[name][3]
    ]


@pytest.mark.parametrize("name", ONE_OF_EACH_FAMILY)
@pytest.mark.parametrize(("in_channels", "size"), [(1, 32), (3, 64), (3, 48), (2, 16)])
def test_any_channels_and_size(name: str, in_channels: int, size: int) -> None:
    model = weightless(name, num_classes=10, in_channels=in_channels)
    assert model.eval()(torch.empty(2, in_channels, size, size, device="meta")).shape == (2, 10)


def test_only_a_large_image_is_pooled_between_the_last_two_groups_of_a_vgg() -> None:
    model = weightless("vgg8")
    heights = [
        [shape[1] for shape in feature_shapes(model, (3, size, size), default_taps(model)[:-1])] for size in (32, 64)
    ]
    assert heights == [[32, 16, 8, 4, 4], [64, 32, 16, 8, 4]]


@pytest.mark.parametrize("name", ONE_OF_EACH_FAMILY)
def test_every_weight_gets_a_gradient(name: str) -> None:
    model = build_model(name, num_classes=5)
    model(torch.rand(2, 3, 32, 32)).square().sum().backward()
    assert [key for key, parameter in model.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("name", ["resnet32x4", "wrn_40_2", "vgg13", "MobileNetV2", "ResNet50"])
def test_convolutions_start_at_the_gain_of_a_relu(name: str) -> None:
    torch.manual_seed(0)
    for module in build_model(name).modules():
        if isinstance(module, nn.Conv2d):
            height, width = module.kernel_size
            expected = (2 / (height * width * module.out_channels)) ** 0.5  # not divided by the groups
            spread = 5 / module.weight.numel() ** 0.5
            assert module.weight.std().item() == pytest.approx(expected, rel=spread)
            assert module.bias is None or not module.bias.any()


@pytest.mark.parametrize("name", ["vgg8", "MobileNetV2"])
def test_the_last_layer_of_vgg_and_mobilenet_starts_small(name: str) -> None:
    torch.manual_seed(0)
    head = [module for module in build_model(name).modules() if isinstance(module, nn.Linear)][-1]
    assert head.weight.std().item() == pytest.approx(0.01, rel=0.05) and not head.bias.any()


@pytest.mark.parametrize("name", ["ShuffleV1", "ShuffleV2"])
def test_shufflenets_start_as_torch_does(name: str) -> None:
    torch.manual_seed(0)
    for module in build_model(name).modules():
        if isinstance(module, nn.Conv2d):
            bound = (module.in_channels // module.groups * module.kernel_size[0] ** 2) ** -0.5
            assert module.weight.abs().max() <= bound
            assert module.weight.std().item() == pytest.approx(bound / 3**0.5, rel=5 / module.weight.numel() ** 0.5)


def test_channels_are_dealt_out_to_groups_in_turn() -> None:
    channels = torch.arange(6.0).view(1, 6, 1, 1)
    assert shuffle(channels, groups=2).flatten().tolist() == [0, 3, 1, 4, 2, 5]
    assert shuffle(channels, groups=3).flatten().tolist() == [0, 2, 4, 1, 3, 5]


def test_a_shuffled_unit_changes_half_of_the_channels() -> None:
    torch.manual_seed(0)
    unit, x = UnitV2(8), torch.rand(2, 8, 4, 4)
    kept, branch = x[:, :4], x[:, 4:]
    branch = F.relu(unit.bn1(unit.conv1(branch)))
    branch = F.relu(unit.bn3(unit.conv3(unit.bn2(unit.conv2(branch)))))
    assert torch.equal(unit(x)[:, 0::2], kept) and torch.equal(unit(x)[:, 1::2], branch)


def test_a_wide_block_adds_what_it_is_given_or_a_projection_of_its_first_relu() -> None:
    torch.manual_seed(0)
    first, second = build_model("wrn_16_2").block1.layer[:2].eval()
    x = torch.randn(2, 16, 4, 4)
    h = F.relu(first.bn1(x))
    branch = first.conv2(F.relu(first.bn2(first.conv1(h))))
    torch.testing.assert_close(first(x), branch + first.convShortcut(h))
    nn.init.zeros_(second.conv2.weight)
    wide = torch.randn(2, 32, 4, 4)
    assert torch.equal(second(wide), wide)


@pytest.mark.parametrize(
    ("network", "arguments", "sentence"),
    [
        (ResNet, (9,), r"6 n \+ 2 layers .* not 9"),
        (ResNet, (2,), r"6 n \+ 2 layers .* not 2"),
        (WideResNet, (18, 2), r"6 n \+ 4 layers .* not 18"),
        (VGG, (12,), "8, 11, 13, 16, 19 layers, not with 12"),
    ],
)
def test_an_impossible_depth_is_refused(network, arguments: tuple, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        network(*arguments)


def test_the_networks_of_the_zoo_have_no_options() -> None:
    with pytest.raises(ValueError, match="'depth' is no option of resnet8, which has none"):
        build_model("resnet8", depth=20)


def test_a_network_of_the_zoo_with_other_capitals_names_the_right_one() -> None:
    with pytest.raises(ValueError, match="did you mean 'ResNet50'"):
        build_model("Resnet50")
