"""One tensor of whatever a network answers with: the one place that knows the forms.

with plain_outputs(student):  # here it answers with a tensor, whatever its forward returns
    loss = F.cross_entropy(student(images), labels)
"""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

KEYS = ("logits", "out", "output", "prediction")  # Hugging Face and torchvision's classifiers; its segmentation; others


def outputs_of(result: Any) -> Tensor:
    """The outputs [N, K] or [N] in what a forward returned.

    A tensor; the field or key `logits` or `out` of an object or a dictionary (Hugging Face; GoogLeNet and Inception in
    training mode); else the first tensor of a tuple or list, whose others are auxiliary (logits of earlier stages, of a
    distillation token, features).
    Raises ValueError: nothing of these.
    """
    if isinstance(result, Tensor):
        return result
    fields = result if isinstance(result, Mapping) else {key: getattr(result, key, None) for key in KEYS}
    for value in [*(fields.get(key) for key in KEYS), *(result if isinstance(result, tuple | list) else ())]:
        if isinstance(value, Tensor):
            return value
    found = f"a {type(result).__name__}" + (f" of {', '.join(map(str, result))}" if isinstance(result, Mapping) else "")
    raise ValueError(
        f"the network answers with {found}, in which no outputs are known: return a tensor, a tuple that begins with one, "
        f"or a dictionary or an object with one of {', '.join(KEYS)}."
    )


@contextlib.contextmanager
def plain_outputs(network: nn.Module) -> Iterator[None]:
    """Inside, `network` and copies that are made of it return `outputs_of` what their forward returns."""
    hook = network.register_forward_hook(_replace_result)
    try:
        yield
    finally:
        hook.remove()


def _replace_result(module: nn.Module, inputs: tuple, result: Any) -> Tensor:
    return outputs_of(result)


def check_numbers(outputs: Tensor, whose: str) -> None:
    """Raise a ValueError that names `whose` outputs [N, ...] hold NaN or infinities, and in how many rows."""
    bad = ~outputs.detach().isfinite().flatten(1 if outputs.ndim > 1 else 0)
    if not bad.any():
        return
    rows = int(bad.any(dim=1).sum()) if bad.ndim > 1 else int(bad.sum())
    what = "NaN" if outputs.isnan().any() else "infinite values"
    hint = "check its weights, its precision and what its inputs are normalised by"
    if bad.ndim > 1 and torch.equal(bad, bad[:1].expand_as(bad)):
        classes = ", ".join(map(str, bad[0].nonzero().flatten().tolist()[:5]))
        hint = f"always in outputs {classes}; masked classes need a finite number, e.g. -30"
    raise ValueError(f"{whose}: the outputs of {rows} of {len(outputs)} images hold {what} ({hint}).")
