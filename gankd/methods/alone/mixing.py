"""Training on mixed images: blends, and images with a box of another one.

mixup: Zhang, Cisse, Dauphin, Lopez-Paz, "mixup: Beyond Empirical Risk Minimization", ICLR 2018, arXiv 1710.09412; of the
inputs of stages: Verma, Lamb, Beckham, Najafi, Mitliagkas, Lopez-Paz, Bengio, "Manifold Mixup: Better Representations by
Interpolating Hidden States", ICML 2019, arXiv 1806.05236
cutmix: Yun, Han, Oh, Chun, Choe, Yoo, "CutMix: Regularization Strategy to Train Strong Classifiers with Localizable
Features", ICCV 2019, arXiv 1905.04899
"""

import math
from typing import Literal

import torch
from torch import Tensor

from gankd.data.loader import Batch
from gankd.losses import cutmix_batch, mixup_batch
from gankd.methods.base import EVERY_TASK, Distiller, MethodConfig
from gankd.methods.setup import Setup
from gankd.models.taps import default_taps
from generators.settings import Weight


class MixupConfig(MethodConfig):
    """Task loss on blends of two images, to the same blend of their labels."""

    name: Literal["mixup"] = "mixup"
    """The method's name."""
    alpha: Weight = 0.4
    """The shares are drawn from Beta(alpha, alpha), one a batch; 0 does not mix. Manifold mixup has 2."""
    blended: Literal["images", "stages"] = "images"
    """Images, or what goes into a stage of the network, another one for every batch (manifold mixup)."""


class Mixup(Distiller):
    """x = lambda x_n + (1 - lambda) x_perm(n); L = lambda CE(y_n) + (1 - lambda) CE(y_perm(n)), or the loss to the blended
    scalar. Images are mixed after their augmentation, in training mode; manifold mixup blends the input of a stage instead.

    >>> student = gankd.distill(student, real=train, method="mixup", steps=2)

    Loss: losses.mixing.mixup_cross_entropy
    """

    Config = MixupConfig
    tasks = EVERY_TASK
    needs_teacher = False

    def __init__(self, config: MixupConfig, setup: Setup):
        super().__init__(config, setup)
        self.before_stages: list[str] = []
        if config.blended == "stages":
            self.before_stages = default_taps(setup.student, image_shape=setup.data.image_shape)[:-2]
            if not self.before_stages:
                raise ValueError(f"{type(setup.student).__name__} has no stage behind another; set blended: images.")

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        view = self.augment(batch.images)
        permutation, mixing = draw_mixing(view, self.config.alpha if self.training else 0)
        if self.before_stages:
            outputs = self.mixed_inside(self.normalize(view), permutation, mixing)
        else:
            outputs = self.student(self.normalize(mixup_batch(images=view, permutation=permutation, mixing=mixing)))
        loss = self.task.mixed_loss(outputs, batch.labels, permutation, mixing)
        return {"loss": loss, "mixup": loss}

    @torch.compiler.disable  # compiled code would not notice the hook
    def mixed_inside(self, images: Tensor, permutation: Tensor, mixing: float) -> Tensor:
        """Outputs of the student where the input of a random stage is blended."""
        path = self.before_stages[int(torch.randint(len(self.before_stages), (), device="cpu"))]
        hook = self.student.get_submodule(path).register_forward_hook(
            lambda _, __, feature: mixup_batch(images=feature, permutation=permutation, mixing=mixing)
        )
        try:
            return self.student(images)
        finally:
            hook.remove()


class CutMixConfig(MethodConfig):
    """Cross-entropy on images with a box of another one, to both labels by their shares of the pixels."""

    name: Literal["cutmix"] = "cutmix"
    """The method's name."""
    alpha: Weight = 1.0
    """The shares are drawn from Beta(alpha, alpha), one a batch; 0 does not mix."""


class CutMix(Distiller):
    """A box of area 1 - lambda around a uniform centre, clipped, is pasted from x_perm(n); with m the share of pixels kept,
    L = m CE(y_n) + (1 - m) CE(y_perm(n)).

    >>> student = gankd.distill(student, real=train, method="cutmix", steps=2)

    Loss: losses.mixing.cutmix_batch
    """

    Config = CutMixConfig
    tasks = frozenset({"classification"})
    needs_teacher = False
    hint = "cutmix mixes labels by area, which is no measure of a scalar target. Use mixup, or a classification task."

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        view = self.augment(batch.images)
        permutation, mixing = draw_mixing(view, self.config.alpha if self.training else 0)
        view, kept = cutmix_batch(images=view, permutation=permutation, box=draw_box(mixing, *view.shape[2:]))
        loss = self.task.mixed_loss(self.student(self.normalize(view)), batch.labels, permutation, kept)
        return {"loss": loss, "cutmix": loss}


def draw_mixing(images: Tensor, alpha: float) -> tuple[Tensor, float]:
    """A partner for every image, int64 [N], and the images' own share, drawn from Beta(alpha, alpha); 1 for alpha 0.

    Draws come from the default generators of the CPU and of the images' device.
    """
    if alpha == 0:
        return torch.arange(len(images), device=images.device), 1.0
    share = torch.distributions.Beta(float(alpha), float(alpha)).sample().item()
    return torch.randperm(len(images), device=images.device), share


def draw_box(mixing: float, height: int, width: int) -> tuple[int, int, int, int]:
    """Rows and columns (first, end, first, end) of a box of area 1 - mixing around a uniform centre, clipped; pixels."""
    side = math.sqrt(1 - mixing)
    row, column = (int(torch.randint(size, (), device="cpu")) for size in (height, width))
    half_height, half_width = int(height * side) // 2, int(width * side) // 2
    return (
        max(0, row - half_height),
        min(height, row + half_height),
        max(0, column - half_width),
        min(width, column + half_width),
    )
