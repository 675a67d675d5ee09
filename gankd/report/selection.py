"""How good the generator is, and what was kept of its samples and why, in a report."""

from html import escape

import torch
from torch import Tensor

from gankd.report import plots
from gankd.report.html import as_charts, as_figure, as_section, as_table
from gankd.report.images import IMAGES_PER_ROW, Row, images_table, label_head, strip
from gankd.report.text import METRIC_NAMES, in_unit, num_digits, number, with_unit

STEP_NAMES = {  # broken where an axis breaks them
    "candidates": "all\ncandidates",
    "subsampled": "accepted by\ndensity ratio",
    "filtered": "kept by\nteacher filter",
    "stored": "stored",
}
FATE_NAMES = {"kept": "kept", "ratio": "rejected by the density ratio", "teacher": "rejected by the teacher"}


def selection_section(
    synthesis: dict,
    task: dict,
    scores: dict[str, Tensor],
    examples: dict[str, Tensor],
    rows: list[Row],
    log: list[dict],
) -> str:
    classes = task["kind"] == "classification"
    counts = {"candidates": synthesis["num_candidates"]}
    if "ratios" in scores:
        counts["subsampled"] = int(scores["accepted"].sum())
    if synthesis["rho"] is not None:
        counts["filtered"] = int(scores["kept"].sum())
    counts["stored"] = synthesis["num_samples"]
    label_scores = {stage: synthesis["label_score"][stage] for stage in counts if stage != "stored"}
    decimals = 1 if classes else num_digits(max(label_scores.values()), 3)
    score_name = in_unit("labels the teacher agrees with" if classes else "|label − teacher|", task["unit"])
    charts = [
        f"<div>{counts_table(counts, label_scores, score_name, decimals)}</div>",
        score_chart(label_scores, score_name, decimals, classes) if len(label_scores) > 1 else "",
        ratio_chart(synthesis, scores) if "ratios" in scores else "",
        error_chart(synthesis, scores, task),
    ]
    return as_section(
        "Selection of the synthetic images",
        settings_line(synthesis, task, log),
        as_charts(charts),
        fates_figure(examples, rows, task),
    )


def generator_section(generator: dict) -> str:
    """How good the generator is by itself: a weak one does not help, whatever is selected from it."""
    if "unscored" in generator:
        return as_section("The generator", f'<p class="aside">{escape(generator["unscored"])}</p>')
    if "score_rows" not in generator:
        return ""
    table = as_table(["score", "better", "value"], generator["score_rows"], (0, 1))
    caption = (
        "All generated images, before any selection, against real validation images in the teacher's features: comparable "
        "between runs with this teacher only. "
        + " ".join(sentence[0].upper() + sentence[1:] for sentence in generator["scores"]["warnings"])
    )
    return as_section("The generator", table, f'<p class="aside">{escape(caption)}</p>')


def settings_line(synthesis: dict, task: dict, log: list[dict]) -> str:
    rho, replaced = synthesis["rho"], synthesis["labels_replaced"]
    parts = [
        f"Density ratio (M1): {'off' if synthesis['bounds'] is None else 'on'}.",
        f"Teacher filter (M2): {'off' if rho is None else f'on, ρ = {rho:g}'}.",
        f"Stored labels: {'what the teacher says' if replaced else 'what the generator was given'}.",
    ]
    tried = {line["rho"]: line["validation_error"] for line in log if line["stage"] == "rho"}
    if tried:
        sign = -1 if task["higher_is_better"] else 1  # the error of an accuracy is its negative
        results = ", ".join(f"{rho:g}: {with_unit(sign * tried[rho], 2, task['unit'])}" for rho in sorted(tried))
        parts.append(f"ρ was chosen by a student's {METRIC_NAMES[task['metric']]} on the validation split ({results}).")
    return f"<p>{escape(' '.join(parts))}</p>"


def counts_table(counts: dict[str, int], label_scores: dict[str, float], score_name: str, decimals: int) -> str:
    """How many images each step left, which share of those before it, and how well the generator's labels fit."""
    body, before = [], None
    for stage, count in counts.items():
        passed = f"{100 * count / before:.1f} %" if before and stage != "stored" else ""
        score = number(label_scores[stage], decimals) if stage in label_scores else ""
        body.append([STEP_NAMES[stage].replace("\n", " "), f"{count:,}", passed, score])
        before = count
    return as_table(["", "images", "passed", score_name], body, (0,))


def score_chart(label_scores: dict[str, float], score_name: str, decimals: int, classes: bool) -> str:
    names = [STEP_NAMES[stage] for stage in label_scores]
    figure = plots.plot_label_score(names, list(label_scores.values()), axis=score_name, decimals=decimals)
    better = "higher" if classes else "lower"
    caption = f"How well the generator's labels fit its images in the teacher's eyes; {better} is better."
    return as_figure(plots.figure_to_svg(figure, f"Label score after every step: {score_name}"), caption)


def ratio_chart(synthesis: dict, scores: dict[str, Tensor]) -> str:
    bounds = torch.tensor(synthesis["bounds"])
    titles = {
        "axis": "density ratio, real : generated",
        "kept_title": "accepted",
        "mark_title": mark_title("bound", bounds),
    }
    figure = plots.plot_histogram(scores["ratios"], scores["accepted"], marks=bounds, **titles)
    caption = "M1: a candidate is accepted with probability ratio / bound; every class or label range has its bound."
    return as_figure(plots.figure_to_svg(figure, "Density ratios of all candidates, accepted and rejected"), caption)


def error_chart(synthesis: dict, scores: dict[str, Tensor], task: dict) -> str:
    classes, rho, accepted = task["kind"] == "classification", synthesis["rho"], scores["accepted"]
    name = "cross-entropy of the teacher [nats]" if classes else in_unit("absolute error of the teacher", task["unit"])
    caption, thresholds = "The teacher's error; the filter was off.", torch.empty(0)
    if rho is not None:
        caption = f"M2: the share ρ = {rho:g} with the smallest error stays{', class by class' if classes else ''}."
        thresholds = torch.tensor(synthesis["thresholds"]).flatten()
        thresholds = thresholds[thresholds.isfinite()]  # a class of which nothing was accepted has none
    marks = {"marks": thresholds, "mark_title": mark_title("threshold", thresholds)}
    candidates = (scores["errors"][accepted], scores["kept"][accepted])
    figure = plots.plot_histogram(*candidates, axis=name, logarithmic=classes, **marks)
    return as_figure(plots.figure_to_svg(figure, "The teacher's error on accepted candidates"), caption)


def mark_title(name: str, marks: Tensor) -> str:
    if len(marks) < 2:
        return f"{name} {marks.item():.3g}" if len(marks) else ""
    return f"{len(marks)} {name}s, median {marks.median().item():.3g}"


def fates_figure(examples: dict[str, Tensor], rows: list[Row], task: dict) -> str:
    """Kept images beside those that the density ratio and the teacher rejected, label by label."""
    fates = [fate for fate in FATE_NAMES if len(examples[f"{fate}.labels"])]
    if fates == ["kept"]:
        return ""
    body = []
    for row in rows:
        cells = [row.title]
        for fate in fates:
            members = row.members(examples[f"{fate}.labels"])
            if fate == "teacher":
                members = members[examples["teacher.errors"][members].argsort(descending=True, stable=True)]
            images = examples[f"{fate}.images"][members[:IMAGES_PER_ROW]]
            cells.append(strip(images, f"{FATE_NAMES[fate]}, label {row.title}"))
        body.append(cells)
    caption = "Candidates by the label that the generator was given. Kept: the first drawn."
    if "ratio" in fates:
        caption += " Rejected by the density ratio: the smallest ratios."
    if "teacher" in fates:
        caption += " Rejected by the teacher: the largest errors, the largest on the left."
    head = [label_head(examples["kept.labels"], task["unit"]), *(FATE_NAMES[fate] for fate in fates)]
    return as_figure(images_table(head, body), caption, "grid")
