"""Checkpoints of other projects: which of our networks they are, and what they call its weights.

For every architecture: a builder whose keywords are those of the project, the file's name of each of our keys, and what has
to be done to the file's weights first. Read with `pretrained.load_generator`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from generators.interface import ConditionalGenerator
from generators.networks.biggan import BigGANGenerator
from generators.networks.biggan_deep import BigGANDeepGenerator
from generators.networks.sagan import GENERATOR_WIDTHS as SAGAN_WIDTHS
from generators.networks.sagan import SAGANGenerator
from generators.networks.sngan import SNGANGenerator

# counters; BigGAN-PyTorch's log of singular values; CcGAN SNGAN's second copies and unused unconditional path
IGNORED = re.compile(r"num_batches_tracked$|\.sv\d+$|^genblock\d+\.(model|bypass)\.\d+\.")

TORCH_SPECTRAL_NORM = [
    (r"\.parametrizations\.weight\.original$", ".weight_orig"),
    (r"\.parametrizations\.weight\.0\._([uv])$", r".weight_\1"),
]


def rename(key: str, table: Sequence[tuple[str, str]]) -> str:
    """`key` after every substitution of the table, in order."""
    for pattern, replacement in table:
        key = re.sub(pattern, replacement, key)
    return key


def unchanged(weights: dict[str, Tensor], generator: ConditionalGenerator) -> dict[str, Tensor]:
    return weights


def as_hooks(weights: dict[str, Tensor], generator: ConditionalGenerator) -> dict[str, Tensor]:
    """The weights under the names of torch's older spectral norm, also from a file that was written with the newer one."""
    return {rename(name, TORCH_SPECTRAL_NORM): value for name, value in weights.items()}


# --- BigGAN-PyTorch, and cGAN-KD, which uses it -----------------------------------------------------------------------


def biggan(
    *,
    resolution: int = 32,
    channels: int = 64,
    z_dim: int = 128,
    num_classes: int = 100,
    attention: Sequence[int] = (),
    shared_embedding: bool = False,
    shared_dim: int | None = 128,
    hierarchical: bool = False,
) -> BigGANGenerator:
    """Defaults: cGAN-KD's CIFAR-100. BigGAN-PyTorch's ImageNet at 128 pixels: channels 96, z_dim 120, num_classes 1000,
    attention [64], shared_embedding and hierarchical."""
    return BigGANGenerator(
        resolution=resolution,
        channels=channels,
        latent_dim=z_dim,
        num_classes=num_classes,
        attention=tuple(attention),
        shared_embedding=shared_embedding,
        label_dim=shared_dim or z_dim,
        hierarchical=hierarchical,
    )


def biggan_deep(
    *,
    resolution: int = 128,
    channels: int = 128,
    z_dim: int = 128,
    num_classes: int = 100,
    attention: Sequence[int] = (64,),
    shared_embedding: bool = True,
    shared_dim: int = 128,
    hierarchical: bool = True,
    depth: int = 2,
) -> BigGANDeepGenerator:
    """Defaults: cGAN-KD's ImageNet-100."""
    if not (shared_embedding and hierarchical):
        raise ValueError("biggan_deep always has a shared embedding and hierarchical latents; leave both true.")
    return BigGANDeepGenerator(
        resolution=resolution,
        channels=channels,
        latent_dim=z_dim,
        num_classes=num_classes,
        attention=tuple(attention),
        label_dim=shared_dim,
        depth=depth,
    )


BIGGAN = [
    (r"\.bn\.running_(mean|var)$", r".stored_\1"),
    (r"^(output_layer\.0)\.weight$", r"\1.gain"),
    (r"^(output_layer\.0)\.running_", r"\1.stored_"),
    (r"^(blocks\.\d+\.0)\.norm", r"\1.bn"),
    (r"^(blocks\.\d+\.0)\.shortcut\.", r"\1.conv_sc."),
]


def biggan_name(key: str, generator: ConditionalGenerator) -> str:
    return rename(key, BIGGAN)


# --- CcGAN ------------------------------------------------------------------------------------------------------------


def ccgan_sagan(
    *,
    resolution: int = 64,
    channels: int = 64,
    z_dim: int = 256,
    embed_dim: int = 128,
    label_range: Sequence[float] = (0.0, 1.0),
    label_input: str,
) -> SAGANGenerator:
    """`label_range` (min, max) are the labels, in their units, that training scaled to 0 and 1."""
    return SAGANGenerator(
        resolution=resolution,
        channels=channels,
        latent_dim=z_dim,
        label_dim=embed_dim,
        label_range=tuple(label_range),
        label_input=label_input,
    )


def ccgan_sngan(
    *,
    resolution: int = 64,
    channels: int = 64,
    z_dim: int = 256,
    embed_dim: int = 128,
    label_range: Sequence[float] = (0.0, 1.0),
    label_input: str,
) -> SNGANGenerator:
    """`label_range` (min, max) are the labels, in their units, that training scaled to 0 and 1."""
    if resolution not in SAGAN_WIDTHS:
        raise ValueError(f"resolution {resolution} is none of CcGAN's SNGAN; use one of {list(SAGAN_WIDTHS)}.")
    return SNGANGenerator(
        resolution=resolution,
        widths=tuple(channels * width for width in SAGAN_WIDTHS[resolution]),
        latent_dim=z_dim,
        label_dim=embed_dim,
        label_range=tuple(label_range),
        label_input=label_input,
    )


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
    (r"\.gain\.", ".embed_gamma."),
    (r"\.bias\.", ".embed_beta."),
]
CCGAN_SNGAN = [
    (r"^norm\.", "final.0."),
    (r"^to_image\.", "final.2."),
    (r"^blocks\.", "genblock"),
    (r"\.norm(\d)\.", r".condbn\1."),
    (r"\.shortcut\.", ".bypass_conv."),
    (r"\.gain\.", ".embed_gamma."),
    (r"\.bias\.", ".embed_beta."),
]


def ccgan_sagan_name(key: str, generator: ConditionalGenerator) -> str | None:
    if key.startswith("encoder."):  # the label network has a file of its own
        return None
    key = re.sub(r"^blocks\.(\d+)", lambda match: f"block{int(match[1]) + 1}", key)
    return rename(key, CCGAN_SAGAN)


def ccgan_sngan_name(key: str, generator: ConditionalGenerator) -> str | None:
    return None if key.startswith("encoder.") else rename(key, CCGAN_SNGAN)


# --- PyTorch-StudioGAN, CIFAR -----------------------------------------------------------------------------------------


def studiogan_biggan(
    *,
    channels: int = 96,
    z_dim: int = 80,
    num_classes: int = 10,
    attention: Sequence[int] = (16,),
    shared_dim: int = 128,
) -> BigGANGenerator:
    """`big_resnet` at 32 pixels; its attn_g_loc 1, 2, 3 are the image sizes 8, 16, 32."""
    return BigGANGenerator(
        channels=channels,
        latent_dim=z_dim,
        num_classes=num_classes,
        attention=tuple(attention),
        shared_embedding=True,
        label_dim=shared_dim,
        hierarchical=True,
        spectral_rule="torch",
    )


def studiogan_sngan(*, channels: int = 64, z_dim: int = 128, num_classes: int = 10) -> SNGANGenerator:
    """`resnet` at 32 pixels with class-conditional batch norm (cBN). It has no class code: ours is one-hot."""
    widths = (4 * channels,) * 4
    return SNGANGenerator(widths=widths, latent_dim=z_dim, label_dim=num_classes, num_classes=num_classes)


STUDIOGAN_BLOCK = [
    (r"\.norm(\d)\.", r".bn\1."),
    (r"\.conv(\d)\.", r".conv2d\1."),
    (r"\.shortcut\.", ".conv2d0."),
]
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


def studiogan_biggan_name(key: str, generator: ConditionalGenerator) -> str:
    """There, attention is an entry of its own in the list of blocks."""
    if match := re.match(r"blocks\.(\d+)\.([01])\.", key):
        stage, inner = int(match[1]), int(match[2])
        index = stage + inner + sum(len(earlier) - 1 for earlier in generator.blocks[:stage])
        key = f"blocks.{index}.0.{key[match.end() :]}"
    return rename(key, STUDIOGAN_BIGGAN)


def studiogan_sngan_name(key: str, generator: ConditionalGenerator) -> str:
    return rename(key, STUDIOGAN_SNGAN)


def studiogan_norms(weights: dict[str, Tensor], generator: ConditionalGenerator) -> dict[str, Tensor]:
    """Move the difference of the epsilons into the running variance: sqrt(variance + epsilon) stays what it was."""
    return {
        name: value + STUDIOGAN_EPSILON if name.endswith("running_var") else value for name, value in weights.items()
    }


def studiogan_tables(weights: dict[str, Tensor], generator: ConditionalGenerator) -> dict[str, Tensor]:
    """Gains and biases as linear maps of a one-hot code; earlier versions have tables, embed0 (gain) and embed1 (bias)."""
    weights = studiogan_norms(weights, generator)
    for table, linear in (("embed0", "gain"), ("embed1", "bias")):
        for name in [name for name in weights if name.endswith(f".{table}.weight")]:
            weights[name.replace(f".{table}.", f".{linear}.")] = weights.pop(name).T
    return {**weights, "encoder.weight": torch.eye(generator.config.num_classes)}


# what load_generator calls it: the builder, the file's name of our key, the change to the file's weights
ARCHITECTURES = {
    "biggan": (biggan, biggan_name, unchanged),
    "biggan_deep": (biggan_deep, biggan_name, unchanged),
    "ccgan_sagan": (ccgan_sagan, ccgan_sagan_name, as_hooks),
    "ccgan_sngan": (ccgan_sngan, ccgan_sngan_name, unchanged),
    "studiogan_biggan": (studiogan_biggan, studiogan_biggan_name, studiogan_norms),
    "studiogan_sngan": (studiogan_sngan, studiogan_sngan_name, studiogan_tables),
}
