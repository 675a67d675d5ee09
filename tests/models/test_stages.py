"""A network from one of its stages on, and other initialisations of the same kind."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gankd.models import SmallResNet, Taps, build_model, default_taps
from gankd.models.tail import NetworkTail, reinitialize

NAMES = ["small_resnet", "resnet8", "wrn_16_1", "vgg8", "MobileNetV2", "ShuffleV1", "ShuffleV2", "torchvision:resnet18"]


@pytest.mark.parametrize("name", NAMES)
def test_the_rest_of_a_network_gives_its_outputs_from_the_trunk_s_map(name: str) -> None:
    model = build_model(name, num_classes=5).eval()
    trunk = default_taps(model, image_shape=(3, 32, 32))[-3]
    images = torch.rand(2, 3, 32, 32)
    rest = NetworkTail(model, trunk, (3, 32, 32))
    with torch.no_grad():
        outputs, (feature,) = Taps(model, [trunk])(images)
        torch.testing.assert_close(
            rest(feature, torch.zeros_like(images)), outputs
        )  # of the images only the size counts
    whole, part = model.state_dict(), rest.network.state_dict()
    assert set(part) < set(whole)
    assert not any(key.startswith(f"{trunk}.") for key in part)


def test_a_copy_shares_no_weights_and_the_model_stays_as_it_was() -> None:
    model = SmallResNet(3, widths=(4, 8)).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    rest = NetworkTail(model, "stages.0", (3, 8, 8))
    reinitialize(rest)
    assert model.training and rest.network.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


class Skipping(nn.Module):
    """The end reads both stages: behind the second one it cannot be cut."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Linear(4, 2)

    def forward(self, x):
        first = self.first(x)
        return self.head(self.second(first).mean((2, 3)) + first.mean((2, 3)))


def test_a_network_that_reads_around_the_cut_is_refused() -> None:
    model = Skipping()
    NetworkTail(model, "first", (3, 8, 8))
    with pytest.raises(ValueError, match="cannot be cut behind 'second'"):
        NetworkTail(model, "second", (3, 8, 8))


def test_a_redrawn_network_is_another_one_of_the_same_kind() -> None:
    model = SmallResNet(3, widths=(4, 8))
    model(torch.rand(4, 3, 8, 8))  # moves the running statistics
    model.head.bias.requires_grad_(False)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    reinitialize(model)
    for key, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.flatten().sort()[0], before[key].flatten().sort()[0])
        if parameter.ndim > 1:
            assert not torch.equal(parameter, before[key])
    assert torch.equal(model.head.bias, before["head.bias"])  # frozen
    assert torch.equal(model.stem[1].running_mean, torch.zeros(4))
