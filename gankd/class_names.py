"""Names of classes: their order, and how those of two sides are compared."""

import math
from collections.abc import Iterable, Sequence

from generators.checks import compared_names
from generators.settings import nearest


def sorted_class_names(names: Iterable[str]) -> list[str]:
    """In the order in which classes are numbered: as numbers where all of them are, else alphabetically; each once, without
    spaces around it."""
    names = sorted({str(name).strip() for name in names})
    try:
        numbers = {name: float(name) for name in names}
    except ValueError:
        return names
    return sorted(names, key=numbers.get) if all(map(math.isfinite, numbers.values())) else names


def class_columns(names: Sequence[str], others: Sequence[str], whose: str) -> list[int] | None:
    """Which of a network's outputs, one for each of `others`, stand for the classes `names`; None: all, in their order.
    Raises ValueError: a class that `others` lack, or one that they name twice."""
    if (others := compared_names(names, others)) is None:
        return None
    for name in (names := [name.strip() for name in names]):
        if others.count(name) != 1:
            known = ", ".join(others[:10]) + (", ..." if len(others) > 10 else "")
            problem = "named twice by" if name in others else "not one of"
            raise ValueError(
                f"class '{name}' of the data is {problem} {whose}, whose classes are {known}{nearest(name, others)} "
                "(a teacher that means the same by other names: Teacher(network, normalize, task=gankd.task_of(train)))"
            )
    return [others.index(name) for name in names]
