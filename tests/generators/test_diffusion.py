"""Diffusers' pipelines and any callable as generators: tiny pipelines, saved and loaded, against diffusers' own sampling."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    UNet2DModel,
)
from safetensors.torch import load_file
from torch import Tensor, nn

from generators import load_generator
from generators.interface import ConditionalGenerator
from generators.wrapping import wrap


def unet(**settings) -> UNet2DModel:
    torch.manual_seed(0)
    return UNet2DModel(
        **{"sample_size": 8, "in_channels": 1, "out_channels": 1, **settings},
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        attention_head_dim=4,
    ).eval()


def dit(depth: int = 2, num_classes: int = 5) -> DiTPipeline:
    torch.manual_seed(0)
    transformer = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=4,
        in_channels=4,
        out_channels=8,
        num_layers=depth,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=num_classes,
        norm_num_groups=4,
    )
    for parameter in transformer.parameters():  # the published start is zero: it would see neither class nor time
        nn.init.normal_(parameter, 0, 0.3)
    decoder = AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        latent_channels=4,
        layers_per_block=1,
    )
    return DiTPipeline(transformer.eval(), decoder.eval(), DDIMScheduler(num_train_timesteps=50, clip_sample=False))


def save_unconditional(path: Path) -> Path:
    DDPMPipeline(unet(), DDPMScheduler(num_train_timesteps=50)).save_pretrained(path)
    return path


def save_conditional(path: Path) -> Path:
    DDPMPipeline(unet(num_class_embeds=3), DDPMScheduler(num_train_timesteps=50)).save_pretrained(path)
    return path


def save_dit(path: Path) -> Path:
    dit().save_pretrained(path)
    return path


KINDS = {"unconditional": (save_unconditional, 1), "conditional": (save_conditional, 3), "dit": (save_dit, 5)}


@pytest.mark.parametrize("kind", KINDS)
def test_a_pipeline_is_a_generator(kind: str, tmp_path: Path) -> None:
    save, num_classes = KINDS[kind]
    generator = load_generator(save(tmp_path), num_steps=3)
    assert isinstance(generator, ConditionalGenerator) and generator.config.num_classes == num_classes
    assert not any(module.training for module in generator.modules())
    assert not any(parameter.requires_grad for parameter in generator.parameters())
    labels, latents = torch.arange(4) % num_classes, generator.draw_latents(4)
    images = generator.sample(labels, latents)
    size = generator.config.resolution
    assert images.shape == (4, generator.config.image_channels, size, size) and size == (16 if kind == "dit" else 8)
    assert images.abs().max() <= 1 and images.std() > 0.01 and not images.requires_grad
    assert torch.equal(generator.sample(labels, latents), images)
    alone = torch.cat([generator.sample(labels[[i]], latents[[i]]) for i in range(4)])
    torch.testing.assert_close(alone, images, rtol=0, atol=1e-4)
    assert (generator.sample(labels, latents.flip(0)) - images).abs().max() > 1e-3
    if num_classes > 1:
        assert (generator.sample((labels + 1) % num_classes, latents) - images).abs().max() > 1e-4
    with pytest.raises(ValueError, match=rf"labels span .*; this generator knows \[0, {num_classes - 1}\]"):
        generator.sample(torch.tensor([num_classes]))
    assert generator.label_code(labels).shape == (4, num_classes)


def test_an_unconditional_pipeline_draws_what_ddim_draws(tmp_path: Path) -> None:
    ddim = DDIMPipeline(unet(), DDIMScheduler(num_train_timesteps=50))
    ddim.set_progress_bar_config(disable=True)
    expected = ddim(2, generator=torch.Generator().manual_seed(5), num_inference_steps=7, output_type="np").images
    generator = load_generator(save_unconditional(tmp_path), num_steps=7)
    latents = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(5)).flatten(1)
    images = generator.sample(torch.zeros(2, dtype=torch.int64), latents)
    torch.testing.assert_close(images.permute(0, 2, 3, 1) / 2 + 0.5, torch.from_numpy(expected), rtol=0, atol=1e-5)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_a_transformer_draws_what_its_pipeline_draws(guidance: float, tmp_path: Path) -> None:
    pipeline = dit(num_classes=1000)  # the pipeline takes class 1000 for none
    pipeline.set_progress_bar_config(disable=True)
    pipeline.save_pretrained(tmp_path)
    options = {"guidance_scale": guidance, "num_inference_steps": 4, "output_type": "np"}
    expected = pipeline([3, 999], generator=torch.Generator().manual_seed(5), **options).images
    generator = load_generator(tmp_path, num_steps=4, guidance=guidance)
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(5)).flatten(1)
    images = generator.sample(torch.tensor([3, 999]), latents)
    torch.testing.assert_close(images.permute(0, 2, 3, 1) / 2 + 0.5, torch.from_numpy(expected), rtol=0, atol=1e-5)


def test_features_are_those_of_the_last_step_as_maps(tmp_path: Path) -> None:
    generator = load_generator(save_conditional(tmp_path), num_steps=3)
    labels, latents = torch.tensor([0, 2]), generator.draw_latents(2)
    images, features = generator.sample_with_features(labels, latents)
    assert torch.equal(images, generator.sample(labels, latents))
    assert {name: tuple(values.shape) for name, values in features.items()} == {
        "denoiser.mid_block": (2, 16, 4, 4),
        "denoiser.up_blocks.0": (2, 16, 8, 8),
        "denoiser.up_blocks.1": (2, 8, 8, 8),
    }
    seen = []
    generator.denoiser.up_blocks[1].register_forward_hook(lambda module, inputs, output: seen.append(output))
    generator.sample(labels, latents)
    assert len(seen) == 3 and torch.equal(features["denoiser.up_blocks.1"], seen[-1])


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_tokens_are_laid_out_as_maps(guidance: float, tmp_path: Path) -> None:
    dit(depth=8).save_pretrained(tmp_path)
    generator = load_generator(tmp_path, num_steps=2, guidance=guidance)
    seen = []
    generator.denoiser.transformer_blocks[3].register_forward_hook(lambda module, inputs, output: seen.append(output))
    _, features = generator.sample_with_features(torch.tensor([0, 2, 4]))
    assert list(features) == [f"denoiser.transformer_blocks.{index}" for index in (1, 3, 5, 7)]
    maps = features["denoiser.transformer_blocks.3"]
    assert maps.shape == (3, 8, 4, 4)
    assert torch.equal(maps[2, :, 1, 3], seen[-1][2, 4 * 1 + 3])


def test_pipelines_that_cannot_serve_are_refused(tmp_path: Path) -> None:
    save_unconditional(tmp_path / "plain")
    with pytest.raises(ValueError, match="guidance 2.0 needs a null class, which the UNet2DModel in .*plain lacks"):
        load_generator(tmp_path / "plain", guidance=2.0)
    with pytest.raises(ValueError, match="num_step does not describe a diffusers pipeline; did you mean 'num_steps'"):
        load_generator(tmp_path / "plain", num_step=2)
    flow = dit()
    flow.register_modules(scheduler=FlowMatchEulerDiscreteScheduler())
    flow.save_pretrained(tmp_path / "flow")
    with pytest.raises(ValueError, match="flow has a FlowMatchEulerDiscreteScheduler, whose noise levels DDIM cannot"):
        load_generator(tmp_path / "flow")
    DDPMPipeline(unet(sample_size=(8, 16)), DDPMScheduler()).save_pretrained(tmp_path / "wide")
    with pytest.raises(ValueError, match=r"wide makes images of the size .*8, 16.*; only square ones"):
        load_generator(tmp_path / "wide")
    next((tmp_path / "plain" / "unet").glob("*.safetensors")).unlink()
    with pytest.raises(ValueError, match="plain cannot be read as a diffusers pipeline"):
        load_generator(tmp_path / "plain")


class Bomb:
    """What unpickling would run."""

    def __reduce__(self):
        return (Path.touch, (Path("exploded"),))


@pytest.mark.parametrize("harmless", [True, False])
def test_older_weight_files_are_read_without_unpickling(
    harmless: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save_unconditional(tmp_path)
    labels, latents = torch.zeros(2, dtype=torch.int64), torch.randn(2, 64)
    expected = load_generator(tmp_path, num_steps=2).sample(labels, latents)
    weights = next((tmp_path / "unet").glob("*.safetensors"))
    torch.save({**load_file(weights), **({} if harmless else {"bomb": Bomb()})}, weights.with_suffix(".bin"))
    weights.unlink()
    if harmless:
        assert torch.equal(load_generator(tmp_path, num_steps=2).sample(labels, latents), expected)
    else:
        with pytest.raises(ValueError, match="cannot be read as a diffusers pipeline"):
            load_generator(tmp_path)
    assert not (tmp_path / "exploded").exists()


def test_a_pipeline_is_not_saved_as_a_generator(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="saved as its pipeline"):
        load_generator(save_unconditional(tmp_path)).save_pretrained(tmp_path / "again")


# --- any callable -----------------------------------------------------------------------------------------------------


class Painter(nn.Module):
    """Latents and class to a flat colour, through a layer with a name."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(3, 4)
        self.mix = nn.Conv2d(4, 3, 1)

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        return self.mix((z + self.table(y))[:, :, None, None].expand(-1, -1, 8, 8)).tanh()


def test_a_module_is_a_generator_in_one_line() -> None:
    torch.manual_seed(0)
    painter = Painter()
    generator = wrap(painter, resolution=8, latent_dim=4, num_classes=3, feature_names=["mix"])
    labels, latents = torch.tensor([2, 0]), torch.randn(2, 4)
    images, features = generator.sample_with_features(labels, latents)
    assert torch.equal(images, painter(latents, labels)) and torch.equal(features["mix"].tanh(), images)
    assert isinstance(generator, ConditionalGenerator) and not images.requires_grad
    assert painter.training and all(parameter.requires_grad for parameter in painter.parameters()), "F20: it was lent"
    with pytest.raises(ValueError, match=r"labels span \[3, 3\]; this generator knows \[0, 2\]"):
        generator.sample(torch.tensor([3]))


def test_a_function_of_a_scalar_is_a_generator_in_one_line() -> None:
    generator = wrap(
        lambda z, y: (0 * z[:, :1] + y[:, None])[:, :, None, None].expand(-1, 1, 4, 4),
        resolution=4,
        latent_dim=2,
        label_range=(-90, 90),
        image_channels=1,
    )
    images = generator.sample(torch.tensor([-90.0, 0.0, 90.0]))
    torch.testing.assert_close(images[:, 0, 0, 0], torch.tensor([0.0, 0.5, 1.0]))
    assert torch.equal(generator.label_code(torch.tensor([0.0, 0.5])), torch.tensor([[0.0], [0.5]]))


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        (lambda z, y: torch.zeros(len(z), 3, 8, 4), r"returns images \(2, 3, 8, 4\); expected \(2, 3, 8, 8\)"),
        (lambda z, y: torch.full((len(z), 3, 8, 8), 255.0), r"returns values in \[255, 255\]; expected \[-1, 1\]"),
        (lambda z, y: torch.full((len(z), 3, 8, 8), torch.nan), r"returns values in \[nan, nan\]; expected \[-1, 1\]"),
    ],
)
def test_what_a_callable_returns_is_checked(source, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        wrap(source, resolution=8, latent_dim=2, num_classes=1).sample(torch.zeros(2, dtype=torch.int64))


def test_wrapping_says_what_is_missing(tmp_path: Path) -> None:
    sizes = {"resolution": 8, "latent_dim": 4}
    with pytest.raises(ValueError, match="give exactly one of num_classes .* and label_range"):
        wrap(Painter(), **sizes)
    with pytest.raises(ValueError, match="feature name 'mixx' is no module of what is wrapped; did you mean 'mix'"):
        wrap(Painter(), **sizes, num_classes=3, feature_names=["mixx"])
    with pytest.raises(ValueError, match="a wrapped generator is code, which is not saved"):
        wrap(Painter(), **sizes, num_classes=3).save_pretrained(tmp_path)
