"""The CIFAR residual networks of the distillation literature.

He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", CVPR 2016, arXiv 1512.03385 (section 4.2)
Tian, Krishnan, Isola, "Contrastive Representation Distillation", ICLR 2020, arXiv 1910.10699 (the x4 widths, ResNet50)

Module names are those of the published checkpoints. Global average pooling takes 32 and 64 pixels alike.
"""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from gankd.models.networks import NETWORKS, sized


def initialize_convolutions(network: nn.Module) -> None:
    """Kaiming normal: std = sqrt(2 / (k k C_out)). Torch counts the fan-out of a grouped convolution the same way."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def projection(in_channels: int, out_channels: int, stride: int = 1) -> nn.Module:
    """1x1 convolution and BN, as where a block changes the shape of its input."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False), nn.BatchNorm2d(out_channels)
    )


class PaddedShortcut(nn.Module):
    """Every `stride`-th pixel, with channels of zeros on both sides: no parameters (option A of the paper)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.stride, self.padding = stride, (out_channels - in_channels) // 2

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.padding, self.padding))


class BasicBlock(nn.Module):
    """conv3-BN-ReLU-conv3-BN, plus the input (through `shortcut` where the shape changes), ReLU."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int,
        shortcut: Callable[[int, int, int], nn.Module] = projection,
    ):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        same = stride == 1 and in_channels == out_channels
        self.downsample = None if same else shortcut(in_channels, out_channels, stride)
        self.relu = nn.ReLU()  # only after the sum, so that its input is the pre-activation tap

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.bn1(self.conv1(x)))
        h = self.bn2(self.conv2(h))
        return self.relu(h + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    """conv1-BN-ReLU-conv3-BN-ReLU-conv1-BN with four times the width at its end, plus the input, ReLU."""

    def __init__(self, in_channels: int, width: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        same = stride == 1 and in_channels == 4 * width
        self.shortcut = None if same else projection(in_channels, 4 * width, stride)
        self.relu = nn.ReLU()  # only after the sum, so that its input is the pre-activation tap

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.bn1(self.conv1(x)))
        h = F.relu(self.bn2(self.conv2(h)))
        h = self.bn3(self.conv3(h))
        return self.relu(h + (x if self.shortcut is None else self.shortcut(x)))


class ResNet(nn.Module):
    """Three stages of basic blocks: resnet8 to resnet110, and the wider resnet8x4 and resnet32x4.

    [N, in_channels, H, W] -> [N, num_classes].

    depth: 6 n + 2 for n blocks a stage.
    widths: channels of the stem and of the three stages.
    shortcut: of the blocks that change their input's shape: `projection`, or `PaddedShortcut`.
    Raises ValueError: a depth that is not 6 n + 2.
    """

    def __init__(
        self,
        depth: int,
        widths: tuple[int, int, int, int] = (16, 16, 32, 64),
        shortcut: Callable[[int, int, int], nn.Module] = projection,
        num_classes: int = 100,
        in_channels: int = 3,
    ):
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise ValueError(f"a CIFAR ResNet has 6 n + 2 layers (8, 14, 20, ...), not {depth}.")
        self.name = f"resnet{depth}" + ("x4" if widths == (32, 64, 128, 256) else "")
        blocks, self.shortcut = (depth - 2) // 6, shortcut
        self.conv1 = nn.Conv2d(in_channels, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU()
        self.layer1 = self._stage(widths[0], widths[1], blocks, stride=1)
        self.layer2 = self._stage(widths[1], widths[2], blocks, stride=2)
        self.layer3 = self._stage(widths[2], widths[3], blocks, stride=2)
        self.fc = nn.Linear(widths[3], num_classes)
        initialize_convolutions(self)

    def _stage(self, in_channels: int, width: int, blocks: int, stride: int) -> nn.Sequential:
        first = BasicBlock(in_channels, width, stride, self.shortcut)
        return nn.Sequential(first, *(BasicBlock(width, width, stride=1) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(x.mean(dim=(2, 3)))

    def feature_taps(self, preact: bool = False) -> list[str]:
        stages = [f"layer{i}.{len(self.layer1) - 1}.relu:input" if preact else f"layer{i}" for i in (1, 2, 3)]
        return ["relu", *stages, "fc:input"]

    def extra_stage(self) -> nn.Module:
        return self._stage(self.fc.in_features, self.fc.in_features, len(self.layer3), stride=1)

    def norms_before_relu(self) -> list[str]:
        return [f"layer{i}.{len(self.layer1) - 1}.bn2" for i in (1, 2, 3)]


for _depth in (8, 14, 20, 32, 44, 56, 110):
    NETWORKS.register(f"resnet{_depth}")(sized(ResNet, _depth))
    if _depth >= 20:  # those of the paper's table 6, with its shortcuts
        NETWORKS.register(f"resnet{_depth}_a")(sized(ResNet, _depth, (16, 16, 32, 64), PaddedShortcut))
for _depth in (8, 32):
    NETWORKS.register(f"resnet{_depth}x4")(sized(ResNet, _depth, (32, 64, 128, 256)))


@NETWORKS.register("ResNet50")
class ResNet50(nn.Module):
    """Four stages of 3, 4, 6 and 3 bottlenecks behind a 3x3 stem without pooling; [N, in_channels, H, W] -> logits."""

    def __init__(self, num_classes: int = 100, in_channels: int = 3):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 64, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU()
        self.layer1 = self._stage(64, 64, blocks=3, stride=1)
        self.layer2 = self._stage(256, 128, blocks=4, stride=2)
        self.layer3 = self._stage(512, 256, blocks=6, stride=2)
        self.layer4 = self._stage(1024, 512, blocks=3, stride=2)
        self.linear = nn.Linear(2048, num_classes)
        initialize_convolutions(self)

    @staticmethod
    def _stage(in_channels: int, width: int, blocks: int, stride: int) -> nn.Sequential:
        first = Bottleneck(in_channels, width, stride)
        return nn.Sequential(first, *(Bottleneck(4 * width, width, stride=1) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.linear(x.mean(dim=(2, 3)))

    def feature_taps(self, preact: bool = False) -> list[str]:
        last = {1: 2, 2: 3, 3: 5, 4: 2}
        stages = [f"layer{i}.{block}.relu:input" if preact else f"layer{i}" for i, block in last.items()]
        return ["relu", *stages, "linear:input"]

    def extra_stage(self) -> nn.Module:
        return self._stage(2048, 512, len(self.layer4), stride=1)

    def norms_before_relu(self) -> list[str]:
        return ["layer1.2.bn3", "layer2.3.bn3", "layer3.5.bn3", "layer4.2.bn3"]
