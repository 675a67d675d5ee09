"""The answers of a report: which arm is best, of students and of backbones, as a sentence, a table and a chart."""

import math
from collections.abc import Collection
from html import escape
from typing import NamedTuple

from gankd.evaluation import PROBES
from gankd.methods import METHODS
from gankd.report import plots
from gankd.report.html import as_facts, as_figure, as_section, as_table
from gankd.report.text import (
    METRIC_NAMES,
    SHORT_NAMES,
    UNITLESS,
    capital,
    in_unit,
    minus,
    num_decimals,
    number,
    share,
    with_spread,
    with_unit,
)


class NumberTable(NamedTuple):
    """A table for the page and for the terminal."""

    head: list[str]
    body: list[list[str]]
    text_columns: tuple[int, ...]
    best: list[int]


def result_section(metrics: dict) -> str:
    """Students, and the teacher where there is one."""
    task, arms, teacher, student = metrics["task"], metrics["arms"].values(), metrics["teacher"], metrics["student"]
    name = METRIC_NAMES[task["metric"]]
    networks = f"The student ({student['network']}) has {student['parameters']:,} parameters"
    if teacher:
        networks += f", the teacher ({teacher['network']}) {teacher['parameters']:,}"
    about = (
        f"{test_split(metrics, arms)} {networks}. Every arm trains the same student for {student['steps']:,} steps of "
        f"{student['batch_size']:,} images."
    )
    if task["metric"] == "mae" and "r2" not in next(iter(arms))["test"]:
        about += " R² is not available: the test split has a single label."
    mark = (teacher["test"][task["metric"]], "teacher") if teacher else None
    description = f"Test {name} of every arm" + (" and of the teacher" if teacher else "")
    caption = "Every dot is a seed, the bar their mean. Grey: real data only; colour: with synthetic data."
    return "\n".join(
        [
            key_paragraph(key_result(metrics)),
            f'<p class="aside">{escape(about)}</p>',
            as_table(*students_table(metrics)),
            arms_chart(arms, task["metric"], name, task, mark, description, caption),
        ]
    )


def test_split(metrics: dict, arms: Collection[dict]) -> str:
    several = any(len(arm["seeds"]) > 1 for arm in arms)
    spread = "mean ± standard deviation over the seeds" if several else "one seed, so that no spread is known"
    return f"Test split of {metrics['data']['test']:,} images; {spread}."


def key_paragraph(sentence: str) -> str:
    sentence = escape(sentence).replace(" ± ", "&nbsp;±&nbsp;").replace(" %", "&nbsp;%")  # unbroken values
    return f'<p class="key">{sentence}</p>'


def arms_chart(
    arms: Collection[dict],
    metric: str,
    name: str,
    task: dict,
    mark: tuple[float, str] | None,
    description: str,
    caption: str,
) -> str:
    """A dot a seed; a line at `mark`, a value and its title. `name`: the metric in words."""
    styles = plots.arm_styles([arm["synthetic"] != 0 for arm in arms])
    pairs = zip(arms, styles, strict=True)
    dots = [plots.Arm(arm["title"], arm["test"][metric]["values"], colour) for arm, (colour, _) in pairs]
    better = "higher is better" if task["higher_is_better"] else "lower is better"
    axis = f"test {in_unit(name, task['unit'])}, {better}"
    broad = plots.figure_to_svg(plots.plot_arms(dots, mark=mark, axis=axis), description)
    narrow = plots.figure_to_svg(plots.plot_arms(dots, mark=mark, axis=axis, narrow=True), f"{description}, narrow")
    return as_figure(f'<div class="broad">{broad}</div><div class="narrow">{narrow}</div>', caption, "wide")


def key_result(metrics: dict) -> str:
    """The answer on students in one sentence."""
    task, metric, teacher = metrics["task"], metrics["task"]["metric"], metrics["teacher"]
    decimals = num_decimals(metrics, metric)
    result = compare(metrics["arms"].values(), metric, METRIC_NAMES[metric], task, decimals)
    if not teacher:
        return f"{result}."
    return f"{result}; the teacher has {with_unit(teacher['test'][metric], decimals, task['unit'])}."


def compare(arms: Collection[dict], metric: str, name: str, task: dict, decimals: int) -> str:
    """The best arm with synthetic data against the best without, both chosen on validation by `metric`, in words `name`.

    Where there is no validation split and several arms to choose from, none is named: the test split is not for choices.
    "Reaches" needs a difference of the means above twice its standard error; otherwise it "does not beat".
    """
    sign = 1 if task["higher_is_better"] else -1
    value = lambda arm: with_spread(arm["test"][metric], decimals, task["unit"])  # noqa: E731
    sides = [[arm for arm in arms if (arm["synthetic"] != 0) == synthetic] for synthetic in (True, False)]
    if any(len(side) > 1 for side in sides) and not all(arm["validation"] for arm in arms):
        return f"The table shows the {name} of {len(arms)} arms; without validation images none of them is chosen"
    best = lambda arms: max(arms, key=lambda arm: sign * arm["validation"][metric]["mean"], default=None)  # noqa: E731
    ours, real = (best(side) if len(side) > 1 else next(iter(side), None) for side in sides)
    title = capital((ours or real)["title"])
    if ours is None or real is None:
        return f"{title} reaches a {name} of {value(ours or real)}"
    gain = sign * (ours["test"][metric]["mean"] - real["test"][metric]["mean"])
    variance = sum((arm["test"][metric]["std"] or 0.0) ** 2 / len(arm["seeds"]) for arm in (ours, real))
    against = f"{value(ours)} against {value(real)}"
    if gain > 2 * math.sqrt(variance):
        return f"{title} reaches a {name} of {against} for {real['title']}"
    beyond = " by more than the seeds differ" if gain > 0 else ""
    return f"{title} does not beat {real['title']}{beyond}: a {name} of {against}"


def students_table(metrics: dict) -> NumberTable:
    task, arms, teacher = metrics["task"], list(metrics["arms"].values()), metrics["teacher"]
    metric = task["metric"]
    names = [metric, *(name for name in arms[0]["test"] if name != metric)]
    decimals = {name: num_decimals(metrics, name) for name in names}
    means = [arm["test"][metric]["mean"] for arm in arms]
    gains = ["", *(minus(number(mean - means[0], decimals[metric], sign="+")) for mean in means[1:])]
    title = lambda name: in_unit(SHORT_NAMES[name], "" if name in UNITLESS else task["unit"])  # noqa: E731
    head = ["", title(metric), "difference to first arm", "synthetic", *map(title, names[1:]), "method", "seeds"]
    body = []
    for arm, gain in zip(arms, gains, strict=True):
        first, *others = (with_spread(arm["test"][name], decimals[name]) for name in names)
        method, seeds = arm["method"]["name"], str(len(arm["seeds"]))
        body.append([arm["title"], first, gain, share(arm["synthetic"]), *others, method, seeds])
    if teacher:
        first, *others = (with_unit(teacher["test"][name], decimals[name], "") for name in names)
        body.append(["teacher", first, "", "", *others, "", ""])
    return NumberTable(head, body, (0, len(head) - 2), best_rows(arms, metric, task))


def best_rows(arms: Collection[dict], metric: str, task: dict) -> list[int]:
    """The arms with the best mean."""
    means = [arm["test"][metric]["mean"] for arm in arms]
    best = max(means) if task["higher_is_better"] else min(means)
    return [row for row, mean in enumerate(means) if mean == best]


# --- backbones --------------------------------------------------------------------------------------------------------


def backbones_section(metrics: dict) -> str:
    """What probes find in the features of networks that were trained without labels."""
    task, representation = metrics["task"], metrics["representation"]
    arms, first = representation["arms"].values(), next(iter(representation["protocols"]))
    name = probe_name(first, task)
    about = (
        f"{test_split(metrics, arms)} Every arm trains the same network ({representation['network']}, "
        f"{representation['parameters']:,} parameters) without labels for {representation['steps']:,} steps of "
        f"{representation['batch_size']:,} images; probes are then fitted to its frozen features."
    )
    if any(METHODS[arm["method"]["name"]].needs_generator_features for arm in arms):  # which takes the data's labels
        about += (
            " The generator is conditional: the features that backbones learn from know the labels that the "
            "generator was trained with."
        )
    facts = {"real images": f"{representation['real']:,}, without their labels"}
    if any(arm["synthetic"] for arm in arms):
        facts["generated images"] = f"{representation['generated']:,}, not selected"
    facts["probes fitted to"] = f"{representation['probe_on']:,} labelled images"
    facts |= {PROBES[key]: protocol for key, protocol in representation["protocols"].items()}
    mark = (representation["untrained"][first]["mean"], "untrained")
    description = f"Test {name} of every backbone and of the untrained network"
    caption = "Every dot is a seed, the bar their mean. Grey: real images only; colour: with generated images."
    return as_section(
        "Backbones trained without labels",
        key_paragraph(backbone_result(metrics)),
        f'<p class="aside">{escape(about)}</p>',
        as_table(*backbones_table(metrics)),
        arms_chart(arms, first, name, task, mark, description, caption),
        as_facts({fact: escape(value) for fact, value in facts.items()}),
    )


def backbone_result(metrics: dict) -> str:
    """The answer on backbones in one sentence, by the first protocol."""
    task, representation = metrics["task"], metrics["representation"]
    first = next(iter(representation["protocols"]))
    decimals = num_decimals(representation, first)
    result = compare(representation["arms"].values(), first, probe_name(first, task), task, decimals)
    return f"{result}; the untrained network has {with_spread(representation['untrained'][first], decimals, task['unit'])}."


def probe_name(protocol: str, task: dict) -> str:
    return f"{PROBES[protocol]}-probe {METRIC_NAMES[task['metric']]}"


def backbones_table(metrics: dict) -> NumberTable:
    task, representation = metrics["task"], metrics["representation"]
    arms, protocols = representation["arms"].values(), list(representation["protocols"])
    decimals = {key: num_decimals(representation, key) for key in protocols}
    values = lambda collected: [with_spread(collected[key], decimals[key]) for key in protocols]  # noqa: E731
    head = ["", "generated", "method", "seeds", *(in_unit(PROBES[key], task["unit"]) for key in protocols)]
    body = [
        [arm["title"], share(arm["synthetic"]), arm["method"]["name"], str(len(arm["seeds"])), *values(arm["test"])]
        for arm in arms
    ]
    body.append(["untrained", "", "", "", *values(representation["untrained"])])
    return NumberTable(head, body, (0, 1, 2), best_rows(arms, protocols[0], task))
