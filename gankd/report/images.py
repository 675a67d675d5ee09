"""The images of a report, label by label: real ones, and what a generator made beside them."""

import math
from html import escape
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from gankd.data.sets import ImageSet
from gankd.report import plots
from gankd.report.html import as_figure, as_section
from gankd.report.text import capital, in_unit, minus, num_digits, number
from gankd.synthesis.store import MANIFEST, load_store

IMAGES_PER_ROW = 8
MOST_ROWS = 20  # classes whose images the page shows
LABEL_BINS = 8  # rows that scalar labels are divided into
REAL = "real (training split)"
STORES = {"synthetic": "synthetic (stored)", "generated": "generated (not selected)"}  # folders, the best first


class Row(NamedTuple):
    """The images of one class or of one range of scalar labels: low <= label < high."""

    title: str
    low: float
    high: float

    def members(self, labels: Tensor) -> Tensor:
        """Indices (int64) of the labels [N] that belong to the row."""
        return ((labels >= self.low) & (labels < self.high)).nonzero().flatten()


def label_rows(train: ImageSet) -> list[Row]:
    """The classes (at most `MOST_ROWS`, evenly spaced), or `LABEL_BINS` ranges of equal width of scalar labels."""
    if not train.labels.dtype.is_floating_point:
        names = train.class_names or [str(label) for label in range(int(train.labels.max()) + 1)]
        shown = torch.linspace(0, len(names) - 1, min(len(names), MOST_ROWS)).long().tolist()
        return [Row(names[label], label, label + 1) for label in shown]
    edges = torch.linspace(train.labels.min(), train.labels.max(), LABEL_BINS + 1).tolist()
    step = edges[1] - edges[0]
    decimals = num_digits(step, 2)
    names = [minus(number(edge if abs(edge) > step / 1000 else 0.0, decimals)) for edge in edges]
    edges[0], edges[-1] = -math.inf, math.inf  # a synthetic label may lie beyond the real ones
    return [Row(f"{names[i]} to {names[i + 1]}", edges[i], edges[i + 1]) for i in range(LABEL_BINS)]


def stored_images(directory: Path) -> dict[str, ImageSet]:
    """The images to show beside the real ones, by their title; none where nothing is stored."""
    for folder, title in STORES.items():
        if (directory / folder / MANIFEST).exists():
            return {title: load_store(directory / folder)}
    return {}


def images_section(sources: dict[str, ImageSet], rows: list[Row], unit: str) -> str:
    """The real images, first of `sources`, and others beside them, label by label."""
    real, body = sources[REAL], []
    kinds = [title.split()[0] for title in sources]
    for row in rows:
        parts = [row.members(dataset.labels)[:IMAGES_PER_ROW] for dataset in sources.values()]
        count = min(map(len, parts))
        cells = [row.title]
        for dataset, members, kind in zip(sources.values(), parts, kinds, strict=True):
            members = members[:count] if count else members
            members = members[dataset.labels[members].argsort(stable=True)]
            cells.append(strip(dataset.images[members], f"{kind} images, label {row.title}"))
        body.append(cells)
    where = "in the training split and in the store" if len(sources) > 1 else "in the training split"
    caption = f"The first images of each label {where}, not hand-picked."
    if real.class_names and len(rows) < len(real.class_names):
        caption += f" {len(rows)} of the {len(real.class_names)} classes."
    head = [label_head(real.labels, unit), *sources]
    return as_section(f"{capital(' and '.join(kinds))} images", as_figure(images_table(head, body), caption, "grid"))


def label_head(labels: Tensor, unit: str) -> str:
    return in_unit("label", unit) if labels.dtype.is_floating_point else "class"


def strip(images: Tensor, description: str) -> str:
    return plots.strip_to_png(images, IMAGES_PER_ROW, description) if len(images) else "none"


def images_table(head: list[str], body: list[list[str]]) -> str:
    """Rows of [title, HTML, HTML, ...]: one strip of images a cell."""
    head_cells = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    rows = "".join(
        f'<tr><th scope="row">{escape(title)}</th>'
        + "".join(f'<td data-title="{escape(name)}">{cell}</td>' for name, cell in zip(head[1:], cells, strict=True))
        + "</tr>\n"
        for title, *cells in body
    )
    return f'<table class="images">\n<thead><tr>{head_cells}</tr></thead>\n<tbody>\n{rows}</tbody>\n</table>'
