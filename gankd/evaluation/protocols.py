"""What a backbone's features are worth: the protocols by which representations are compared, together.

train, test = (labelled_features(model, part, normalize=normalize) for part in (data.train, data.test))
for name, result in measure(train, test).items(): print(name, result)
"""

import dataclasses

import torch
from torch import Tensor, nn

from gankd.data.sets import ImageSet
from gankd.evaluation.probes import (
    ProbeResult,
    extract_features,
    knn_probe,
    knn_regression_probe,
    linear_probe,
    ridge_probe,
    split_for_choice,
)

PROBES = {
    "linear": "linear",
    "knn_200": "200-NN, weighted",
    "knn_1": "1-NN",
    "ridge": "ridge",
    "knn_20": "20-NN, weighted",
}
"""Names of the protocols in tables."""


@dataclasses.dataclass(frozen=True)
class LabelledFeatures:
    """N images as a network sees them."""

    features: Tensor
    """float32 [N, D]."""
    labels: Tensor
    """Class ids int64 [N] or scalars float32 [N]."""
    groups: Tensor | None = None
    """int64 [N]: samples of one group stay together where a part is held out."""


def labelled_features(
    model: nn.Module, data: ImageSet, *, normalize: nn.Module, device: torch.device | str | None = None
) -> LabelledFeatures:
    """The pooled features of a set's images; see `extract_features`."""
    features = extract_features(model, data.images, normalize=normalize, device=device)
    return LabelledFeatures(features, data.labels, data.groups)


def check_probes(train: ImageSet, *, seed: int = 0) -> None:
    """Raise a ValueError for too few labelled images to fit probes to, before a network is trained for them."""
    if len(train) < 2:
        raise ValueError(f"{train.name}: {len(train)} labelled images are too few to fit probes to; give at least two.")
    split_for_choice(train.labels, train.groups, seed)


def measure(train: LabelledFeatures, test: LabelledFeatures, *, seed: int = 0) -> dict[str, ProbeResult]:
    """All protocols for the kind of label: of classes `linear`, `knn_200` (weighted, as in Squeeze and Span) and `knn_1`
    (as in SimReg); of scalars `ridge` and `knn_20`. Everything is fitted to `train`, `test` is only measured.

    Raises ValueError: as the protocols.
    """
    pair = (train.features, train.labels, test.features, test.labels)
    if train.labels.dtype.is_floating_point:
        return {"ridge": ridge_probe(*pair, groups=train.groups, seed=seed), "knn_20": knn_regression_probe(*pair)}
    return {
        "linear": linear_probe(*pair, groups=train.groups, seed=seed),
        "knn_200": knn_probe(*pair),
        "knn_1": knn_probe(*pair, k=1, temperature=None),
    }
