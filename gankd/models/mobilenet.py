"""MobileNetV2 of half width, for small images.

Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", CVPR 2018, arXiv 1801.04381
Tian, Krishnan, Isola, "Contrastive Representation Distillation", ICLR 2020, arXiv 1910.10699 (strides, width, ReLU)

Module names are those of the published checkpoints. Global average pooling takes 32 and 64 pixels alike.
"""

from torch import Tensor, nn

from gankd.models.networks import NETWORKS
from gankd.models.resnet import initialize_convolutions

GROUPS = (  # expansion, channels, blocks, stride of the first block; half of the paper's widths, not rounded to 8
    (1, 8, 1, 1),
    (6, 12, 2, 1),
    (6, 16, 3, 2),
    (6, 32, 4, 2),
    (6, 48, 3, 1),
    (6, 80, 3, 2),
    (6, 160, 1, 1),
)


class InvertedResidual(nn.Module):
    """1x1 expansion, depthwise 3x3, linear 1x1 projection, each with BN; plus the input where the shape stays.

    The expansion is there even where it expands by 1.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, expansion: int):
        super().__init__()
        width = expansion * in_channels
        self.residual = stride == 1 and in_channels == out_channels
        self.conv = nn.Sequential(
            nn.Conv2d(in_channels, width, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, stride=stride, padding=1, groups=width, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, out_channels, 1, bias=False),
            nn.BatchNorm2d(out_channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.residual else self.conv(x)


@NETWORKS.register("MobileNetV2")
class MobileNetV2(nn.Module):
    """Seven groups of inverted residuals, ReLU throughout (not ReLU6), no dropout; [N, in_channels, H, W] -> logits."""

    def __init__(self, num_classes: int = 100, in_channels: int = 3):
        super().__init__()
        self.conv1 = nn.Sequential(
            nn.Conv2d(in_channels, 16, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()
        )
        groups, before = [], 16
        for expansion, channels, blocks, stride in GROUPS:
            group = [InvertedResidual(before, channels, stride, expansion)]
            group += [InvertedResidual(channels, channels, 1, expansion) for _ in range(blocks - 1)]
            groups.append(nn.Sequential(*group))
            before = channels
        self.blocks = nn.Sequential(*groups)
        self.conv2 = nn.Sequential(nn.Conv2d(before, 1280, 1, bias=False), nn.BatchNorm2d(1280), nn.ReLU())
        self.classifier = nn.Sequential(nn.Linear(1280, num_classes))
        initialize_convolutions(self)
        nn.init.normal_(self.classifier[0].weight, std=0.01)
        nn.init.zeros_(self.classifier[0].bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv2(self.blocks(self.conv1(x)))
        return self.classifier(x.mean(dim=(2, 3)))

    def feature_taps(self, preact: bool = False) -> list[str]:
        # A linear bottleneck ends without a ReLU: with and without activation are the same.
        return ["conv1", "blocks.1", "blocks.2", "blocks.4", "blocks.6", "classifier.0:input"]

    def extra_stage(self) -> nn.Module:
        blocks, before = [], GROUPS[-1][1]
        for expansion, channels, repeats, _ in GROUPS[-2:]:  # what lies between the last two taps
            for _ in range(repeats):
                blocks.append(InvertedResidual(before, channels, 1, expansion))
                before = channels
        return nn.Sequential(*blocks)

    def norms_before_relu(self) -> list[str]:
        return [f"blocks.{i}.{len(self.blocks[i]) - 1}.conv.7" for i in (1, 2, 4, 6)]
