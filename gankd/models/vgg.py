"""VGG with batch normalisation, for small images.

Simonyan, Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", ICLR 2015, arXiv 1409.1556
Tian, Krishnan, Isola, "Contrastive Representation Distillation", ICLR 2020, arXiv 1910.10699 (vgg8, the pooling)

Module names are those of the published checkpoints.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from gankd.models.networks import NETWORKS, sized
from gankd.models.resnet import initialize_convolutions

WIDTHS = (64, 128, 256, 512, 512)
CONVOLUTIONS = {  # in each of the five groups
    8: (1, 1, 1, 1, 1),
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}


class VGG(nn.Module):
    """Five groups of conv3-BN-ReLU with pooling between them and one linear layer; [N, in_channels, H, W] -> logits.

    Below 64 pixels the last two groups share a resolution (4x4 for 32 pixels), from 64 pixels on they are pooled apart.
    Raises ValueError: a depth other than 8, 11, 13, 16 and 19.
    """

    def __init__(self, depth: int, num_classes: int = 100, in_channels: int = 3):
        super().__init__()
        if depth not in CONVOLUTIONS:
            raise ValueError(f"there is VGG with {', '.join(map(str, CONVOLUTIONS))} layers, not with {depth}.")
        self.name = f"vgg{depth}"
        self.block0, self.block1, self.block2, self.block3, self.block4 = (
            self._group(before, width, convolutions)
            for before, width, convolutions in zip((in_channels, *WIDTHS), WIDTHS, CONVOLUTIONS[depth], strict=False)
        )
        self.classifier = nn.Linear(WIDTHS[-1], num_classes)
        initialize_convolutions(self)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)

    @staticmethod
    def _group(in_channels: int, width: int, convolutions: int) -> nn.Sequential:
        layers: list[nn.Module] = []
        for index in range(convolutions):
            convolution = nn.Conv2d(width if index else in_channels, width, 3, padding=1)
            nn.init.zeros_(convolution.bias)
            layers += [convolution, nn.BatchNorm2d(width), nn.ReLU()]
        return nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        large = x.shape[2] >= 64
        x = F.max_pool2d(self.block0(x), 2)
        x = F.max_pool2d(self.block1(x), 2)
        x = F.max_pool2d(self.block2(x), 2)
        x = self.block3(x)
        x = self.block4(F.max_pool2d(x, 2) if large else x)
        return self.classifier(x.mean(dim=(2, 3)))

    def feature_taps(self, preact: bool = False) -> list[str]:
        groups = self.norms_before_relu() if preact else ["block1", "block2", "block3", "block4"]
        return ["block0", *groups, "classifier:input"]

    def branch_taps(self) -> list[str]:
        """Where hsakd's branches start: behind the last group of each resolution (of 32 pixels)."""
        return ["block0", "block1", "block2", "block4"]

    def extra_stage(self) -> nn.Module:
        groups = (self.block3, self.block4)  # of one resolution, so one stage
        return nn.Sequential(*(self._group(WIDTHS[-1], WIDTHS[-1], len(group) // 3) for group in groups))

    def norms_before_relu(self) -> list[str]:
        return [f"block{i}.{len(getattr(self, f'block{i}')) - 2}" for i in (1, 2, 3, 4)]


for _depth in CONVOLUTIONS:
    NETWORKS.register(f"vgg{_depth}")(sized(VGG, _depth))
