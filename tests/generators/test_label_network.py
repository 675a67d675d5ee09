"""CcGAN's improved label input: codes that the frozen map sends back to their labels, near for near labels."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from generators.conditioning import LabelNetwork
from generators.label_network import ImageRegressor, train_label_network

DIM = 32


def easy_set(count: int = 64) -> tuple[Tensor, Tensor]:
    """Images whose brightness is their label: uint8 [N, 1, 8, 8], labels [N] in [0, 1]."""
    labels = torch.linspace(0, 1, count)
    images = (labels * 255).round().to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 8, 8).contiguous()
    return images, labels


def trained(seed: int = 0, steps: int = 150) -> LabelNetwork:
    images, labels = easy_set()
    network = LabelNetwork(DIM)
    network.load_state_dict(train_label_network(images, labels, network, seed=seed, steps=steps, batch_size=32))
    return network.eval()


@pytest.fixture(scope="module")
def network() -> LabelNetwork:
    return trained()


def test_codes_of_near_labels_are_nearer_than_codes_of_far_ones(network: LabelNetwork) -> None:
    codes = network(torch.linspace(0, 1, 21))
    distances = torch.cdist(codes, codes).detach()
    rows = torch.arange(21)
    label_distances = (rows[:, None] - rows).abs()
    near = distances[label_distances == 1].mean()
    middle = distances[label_distances == 5].mean()
    far = distances[label_distances == 15].mean()
    assert near < middle < far
    correlation = torch.corrcoef(torch.stack([distances.flatten(), label_distances.flatten().float()]))[0, 1]
    assert correlation > 0.7


def test_a_linear_map_reads_the_label_from_the_code(network: LabelNetwork) -> None:
    """h2y is linear (before its ReLU): so some linear map must send h(y) back to y."""
    y = torch.linspace(0, 1, 101)
    codes = torch.cat([network(y).detach(), torch.ones(101, 1)], dim=1).double()
    solution = torch.linalg.lstsq(codes, y.double()[:, None], driver="gelsd").solution
    assert (codes @ solution - y.double()[:, None]).abs().max() < 0.05


@pytest.mark.parametrize("seed", range(8))
def test_no_seed_leaves_the_codes_untrained(seed: int) -> None:
    """The frozen map ends in a ReLU: where it starts below zero for every code, nothing would be learnt."""
    codes = trained(seed, steps=60)(torch.linspace(0, 1, 11)).detach()
    assert codes.std(dim=0).max() > 0.05
    nearest_neighbour = (codes[1:] - codes[:-1]).norm(dim=1)
    assert nearest_neighbour.max() < (codes[-1] - codes[0]).norm()


def test_the_code_of_a_label_is_a_function_of_the_seed_and_leaves_the_callers_stream_alone() -> None:
    torch.manual_seed(4)
    state = torch.get_rng_state()
    images, labels = easy_set(16)
    first, second, other = (
        train_label_network(images, labels, LabelNetwork(16), seed=seed, steps=3) for seed in (0, 0, 1)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["main.0.weight"], other["main.0.weight"])
    torch.manual_seed(4)
    assert torch.equal(torch.get_rng_state(), state)


def test_training_leaves_the_callers_random_stream_alone() -> None:
    images, labels = easy_set(16)
    network = LabelNetwork(16)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    state = torch.get_rng_state()
    train_label_network(images, labels, network, steps=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


@pytest.mark.parametrize("size", [8, 16, 33])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_regressor_takes_images_of_any_size(size: int, channels: int) -> None:
    regressor = ImageRegressor(channels, DIM, width=4).eval()
    code = regressor.encode(torch.rand(2, channels, size, size))
    assert code.shape == (2, DIM) and (code >= 0).all()
    assert regressor.decode(code).shape == (2,)
