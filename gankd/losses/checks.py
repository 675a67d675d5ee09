"""What several losses ask of their arguments before they compare them."""

from torch import Tensor


def shapes(*tensors: Tensor) -> str:
    """ "[4, 3] and [4, 2]"."""
    return " and ".join(str(list(tensor.shape)) for tensor in tensors)


def check_same_shape(first: Tensor, second: Tensor, names: str, way_out: str = "") -> None:
    """Raise a ValueError when shapes differ, where broadcasting would hide it; names: "<first> and <second>"."""
    if first.shape != second.shape:
        raise ValueError(f"{names} differ in shape: {shapes(first, second)}{way_out}")


def check_same_batch(first: Tensor, second: Tensor, names: str) -> None:
    """Raise a ValueError when the numbers of samples differ; names: "<first> and <second>"."""
    if len(first) != len(second):
        raise ValueError(f"{names} come from different batches: {len(first)} and {len(second)} samples")
