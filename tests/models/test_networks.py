"""The door for networks: a user's own, by name or by class, with options like ours (R5)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from gankd.models import NETWORKS, ModelConfig, build_model
from gankd.models.tail import extra_stage
from gankd.models.taps import default_taps, feature_shapes
from generators.settings import Count, Share


class Mine(nn.Module):
    """Flattens by .view and answers with an auxiliary output in training mode."""

    def __init__(self, num_outputs: int, in_channels: int, *, width: Count = 8, dropout: Share = 0.0):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(in_channels, width, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(2))
        self.dropout, self.head, self.side = (
            nn.Dropout(dropout),
            nn.Linear(4 * width, num_outputs),
            nn.Linear(width, num_outputs),
        )

    def forward(self, x: Tensor):
        maps = self.body(x)
        outputs = self.head(self.dropout(maps.view(len(x), -1)))
        return (outputs, self.side(maps.mean((2, 3)))) if self.training else outputs


@pytest.fixture(autouse=True, scope="module")
def registered():
    """As a plugin does it by its decorator."""
    NETWORKS.register("tests: user's network")(Mine)
    yield
    del NETWORKS["tests: user's network"]


def mine(num_outputs: int, in_channels: int, *, width: Count = 8) -> nn.Module:
    return Mine(num_outputs, in_channels, width=width)


@pytest.mark.parametrize("network", ["tests: user's network", Mine, mine], ids=["name", "class", "function"])
def test_a_users_network_is_built_like_ours(network) -> None:
    model = build_model(network, 5, 2, width=4)
    assert model.body[0].weight.shape == (4, 2, 3, 3) and model.eval()(torch.rand(3, 2, 8, 8)).shape == (3, 5)


@pytest.mark.parametrize("network", ["tests: user's network", Mine, mine], ids=["name", "class", "function"])
def test_its_options_are_validated_and_a_misspelt_one_is_corrected(network) -> None:
    with pytest.raises(ValueError, match="'widht' is no option of .*; did you mean 'width'?"):
        build_model(network, 5, 2, widht=4)
    with pytest.raises(ValueError, match="width: Input should be greater than 0, got -1"):
        build_model(network, 5, 2, width=-1)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"name": "tests: users network"}, "name: unknown network .*; did you mean 'tests: user's network'?"),
        (
            {"name": "tests: user's network", "options": {"widht": 4}},
            "options: 'widht' is no option .* did you mean 'width'?",
        ),
        ({"options": {"width": [4]}}, "options: 'width' is no option of small_resnet; did you mean 'widths'?"),
        ({"options": {"widths": [0]}}, "options: widths.0: Input should be greater than 0"),
        ({"name": "resnet20", "options": {"depth": 4}}, "options: 'depth' is no option of resnet20, which has none"),
    ],
)
def test_a_configuration_is_refused_at_its_key(settings: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        ModelConfig.of(settings)


def test_the_schema_shows_every_networks_options() -> None:
    schema = ModelConfig.model_json_schema()
    assert {"small_resnet", "resnet20_a", "tests: user's network"} <= set(schema["properties"]["name"]["examples"])
    options = {
        case["if"]["properties"]["name"]["const"]: case["then"]["properties"]["options"] for case in schema["allOf"]
    }
    assert set(options["small_resnet"]["properties"]) == {"widths", "stem_stride"}
    assert options["tests: user's network"]["properties"]["width"]["exclusiveMinimum"] == 0
    assert options["tests: user's network"]["description"].startswith("Flattens by .view")
    assert "resnet20" not in options  # it has none


def test_timm_names_the_nearest() -> None:
    pytest.importorskip("timm")
    with pytest.raises(ValueError, match="timm has no network 'resnet19'; did you mean 'resnet1"):
        build_model("timm:resnet19")
    assert build_model("timm:resnet18", 3, 1).eval()(torch.rand(1, 1, 32, 32)).shape == (1, 3)


@pytest.mark.parametrize(
    "name",
    ["small_resnet", "resnet14", "resnet20_a", "wrn_16_2", "vgg8", "MobileNetV2", "ShuffleV1", "ShuffleV2", "ResNet50"]
    + [f"torchvision:{name}" for name in ("resnet18", "vgg11", "densenet121", "convnext_tiny", "mobilenet_v2")],
)
def test_one_more_stage_keeps_the_shape_of_the_last(name: str) -> None:
    model, image_shape = build_model(name, 3), (3, 64, 64)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    extra = extra_stage(model, image_shape)
    (shape,) = feature_shapes(model, image_shape, default_taps(model, image_shape=image_shape)[-2:-1])
    assert extra(torch.rand(2, *shape)).shape == (2, *shape)
    assert all(parameter.requires_grad for parameter in extra.parameters()) and extra.training
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert {id(each) for each in extra.parameters()}.isdisjoint(id(each) for each in model.parameters())


def test_one_more_stage_of_a_foreign_network_has_its_blocks_with_weights_of_their_own() -> None:
    model = build_model("torchvision:resnet18", 3)
    extra = extra_stage(model, (3, 64, 64))
    assert [type(block) for block in extra] == [type(model.layer4[1])] * 2
    assert not torch.equal(extra[0].conv1.weight, model.layer4[1].conv1.weight)
    assert not torch.equal(extra[0].conv1.weight, extra[1].conv1.weight)
