"""The pictures of the report: charts as matplotlib figures, strips of images as pixel-exact PNG; both as HTML.

Colours are those of Okabe and Ito ("Color Universal Design", 2008), which colour-blind readers can tell apart: greys
for real data, colours for synthetic data; blue for what is kept, vermilion for what is rejected.
"""

import base64
import html
import io
import re
from collections.abc import Sequence
from typing import NamedTuple

import matplotlib
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter, StrMethodFormatter
from PIL import Image
from torch import Tensor

from gankd.report.text import number

BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY = "#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9"
BLACK, DARK, MIDDLE, LIGHT = "#222222", "#555555", "#8C8C8C", "#CCCCCC"
REAL_COLOURS, SYNTHETIC_COLOURS = (DARK, MIDDLE), (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY)
MARK = (0, (4, 3))  # dashes of a line that marks a value
DASHES = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (5, 2, 1, 2)))
STYLE = {
    "font.family": "DejaVu Sans",
    **dict.fromkeys(("font.size", "axes.labelsize"), 9),
    **dict.fromkeys(("axes.labelcolor", "text.color"), BLACK),
    **dict.fromkeys(("axes.edgecolor", "xtick.color", "ytick.color"), MIDDLE),
    **dict.fromkeys(("xtick.labelcolor", "ytick.labelcolor"), DARK),
    **dict.fromkeys(("axes.spines.top", "axes.spines.right"), False),
    "axes.linewidth": 0.8,
    "axes.axisbelow": True,
    "lines.linewidth": 1.6,
    "svg.fonttype": "none",
}
NARROW, HALF, WIDE = 3.6, 4.8, 7.2  # widths in inches: a telephone, two charts beside each other, one chart
PLAIN = {"parse_math": False}  # of text that holds a user's words, whose dollars are dollars
TILE = 96  # pixels of an image in a strip: about twice what the page shows, for dense screens
SMALLEST_ERROR = 1e-7  # float32 cross-entropy below this is rounding


class Line(NamedTuple):
    """A curve with the label that stands at its end."""

    title: str
    steps: Sequence[float]
    values: Sequence[float]
    colour: str = BLUE
    dashes: str | tuple = "-"


class Arm(NamedTuple):
    """One way of training, with the test metric of each of its seeds."""

    title: str
    values: Sequence[float]
    colour: str


# --- to HTML ----------------------------------------------------------------------------------------------------------


def figure_to_svg(figure: Figure, description: str) -> str:
    """A figure as inline SVG of its natural size; its text stays text and takes the font of the page.

    Names inside the SVG are a function of `description`, so that several figures on one page do not share any.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": description}):
        figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]  # HTML wants no XML declaration, no namespaces, no metadata
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg)
    svg = re.sub(r'<g id="[^"]*">', "<g>", svg)
    return svg.replace("<svg", f'<svg role="img" aria-label="{html.escape(description)}"', 1)


def strip_to_png(images: Tensor, num_columns: int, description: str) -> str:
    """Images uint8 [N, C, H, W] in one row of `num_columns` places (N of them filled), as an <img> with embedded PNG.

    Images smaller than `TILE` are enlarged by a whole factor without smoothing, so that a pixel stays a square; larger
    ones are reduced to it.
    """
    height, width = images.shape[2:]
    longer = max(height, width)
    scale = TILE // longer if longer <= TILE else TILE / longer
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    gap = max(2, size[0] // 24)
    strip = Image.new("RGB" if images.shape[1] == 3 else "L", (num_columns * (size[0] + gap) - gap, size[1]), "white")
    for index, image in enumerate(images.cpu()):
        pixels = image[0].numpy() if len(image) == 1 else image.permute(1, 2, 0).contiguous().numpy()
        resampling = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS
        tile = Image.fromarray(pixels).resize(size, resampling)
        strip.paste(tile, (index * (size[0] + gap), 0))
    buffer = io.BytesIO()
    strip.save(buffer, format="PNG")
    data = base64.b64encode(buffer.getvalue()).decode()
    return (
        f'<img src="data:image/png;base64,{data}" alt="{html.escape(description)}" '
        f'width="{strip.width // 2}" height="{strip.height // 2}">'
    )


# --- charts -----------------------------------------------------------------------------------------------------------


def arm_styles(uses_synthetic: Sequence[bool]) -> list[tuple[str, str | tuple]]:
    """A colour and dashes for every arm: greys for real data alone, colours for arms with synthetic data."""
    styles, counts = [], {True: 0, False: 0}
    for synthetic in uses_synthetic:
        colours = SYNTHETIC_COLOURS if synthetic else REAL_COLOURS
        turn, index = divmod(counts[synthetic], len(colours))
        styles.append((colours[index], DASHES[turn % len(DASHES)]))
        counts[synthetic] += 1
    return styles


@matplotlib.rc_context(STYLE)
def plot_arms(arms: Sequence[Arm], *, mark: tuple[float, str] | None, axis: str, narrow: bool = False) -> Figure:
    """The test metric of every arm: a dot a seed, a bar at the mean; a dashed line at `mark`, a value with its title.

    narrow: for a telephone, with every title above its row.
    """
    figure, axes = _figure(NARROW if narrow else WIDE, 0.85 + (0.55 if narrow else 0.42) * len(arms))
    for row, arm in enumerate(arms):
        axes.axhline(row, color="#EEEEEE", linewidth=0.8, zorder=0)
        heights = torch.linspace(-0.12, 0.12, len(arm.values)) if len(arm.values) > 1 else torch.zeros(1)
        dots = (row + heights).tolist()
        axes.plot(arm.values, dots, "o", color=arm.colour, markersize=5, alpha=0.6, markeredgewidth=0)
        mean = sum(arm.values) / len(arm.values)
        axes.plot([mean, mean], [row - 0.3, row + 0.3], color=arm.colour, linewidth=2.4, solid_capstyle="butt")
    if mark is not None:
        value, title = mark
        axes.axvline(value, color=BLACK, linewidth=1, linestyle=MARK)
        _note(axes, title, (value, 1), above=3, xycoords=axes.get_xaxis_transform(), ha="center")
    axes.set_yticks(range(len(arms)), [arm.title if not narrow else "" for arm in arms], **PLAIN)
    axes.set_ylim(len(arms) - 0.5, -0.7 if narrow else -0.5)
    for row, arm in enumerate(arms if narrow else ()):
        axes.annotate(arm.title, (0, row - 0.33), xycoords=axes.get_yaxis_transform(), va="bottom", **PLAIN)
    axes.tick_params(axis="y", length=0, labelcolor=BLACK)
    axes.spines["left"].set_visible(False)
    axes.margins(x=0.06)
    axes.set_xlabel(axis, **PLAIN)
    return figure


@matplotlib.rc_context(STYLE)
def plot_curves(lines: Sequence[Line], *, axis: str, percent: bool = False, logarithmic: bool = False) -> Figure:
    """Curves over training steps, each labelled at its end when there are several.

    percent: values are shares in [0, 1].
    logarithmic: where all values are positive.
    """
    figure, axes = _figure(HALF, max(2.7, 0.8 + 0.18 * len(lines)))
    for line in lines:
        width = 1.6 if len(line.steps) < 200 else 1.0
        marker = "o" if len(line.steps) == 1 else ""  # a line of one point is invisible
        axes.plot(line.steps, line.values, marker=marker, color=line.colour, linestyle=line.dashes, linewidth=width)
    if logarithmic and all(value > 0 for line in lines for value in line.values):
        axes.set_yscale("log")
    axes.set_xlabel("training step")
    axes.set_ylabel(axis, **PLAIN)
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.locator_params(axis="x", nbins=5)
    axes.set_xlim(left=0)
    axes.margins(x=0.02)
    if percent:
        axes.set_ylim(-0.02, 1.02)
        axes.yaxis.set_major_formatter(PercentFormatter(xmax=1, symbol=" %"))
    if len(lines) > 1:
        _label_ends(axes, lines)
    return figure


@matplotlib.rc_context(STYLE)
def plot_histogram(
    values: Tensor,
    kept: Tensor,
    *,
    axis: str,
    kept_title: str = "kept",
    marks: Tensor,
    mark_title: str,
    logarithmic: bool = False,
) -> Figure:
    """Candidates by a score [N]; those with kept [N] at the bottom, the rejected on top of them.

    marks: thresholds [K], K >= 0: ticks at the upper edge where there are several, and a line at their median.
    logarithmic: bins of equal width in the logarithm of the score.
    """
    figure, axes = _figure(HALF, 2.7)
    values, marks = values.double(), marks.double()
    if logarithmic:
        values, marks = values.clamp(min=SMALLEST_ERROR), marks.clamp(min=SMALLEST_ERROR)
        low, high = values.min().log10().item(), values.max().log10().item()
        edges = torch.logspace(low, max(high, low + 0.1), 61, dtype=torch.float64)
        axes.set_xscale("log")
    else:
        high = values.max().item()
        edges = torch.linspace(0, high if high > 0 else 1, 61, dtype=torch.float64)
    values = values.clamp(edges[0], edges[-1])  # rounding of the edges must not lose the extremes
    style = {"stacked": True, "histtype": "stepfilled", "color": [BLUE, VERMILION], "linewidth": 0}
    axes.hist([values[kept].tolist(), values[~kept].tolist()], bins=edges.tolist(), **style)
    axes.margins(x=0.01)
    axes.set_xlabel(axis, **PLAIN)
    axes.set_ylabel("candidates")
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    share = 100 * kept.double().mean().item()
    titles = [(0, "left", BLUE, f"{kept_title} {share:.0f} %"), (1, "right", BLACK, mark_title)]
    if share < 100:
        titles.append((0.3, "left", VERMILION, f"rejected {100 - share:.0f} %"))
    for position, side, colour, text in titles:
        _note(axes, text, (position, 1), above=10, xycoords="axes fraction", ha=side, color=colour)
    if len(marks):
        across = axes.get_xaxis_transform()
        axes.plot([marks.median().item()] * 2, [0, 1], color=BLACK, linewidth=1, linestyle=MARK, transform=across)
    if len(marks) > 1:
        ticks = [1.0] * len(marks)
        axes.plot(marks.tolist(), ticks, "|", color=BLACK, markersize=7, transform=across, clip_on=False)
    return figure


@matplotlib.rc_context(STYLE)
def plot_label_score(stages: Sequence[str], scores: Sequence[float], *, axis: str, decimals: int) -> Figure:
    """How well labels fit images after each stage of the selection."""
    figure, axes = _figure(HALF, 2.7)
    colours = [*[MIDDLE] * (len(scores) - 1), BLUE]
    axes.plot(range(len(scores)), scores, color=LIGHT, linewidth=1.2, zorder=1)
    axes.scatter(range(len(scores)), scores, color=colours, s=36, zorder=3, clip_on=False)
    for position, score in enumerate(scores):
        box = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
        _note(axes, number(score, decimals), (position, score), above=7, ha="center", va="bottom", bbox=box, zorder=2)
    axes.set_xticks(range(len(stages)), stages)
    axes.tick_params(axis="x", length=0, pad=7, labelcolor=BLACK)
    axes.margins(x=0.1, y=0.2)
    axes.set_ylim(bottom=max(0.0, axes.get_ylim()[0]))
    axes.set_ylabel(axis, **PLAIN)
    return figure


# --- parts ------------------------------------------------------------------------------------------------------------


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def _note(axes: Axes, text: str, point: tuple[float, float], *, above: float, **style) -> None:
    """Write a text so many points above a point."""
    axes.annotate(text, point, xytext=(0, above), textcoords="offset points", **style, **PLAIN)


def _label_ends(axes: Axes, lines: Sequence[Line]) -> None:
    """Write every title to the right of its curve's end, moved up or down where titles would overlap."""
    to_fraction = axes.transData + axes.transAxes.inverted()
    wanted = [float(to_fraction.transform((line.steps[-1], line.values[-1]))[1]) for line in lines]
    order = sorted(range(len(lines)), key=lambda index: wanted[index])
    distance = 12 / (72 * 0.75 * axes.figure.get_figheight())  # 12 points, of axes that take 3/4 of the figure
    heights = spread([wanted[index] for index in order], distance)
    for rank, (index, height) in enumerate(zip(order, heights, strict=True)):
        line, height = lines[index], max(height, rank * distance)  # none below the axis
        end, place = (line.steps[-1], line.values[-1]), {"xytext": (1.06, height), "textcoords": "axes fraction"}
        arrow = {"arrowstyle": "-", "color": line.colour, "linewidth": 0.6, "shrinkB": 2, "relpos": (0, 0.5)}
        style = {"va": "center", "color": line.colour, "annotation_clip": False, "arrowprops": arrow}
        axes.annotate(line.title, end, **place, **style, **PLAIN)


def spread(heights: Sequence[float], distance: float) -> list[float]:
    """Ascending heights moved as little as it takes (least squares) to lie `distance` apart."""
    blocks: list[list[float]] = []  # neighbours that touch move as one block: [sum of offsets, number]
    for index, height in enumerate(heights):
        blocks.append([height - index * distance, 1])
        while len(blocks) > 1 and blocks[-2][0] / blocks[-2][1] > blocks[-1][0] / blocks[-1][1]:
            total, number = blocks.pop()
            blocks[-1][0] += total
            blocks[-1][1] += number
    starts = [total / number for total, number in blocks for _ in range(int(number))]
    return [start + index * distance for index, start in enumerate(starts)]
