"""A generator that is helped: discriminators on frozen features, and a guide."""

from __future__ import annotations

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from generators.config import FeatureHeadsConfig, GeneratorConfig, GuidanceConfig
from generators.feature_heads import FeatureHeads
from generators.guidance import Guidance
from generators.networks.sngan import SNGANGenerator
from tests.conftest import run
from tests.generators.test_training import CLASSES, CONFIG, SCALARS, equal, images, train

LAUNCHER = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "--module")


def frozen_network(channels: int = 1) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        network = nn.Sequential(nn.Conv2d(channels, 6, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(6, 10, 1))
    return network.requires_grad_(False)


def maps(images: Tensor) -> list[Tensor]:
    network = frozen_network(images.shape[1])
    fine = network[:2](images)
    return [fine, network[2:](fine)]


def brightness(images: Tensor, labels: Tensor) -> Tensor:
    """A guide that wants the mean of an image to follow its label."""
    return (images.mean(dim=(1, 2, 3)) - labels / 3).square()


HELP = {"features": maps, "guide": brightness}


@pytest.mark.parametrize("kind", [CLASSES, SCALARS])
def test_a_helped_training_goes_on_where_it_was_cut_off(kind, tmp_path) -> None:
    whole = train(kind, **HELP)
    train(kind, **HELP, directory=tmp_path, interrupt_at=3)
    assert equal(train(kind, **HELP, directory=tmp_path), whole)
    assert not equal(whole, train(kind))


@pytest.mark.parametrize(
    "settings",
    [
        {"features": {"pixels": False, "mix_scales": False, "channels": 8}},
        {"features": {"weight": 0.5}, "accumulate": 2, "r1": 0.1, "r1_every": 1, "augment_target": 0.6},
        {"loss": "nonsaturating", "guidance": {"weight": 2.0, "warmup": 0.0, "decay": 0.5, "augment": ""}},
    ],
)
def test_every_setting_of_the_help_trains(settings) -> None:
    config = GeneratorConfig(**{**CONFIG.model_dump(exclude_unset=True), **settings})
    assert all(value.isfinite().all() for value in train(CLASSES, config=config, **HELP).state_dict().values())


def test_what_helps_is_left_as_it_was() -> None:
    network = frozen_network()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    train(CLASSES, features=lambda images: [network(images)], guide=lambda images, y: network(images).mean())
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())


def test_heads_see_the_label_and_pass_a_gradient_to_the_images_alone() -> None:
    config = FeatureHeadsConfig(channels=8)
    heads = FeatureHeads([(6, 8, 8), (10, 4, 4)], config, num_classes=3).eval()
    x = images(4).float().requires_grad_()
    y = torch.tensor([0, 1, 2, 0])
    logits = heads(maps(x), y)
    assert logits.shape == (2, 4)
    (gradient,) = torch.autograd.grad(logits.sum(), x)
    assert gradient.abs().sum() > 0
    assert not torch.allclose(heads(maps(x), y.roll(1)), logits)
    trained = {name for name, parameter in heads.named_parameters() if parameter.requires_grad}
    assert not any("mixing" in name for name in trained)


def test_mixed_scales_let_the_finest_head_see_the_coarsest_map() -> None:
    shapes, y = [(6, 8, 8), (10, 4, 4)], torch.zeros(4, dtype=torch.long)
    for mixed in (True, False):
        heads = FeatureHeads(shapes, FeatureHeadsConfig(mix_scales=mixed), num_classes=2).eval()
        fine, coarse = maps(images(4).float())
        changed = heads([fine, coarse + 1], y)[0] != heads([fine, coarse], y)[0]
        assert changed.any() == mixed


def test_the_mixing_keeps_the_size_of_a_map() -> None:
    torch.manual_seed(0)
    heads = FeatureHeads([(400, 8, 8)], FeatureHeadsConfig(channels=300), num_classes=2)
    x = torch.randn(8, 400, 8, 8)
    assert heads.mixings[0](x).std() == pytest.approx(1.0, rel=0.1)


def guidance(config: GuidanceConfig, guide=brightness, kind: dict = CLASSES, accelerator=None) -> Guidance:
    shape = {"resolution": 8, "image_channels": 1, "widths": (8, 8), "latent_dim": 4, "label_dim": 8}
    label_input = "embedding" if kind is CLASSES else "fourier"
    generator = SNGANGenerator(
        **shape, label_input=label_input, num_classes=kind.get("num_classes"), **kind_range(kind)
    )
    return Guidance(guide, config, generator, accelerator or Accelerator(cpu=True))


def kind_range(kind: dict) -> dict:
    return {"label_range": kind["label_range"]} if "label_range" in kind else {}


def test_the_weight_rises_and_falls() -> None:
    weight = guidance(GuidanceConfig(weight=0.8, warmup=0.2, decay=0.5)).weight
    assert [weight(share) for share in (0.0, 0.1, 0.2, 0.5, 0.75)] == pytest.approx([0.0, 0.4, 0.8, 0.8, 0.4])


def test_a_guide_hears_labels_in_the_users_units() -> None:
    heard = []
    guide = guidance(GuidanceConfig(), lambda images, labels: heard.append(labels) or images.mean(), SCALARS)
    guide.loss(torch.zeros(3, 1, 8, 8), torch.tensor([0.0, 0.25, 1.0]), 0.5)
    assert heard[0].tolist() == pytest.approx([-40.0, -15.0, 60.0])


def test_a_guide_rests_while_the_images_are_good_enough() -> None:
    class Guide:
        enough = 0.5

        def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
            return images.flatten(1).mean(dim=1)

    own = guidance(GuidanceConfig(weight=1.0, warmup=0.0, augment=""), Guide())
    y, bad, good = torch.zeros(2, dtype=torch.long), torch.ones(2, 1, 8, 8), torch.zeros(2, 1, 8, 8)
    assert own.loss(bad, y, 0.5) == 1.0
    for _ in range(40):
        own.loss(good, y, 0.5)
    assert own.level < 0.5
    assert own.loss(good + 0.1, y, 0.5) == 0.0


def test_the_guide_moves_the_images_towards_their_labels() -> None:
    def error(generator) -> float:
        y = torch.arange(60) % 3
        drawn = generator.sample(y, torch.randn(60, 6, generator=torch.Generator().manual_seed(0)))
        return brightness(drawn, y).mean().item()

    settings = {"steps": 40, "learning_rate": 2e-3, "guidance": {"weight": 20.0, "warmup": 0.0}}
    assert error(train(CLASSES, guide=brightness, **settings)) < 0.7 * error(
        train(CLASSES, steps=40, learning_rate=2e-3)
    )


@pytest.mark.parametrize(
    ("features", "sentence"),
    [
        (lambda images: [], "returns nothing"),
        (lambda images: [images.flatten(1)], r"should return maps \[N, C, H, W\]"),
        (lambda images: [images.detach()], "passes no gradient to its images"),
    ],
)
def test_features_that_are_none_are_refused_before_a_step(features, sentence) -> None:
    with pytest.raises(ValueError, match=sentence):
        train(CLASSES, features=features)


@pytest.mark.parametrize("group", ["features", "guidance"])
def test_an_unknown_change_before_the_network_is_named(group) -> None:
    with pytest.raises(ValueError, match="augment names 'blur'"):
        GeneratorConfig(**{group: {"augment": "translation,blur"}})


def test_an_interrupted_run_is_told_by_its_help(tmp_path) -> None:
    train(CLASSES, **HELP, directory=tmp_path, interrupt_at=3)
    with pytest.raises(ValueError, match="features"):
        train(CLASSES, directory=tmp_path)


class Rests:
    """A guide that one process alone would find enough of, and the other not."""

    enough = 0.5

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        return (images.mean() * 0 + torch.distributed.get_rank()).expand(len(images))


def test_two_processes_share_the_heads_and_agree_when_the_guide_rests() -> None:
    lines = [line for line in run("tests.generators.test_help", launcher=LAUNCHER).splitlines() if "result" in line]
    assert lines == ["result: the same everywhere True, the same level True"]


def main() -> None:
    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True)
    generator = train(CLASSES, **HELP, accelerator=accelerator)
    weights = accelerator.gather(torch.cat([parameter.flatten() for parameter in generator.parameters()])[None])
    own = guidance(GuidanceConfig(augment=""), Rests(), accelerator=accelerator)
    own.loss(torch.rand(4, 1, 8, 8), torch.zeros(4, dtype=torch.long), 0.5)
    if accelerator.is_main_process:
        print("result: the same everywhere", bool(torch.equal(*weights)), end=", ")
        print("the same level", own.level.item() == 0.5)


if __name__ == "__main__":
    main()
