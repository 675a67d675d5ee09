"""A small residual network for small images: the teacher and the student of the examples, and a good first student."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from gankd.models.networks import NETWORKS
from gankd.models.resnet import projection
from generators.settings import Count


class ResidualBlock(nn.Module):
    """conv-BN-ReLU-conv-BN, plus the input (through a 1x1 convolution where the shape changes), ReLU."""

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        same = stride == 1 and in_channels == out_channels
        self.shortcut = nn.Identity() if same else projection(in_channels, out_channels, stride)
        self.relu = nn.ReLU()  # only after the sum, so that its input is the pre-activation tap

    def forward(self, x: Tensor) -> Tensor:
        h = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return self.relu(h + self.shortcut(x))


@NETWORKS.register("small_resnet")
class SmallResNet(nn.Module):
    """Stem, one residual block a stage (halving from the second stage on), global average pooling, linear head.

    [N, in_channels, H, W] -> [N, num_classes]. A regression head is `num_classes=1`.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 3,
        *,
        widths: Sequence[Count] = (32, 64, 128),
        stem_stride: Count = 1,
    ):
        super().__init__()
        if not widths:
            raise ValueError("small_resnet needs at least one stage; give widths, e.g. [32, 64, 128].")
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, widths[0], 3, stride=stem_stride, padding=1, bias=False),
            nn.BatchNorm2d(widths[0]),
            nn.ReLU(),
        )
        self.stages = nn.Sequential(
            *(
                ResidualBlock(widths[max(index - 1, 0)], width, stride=1 if index == 0 else 2)
                for index, width in enumerate(widths)
            )
        )
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(widths[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(self.stages(self.stem(x))))

    def feature_taps(self, preact: bool = False) -> list[str]:
        stages = [f"stages.{index}.relu:input" if preact else f"stages.{index}" for index in range(len(self.stages))]
        return ["stem", *stages, "head:input"]

    def extra_stage(self) -> nn.Module:
        width = self.head.in_features
        return ResidualBlock(width, width, stride=1)

    def norms_before_relu(self) -> list[str]:
        return [f"stages.{index}.bn2" for index in range(len(self.stages))]
