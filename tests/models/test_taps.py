"""Features of any network by module path, without touching the network."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from gankd.models import (
    Taps,
    batch_norms_before_relu,
    build_model,
    default_taps,
    feature_shapes,
    forward_with_features,
)

FAMILIES = ["resnet14", "resnet8x4", "wrn_16_2", "vgg8", "vgg11", "MobileNetV2", "ShuffleV1", "ShuffleV2", "ResNet50"]
WITHOUT_MARGINS = ["ShuffleV1", "ShuffleV2"]
ZOO = [*FAMILIES, "small_resnet"]


def network(name: str, num_classes: int = 5) -> nn.Module:
    torch.manual_seed(0)
    model = build_model(name, num_classes=num_classes)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):  # as after some training: not the identity
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model


class InPlace(nn.Module):
    """Overwrites whatever it can: a ReLU in place used twice, a sum in place, a functional in place."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.bn = nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1)
        self.fc = nn.Linear(4, 2)
        self.unused = nn.Linear(1, 1)
        self.pair = nn.ModuleDict({"split": Split()})

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn(self.conv(x)))
        h = self.conv2(x)
        h += x
        x = self.relu(h)
        first, second = self.pair["split"](x)
        return self.fc(F.relu_(torch.cat([first, second], dim=1).mean(dim=(2, 3))))


class Split(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x[:, :2], x[:, 2:]


def small() -> nn.Module:
    return build_model("small_resnet", num_classes=2, widths=[4, 8])


# --- reading ----------------------------------------------------------------------------------------------------------


def test_overwritten_tensors_are_caught_as_they_were() -> None:
    torch.manual_seed(0)
    model, x = InPlace(), torch.randn(2, 3, 4, 4)
    paths = ["conv", "bn", "conv2:input", "conv2", "relu:input", "relu", "fc:input"]
    outputs, (conv, bn, first, conv2, total, second, pooled) = Taps(model, paths)(x)
    torch.testing.assert_close(conv, model.conv(x))
    torch.testing.assert_close(bn, model.bn(model.conv(x)))
    torch.testing.assert_close(first, F.relu(bn))
    torch.testing.assert_close(conv2, model.conv2(first))
    torch.testing.assert_close(total, conv2 + first)  # the ReLU runs twice: the last run counts
    torch.testing.assert_close(second, F.relu(total))
    torch.testing.assert_close(outputs, model.fc(pooled))
    assert (bn < 0).any() and (total < 0).any()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", [*ZOO, "torchvision:resnet18"])
def test_reading_changes_neither_outputs_nor_statistics(name: str, training: bool) -> None:
    model = network(name).train(training)
    plain, read, x = copy.deepcopy(model), copy.deepcopy(model), torch.rand(2, 3, 32, 32)
    outputs, features = forward_with_features(read, x, preact=name in ZOO)
    assert torch.equal(outputs, plain(x))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(read.buffers(), plain.buffers(), strict=True))
    assert len(features) > 2 and features[-1].ndim == 2


def test_features_carry_gradient_to_what_made_them_and_no_further() -> None:
    model = network("resnet8")
    _, (_, stage) = Taps(model, ["relu", "layer2"])(torch.rand(2, 3, 32, 32))
    stage.sum().backward()
    touched = {key.split(".")[0] for key, parameter in model.named_parameters() if parameter.grad is not None}
    assert touched == {"conv1", "bn1", "layer1", "layer2"}


def test_calls_do_not_know_of_each_other() -> None:
    model = network("resnet8").eval()
    taps, one, two = Taps(model, ["layer1", "fc:input"]), torch.rand(2, 3, 32, 32), torch.rand(3, 3, 32, 32)
    (_, first), (_, second), (_, again) = taps(one), taps(two), taps(one)
    assert len(second[0]) == 3
    assert all(torch.equal(before, after) for before, after in zip(first, again, strict=True))
    assert not torch.equal(first[1], second[1][:2])


def test_features_come_in_the_order_of_the_paths_and_as_often() -> None:
    model = network("small_resnet").eval()
    _, (pooled, stem, once_more) = Taps(model, ["head:input", "stem", "head:input"])(torch.rand(2, 3, 8, 8))
    assert pooled.ndim == 2 and stem.ndim == 4 and torch.equal(pooled, once_more)


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def test_the_network_is_left_without_hooks_even_by_a_failure() -> None:
    model = network("resnet8")
    taps = Taps(model, default_taps(model, preact=True))
    taps(torch.rand(2, 3, 8, 8))
    with pytest.raises(RuntimeError):
        taps(torch.rand(2, 4, 8, 8))
    default_taps(build_model("torchvision:resnet18"))
    assert hooks(model) == 0


def test_copies_and_pickles_read_their_own_network() -> None:
    owner = nn.ModuleDict({"student": network("resnet8").eval()})
    owner.taps = Taps(owner["student"], ["layer3", "fc:input"])
    x = torch.rand(2, 3, 32, 32)
    expected = owner.taps(x)[1][1]
    keys = list(owner.state_dict())
    assert all(key.startswith("student.") for key in keys)
    for twin in (copy.deepcopy(owner), pickle.loads(pickle.dumps(owner))):
        assert twin.taps.model is twin["student"] and list(twin.state_dict()) == keys
        assert torch.equal(twin.taps(x)[1][1], expected)
        nn.init.zeros_(twin["student"].bn1.weight)
        assert not torch.equal(twin.taps(x)[1][1], expected)
    assert torch.equal(owner.taps(x)[1][1], expected)


class Step(nn.Module):
    """A step that owns a student and reads it twice, as distillers do."""

    def __init__(self, student: nn.Module):
        super().__init__()
        self.student = student
        self.taps = Taps(student, default_taps(student))

    def forward(self, x: Tensor) -> Tensor:
        total = x.new_zeros(())
        for view in (x, x.flip(3)):
            logits, features = self.taps(view)
            total = total + logits.square().mean() + sum(feature.square().mean() for feature in features)
        return total


def test_reading_inside_a_data_parallel_wrapper(tmp_path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'rendezvous'}", rank=0, world_size=1)
    try:
        alone = Step(network("resnet8"))
        wrapped = DistributedDataParallel(copy.deepcopy(alone))
        x = torch.rand(2, 3, 16, 16)
        for step in (alone, wrapped):
            step(x).backward()
        for ours, theirs in zip(wrapped.module.parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad)
    finally:
        dist.destroy_process_group()


def test_reading_inside_a_compiled_step() -> None:
    torch.manual_seed(0)
    step, x = Step(small().eval()), torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(torch.compile(step, backend="eager")(x), step(x))


def test_a_compiled_network_says_that_it_cannot_be_read() -> None:
    compiled, x = torch.compile(small(), backend="eager"), torch.rand(2, 3, 8, 8)
    compiled(x)
    with pytest.raises(ValueError, match="read the network itself if this is a compiled one"):
        Taps(compiled, ["_orig_mod.stem"])(x)


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("layr2", "ResNet has no module 'layr2'; nearest: layer2"),
        ("layer1.0.conv3:input", r"no module 'layer1\.0\.conv3'; nearest: layer1\.0\.conv"),
        ("fc.weight", r"no module 'fc\.weight'; nearest: "),
    ],
)
def test_an_unknown_path_is_refused_with_the_nearest(path: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Taps(network("resnet8"), ["layer1", path])


@pytest.mark.parametrize(
    ("path", "sentence"),
    [("unused", "'unused' takes no part in the forward pass"), ("pair.split", r"'pair\.split' .* is a tuple")],
)
def test_a_path_that_passes_no_tensor_is_named(path: str, sentence: str) -> None:
    model = InPlace()
    with pytest.raises(ValueError, match=sentence):
        Taps(model, [path])(torch.rand(2, 3, 4, 4))
    assert hooks(model) == 0


# --- the default taps -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ZOO)
def test_the_last_feature_is_what_the_head_sees(name: str) -> None:
    model = network(name).eval()
    outputs, features = forward_with_features(model, torch.rand(2, 3, 32, 32))
    head = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    assert torch.equal(head(features[-1]), outputs)


@pytest.mark.parametrize("name", sorted(set(ZOO) - {"wrn_16_2", "MobileNetV2", "ShuffleV2"}))
def test_a_preactivation_feature_is_the_feature_before_its_relu(name: str) -> None:
    model, x = network(name).eval(), torch.rand(2, 3, 32, 32)
    _, after = forward_with_features(model, x)
    _, before = forward_with_features(model, x, preact=True)
    assert torch.equal(before[0], after[0]) and torch.equal(before[-1], after[-1])
    for preactivation, activation in zip(before[1:-1], after[1:-1], strict=True):
        assert (preactivation < 0).any() and torch.equal(F.relu(preactivation), activation)


def test_a_wide_network_has_raw_sums_and_what_the_next_norm_makes_of_them() -> None:
    model, x = network("wrn_16_2").eval(), torch.rand(2, 3, 32, 32)
    _, (stem, *sums, pooled) = forward_with_features(model, x)
    _, (same_stem, *normed, same_pooled) = forward_with_features(model, x, preact=True)
    assert torch.equal(stem, model.conv1(x)) and torch.equal(stem, same_stem) and torch.equal(pooled, same_pooled)
    assert torch.equal(sums[0], model.block1(stem))
    for norm, raw, preactivation in zip(batch_norms_before_relu(model), sums, normed, strict=True):
        assert torch.equal(norm(raw), preactivation)
    assert torch.equal(F.relu(normed[-1]).mean(dim=(2, 3)), pooled)


def test_linear_bottlenecks_have_no_relu_to_stand_before() -> None:
    model = network("MobileNetV2")
    assert default_taps(model) == default_taps(model, preact=True)


def test_the_stages_of_shufflenet_v2_before_the_relu_are_not_shuffled() -> None:
    model, x = network("ShuffleV2").eval(), torch.rand(2, 3, 32, 32)
    _, after = forward_with_features(model, x)
    _, before = forward_with_features(model, x, preact=True)
    for preactivation, activation in zip(before[1:-1], after[1:-1], strict=True):
        kept, branch = preactivation.chunk(2, dim=1)
        assert torch.equal(kept, activation[:, 0::2]) and torch.equal(F.relu(branch), activation[:, 1::2])
        assert (branch < 0).any()


@pytest.mark.parametrize("name", ZOO)
def test_margins_come_from_the_norms_that_end_the_stages(name: str) -> None:
    model = network(name).eval()
    if name in WITHOUT_MARGINS:
        with pytest.raises(ValueError, match=f"stages of {name} is not defined"):
            batch_norms_before_relu(model)
        return
    norms = batch_norms_before_relu(model)
    stages = feature_shapes(model, (3, 32, 32), default_taps(model))[1:-1]
    assert [norm.num_features for norm in norms] == [shape[0] for shape in stages]
    assert all(isinstance(norm, nn.BatchNorm2d) for norm in norms)


def test_the_margins_of_a_foreign_network_are_not_guessed() -> None:
    with pytest.raises(ValueError, match="stages of InPlace is not defined"):
        batch_norms_before_relu(InPlace())


# --- other networks ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet18", ["relu", "layer1", "layer2", "layer3", "layer4", "fc:input"]),
        (
            "mobilenet_v2",
            ["features.1", "features.3", "features.6", "features.13", "features.18", "classifier.1:input"],
        ),
    ],
)
def test_torchvision_networks_are_read_at_their_stages(name: str, expected: list[str]) -> None:
    model = build_model(f"torchvision:{name}", num_classes=3)
    assert default_taps(model, image_shape=(3, 64, 64)) == expected
    assert default_taps(model) == expected


def test_a_network_of_the_user_is_read_before_it_shrinks_and_before_its_last_layer() -> None:
    model = nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2)),
        nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2)),
        nn.Flatten(),
        nn.Linear(8 * 4 * 4, 16),
        nn.ReLU(),
        nn.Linear(16, 1),
    )
    taps = default_taps(model, image_shape=(1, 16, 16))
    assert taps == ["0", "1", "5:input"]
    assert feature_shapes(model, (1, 16, 16), taps) == [(4, 8, 8), (8, 4, 4), (16,)]
    _, features = forward_with_features(model, torch.rand(2, 1, 16, 16))
    assert [tuple(feature.shape[1:]) for feature in features] == [(4, 8, 8), (8, 4, 4), (16,)]
    with pytest.raises(ValueError, match=r"Sequential does not take images of shape \[1, 224, 224\]; give their shape"):
        default_taps(model)


def test_what_cannot_be_guessed_is_asked_for() -> None:
    with pytest.raises(ValueError, match="pre-activations of InPlace .* name the paths"):
        default_taps(InPlace(), preact=True)
    with pytest.raises(ValueError, match="no linear layer .* name the paths"):
        default_taps(nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()), image_shape=(3, 8, 8))


# --- shapes -----------------------------------------------------------------------------------------------------------


class Noisy(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.fc = nn.Linear(3, 2).double()

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x + torch.randn_like(x))
        return self.fc(x.mean(dim=(2, 3)).double())


def test_asking_for_shapes_leaves_no_trace() -> None:
    model = nn.Sequential(Noisy(), nn.BatchNorm1d(2, dtype=torch.float64)).train()
    model[1].eval()  # frozen, as in fine-tuning
    before = copy.deepcopy(model.state_dict())
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    assert feature_shapes(model, (3, 5, 6), ["0.norm", "0.fc:input", "1"]) == [(3, 5, 6), (3,), (2,)]
    assert torch.equal(torch.rand(4), expected)
    assert [module.training for module in model.modules()] == [True, True, True, True, False]
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_shapes_of_a_network_in_half_precision() -> None:
    model = build_model("small_resnet", widths=[4, 8]).to(torch.bfloat16)
    assert feature_shapes(model, (3, 8, 8), default_taps(model)) == [(4, 8, 8), (4, 8, 8), (8, 4, 4), (8,)]


def test_a_wrong_image_shape_is_named() -> None:
    with pytest.raises(ValueError, match=r"ResNet does not take images of shape \[1, 32, 32\]"):
        feature_shapes(network("resnet8"), (1, 32, 32), ["layer1"])
