"""StyleGAN2 (configuration F, and StyleGAN2-ADA's for CIFAR), for drawing only: no discriminator, no training.

Latents and class -> w, by a few linear layers; a learned 4x4 constant -> one block of two convolutions per doubling, each
modulated by w; every block adds to the image. `scripts/convert_stylegan2.py` makes the folder that `load_generator` reads.
Sources: Karras et al., "Analyzing and Improving the Image Quality of StyleGAN", CVPR 2020; "Training Generative Adversarial
Networks with Limited Data", NeurIPS 2020. Modules are named as in NVIDIA's files, so that the converter renames nothing.
"""

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from generators.model import GeneratorModel, register_to_config

FILTER = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8  # the low-pass filter, along each axis


def unit_moment(x: Tensor) -> Tensor:
    """Rows [N, D] with a mean square of 1."""
    return x * (x.square().mean(dim=1, keepdim=True) + 1e-8).rsqrt()


def low_pass(x: Tensor, *, double: bool) -> Tensor:
    """`FILTER` along both axes with gain 4: of x with a zero after every value (`double`: H -> 2H), or of x (H -> H - 1)."""
    channels = x.shape[1]
    kernel = (4 * FILTER.outer(FILTER)).to(x).expand(channels, 1, 4, 4)
    if double:
        return F.conv_transpose2d(x, kernel, stride=2, padding=1, groups=channels)
    return F.conv2d(x, kernel, padding=1, groups=channels)


def activate(x: Tensor, clamp: float | None) -> Tensor:
    """Leaky ReLU, scaled back to a variance of about 1."""
    x = F.leaky_relu(x, 0.2) * math.sqrt(2)
    return x if clamp is None else x.clamp(-clamp, clamp)


class EqualizedLinear(nn.Module):
    """Linear map whose stored weight has unit variance; `multiplier` slows its training. [N, in] -> [N, out].

    Source: equalised learning rate, Karras et al., ICLR 2018.
    """

    def __init__(self, in_features: int, out_features: int, multiplier: float = 1.0, bias: float = 0.0):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_features, in_features) / multiplier)
        self.bias = nn.Parameter(torch.full((out_features,), bias))
        self.gain, self.multiplier = multiplier / math.sqrt(in_features), multiplier

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.gain, self.bias * self.multiplier)


class Mapping(nn.Module):
    """Latents [N, latent_dim] and classes y [N] to w [N, w_dim]; `truncation` < 1 draws w towards its mean."""

    def __init__(self, latent_dim: int, w_dim: int, num_classes: int, num_layers: int, truncation: float):
        super().__init__()
        self.num_classes, self.num_layers, self.truncation = num_classes, num_layers, truncation
        features = latent_dim
        if num_classes > 1:
            self.embed = EqualizedLinear(num_classes, w_dim)
            features += w_dim
        for index in range(num_layers):
            self.add_module(f"fc{index}", EqualizedLinear(features if index == 0 else w_dim, w_dim, multiplier=0.01))
        self.register_buffer("w_avg", torch.zeros(w_dim))

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        x = unit_moment(z)
        if self.num_classes > 1:
            x = torch.cat([x, unit_moment(self.embed(F.one_hot(y, self.num_classes).to(x)))], dim=1)
        for index in range(self.num_layers):
            x = activate(self.get_submodule(f"fc{index}")(x), None)
        return self.w_avg.lerp(x, self.truncation)


class StyledConvolution(nn.Module):
    """3x3 convolution modulated by w, noise, leaky ReLU. [N, in, H, W], [N, w_dim] -> [N, out, H, W], or 2H, 2W.

    The weight W[o, i, k] s[i], with the style s = affine(w), is scaled to unit norm for every output o. Scaling inputs by s
    and outputs by the inverse norm is the same map, and one convolution serves all samples (CVPR 2020, section 2.2).
    """

    def __init__(self, in_channels: int, out_channels: int, w_dim: int, size: int, double: bool, noise: str, clamp):
        super().__init__()
        self.doubles, self.noise, self.clamp = double, noise, clamp
        self.affine = EqualizedLinear(w_dim, in_channels, bias=1.0)
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, 3, 3))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.noise_strength = nn.Parameter(torch.zeros(()))
        self.register_buffer("noise_const", torch.randn(size, size))

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        style = self.affine(w)  # [N, in]
        norm = (style.square() @ self.weight.square().sum(dim=(2, 3)).T + 1e-8).rsqrt()  # [N, out]
        x = x * style[:, :, None, None]
        if self.doubles:
            # a transposed convolution is one of the image with zeros between its pixels, which low_pass fills
            x = low_pass(F.conv_transpose2d(x, self.weight.transpose(0, 1), stride=2), double=False)
        else:
            x = F.conv2d(x, self.weight, padding=1)
        x = x * norm[:, :, None, None]
        if self.noise == "const":
            x = x + self.noise_const * self.noise_strength
        elif self.noise == "random":
            x = x + torch.randn_like(x[:, :1]) * self.noise_strength
        return activate(x + self.bias[:, None, None], self.clamp)


class ToImage(nn.Module):
    """1x1 convolution modulated by w, its weight not normalised. [N, C, H, W], [N, w_dim] -> [N, image_channels, H, W]."""

    def __init__(self, channels: int, image_channels: int, w_dim: int, clamp: float | None):
        super().__init__()
        self.clamp = clamp
        self.affine = EqualizedLinear(w_dim, channels, bias=1.0)
        self.weight = nn.Parameter(torch.randn(image_channels, channels, 1, 1))
        self.bias = nn.Parameter(torch.zeros(image_channels))

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        style = self.affine(w) / math.sqrt(x.shape[1])
        x = F.conv2d(x * style[:, :, None, None], self.weight, self.bias)
        return x if self.clamp is None else x.clamp(-self.clamp, self.clamp)


class SynthesisBlock(nn.Module):
    """Features and image of half the size (None at 4x4) to those of this size: two convolutions, then the image's share."""

    def __init__(
        self, in_channels: int | None, channels: int, image_channels: int, w_dim: int, size: int, noise, clamp
    ):
        super().__init__()
        if in_channels is None:
            self.const = nn.Parameter(torch.randn(channels, size, size))
        else:
            self.conv0 = StyledConvolution(in_channels, channels, w_dim, size, True, noise, clamp)
        self.conv1 = StyledConvolution(channels, channels, w_dim, size, False, noise, clamp)
        self.torgb = ToImage(channels, image_channels, w_dim, clamp)

    def forward(self, x: Tensor | None, image: Tensor | None, w: Tensor) -> tuple[Tensor, Tensor]:
        if x is None:
            x = self.conv1(self.const.expand(len(w), -1, -1, -1), w)
            return x, self.torgb(x, w)
        x = self.conv1(self.conv0(x, w), w)
        return x, low_pass(image, double=True) + self.torgb(x, w)


class StyleGAN2Generator(GeneratorModel):
    """`forward(z, y)`: z [N, latent_dim], y int64 [N] -> image [N, C, H, W] in [-1, 1].

    widths: channels at 4x4 and after every doubling.
    num_classes: 1 for an unconditional generator.
    mapping_layers: 8 in configuration F, 2 in StyleGAN2-ADA's for CIFAR.
    truncation: 1 draws from the whole distribution; less trades variety for typical images (the paper's psi).
    noise: `const`, the stored noise, which makes an image a function of class and latents; `random`, fresh noise from
        torch's global generator; or `none`.
    clamp: bound of the features, which training in half precision set (256), or None.
    """

    @register_to_config
    def __init__(
        self,
        resolution: int = 32,
        image_channels: int = 3,
        widths: tuple[int, ...] = (512, 512, 512, 512),
        latent_dim: int = 512,
        w_dim: int = 512,
        num_classes: int = 1,
        mapping_layers: int = 8,
        truncation: float = 1.0,
        noise: Literal["const", "random", "none"] = "const",
        clamp: float | None = None,
    ):
        super().__init__()
        if resolution != 4 * 2 ** (len(widths) - 1):
            raise ValueError(f"{len(widths)} widths make {4 * 2 ** (len(widths) - 1)} pixels, not {resolution}.")
        self.mapping = Mapping(latent_dim, w_dim, num_classes, mapping_layers, truncation)
        self.synthesis = nn.ModuleDict()
        for index, channels in enumerate(widths):
            size = 4 * 2**index
            before = widths[index - 1] if index else None
            block = SynthesisBlock(before, channels, image_channels, w_dim, size, noise, clamp)
            self.synthesis[f"b{size}"] = block
        self.feature_names = tuple(f"synthesis.{name}.conv1" for name in list(self.synthesis)[1:])

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        w, x, image = self.mapping(z, y), None, None
        for block in self.synthesis.values():
            x, image = block(x, image, w)
        return image.clamp(-1, 1)
