"""Checkpoints of other projects: which of our networks they are, and what they call its weights.

For every architecture: its settings under the project's names, the file's name of each of our keys, and what has to be done
to the file's weights first. Read with `pretrained.load_generator`.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from generators.model import GeneratorModel
from generators.networks.biggan import BigGANGenerator
from generators.networks.biggan_deep import BigGANDeepGenerator
from generators.networks.sagan import GENERATOR_WIDTHS as SAGAN_WIDTHS
from generators.networks.sagan import SAGANGenerator
from generators.networks.sngan import SNGANGenerator

# counters; BigGAN-PyTorch's log of singular values; CcGAN SNGAN's second copies and unused unconditional path
IGNORED = re.compile(r"num_batches_tracked$|\.sv\d+$|^genblock\d+\.(model|bypass)\.\d+\.")
OUR_NAMES = {"z_dim": "latent_dim", "shared_dim": "label_dim", "embed_dim": "label_dim"}

Names = Sequence[tuple[str, str]]
Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Architecture:
    """One of our networks as another project describes and stores it."""

    network: type[GeneratorModel]
    settings: dict[str, Any]
    """What the project calls the settings, each with its default there."""
    names: Names
    """Substitutions that turn a key of ours into the file's, in order."""
    describe: Callable[[dict[str, Any]], dict[str, Any]] = dict
    """The project's settings to those of our network, before OUR_NAMES."""
    locate: Callable[[str, GeneratorModel], str | None] = lambda key, generator: key
    """What `names` cannot say of a key; None: the file need not have it."""
    adapt: Callable[[Weights, GeneratorModel], Weights] = lambda weights, generator: weights
    """What has to be done to the file's weights."""
    of_scalars: bool = False
    """Whether it takes scalar labels, through a label network with a file of its own."""

    def build(self, config: dict[str, Any], **labels: Any) -> GeneratorModel:
        """The network, untrained, that the project's `config` describes; raises a ValueError where it describes none."""
        settings = self.describe({**self.settings, **config, **labels})
        settings = {OUR_NAMES.get(name, name): value for name, value in settings.items()}
        return self.network(**{name: tuple(v) if isinstance(v, list) else v for name, v in settings.items()})

    def name_there(self, key: str, generator: GeneratorModel) -> str | None:
        """The file's name of our `key`."""
        located = self.locate(key, generator)
        return located if located is None else rename(located, self.names)


def rename(key: str, table: Names) -> str:
    """`key` after every substitution of the table, in order."""
    for pattern, replacement in table:
        key = re.sub(pattern, replacement, key)
    return key


TORCH_SPECTRAL_NORM = [
    (r"\.parametrizations\.weight\.original$", ".weight_orig"),
    (r"\.parametrizations\.weight\.0\._([uv])$", r".weight_\1"),
]

# --- BigGAN-PyTorch, and cGAN-KD, which uses it -----------------------------------------------------------------------


def of_biggan(settings: dict[str, Any]) -> dict[str, Any]:
    return settings | {"shared_dim": settings["shared_dim"] or settings["z_dim"]}


def of_biggan_deep(settings: dict[str, Any]) -> dict[str, Any]:
    if not (settings.pop("shared_embedding") and settings.pop("hierarchical")):
        raise ValueError("biggan_deep always has a shared embedding and hierarchical latents; leave both true.")
    return settings


BIGGAN = [
    (r"\.bn\.running_(mean|var)$", r".stored_\1"),
    (r"^(output_layer\.0)\.weight$", r"\1.gain"),
    (r"^(output_layer\.0)\.running_", r"\1.stored_"),
    (r"^(blocks\.\d+\.0)\.norm", r"\1.bn"),
    (r"^(blocks\.\d+\.0)\.shortcut\.", r"\1.conv_sc."),
]

# --- CcGAN ------------------------------------------------------------------------------------------------------------


def of_ccgan_sngan(settings: dict[str, Any]) -> dict[str, Any]:
    resolution, channels = settings["resolution"], settings.pop("channels")
    if resolution not in SAGAN_WIDTHS:
        raise ValueError(f"resolution {resolution} is none of CcGAN's SNGAN; use one of {list(SAGAN_WIDTHS)}.")
    return settings | {"widths": tuple(channels * width for width in SAGAN_WIDTHS[resolution])}


def outside_the_encoder(key: str, generator: GeneratorModel) -> str | None:
    """The label network has a file of its own; CcGAN's SAGAN counts its blocks from 1."""
    if key.startswith("encoder."):
        return None
    if isinstance(generator, SAGANGenerator):
        return re.sub(r"^blocks\.(\d+)", lambda match: f"block{int(match[1]) + 1}", key)
    return key


def as_hooks(weights: Weights, generator: GeneratorModel) -> Weights:
    """The weights under the names of torch's older spectral norm, also from a file that was written with the newer one."""
    return {rename(name, TORCH_SPECTRAL_NORM): value for name, value in weights.items()}


# label_range: the labels, in their units, that training scaled to 0 and 1
CCGAN = {"resolution": 64, "channels": 64, "z_dim": 256, "embed_dim": 128, "label_range": (0.0, 1.0)}
CODES = [(r"\.gain\.", ".embed_gamma."), (r"\.bias\.", ".embed_beta.")]
CCGAN_SAGAN = [
    *TORCH_SPECTRAL_NORM,
    (r"^dense\.", "snlinear0."),
    (r"^attention\.gamma$", "self_attn.sigma"),
    (r"^attention\.o\.", "attention.attn."),
    (r"^attention\.", "self_attn.snconv1x1_"),
    (r"^norm\.", "bn."),
    (r"^to_image\.", "snconv2d1."),
    (r"\.norm(\d)\.", r".cond_bn\1."),
    (r"\.conv(\d)\.", r".snconv2d\1."),
    (r"\.shortcut\.", ".snconv2d0."),
    *CODES,
]
CCGAN_SNGAN = [
    (r"^norm\.", "final.0."),
    (r"^to_image\.", "final.2."),
    (r"^blocks\.", "genblock"),
    (r"\.norm(\d)\.", r".condbn\1."),
    (r"\.shortcut\.", ".bypass_conv."),
    *CODES,
]

# --- PyTorch-StudioGAN, CIFAR -----------------------------------------------------------------------------------------

# `big_resnet` at 32 pixels; its attn_g_loc 1, 2, 3 are the image sizes 8, 16, 32
STUDIOGAN_BIG = {"channels": 96, "z_dim": 80, "num_classes": 10, "attention": (16,), "shared_dim": 128}
# `resnet` at 32 pixels with class-conditional batch norm (cBN)
STUDIOGAN_RES = {"channels": 64, "z_dim": 128, "num_classes": 10}


def of_studiogan_biggan(settings: dict[str, Any]) -> dict[str, Any]:
    return settings | {"shared_embedding": True, "hierarchical": True, "spectral_rule": "torch"}


def of_studiogan_sngan(settings: dict[str, Any]) -> dict[str, Any]:
    """It has no class code: ours is one-hot."""
    return settings | {"widths": (4 * settings.pop("channels"),) * 4, "label_dim": settings["num_classes"]}


STUDIOGAN_BLOCK = [(r"\.norm(\d)\.", r".bn\1."), (r"\.conv(\d)\.", r".conv2d\1."), (r"\.shortcut\.", ".conv2d0.")]
STUDIOGAN_BIGGAN = [
    *TORCH_SPECTRAL_NORM,
    *STUDIOGAN_BLOCK,
    (r"^linear\.", "linear0."),
    (r"^output_layer\.0\.", "bn4."),
    (r"^output_layer\.2\.", "conv2d5."),
    (r"\.gamma$", ".sigma"),
    (r"\.o\.", ".attn."),
    (r"\.(theta|phi|g|attn)\.", r".conv1x1_\1."),
]
STUDIOGAN_SNGAN = [
    (r"^(blocks\.\d+)\.", r"\1.0."),
    *STUDIOGAN_BLOCK,
    (r"^dense\.", "linear0."),
    (r"^norm\.", "bn4."),
    (r"^to_image\.", "conv2d5."),
]
STUDIOGAN_EPSILON = 1e-4 - 1e-5  # its batch norms' epsilon less ours


def among_blocks(key: str, generator: GeneratorModel) -> str:
    """There, attention is an entry of its own in the list of blocks."""
    if match := re.match(r"blocks\.(\d+)\.([01])\.", key):
        stage, inner = int(match[1]), int(match[2])
        index = stage + inner + sum(len(earlier) - 1 for earlier in generator.blocks[:stage])
        return f"blocks.{index}.0.{key[match.end() :]}"
    return key


def studiogan_norms(weights: Weights, generator: GeneratorModel) -> Weights:
    """Move the difference of the epsilons into the running variance: sqrt(variance + epsilon) stays what it was."""
    moved = {name: value + STUDIOGAN_EPSILON for name, value in weights.items() if name.endswith("running_var")}
    return weights | moved


def studiogan_tables(weights: Weights, generator: GeneratorModel) -> Weights:
    """Gains and biases as linear maps of a one-hot code; earlier versions have tables, embed0 (gain) and embed1 (bias)."""
    weights = studiogan_norms(weights, generator)
    for table, linear in (("embed0", "gain"), ("embed1", "bias")):
        for name in [name for name in weights if name.endswith(f".{table}.weight")]:
            weights[name.replace(f".{table}.", f".{linear}.")] = weights.pop(name).T
    return {**weights, "encoder.weight": torch.eye(generator.config.num_classes)}


# --- all --------------------------------------------------------------------------------------------------------------

# cGAN-KD's CIFAR-100; BigGAN-PyTorch's ImageNet at 128 pixels: channels 96, z_dim 120, num_classes 1000, attention [64],
# shared_embedding and hierarchical
CIFAR_100 = {
    "resolution": 32,
    "channels": 64,
    "z_dim": 128,
    "num_classes": 100,
    "attention": (),
    "shared_embedding": False,
    "shared_dim": 128,
    "hierarchical": False,
}
# cGAN-KD's ImageNet-100
IMAGENET_100 = {
    "resolution": 128,
    "channels": 128,
    "z_dim": 128,
    "num_classes": 100,
    "attention": (64,),
    "shared_embedding": True,
    "shared_dim": 128,
    "hierarchical": True,
    "depth": 2,
}
ARCHITECTURES = {
    "biggan": Architecture(BigGANGenerator, CIFAR_100, BIGGAN, of_biggan),
    "biggan_deep": Architecture(BigGANDeepGenerator, IMAGENET_100, BIGGAN, of_biggan_deep),
    "ccgan_sagan": Architecture(
        SAGANGenerator, CCGAN, CCGAN_SAGAN, locate=outside_the_encoder, adapt=as_hooks, of_scalars=True
    ),
    "ccgan_sngan": Architecture(
        SNGANGenerator, CCGAN, CCGAN_SNGAN, of_ccgan_sngan, locate=outside_the_encoder, of_scalars=True
    ),
    "studiogan_biggan": Architecture(
        BigGANGenerator, STUDIOGAN_BIG, STUDIOGAN_BIGGAN, of_studiogan_biggan, among_blocks, studiogan_norms
    ),
    "studiogan_sngan": Architecture(
        SNGANGenerator, STUDIOGAN_RES, STUDIOGAN_SNGAN, of_studiogan_sngan, adapt=studiogan_tables
    ),
}
