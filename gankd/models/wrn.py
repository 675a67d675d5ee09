"""Wide residual networks with pre-activation blocks.

Zagoruyko, Komodakis, "Wide Residual Networks", BMVC 2016, arXiv 1605.07146

Module names are those of the published checkpoints. Global average pooling takes 32 and 64 pixels alike.
"""

from collections import OrderedDict

import torch.nn.functional as F
from torch import Tensor, nn

from gankd.models.networks import NETWORKS, sized
from gankd.models.resnet import initialize_convolutions


class PreactivationBlock(nn.Module):
    """BN-ReLU-conv3-BN-ReLU-conv3, plus the raw input, or a bare 1x1 convolution of the first ReLU where widths differ."""

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.convShortcut = None
        if in_channels != out_channels:
            self.convShortcut = nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        activated = F.relu(self.bn1(x))
        h = self.conv2(F.relu(self.bn2(self.conv1(activated))))
        return h + (x if self.convShortcut is None else self.convShortcut(activated))


class WideResNet(nn.Module):
    """wrn_DEPTH_WIDEN: a bare 3x3 stem of 16 channels and stages of 16, 32 and 64 times `widen`; no dropout.

    [N, in_channels, H, W] -> [N, num_classes].

    depth: 6 n + 4 for n blocks a stage.
    Raises ValueError: a depth that is not 6 n + 4.
    """

    def __init__(self, depth: int, widen: int, num_classes: int = 100, in_channels: int = 3):
        super().__init__()
        if depth < 10 or (depth - 4) % 6:
            raise ValueError(f"a wide ResNet has 6 n + 4 layers (10, 16, 22, ...), not {depth}.")
        self.name = f"wrn_{depth}_{widen}"
        blocks = (depth - 4) // 6
        self.conv1 = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        self.block1 = self._stage(16, 16 * widen, blocks, stride=1)
        self.block2 = self._stage(16 * widen, 32 * widen, blocks, stride=2)
        self.block3 = self._stage(32 * widen, 64 * widen, blocks, stride=2)
        self.bn1 = nn.BatchNorm2d(64 * widen)
        self.fc = nn.Linear(64 * widen, num_classes)
        initialize_convolutions(self)

    @staticmethod
    def _stage(in_channels: int, width: int, blocks: int, stride: int) -> nn.Sequential:
        first = PreactivationBlock(in_channels, width, stride)
        layer = nn.Sequential(first, *(PreactivationBlock(width, width, stride=1) for _ in range(blocks - 1)))
        return nn.Sequential(OrderedDict(layer=layer))  # the checkpoints' keys say block1.layer.0

    def forward(self, x: Tensor) -> Tensor:
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        return self.fc(F.relu(self.bn1(x)).mean(dim=(2, 3)))

    def feature_taps(self, preact: bool = False) -> list[str]:
        # A sum is normalised by whatever comes next: the next stage's first BN, which runs anyway and sees it once.
        stages = self.norms_before_relu() if preact else ["block1", "block2", "block3"]
        return ["conv1", *stages, "fc:input"]

    def extra_stage(self) -> nn.Module:
        width = self.fc.in_features
        return nn.Sequential(*(PreactivationBlock(width, width, stride=1) for _ in self.block3.layer))

    def norms_before_relu(self) -> list[str]:
        return ["block2.layer.0.bn1", "block3.layer.0.bn1", "bn1"]


for _depth in (16, 40):
    for _widen in (1, 2):
        NETWORKS.register(f"wrn_{_depth}_{_widen}")(sized(WideResNet, _depth, _widen))
