"""A conditional generator by rectified flow, of any size from 8 pixels on, for class ids or a scalar label.

A straight path joins an image x and noise n, x_t = (1 - t) x + t n. A small U-Net learns its velocity n - x from x_t, t and
the label; sampling follows the velocity from t = 1 to 0 in a few steps, so that an image is a function of latents and label,
as from a GAN. There is no discriminator.
Sources: Liu et al., "Flow Straight and Fast", ICLR 2023; Lipman et al., "Flow Matching for Generative Modeling", ICLR 2023.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from generators.conditioning import LabelInput, label_encoder
from generators.model import GeneratorModel, register_to_config

GROUPS = 8  # of a group norm
HEAD = 32  # channels of an attention head
UNLABELLED = 0.1  # share of training images without their label, from which guidance knows what no label looks like


class FlowBlock(nn.Module):
    """x + residual: norm, SiLU, conv, norm, gain and bias of the code, SiLU, conv. [N, C, H, W], [N, D] -> [N, C, H, W]."""

    def __init__(self, channels: int, code_dim: int):
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(GROUPS, channels), nn.GroupNorm(GROUPS, channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = zeroed(nn.Conv2d(channels, channels, 3, padding=1))
        self.modulate = nn.Linear(code_dim, 2 * channels)

    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        gain, bias = self.modulate(code)[:, :, None, None].chunk(2, dim=1)
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.norm2(h) * (1 + gain) + bias
        return x + self.conv2(F.silu(h))


class Level(nn.ModuleList):
    """`depth` blocks at one image size."""

    def __init__(self, channels: int, depth: int, code_dim: int):
        super().__init__(FlowBlock(channels, code_dim) for _ in range(depth))

    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        for block in self:
            x = block(x, code)
        return x


class HeadedAttention(nn.Module):
    """x + attention of every position to all others, in heads of 32 channels where they divide. [N, C, H, W] -> same."""

    def __init__(self, channels: int):
        super().__init__()
        self.num_heads = channels // HEAD if channels % HEAD == 0 else 1
        self.norm, self.qkv = nn.GroupNorm(GROUPS, channels), nn.Linear(channels, 3 * channels)
        self.out = zeroed(nn.Linear(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(x).flatten(2).transpose(1, 2)  # [N, HW, C]
        query, key, value = self.qkv(tokens).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(query, key, value)  # [N, heads, HW, C / heads]
        attended = self.out(attended.transpose(1, 2).flatten(2))
        return x + attended.transpose(1, 2).unflatten(2, x.shape[2:])


class VelocityUNet(nn.Module):
    """`forward(x, t, code)`: [N, C, H, W], times [N] in [0, 1], label codes [N, label_dim] -> velocities [N, C, H, W].

    Blocks of patch x patch pixels enter as channels; `widths` are the channels there and after every halving. An image that
    does not divide by them has a black margin inside of the network.
    """

    def __init__(self, *, image_channels: int, widths: tuple[int, ...], depth: int, patch: int, label_dim: int):
        super().__init__()
        channels, code_dim = image_channels * patch**2, 4 * widths[0]
        self.patch, self.multiple = patch, patch * 2 ** (len(widths) - 1)
        self.register_buffer("frequencies", torch.logspace(0, 3, 32), persistent=False)
        self.time = nn.Sequential(nn.Linear(64, code_dim), nn.SiLU(), nn.Linear(code_dim, code_dim))
        self.label = nn.Linear(label_dim, code_dim)
        self.enter = nn.Conv2d(channels, widths[0], 3, padding=1)
        self.encoder = nn.ModuleList(Level(width, depth, code_dim) for width in widths)
        self.shrink = nn.ModuleList(nn.Conv2d(*pair, 2, stride=2) for pair in pairwise(widths))
        self.attention = HeadedAttention(widths[-1])
        self.decoder = nn.ModuleList(Level(width, depth, code_dim) for width in widths[::-1])
        self.enlarge = nn.ModuleList(nn.ConvTranspose2d(*pair, 2, stride=2) for pair in pairwise(widths[::-1]))
        self.norm = nn.GroupNorm(GROUPS, widths[0])
        self.leave = zeroed(nn.Conv2d(widths[0], channels, 3, padding=1))

    def forward(self, x: Tensor, t: Tensor, code: Tensor) -> Tensor:
        angles = t[:, None] * self.frequencies
        code = F.silu(self.time(torch.cat([angles.sin(), angles.cos()], dim=1)) + self.label(code))
        (height, width), divisor = x.shape[2:], self.multiple
        x = F.pad(x, (0, -width % divisor, 0, -height % divisor))
        h = self.enter(F.pixel_unshuffle(x, self.patch).contiguous(memory_format=torch.channels_last))
        skips = []
        for level, shrink in zip(self.encoder, self.shrink, strict=False):  # the coarsest has no half
            skips.append(level(h, code))
            h = shrink(skips[-1])
        h = self.decoder[0](self.attention(self.encoder[-1](h, code)), code)
        for level, enlarge in zip(self.decoder[1:], self.enlarge, strict=True):
            h = level(enlarge(h) + skips.pop(), code)
        return F.pixel_shuffle(self.leave(F.silu(self.norm(h))), self.patch)[..., :height, :width]


class FlowGenerator(GeneratorModel):
    """`forward(z, y)`: the noise z [N, C * H * W] and y [N] -> image [N, C, H, W] in [-1, 1].

    Features are those of the last evaluation, when the image is all but noise-free: the outputs of the decoder's levels.

    patch: side of the pixel blocks that enter as channels; None: 1 up to 16 pixels, 2 up to 32, 4 above.
    num_steps: steps of Heun's method, each two evaluations of the network, the last one.
    guidance: weight of the label over no label, 1 for none (Ho and Salimans, "Classifier-Free Diffusion Guidance", 2022).
    latent_dim: one number a value of the image; None is the only choice.
    The other args are as the fields of `GeneratorConfig`.
    """

    sampling_settings = ("num_steps", "guidance")

    @register_to_config
    def __init__(
        self,
        resolution: int = 32,
        image_channels: int = 3,
        widths: tuple[int, ...] = (64, 96, 128),
        depth: int = 1,
        label_dim: int = 128,
        num_classes: int | None = None,
        label_range: tuple[float, float] | None = None,
        label_input: LabelInput = "embedding",
        patch: int | None = None,
        num_steps: int = 6,
        guidance: float = 2.0,
        latent_dim: int | None = None,
    ):
        super().__init__()
        patch = patch or (1 if resolution <= 16 else 2 if resolution <= 32 else 4)
        sampling = {"num_steps": num_steps, "guidance": guidance}
        check_flow(resolution=resolution, widths=widths, patch=patch, label_input=label_input, **sampling)
        self.register_to_config(patch=patch, latent_dim=image_channels * resolution**2)
        self.feature_names = tuple(f"network.decoder.{index}" for index in range(len(widths)))
        self.encoder = label_encoder(label_input, label_dim, num_classes)
        self.no_label = nn.Parameter(torch.randn(label_dim))  # its code
        shape = {"image_channels": image_channels, "widths": tuple(widths), "depth": depth, "patch": patch}
        self.network = VelocityUNet(**shape, label_dim=label_dim)

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        size, steps = self.config.resolution, self.config.num_steps
        x, code = z.unflatten(1, (self.config.image_channels, size, size)), self.label_code(y)
        if self.config.guidance != 1:
            code = torch.cat([code, self.no_label.expand_as(code)])
        for step in range(steps):
            start, change = 1 - step / steps, -1 / steps
            velocity = self.velocity(x, start, code)
            if (
                step < steps - 1
            ):  # Heun's method: the mean of the velocities at both ends, of which t = 0 is never asked
                velocity = (velocity + self.velocity(x + change * velocity, start + change, code)) / 2
            x = x + change * velocity
        return x.clamp(-1, 1)

    def velocity(self, x: Tensor, time: float, code: Tensor) -> Tensor:
        """Velocities [N, C, H, W] in float32 at one time; with codes [2N, label_dim], of labels and of none, guided."""
        guided = self.config.guidance != 1
        x = x.repeat(2, 1, 1, 1) if guided else x
        velocity = self.network(x, torch.full((len(x),), time, device=x.device), code).float()
        if not guided:
            return velocity
        of_label, of_none = velocity.chunk(2)
        return of_none + self.config.guidance * (of_label - of_none)

    def training_loss(self, images: Tensor, y: Tensor) -> Tensor:
        """mean |network(x_t, t, y) - (n - x)|^2 [] for images x [N, C, H, W] in [-1, 1]; a tenth of the labels is hidden.

        t is the sigmoid of a standard normal number: Esser et al., "Scaling Rectified Flow Transformers", ICML 2024.
        """
        t, noise = torch.randn(len(y), device=images.device).sigmoid(), torch.randn_like(images)
        hidden = torch.rand(len(y), 1, device=images.device) < UNLABELLED
        code = torch.where(hidden, self.no_label, self.label_code(y))
        place = t[:, None, None, None]
        velocity = self.network((1 - place) * images + place * noise, t, code)
        return F.mse_loss(velocity.float(), noise - images)

    def sample_with_features(self, labels: Tensor, latents: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        images, features = super().sample_with_features(labels, latents)
        return images, {name: values[: len(images)] for name, values in features.items()}  # those of the label


def zeroed(layer: nn.Conv2d | nn.Linear) -> nn.Conv2d | nn.Linear:
    """The layer, which adds nothing at first."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def check_flow(
    *, resolution: int, widths: Sequence[int], patch: int, label_input: str, num_steps: int, guidance: float
) -> None:
    """Raise a ValueError for an image size or settings that the network cannot take."""
    if not widths or any(width % GROUPS for width in widths):
        raise ValueError(f"widths {list(widths)} do not suit the unet network; use multiples of {GROUPS}, one or more.")
    multiple = patch * 2 ** (len(widths) - 1)
    if resolution < max(8, multiple):
        raise ValueError(
            f"an image size of {resolution} pixels does not fit the unet network with a patch of {patch} and {len(widths)} "
            f"widths; use one of {max(8, multiple)} or more, a smaller patch or fewer widths."
        )
    if num_steps < 1 or guidance < 0:
        raise ValueError(f"num_steps {num_steps} and guidance {guidance} draw no images; give 1 or more and 0 or more.")
    if label_input == "nli":
        raise ValueError("label_input nli, the bare number, does not go with the unet network; use fourier or ili.")
