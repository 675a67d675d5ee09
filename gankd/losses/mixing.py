"""Images mixed with other images of their batch, and the loss that goes with them.

mixup_batch, mixup_cross_entropy: Zhang, Cisse, Dauphin, Lopez-Paz, "mixup: Beyond Empirical Risk Minimization",
ICLR 2018, arXiv 1710.09412
cutmix_batch: Yun, Han, Oh, Chun, Choe, Yoo, "CutMix: Regularization Strategy to Train Strong Classifiers with
Localizable Features", ICCV 2019, arXiv 1905.04899
"""

from collections.abc import Sequence

from torch import Tensor

from .smoothing import cross_entropy


def mixup_batch(
    *,
    images: Tensor,  # [N, ...], floating point; any output of a network mixes alike
    permutation: Tensor,  # [N], the partner of each image
    mixing: float,  # share of the image itself
) -> Tensor:
    """Every image blended with its partner: mixing x_n + (1 - mixing) x_perm(n). Returns [N, ...]."""
    _check_permutation(images, permutation)
    return mixing * images + (1 - mixing) * images[permutation]


def mixup_cross_entropy(
    *,
    student_logits: Tensor,  # [N, K], on the mixed images
    labels: Tensor,  # [N], class ids of the images before mixing
    permutation: Tensor,  # [N]
    mixing: float,  # share of the image itself; after CutMix the share of pixels kept
) -> Tensor:
    """Cross-entropy to both labels of a mixed image, in the proportion of the mixture.

    L = mixing CE(s, y) + (1 - mixing) CE(s, y[perm]).
    """
    _check_permutation(student_logits, permutation)
    own = cross_entropy(student_logits, labels)
    return mixing * own + (1 - mixing) * cross_entropy(student_logits, labels[permutation])


def cutmix_batch(
    *,
    images: Tensor,  # [N, C, H, W], left as they are
    permutation: Tensor,  # [N], the partner of each image
    box: Sequence[int],  # row0, row1, column0, column1 in pixels, ends exclusive
) -> tuple[Tensor, float]:
    """Every image with the same box pasted from its partner.

    Returns the images [N, C, H, W] and the share of pixels that are the image's own, 1 - box area / (H W): the box is
    clipped at the border when it is drawn, so the drawn share is not it.
    Raises ValueError when the box is not inside the image or the permutation has another length than the batch.
    """
    _check_permutation(images, permutation)
    height, width = images.shape[-2:]
    row0, row1, column0, column1 = box
    if not (0 <= row0 <= row1 <= height and 0 <= column0 <= column1 <= width):
        raise ValueError(f"box {list(box)} is not inside {height} x {width} images: clip it to them first")
    mixed = images.clone()
    mixed[..., row0:row1, column0:column1] = images[..., row0:row1, column0:column1][permutation]
    return mixed, 1 - (row1 - row0) * (column1 - column0) / (height * width)


def _check_permutation(batch: Tensor, permutation: Tensor) -> None:
    if permutation.shape != batch.shape[:1]:
        raise ValueError(f"a permutation {list(permutation.shape)} does not fit a batch of {len(batch)} samples")
