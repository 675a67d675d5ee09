"""What a user lends comes back as it was: modes, flags, layout, precision, place (F10, F20)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from gankd.models import SmallResNet, build_model
from gankd.models.rehearsal import check_trainable, to_channels_last
from gankd.models.state import frozen_parts, preserve_state


class Flattening(nn.Module):
    """A user's network: it flattens by .view, and answers with an auxiliary output in training mode."""

    def __init__(self, num_outputs: int = 3, auxiliary: bool = True):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.head, self.side, self.auxiliary = nn.Linear(4 * 64, num_outputs), nn.Linear(4, num_outputs), auxiliary

    def forward(self, x: Tensor):
        x = self.body(x)
        outputs = self.head(x.view(len(x), -1))
        return (outputs, self.side(x.mean((2, 3)))) if self.training and self.auxiliary else outputs


class Volume(Flattening):
    """The same with weights of five dimensions, which torch's own conversion refuses."""

    def __init__(self):
        super().__init__()
        self.mix = nn.Conv3d(1, 1, 3, padding=1)

    def forward(self, x: Tensor):
        return super().forward(self.mix(x[:, None])[:, 0])


def images(size: int) -> Tensor:
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))


def layout(module: nn.Module) -> list[tuple]:
    return [(each.stride(), each.dtype, each.device) for each in module.state_dict().values()]


@pytest.mark.parametrize("fails", [False, True])
def test_f20_modes_flags_layout_and_precision_come_back(fails: bool) -> None:
    model = SmallResNet(3, widths=(4, 8)).train()
    model.stem.eval()
    model.head.bias.requires_grad_(False)
    modes, flags, before = (
        [m.training for m in model.modules()],
        [p.requires_grad for p in model.parameters()],
        layout(model),
    )
    weight = model.head.weight.detach().clone()
    try:
        with preserve_state(model):
            model.to(torch.float64, memory_format=torch.channels_last).eval().requires_grad_(False)
            with torch.no_grad():
                model.head.weight.add_(1)
            if fails:
                raise KeyError
    except KeyError:
        pass
    assert [m.training for m in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == flags
    assert layout(model) == before
    torch.testing.assert_close(model.head.weight.detach(), weight + 1)  # what was learned meanwhile stays


def test_f20_a_channels_last_network_comes_back_channels_last() -> None:
    model = SmallResNet(3, widths=(4, 8)).to(memory_format=torch.channels_last)
    before = layout(model)
    with preserve_state(model):
        model.to(memory_format=torch.contiguous_format)
        assert layout(model) != before
    assert layout(model) == before


def test_f20_what_the_owner_froze_is_known() -> None:
    model = SmallResNet(3, widths=(4, 8)).train()
    assert frozen_parts(model) == []
    model.stem[1].eval()
    model.stages[0].bn1.requires_grad_(False)
    assert frozen_parts(model) == [model.stem[1], model.stages[0].bn1]
    model.eval()  # a loaded network is in evaluation mode as a whole: that freezes nothing
    assert frozen_parts(model) == [model.stages[0].bn1]


@pytest.mark.parametrize("model", [SmallResNet(3, widths=(4, 8)), build_model("torchvision:resnet18", 3)])
def test_f10_a_network_that_works_so_is_laid_out(model: nn.Module) -> None:
    before = {key: value.clone() for key, value in model.state_dict().items()}
    assert to_channels_last(model, model, images(32))
    weights = [each for each in model.parameters() if each.ndim == 4]
    assert all(each.is_contiguous(memory_format=torch.channels_last) for each in weights)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize("network", [Flattening, Volume])
def test_f10_a_network_that_flattens_by_view_stays_as_it_is(network) -> None:
    model = network()
    before, modes, random = layout(model), [m.training for m in model.modules()], torch.random.get_rng_state()
    assert not to_channels_last(model, model, images(8))
    assert layout(model) == before and [m.training for m in model.modules()] == modes
    assert torch.equal(torch.random.get_rng_state(), random)


def test_f10_weights_of_five_dimensions_are_left_alone() -> None:
    class Reshaping(Volume):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(self.mix(x[:, None])[:, 0]).flatten(1))

    model = Reshaping()
    assert to_channels_last(model, model, images(8))
    assert model.mix.weight.is_contiguous()


@pytest.mark.parametrize("network", [Flattening, Volume])
def test_f18_two_images_show_that_a_network_trains(network) -> None:
    model = network()
    before, state = layout(model), {key: value.clone() for key, value in model.state_dict().items()}
    check_trainable(model, images(8), 3, "the student")
    assert layout(model) == before and all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("name", ["torchvision:googlenet", "torchvision:shufflenet_v2_x0_5"])
def test_f18_networks_with_auxiliary_outputs_train(name: str) -> None:
    check_trainable(build_model(name, 5), images(64), 5, "the student")


def test_f18_a_network_that_cannot_train_says_why() -> None:
    with pytest.raises(
        ValueError, match=r"the student .Flattening. cannot take images of 3x9x9 in evaluation mode: .*shape"
    ):
        check_trainable(Flattening(), images(9), 3, "the student")
    with pytest.raises(
        ValueError, match=r"has 3 outputs an image in evaluation mode, the task needs 4: change its last layer"
    ):
        check_trainable(Flattening(), images(8), 4, "the student")
    model = Flattening()
    nn.init.constant_(model.side.bias, float("nan"))  # of an auxiliary head alone: not an output
    check_trainable(model, images(8), 3, "the student")
    nn.init.constant_(model.head.bias, float("nan"))
    with pytest.raises(ValueError, match="in evaluation mode: the outputs of 2 of 2 images hold NaN"):
        check_trainable(model, images(8), 3, "the student")
    with pytest.raises(ValueError, match="all parameters are frozen"):
        check_trainable(model.requires_grad_(False), images(8), 3, "the student")
