"""How much a frozen network's features know of a label: protocols that fit something small on them and test it once.

    train, test = (labelled_features(model, part, normalize=normalize) for part in (data.train, data.test))
    for name, result in measure(train, test).items(): print(name, result)

Every choice (a strength of regularisation) is made on a part of the training samples; test labels are read for the
metric alone. A protocol computes where the features are: move them to a GPU for large sets.
"""

import dataclasses

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gankd.data.sets import ImageSet
from gankd.data.splits import stratified_indices
from gankd.evaluation.neighbours import knn_accuracy, knn_regress, standardize_features
from gankd.losses.precision import full_precision
from gankd.models.state import preserve_state
from gankd.models.teacher import Teacher

VALIDATION_SHARE = 0.2
LOGISTIC_STRENGTHS = tuple(10.0**exponent for exponent in range(0, -7, -1))
RIDGE_STRENGTHS = tuple(10.0 ** (exponent / 2) for exponent in range(6, -13, -1))
ITERATIONS = 200
PROBES = {
    "linear": "linear",
    "knn_200": "200-NN, weighted",
    "knn_1": "1-NN",
    "ridge": "ridge",
    "knn_20": "20-NN, weighted",
}
"""Names of the protocols in tables; those of classes, and of scalars."""


@dataclasses.dataclass(frozen=True)
class ProbeResult:
    """What a protocol measured on the test samples."""

    metric: str
    """"top1" (in %, higher is better) or "mae" (in the units of the labels, lower is better)."""
    value: float
    protocol: str
    """How it was measured, in one line."""
    strength: float | None = None
    """Strength of the regularisation that was chosen, where one was."""

    def __str__(self) -> str:
        chosen = "" if self.strength is None else f"; strength {self.strength:.3g}"
        return f"{self.metric} {self.value:.4g}{' %' if self.metric == 'top1' else ''} ({self.protocol}{chosen})"


@torch.no_grad()
def extract_features(
    model: nn.Module,
    images,
    *,
    normalize: nn.Module,
    feature_path: str | None = None,
    batch_size: int = 512,
    device: torch.device | str | None = None,
) -> Tensor:
    """Features of un-augmented images, [N, D] in float32 on the CPU; `model` in eval mode, given back as it was lent.

    images: uint8 [N, C, H, W], in memory or lazily read.
    normalize: what turns images in [0, 1] into the model's input.
    feature_path: module whose output (averaged over space) is the feature; None: the input of the last linear layer.
    device: where the model runs; None: where its parameters are.
    Raises ValueError: a feature_path that the model does not have, or no linear layer where none is named.
    """
    with preserve_state(model), preserve_state(normalize):
        teacher = Teacher(model, normalize, device=device or _device(model), feature_path=feature_path)
        return teacher.map(images, lambda chunk: teacher.outputs_and_features(chunk)[1].float(), batch_size)


def linear_probe(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    *,
    groups: Tensor | None = None,
    seed: int = 0,
) -> ProbeResult:
    """Top-1 accuracy of multinomial logistic regression on features, in %.

    Features are normalised and standardised by the training samples' (`standardize_features`, as in SimReg); then

        mean cross-entropy(W f + b, y) + strength / 2 |W|^2

    is minimised by full-batch L-BFGS, which has no learning rate to tune. The strength is the one of
    `LOGISTIC_STRENGTHS` with the highest accuracy on a stratified fifth of the training samples (then the lowest
    cross-entropy), and the probe is fitted again on all of them.

    train_features: [N, D]; train_labels: class ids [N]; test_features: [M, D]; test_labels: class ids [M].
    groups: int64 [N]; training samples of one group never fall on both sides of the split.
    seed: of the split.
    Raises ValueError: shapes that do not fit, labels that are not class ids, features that are not finite, or too few
    samples to hold some out.
    """
    _check(train_features, train_labels, test_features, test_labels, of_classes=True)
    train_features, train_labels = full_precision(train_features.detach()), train_labels.long()
    num_classes = int(train_labels.max()) + 1
    rest, held_out = split_for_choice(train_labels, groups, seed)

    standardized = standardize_features(features=train_features, bank_features=train_features[rest])
    head, trials = _zero_head(standardized, num_classes), []
    for strength in LOGISTIC_STRENGTHS:  # from the strongest on, each starts where the last one ended
        _fit_logistic(head, standardized[rest], train_labels[rest], strength)
        logits, labels = _logits(head, standardized[held_out]), train_labels[held_out]
        accuracy = (logits.argmax(dim=1) == labels).float().mean().item()
        trials.append((accuracy, -F.cross_entropy(logits, labels).item(), strength))
    strength = max(trials)[2]

    head = _zero_head(train_features, num_classes)
    standardized = standardize_features(features=train_features, bank_features=train_features)
    _fit_logistic(head, standardized, train_labels, strength)
    queries = standardize_features(features=test_features, bank_features=train_features)
    predictions = _logits(head, queries).argmax(dim=1)
    return ProbeResult(
        "top1",
        100 * (predictions == test_labels).float().mean().item(),
        f"linear probe: logistic regression on normalised, standardised features of {len(train_features):,} un-augmented "
        f"training images, L2 strength chosen on {len(held_out):,} of them (seed {seed}), then fitted to all",
        strength,
    )


def ridge_probe(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    *,
    groups: Tensor | None = None,
    seed: int = 0,
) -> ProbeResult:
    """Mean absolute error of ridge regression on features, in the units of the labels.

    Features are standardised a dimension at a time (their length is kept: it may be what tells a count); then

        mean (w f + b - y)^2 + strength |w|^2

    is minimised in closed form, in float64. The strength is the one of `RIDGE_STRENGTHS` with the lowest mean absolute
    error on a fifth of the training samples, drawn evenly over the sorted labels, and the probe is fitted again on all.

    Arguments and errors as of `linear_probe`, with scalar labels [N] and [M].
    """
    _check(train_features, train_labels, test_features, test_labels, of_classes=False)
    features, labels = train_features.detach().double(), train_labels.double()
    rest, held_out = split_for_choice(train_labels, groups, seed)

    predictions = _ridge_predictions(features[rest], labels[rest], features[held_out], RIDGE_STRENGTHS)
    errors = (predictions - labels[held_out]).abs().mean(dim=1)
    strength = RIDGE_STRENGTHS[int(errors.argmin())]

    predictions = _ridge_predictions(features, labels, test_features.detach().double(), (strength,))[0]
    return ProbeResult(
        "mae",
        (predictions - test_labels).abs().mean().item(),
        f"ridge probe: ridge regression on standardised features of {len(features):,} un-augmented training images, "
        f"L2 strength chosen on {len(held_out):,} of them (seed {seed}), then fitted to all",
        strength,
    )


def knn_probe(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    *,
    k: int = 200,
    temperature: float | None = 0.1,
) -> ProbeResult:
    """Top-1 accuracy of `knn_predict` with the training samples as the bank, in %.

    Features and class ids as in `linear_probe`; raises a ValueError as it does, and as `knn_predict`.
    """
    _check(train_features, train_labels, test_features, test_labels, of_classes=True)
    queries = {"query_features": test_features, "query_labels": test_labels}
    bank = {"bank_features": train_features, "bank_labels": train_labels, "num_classes": int(train_labels.max()) + 1}
    accuracy = knn_accuracy(**queries, **bank, k=k, temperature=temperature)
    return ProbeResult("top1", accuracy, _knn_protocol("vote", len(train_features), k, temperature))


def knn_regression_probe(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    *,
    k: int = 20,
    temperature: float | None = 0.1,
) -> ProbeResult:
    """Mean absolute error of `knn_regress` with the training samples as the bank, in the units of the labels.

    Features and scalar labels as in `ridge_probe`; raises a ValueError as it does, and as `knn_regress`.
    """
    _check(train_features, train_labels, test_features, test_labels, of_classes=False)
    bank = {"bank_features": train_features, "bank_labels": train_labels}
    predictions = knn_regress(query_features=test_features, **bank, k=k, temperature=temperature)
    error = (predictions - test_labels).abs().mean().item()
    return ProbeResult("mae", error, _knn_protocol("mean label", len(train_features), k, temperature))


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


def _device(module: nn.Module) -> torch.device:
    return next((tensor.device for tensor in [*module.parameters(), *module.buffers()]), torch.device("cpu"))


def _knn_protocol(answer: str, bank_size: int, k: int, temperature: float | None) -> str:
    weights = "equal weights" if temperature is None else f"weights exp(cos / {temperature:g})"
    nearest = f"{min(k, bank_size)} nearest by cosine of {bank_size:,} un-augmented training images"
    return f"kNN: {answer} of the {nearest}, {weights}"


def split_for_choice(labels: Tensor, groups: Tensor | None, seed: int) -> tuple[Tensor, Tensor]:
    settings = {"groups": None if groups is None else groups.cpu(), "key": "the probe's validation part"}
    parts = stratified_indices(labels.cpu(), VALIDATION_SHARE, seed=seed, **settings)
    return tuple(indices.to(labels.device) for indices in parts)


def _zero_head(features: Tensor, num_classes: int) -> list[Tensor]:
    """W [K, D] and b [K]."""
    return [features.new_zeros(num_classes, features.shape[1]), features.new_zeros(num_classes)]


def _logits(head: list[Tensor], features: Tensor) -> Tensor:
    with torch.autocast(features.device.type, enabled=False):
        return F.linear(features, *head)


def _fit_logistic(head: list[Tensor], features: Tensor, labels: Tensor, strength: float) -> None:
    """Minimise in place, from where `head` is, what `linear_probe` states."""
    for tensor in head:
        tensor.requires_grad_(True)
    optimizer = torch.optim.LBFGS(head, max_iter=ITERATIONS, tolerance_grad=1e-6, line_search_fn="strong_wolfe")

    def objective() -> Tensor:  # the optimiser turns gradients on where the caller has turned them off
        optimizer.zero_grad()
        loss = F.cross_entropy(_logits(head, features), labels) + strength / 2 * head[0].square().sum()
        loss.backward()
        return loss

    optimizer.step(objective)
    for tensor in head:
        tensor.requires_grad_(False)


def _ridge_predictions(features: Tensor, labels: Tensor, queries: Tensor, strengths: tuple[float, ...]) -> Tensor:
    """Predictions [S, M] for queries [M, D] of ridge regressions on features [N, D], one a strength."""
    mean = features.mean(dim=0)
    spread = features.std(dim=0, unbiased=False)
    spread = spread + 1e-6 * features.abs().amax()  # a dead one stays dead
    spread = spread.clamp(min=torch.finfo(features.dtype).tiny)
    left, singular, right = torch.linalg.svd((features - mean) / spread, full_matrices=False)
    projected = singular * (left.T @ (labels - labels.mean()))  # [R]
    decay = len(features) * torch.tensor(strengths, dtype=features.dtype, device=features.device)
    weights = right.T @ (projected[:, None] / (singular.square()[:, None] + decay))  # [D, S]
    return labels.mean() + ((queries - mean) / spread @ weights).T


def _check(
    train_features: Tensor, train_labels: Tensor, test_features: Tensor, test_labels: Tensor, *, of_classes: bool
) -> None:
    for name, features, labels in (("train", train_features, train_labels), ("test", test_features, test_labels)):
        if features.ndim != 2 or labels.shape != features.shape[:1] or not len(labels):
            raise ValueError(
                f"{name}: features {list(features.shape)} with labels {list(labels.shape)}; expected [N, D] with [N]."
            )
        if not (features.isfinite().all() and labels.isfinite().all()):
            raise ValueError(f"{name}: features or labels hold values that are not finite.")
        if of_classes and labels.dtype.is_floating_point:
            raise ValueError(
                f"{name}: labels are {labels.dtype}, not class ids; use ridge_probe or knn_regression_probe for scalars."
            )
        if not (of_classes or labels.dtype.is_floating_point):
            raise ValueError(
                f"{name}: labels are {labels.dtype}, not scalars; use linear_probe or knn_probe for class ids, or make "
                "them floats."
            )
    if train_features.shape[1] != test_features.shape[1]:
        raise ValueError(
            f"train features have {train_features.shape[1]} dimensions, test features {test_features.shape[1]}: "
            "take both from the same layer of the same network."
        )
    if of_classes and train_labels.min() < 0:
        raise ValueError(f"train: label {train_labels.min().item()} is no class id; number the classes from 0.")
