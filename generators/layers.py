"""Building blocks that the generator and discriminator networks share: spectral normalisation in both conventions,
self-attention, and the residual blocks of SNGAN, SAGAN and BigGAN."""

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from generators.conditioning import upsample

SIZES = (8, 16, 32, 64, 128)  # sides of images, in pixels, to which 4x4 can be doubled
Layer = Callable[..., nn.Module]


def check_size(networks: str, resolution: int, valid: Iterable[int]) -> None:
    """Raise a ValueError unless `resolution` is one of the `valid` image sizes of the networks."""
    if resolution not in (valid := list(valid)):
        raise ValueError(
            f"an image size of {resolution} pixels does not fit the {networks} networks; use one of {valid}."
        )


def spectral_normalize(weight: Tensor, u: Tensor, eps: float = 1e-12) -> tuple[Tensor, Tensor, Tensor]:
    """Divide a weight by its largest singular value, estimated by one power iteration from u (the BigGAN rule).

    W = weight as [out, rest];  v = normalize(u W);  u' = normalize(v W^T);  sigma = v W^T u'^T

    weight: [out, ...]; u: [1, out], the left singular vector of the step before.
    Returns (weight / sigma, u' [1, out], sigma []). u' and v carry no gradient, sigma does. The iteration also runs
    at evaluation, from the stored u: torch's own spectral norm reuses its stored vectors there instead, so weights
    trained with one rule are not reproduced by the other.
    Source: Miyato et al., "Spectral Normalization for GANs", ICLR 2018, algorithm 1; Brock et al., ICLR 2019.
    """
    with torch.autocast(weight.device.type, enabled=False):
        matrix = weight.flatten(1)  # [out, rest]
        with torch.no_grad():
            v = F.normalize(u @ matrix, eps=eps)  # [1, rest]
            u = F.normalize(v @ matrix.T, eps=eps)  # [1, out]
        sigma = (v @ matrix.T @ u.T).squeeze()
        return weight / sigma, u, sigma


class SpectrallyNormalized:
    """Mixed into a layer, divides its weight as `spectral_normalize` does; the buffer `u0` moves in training only."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.register_buffer("u0", torch.randn(1, len(self.weight)))

    def normalized_weight(self) -> Tensor:
        weight, u, _ = spectral_normalize(self.weight, self.u0)
        if self.training:
            self.u0.copy_(u)
        return weight


class SNConv2d(SpectrallyNormalized, nn.Conv2d):
    """Convolution under BigGAN's rule. [N, in, H, W] -> [N, out, H', W']."""

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.normalized_weight(), self.bias)


class SNLinear(SpectrallyNormalized, nn.Linear):
    """Linear map under BigGAN's rule. [N, in] -> [N, out]."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.normalized_weight(), self.bias)


class SNEmbedding(SpectrallyNormalized, nn.Embedding):
    """Table of class codes under BigGAN's rule. int64 [N] -> [N, dim]."""

    def forward(self, y: Tensor) -> Tensor:
        return F.embedding(y, self.normalized_weight())


def torch_sn_conv2d(*args, **kwargs) -> nn.Conv2d:
    """Convolution under torch's rule: the vectors stored in training serve at evaluation."""
    return spectral_norm(nn.Conv2d(*args, **kwargs))


def torch_sn_linear(*args, **kwargs) -> nn.Linear:
    """Linear map under torch's rule."""
    return spectral_norm(nn.Linear(*args, **kwargs))


def initialize_normal(network: nn.Module, std: float = 0.02) -> None:
    """Draw every convolution, linear map and table from N(0, std^2), as DCGAN and BigGAN do; biases stay as they are."""
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, 0, std)


class SelfAttention(nn.Module):
    """x + gamma * o(attended values); gamma starts at 0. [N, C, H, W] -> same.

    Queries and keys have C / 8 channels, values C / 2; keys and values are max-pooled to a quarter of the positions.
    Source: Zhang et al., "Self-Attention GANs", ICML 2019; pooled as in Brock et al., ICLR 2019.
    """

    def __init__(self, channels: int, convolution: Layer = SNConv2d, bias: bool = False):
        super().__init__()
        query_channels, value_channels = max(channels // 8, 1), max(channels // 2, 1)
        self.theta = convolution(channels, query_channels, 1, bias=bias)
        self.phi = convolution(channels, query_channels, 1, bias=bias)
        self.g = convolution(channels, value_channels, 1, bias=bias)
        self.o = convolution(value_channels, channels, 1, bias=bias)
        self.gamma = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        query = self.theta(x).flatten(2)  # [N, C/8, HW]
        key = F.max_pool2d(self.phi(x), 2).flatten(2)  # [N, C/8, HW/4]
        value = F.max_pool2d(self.g(x), 2).flatten(2)  # [N, C/2, HW/4]
        # written out: torch's fused attention has no second derivative, which a gradient penalty needs
        attention = (query.transpose(1, 2) @ key).softmax(dim=2)  # [N, HW, HW/4]
        attended = (value @ attention.transpose(1, 2)).unflatten(2, x.shape[2:])  # [N, C/2, H, W]
        return x + self.gamma * self.o(attended)


class GeneratorBlock(nn.Module):
    """x + residual, both doubled: norm, ReLU, up, conv, norm, ReLU, conv. [N, in, H, W] -> [N, out, 2H, 2W].

    `norm(channels)` makes a module that is called with (x, code).
    """

    def __init__(self, in_channels: int, out_channels: int, norm: Layer, convolution: Layer = nn.Conv2d):
        super().__init__()
        self.norm1, self.norm2 = norm(in_channels), norm(out_channels)
        self.conv1 = convolution(in_channels, out_channels, 3, padding=1)
        self.conv2 = convolution(out_channels, out_channels, 3, padding=1)
        self.shortcut = convolution(in_channels, out_channels, 1)

    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        h = self.conv1(upsample(F.relu(self.norm1(x, code))))
        h = self.conv2(F.relu(self.norm2(h, code)))
        # a 1x1 convolution commutes with nearest doubling, at a quarter of the work
        return h + upsample(self.shortcut(x))


class DiscriminatorBlock(nn.Module):
    """x + residual, halved when `downsample`. The first block sees the image itself, so it starts without a ReLU."""

    def __init__(
        self, channels: int, out: int, downsample: bool, first: bool = False, convolution: Layer = torch_sn_conv2d
    ):
        super().__init__()
        self.first, self.downsample = first, downsample
        self.conv1 = convolution(channels, out, 3, padding=1)
        self.conv2 = convolution(out, out, 3, padding=1)
        self.shortcut = convolution(channels, out, 1) if channels != out or downsample else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(x if self.first else F.relu(x))
        h = self.conv2(F.relu(h))
        if self.downsample:  # the shortcut's 1x1 convolution commutes with pooling, at a quarter of the work
            h, x = F.avg_pool2d(h, 2), F.avg_pool2d(x, 2)
        return h + self.shortcut(x)
