"""The feature extractors h(x) that the density ratio of cGAN-KD was published with, and their training.

`WideClassifier` for classes, `SparseAutoencoder` for scalar labels; both give C*H*W features, and are frozen afterwards.
A good teacher's features do as well for much less work, which is why they are the default (`features: teacher`).
Source: Ding et al., arXiv 2103.11166 and 2104.03164.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from generators.images import to_generator_range


def sparse_autoencoder_loss(
    *,
    reconstructions: Tensor,
    images: Tensor,
    features: Tensor,
    predictions: Tensor,
    labels: Tensor,
    sparsity_weight: float,
    regression_weight: float,
) -> Tensor:
    """MSE(reconstruction, image) + sparsity_weight mean(feature) + regression_weight MSE(prediction, label), a scalar.

    reconstructions and images [N, C, H, W]; features [N, D] >= 0 (so that their mean is an L1 norm); predictions [N] or
    [N, 1] and labels [N] in [0, 1].
    """
    reconstruction = F.mse_loss(reconstructions.float(), images.float())
    regression = F.mse_loss(predictions.float().flatten(), labels.float())
    return reconstruction + sparsity_weight * features.float().mean() + regression_weight * regression


def _conv(channels: int, out: int, layer: type[nn.Module] = nn.Conv2d, kernel_size: int = 3, stride: int = 1):
    return nn.Sequential(layer(channels, out, kernel_size, stride, padding=1), nn.BatchNorm2d(out), nn.ReLU())


class SparseAutoencoder(nn.Module):
    """Images [N, C, H, W] in [-1, 1] (square, 4 times a power of two) to non-negative features [N, C*H*W] and back."""

    def __init__(self, image_shape: tuple[int, int, int], width: int = 64):
        super().__init__()
        channels, height, width_ = image_shape
        if height != width_ or height < 8 or height & (height - 1):
            raise ValueError(
                f"images of {height}x{width_} do not fit the autoencoder of the density ratio, which halves squares down to "
                "4 pixels; use synthesis.subsample.features: teacher."
            )
        num_features = channels * height * height
        halvings = (height // 4).bit_length() - 1
        outs = [width * min(2**index, 4) for index in range(halvings)]
        ins = [width, *outs][:halvings]
        encoder, previous = [], channels
        for narrow, wide in zip(ins, outs, strict=True):
            encoder += [_conv(previous, narrow, kernel_size=4, stride=2), _conv(narrow, wide)]
            previous = wide
        self.encoder = nn.Sequential(*encoder, nn.Flatten(), nn.Linear(previous * 16, num_features), nn.ReLU())
        size = previous * 16
        decoder = [nn.Linear(num_features, size), nn.BatchNorm1d(size), nn.ReLU(), nn.Unflatten(1, (-1, 4, 4))]
        for narrow in reversed(ins):
            decoder += [_conv(previous, narrow, nn.ConvTranspose2d, kernel_size=4, stride=2), _conv(narrow, narrow)]
            previous = narrow
        self.decoder = nn.Sequential(*decoder, nn.Conv2d(previous, channels, 1), nn.Tanh())
        self.predictor = _head(num_features, (1024, 512, 256), 1, dropout=0.0, last=nn.ReLU())

    def forward(self, images: Tensor) -> Tensor:
        return self.encoder(images)

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """The training loss for images in [-1, 1] and labels [N] in [0, 1]."""
        features = self(images)
        found = {"reconstructions": self.decoder(features), "predictions": self.predictor(features)}
        given = {"images": images, "features": features, "labels": labels}
        return sparse_autoencoder_loss(**found, **given, sparsity_weight=1e-3, regression_weight=1.0)


class WideClassifier(nn.Module):
    """A ResNet-34 with a 3x3 stem whose linear output [N, C*H*W], without activation, is the feature; a head above it."""

    def __init__(self, image_shape: tuple[int, int, int], num_classes: int):
        super().__init__()
        from torchvision.models import resnet34

        channels, height, width = image_shape
        num_features = channels * height * width
        self.backbone = resnet34(num_classes=num_features)
        self.backbone.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
        self.backbone.maxpool = nn.Identity()
        head = _head(num_features, (1024, 256), num_classes, dropout=0.5)
        self.head = nn.Sequential(nn.BatchNorm1d(num_features), nn.ReLU(), nn.Dropout(0.5), head)

    def forward(self, images: Tensor) -> Tensor:
        return self.backbone(images)

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy of the head for images in [-1, 1] and class ids [N]."""
        return F.cross_entropy(self.head(self(images)), labels)


def _head(num_features: int, widths: tuple[int, ...], num_outputs: int, dropout: float, last: nn.Module | None = None):
    layers, previous = [], num_features
    for width in widths:
        layers += [nn.Linear(previous, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(dropout)]
        previous = width
    return nn.Sequential(*layers, nn.Linear(previous, num_outputs), last or nn.Identity())


def train_extractor(
    extractor: SparseAutoencoder | WideClassifier,
    images,
    labels: Tensor,
    *,
    steps: int,
    batch_size: int = 128,
    device: torch.device | str = "cpu",
    log: Callable[[dict], None] = lambda values: None,
) -> None:
    """Train in place on uint8 images [N, C, H, W] (SGD with momentum .9, weight decay 1e-4, cosine), and freeze.

    labels: class ids for a `WideClassifier`, numbers in [0, 1] for a `SparseAutoencoder`.
    """
    extractor.to(device).train()
    rate = 0.1 if isinstance(extractor, WideClassifier) else 0.01
    optimizer = torch.optim.SGD(extractor.parameters(), lr=rate, momentum=0.9, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        indices = torch.randint(len(labels), (batch_size,))
        loss = extractor.loss(to_generator_range(images[indices].to(device)), labels[indices].to(device))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        if (step + 1) % 100 == 0 or step + 1 == steps:
            log({"stage": "extractor", "step": step + 1, "loss": loss.item()})
    extractor.eval().requires_grad_(False)
