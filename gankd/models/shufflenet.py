"""ShuffleNet V1 (3 groups) and V2 (1x), for small images.

Zhang et al., "ShuffleNet: An Extremely Efficient Convolutional Neural Network", CVPR 2018, arXiv 1707.01083
Ma et al., "ShuffleNet V2: Practical Guidelines for Efficient CNN Architecture Design", ECCV 2018, arXiv 1807.11164
Tian, Krishnan, Isola, "Contrastive Representation Distillation", ICLR 2020, arXiv 1910.10699 (the 1x1 stems)

Module names are those of the published checkpoints. Global average pooling takes 32 and 64 pixels alike.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gankd.models.networks import NETWORKS


def shuffle(x: Tensor, groups: int) -> Tensor:
    """[N, C, H, W]: the channels of `groups` groups, dealt out in turn."""
    return x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)


def pointwise(in_channels: int, out_channels: int, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 1, groups=groups, bias=False)


def depthwise(channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, 3, stride=stride, padding=1, groups=channels, bias=False)


class ShuffleNet(nn.Module):
    """Three stages of 4, 8 and 4 units behind a 1x1 stem; [N, in_channels, H, W] -> [N, num_classes]."""

    def __init__(self, in_channels: int):
        super().__init__()
        self.conv1 = pointwise(in_channels, 24)
        self.bn1 = nn.BatchNorm2d(24)
        self.relu = nn.ReLU()

    def feature_taps(self, preact: bool = False) -> list[str]:
        """Before its last ReLU a stage of V2 is not yet shuffled: the channels are in another order than after it."""
        before = ["layer1.3.relu:input", "layer2.7.relu:input", "layer3.3.relu:input"]
        return ["relu", *(before if preact else ["layer1", "layer2", "layer3"]), "linear:input"]


# --- V1 ---------------------------------------------------------------------------------------------------------------


class UnitV1(nn.Module):
    """Grouped 1x1, shuffle, depthwise 3x3, grouped 1x1, each with BN; plus the input, or beside its average pool.

    Like the published networks and unlike the paper there is a ReLU after the depthwise convolution.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, groups: int, first_groups: int):
        super().__init__()
        branch = out_channels - in_channels if stride == 2 else out_channels  # the pooled input supplies the others
        width = branch // 4
        self.stride, self.shuffle_groups = stride, first_groups
        self.conv1 = pointwise(in_channels, width, first_groups)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = depthwise(width, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = pointwise(width, branch, groups)
        self.bn3 = nn.BatchNorm2d(branch)
        self.relu = nn.ReLU()  # only at the end, so that its input is the pre-activation tap

    def forward(self, x: Tensor) -> Tensor:
        h = shuffle(F.relu(self.bn1(self.conv1(x))), self.shuffle_groups)
        h = F.relu(self.bn2(self.conv2(h)))
        h = self.bn3(self.conv3(h))
        return self.relu(torch.cat([h, F.avg_pool2d(x, 3, stride=2, padding=1)], dim=1) if self.stride == 2 else h + x)


@NETWORKS.register("ShuffleV1")
class ShuffleV1(ShuffleNet):
    """A ShuffleNet of units of 3 groups."""

    def __init__(self, num_classes: int = 100, in_channels: int = 3):
        super().__init__(in_channels)
        self.layer1 = self._stage(24, 240, units=4, first_groups=1)  # 24 channels are too few to be grouped
        self.layer2 = self._stage(240, 480, units=8, first_groups=3)
        self.layer3 = self._stage(480, 960, units=4, first_groups=3)
        self.linear = nn.Linear(960, num_classes)

    @staticmethod
    def _stage(in_channels: int, width: int, units: int, first_groups: int) -> nn.Sequential:
        first = UnitV1(in_channels, width, stride=2, groups=3, first_groups=first_groups)
        return nn.Sequential(first, *(UnitV1(width, width, 1, groups=3, first_groups=3) for _ in range(units - 1)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean(dim=(2, 3)))

    def extra_stage(self) -> nn.Module:
        width = self.linear.in_features
        return nn.Sequential(*(UnitV1(width, width, 1, groups=3, first_groups=3) for _ in self.layer3))


# --- V2 ---------------------------------------------------------------------------------------------------------------


class DownUnitV2(nn.Module):
    """Both branches see the whole input, at stride 2, each supplies half of the channels; shuffled."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 2):
        super().__init__()
        half = out_channels // 2
        self.conv1 = depthwise(in_channels, stride=stride)
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv2 = pointwise(in_channels, half)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = pointwise(in_channels, half)
        self.bn3 = nn.BatchNorm2d(half)
        self.conv4 = depthwise(half, stride=stride)
        self.bn4 = nn.BatchNorm2d(half)
        self.conv5 = pointwise(half, half)
        self.bn5 = nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> Tensor:
        left = F.relu(self.bn2(self.conv2(self.bn1(self.conv1(x)))))
        right = F.relu(self.bn3(self.conv3(x)))
        right = F.relu(self.bn5(self.conv5(self.bn4(self.conv4(right)))))
        return shuffle(torch.cat([left, right], dim=1), groups=2)


class UnitV2(nn.Module):
    """The first half of the channels stays, the second goes through 1x1, depthwise 3x3 and 1x1; shuffled."""

    def __init__(self, channels: int):
        super().__init__()
        half = channels // 2
        self.conv1 = pointwise(half, half)
        self.bn1 = nn.BatchNorm2d(half)
        self.conv2 = depthwise(half)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = pointwise(half, half)
        self.bn3 = nn.BatchNorm2d(half)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        kept, branch = x.chunk(2, dim=1)
        branch = F.relu(self.bn1(self.conv1(branch)))
        branch = self.bn3(self.conv3(self.bn2(self.conv2(branch))))
        # Every unit's output is a ReLU's, so the last ReLU may see `kept` too: that changes nothing, and its input is
        # the pre-activation tap.
        return shuffle(self.relu(torch.cat([kept, branch], dim=1)), groups=2)


@NETWORKS.register("ShuffleV2")
class ShuffleV2(ShuffleNet):
    """A ShuffleNet whose units split the channels; a 1x1 convolution before the pooling."""

    def __init__(self, num_classes: int = 100, in_channels: int = 3):
        super().__init__(in_channels)
        self.layer1 = self._stage(24, 116, units=4)
        self.layer2 = self._stage(116, 232, units=8)
        self.layer3 = self._stage(232, 464, units=4)
        self.conv2 = pointwise(464, 1024)
        self.bn2 = nn.BatchNorm2d(1024)
        self.linear = nn.Linear(1024, num_classes)

    @staticmethod
    def _stage(in_channels: int, width: int, units: int) -> nn.Sequential:
        return nn.Sequential(DownUnitV2(in_channels, width), *(UnitV2(width) for _ in range(units - 1)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return self.linear(x.mean(dim=(2, 3)))

    def extra_stage(self) -> nn.Module:
        width = self.conv2.in_channels
        return nn.Sequential(DownUnitV2(width, width, stride=1), *(UnitV2(width) for _ in self.layer3[1:]))
