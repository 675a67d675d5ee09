"""Training of CcGAN's improved label input (ILI): a label network whose codes mean what the images of that label show.

Two phases, as in Ding et al., CcGAN, T-PAMI 2023. (a) A convolutional regressor x -> h -> y learns the label of an image
through a code h. (b) With the map h -> y frozen, the label network y -> h learns codes that the map sends back to y.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from generators.conditioning import LabelNetwork
from generators.images import Images, to_unit_range
from generators.progress import Progress
from generators.randomness import mix


class ImageRegressor(nn.Module):
    """Images [N, C, H, W] in [0, 1] to a code [N, dim] (`encode`), and codes to labels in [0, 1] [N] (`decode`)."""

    def __init__(self, image_channels: int, dim: int, width: int = 32):
        super().__init__()
        layers, channels = [], image_channels
        for index in range(3):
            out = width * 2**index
            convolution = nn.Conv2d(channels, out, 3, stride=1 if index == 0 else 2, padding=1)
            layers += [convolution, nn.BatchNorm2d(out), nn.ReLU()]
            channels = out
        code = [nn.Linear(channels * 16, dim), nn.BatchNorm1d(dim), nn.ReLU()]
        self.encode = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4), nn.Flatten(), *code)
        self.decode = nn.Sequential(nn.Linear(dim, 1), nn.ReLU(), nn.Flatten(0))


def train_label_network(
    images: Images,
    labels: Tensor,
    network: LabelNetwork,
    *,
    seed: int = 0,
    device: str | torch.device = "cpu",
    steps: int = 500,
    batch_size: int = 128,
    shown: bool = True,
) -> dict[str, Tensor]:
    """The trained state of a `LabelNetwork` shaped like `network`; images uint8 [N, C, H, W], labels [N] in [0, 1]."""
    with torch.random.fork_rng():
        torch.manual_seed(mix(seed, "label network"))
        dim = network.main[0].out_features
        regressor = ImageRegressor(images.shape[1], dim).to(device)
        label_network = LabelNetwork(dim).to(device)

        def fit(module: nn.Module, loss_of_batch: Callable[[], Tensor], title: str) -> None:
            optimizer = torch.optim.Adam(module.parameters(), lr=1e-3)
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
            for _ in Progress(range(steps), title=title, every=max(1, steps // 5), shown=shown):
                optimizer.zero_grad(set_to_none=True)
                loss_of_batch().backward()
                optimizer.step()
                schedule.step()

        def image_to_label() -> Tensor:
            indices = torch.randint(len(labels), (min(batch_size, len(labels)),))
            code = regressor.encode(to_unit_range(images[indices].to(device)))
            return F.mse_loss(regressor.decode(code), labels[indices].to(device))

        def label_to_code() -> Tensor:
            y = labels[torch.randint(len(labels), (batch_size,))]
            y = (y + 0.2 * torch.randn(batch_size)).clamp(0, 1).to(device)  # the noise fills the gaps between labels
            return F.mse_loss(regressor.decode(label_network(y)), y)

        fit(regressor.train(), image_to_label, "labels of images")
        regressor.eval().requires_grad_(False)
        fit(label_network.train(), label_to_code, "codes of labels")
        return label_network.state_dict()
