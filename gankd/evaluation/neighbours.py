"""What the nearest neighbours of a feature say about it: classification and regression without any training.

Queries are features [B, D], the bank features [N, D] with labels [N]; all is computed in float32 (float64 stays).

Weighted votes: Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", CVPR 2018, arXiv
1805.01978. Majority votes and `standardize_features`: Navaneet et al., "SimReg", BMVC 2021, arXiv 2201.05131.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from gankd.losses.precision import full_precision

CHUNK = 1 << 24
"""Similarities held at a time: 64 MiB in float32."""


@torch.no_grad()
def nearest_neighbours(*, query_features: Tensor, bank_features: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k vectors of the bank that point most nearly where each query points (k at most the size of the bank).

    Neighbours by cosine and by Euclidean distance of normalised features are the same. Computed in chunks of queries.
    Returns cosines [B, k], the largest first, and the neighbours' indices [B, k].
    Raises ValueError: an empty bank, widths that differ, features that are not finite, or k below 1.
    """
    if k < 1:
        raise ValueError(f"k is {k}; ask for at least one neighbour.")
    _check_features(query_features, bank_features)
    bank = F.normalize(full_precision(bank_features), dim=1)
    similarities, neighbours = [], []
    with torch.autocast(bank.device.type, enabled=False):
        for chunk in full_precision(query_features).split(max(1, CHUNK // len(bank))):
            nearest = (F.normalize(chunk, dim=1) @ bank.T).topk(min(k, len(bank)), dim=1)
            similarities.append(nearest.values)
            neighbours.append(nearest.indices)
    return torch.cat(similarities), torch.cat(neighbours)


def knn_predict(
    *,
    query_features: Tensor,
    bank_features: Tensor,
    bank_labels: Tensor,
    num_classes: int,
    k: int = 200,
    temperature: float | None = 0.1,
) -> tuple[Tensor, Tensor]:
    """The class that the k nearest neighbours of each query vote for.

    A neighbour's vote counts exp(cos / temperature), or 1 where the temperature is None. Of classes with equal scores
    the one with the nearest neighbour wins.

    Returns scores [B, num_classes], 0 for a class without a vote, and the predicted class ids [B]. Below a temperature of
    about 0.012 float32 scores overflow to infinity; the predictions stay right.
    Raises ValueError: as `nearest_neighbours`; labels that are not one class id for each vector of the bank, or a
    temperature that is not positive.
    """
    similarities, neighbours = nearest_neighbours(query_features=query_features, bank_features=bank_features, k=k)
    _check_labels(bank_labels, bank_features, num_classes)
    labels = bank_labels.long()[neighbours]  # [B, k]
    votes = _votes(similarities, temperature)
    scores = votes.new_zeros(len(votes), num_classes).scatter_add(1, labels, votes)

    num_neighbours = labels.shape[1]
    ranks = torch.arange(num_neighbours, device=labels.device).expand_as(labels)
    first = torch.full(scores.shape, num_neighbours, device=labels.device).scatter_reduce(1, labels, ranks, "amin")
    first = first.masked_fill(scores < scores.amax(dim=1, keepdim=True), num_neighbours)
    if temperature is not None:
        scores = (scores.log() + similarities[:, :1] / temperature).exp()  # a product would make 0 * inf
    return scores, first.argmin(dim=1)


def knn_accuracy(
    *,
    query_features: Tensor,
    query_labels: Tensor,
    bank_features: Tensor,
    bank_labels: Tensor,
    num_classes: int,
    k: int = 200,
    temperature: float | None = 0.1,
) -> float:
    """How often `knn_predict` finds the queries' labels (class ids [B]), in %.
    Raises ValueError: as `knn_predict`; no query, or labels that are not one for each query."""
    _check_targets(query_labels, query_features)
    bank = {"bank_features": bank_features, "bank_labels": bank_labels, "num_classes": num_classes}
    _, predictions = knn_predict(query_features=query_features, **bank, k=k, temperature=temperature)
    return 100 * (predictions == query_labels).float().mean().item()


def knn_regress(
    *, query_features: Tensor, bank_features: Tensor, bank_labels: Tensor, k: int = 20, temperature: float | None = 0.1
) -> Tensor:
    """The mean label of the k nearest neighbours of each query, float64 [B], in the units of the labels.

    Neighbours weigh exp(cos / temperature), or the same where the temperature is None.
    Raises ValueError: as `nearest_neighbours`; labels that are not one for each vector of the bank, or a temperature
    that is not positive.
    """
    similarities, neighbours = nearest_neighbours(query_features=query_features, bank_features=bank_features, k=k)
    _check_targets(bank_labels, bank_features)
    weights = _votes(similarities, temperature)
    weights = weights if weights.device.type == "mps" else weights.double()  # means of labels around 20000 +- 1
    return (weights * bank_labels.to(weights.dtype)[neighbours]).sum(dim=1) / weights.sum(dim=1)


def standardize_features(*, features: Tensor, bank_features: Tensor, eps: float = 1e-5) -> Tensor:
    """Features of unit length, then standardised by the mean and the unbiased variance of those of the bank.

    (f/|f| - mean_bank) / sqrt(Var_bank + eps), a dimension at a time

    features: [N, D]; bank_features: [M, D], normalised in the same way. Returns [N, D].
    Raises ValueError: a bank of fewer than two vectors, widths that differ, or features that are not finite.
    """
    _check_features(features, bank_features)
    if len(bank_features) < 2:
        raise ValueError("a bank of one feature vector has no variance; give at least two.")
    bank = F.normalize(full_precision(bank_features), dim=1)
    return (F.normalize(full_precision(features), dim=1) - bank.mean(dim=0)) / (bank.var(dim=0) + eps).sqrt()


def _votes(similarities: Tensor, temperature: float | None) -> Tensor:
    """What each neighbour weighs, [B, k], relative to the nearest, so that no temperature overflows."""
    if temperature is None:
        return torch.ones_like(similarities)
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature:g}; give a positive number, or None for votes of equal weight.")
    return ((similarities - similarities[:, :1]) / temperature).exp()


def _check_features(features: Tensor, bank_features: Tensor) -> None:
    if features.ndim != 2 or bank_features.ndim != 2 or features.shape[1] != bank_features.shape[1]:
        raise ValueError(
            f"features and bank must be [N, D] of one width, not {list(features.shape)} and "
            f"{list(bank_features.shape)}: take both from the same layer of the same network."
        )
    if not len(bank_features):
        raise ValueError("the bank of features is empty; give the features of labelled samples.")
    for name, values in (("features", features), ("bank", bank_features)):
        if not values.isfinite().all():
            raise ValueError(f"the {name} hold values that are not finite: the network they come from has diverged.")


def _check_targets(labels: Tensor, features: Tensor) -> None:
    if labels.shape != features.shape[:1] or not len(labels):
        raise ValueError(f"{list(labels.shape)} labels for {len(features)} samples; give one number for each.")


def _check_labels(labels: Tensor, features: Tensor, num_classes: int) -> None:
    _check_targets(labels, features)
    if labels.dtype.is_floating_point or labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(
            f"labels must be class ids in 0..{num_classes - 1}, not {labels.dtype} in "
            f"[{labels.min().item():g}, {labels.max().item():g}]."
        )
