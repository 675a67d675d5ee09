"""Distillation in several steps, where student and teacher are too far apart for one.

    large, medium, small = ...
    _, small = gankd.distill_chain(large, [medium, small], real=train, method="kd", steps=2000)

Mirzadeh et al., "Improved Knowledge Distillation via Teacher Assistant", AAAI 2020, arXiv 1902.03393.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gankd.api import distill

if TYPE_CHECKING:
    from torch import nn

    from gankd.models.teacher import Teacher


def distill_chain(
    teacher: nn.Module | Teacher,
    students: Sequence[nn.Module],
    *,
    directory: str | Path | None = None,
    name: str = "student",
    **settings,
) -> list[nn.Module]:
    """Train the first student by `teacher`, then each one by the one before it, and return them in this order.

    students: from the largest assistant to the student that is wanted, the last.
    directory: the checkpoints go to a folder of it for each student, by its number; a chain cut off there is resumed.
    settings: of every step, as `distill` takes them (real, synthetic, method, steps, ...).
    Raises ValueError: no student, or the same network twice; as `distill`.
    """
    students = list(students)
    if not students:
        raise ValueError("distill_chain needs students: give the assistants and, as the last, the student.")
    if len({id(network) for network in (teacher, *students)}) <= len(students):
        raise ValueError("distill_chain got the same network twice; build one for every step of the chain.")
    for index, student in enumerate(students):
        folder = None if directory is None else Path(directory) / str(index)
        teacher = distill(student, teacher, directory=folder, name=f"{name} {index}", **settings)
    return students
