"""report.html: one page that answers the experiment's question, shows the data behind it, and says how to run it again.

The file needs nothing beside it: pictures and style are inside, there are no scripts.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterator
from html import escape
from pathlib import Path

from gankd.data.splits import Splits
from gankd.evaluation import PROBES
from gankd.report import plots
from gankd.report.html import PAGE, as_charts, as_facts, as_figure, as_section, as_table
from gankd.report.images import REAL, images_section, label_rows, stored_images
from gankd.report.selection import generator_section, selection_section
from gankd.report.text import (
    METRIC_NAMES,
    SHORT_NAMES,
    UNITLESS,
    capital,
    in_unit,
    minus,
    num_decimals,
    share,
    with_spread,
    with_unit,
)
from gankd.synthesis.store import read_tensors
from generators.checkpoints import replace_whole


def write_report(directory: Path, data: Splits, metrics: dict) -> Path:
    """Write `directory/report.html` for a finished run, and return its path.

    Args:
        directory: of the run; config.yaml, metrics.jsonl and the store of images, if there is one, are read.
        data: for examples of the training images.
        metrics: what `gankd.report.tables.summarize` made.

    Raises:
        ValueError: the synthetic store is not finished or not whole.
    """
    name, question = escape(metrics["name"]), escape(metrics["title"])
    page = PAGE.substitute(name=name, question=question, sections="\n".join(sections_of(directory, data, metrics)))
    path = directory / "report.html"
    with replace_whole(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def sections_of(directory: Path, data: Splits, metrics: dict) -> Iterator[str]:
    """The sections that an experiment has, from its answer to how it is run again."""
    task, rows, log = metrics["task"], label_rows(data.train), read_log(directory / "metrics.jsonl")
    if metrics["arms"]:
        yield result_section(metrics)
    if metrics["representation"]:
        yield backbones_section(metrics)
    yield notes_section(metrics["notes"])
    yield images_section({REAL: data.train, **stored_images(directory)}, rows, task["unit"])
    if metrics["generator"]:  # what no arm read was not made
        yield generator_section(metrics["generator"])
    if metrics["synthesis"]:
        store = directory / "synthetic"
        scores, examples = (read_tensors(store / f"{name}.safetensors") for name in ("scores", "examples"))
        yield selection_section(metrics["synthesis"], task, scores, examples, rows, log)
    yield training_section(metrics, log)
    yield again_section(metrics, (directory / "config.yaml").read_text())


# --- the result -------------------------------------------------------------------------------------------------------


def result_section(metrics: dict) -> str:
    task, arms, teacher, student = metrics["task"], metrics["arms"].values(), metrics["teacher"], metrics["student"]
    metric, better = task["metric"], "higher is better" if task["higher_is_better"] else "lower is better"
    dots = seed_dots(arms, metric)
    axis = f"test {in_unit(METRIC_NAMES[metric], task['unit'])}, {better}"
    mark = teacher["test"][metric] if teacher else None
    figure = plots.plot_arms(dots, mark=mark, mark_title="teacher", axis=axis)
    and_teacher = f", the teacher ({teacher['network']}) {teacher['parameters']:,}" if teacher else ""
    about = (
        f"Test split of {metrics['data']['test']:,} images; mean ± standard deviation over the seeds. The student "
        f"({student['network']}) has {student['parameters']:,} parameters{and_teacher}. "
        f"Every arm trains the same student for {student['steps']:,} steps of "
        f"{student['batch_size']:,} images."
    )
    return "\n".join(
        [
            key_paragraph(key_result(metrics)),
            f'<p class="aside">{escape(about)}</p>',
            arms_table(metrics),
            as_figure(
                plots.figure_to_svg(figure, f"Test {METRIC_NAMES[metric]} of every arm and of the teacher"),
                "Every dot is a seed, the bar their mean. Grey: real data only; colour: with synthetic data.",
                "wide",
            ),
        ]
    )


def key_paragraph(sentence: str) -> str:
    sentence = escape(sentence).replace(" ± ", "&nbsp;±&nbsp;").replace(" %", "&nbsp;%")  # unbroken values
    return f'<p class="key">{sentence}</p>'


def seed_dots(arms: Collection[dict], metric: str) -> list[plots.Arm]:
    styles = plots.arm_styles([arm["synthetic"] != 0 for arm in arms])
    return [
        plots.Arm(arm["title"], arm["test"][metric]["values"], colour)
        for arm, (colour, _) in zip(arms, styles, strict=True)
    ]


def key_result(metrics: dict) -> str:
    """The answer on students in one sentence."""
    task, metric = metrics["task"], metrics["task"]["metric"]
    decimals = num_decimals(metrics, metric)
    result = compare(metrics["arms"].values(), metric, METRIC_NAMES[metric], task, decimals)
    if not metrics["teacher"]:
        return f"{result}."
    return f"{result}; the teacher has {with_unit(metrics['teacher']['test'][metric], decimals, task['unit'])}."


def compare(arms: Collection[dict], metric: str, name: str, task: dict, decimals: int) -> str:
    """The best arm with synthetic data against the best without, both chosen on validation by `metric`, in words `name`.

    "Reaches" needs a difference of the means above twice its standard error; otherwise it "does not beat".
    """
    sign = 1 if task["higher_is_better"] else -1
    value = lambda arm: with_spread(arm["test"][metric], decimals, task["unit"])  # noqa: E731
    best = lambda arms: max(arms, key=lambda arm: sign * arm["validation"][metric]["mean"], default=None)  # noqa: E731
    ours = best([arm for arm in arms if arm["synthetic"] != 0])
    real = best([arm for arm in arms if arm["synthetic"] == 0])
    title = capital((ours or real)["title"])
    if ours is None or real is None:
        return f"{title} reaches a {name} of {value(ours or real)}"
    gain = sign * (ours["test"][metric]["mean"] - real["test"][metric]["mean"])
    variance = sum(arm["test"][metric]["std"] ** 2 / len(arm["seeds"]) for arm in (ours, real))
    against = f"{value(ours)} against {value(real)}"
    if gain > 2 * math.sqrt(variance):
        return f"{title} reaches a {name} of {against} for {real['title']}"
    beyond = " by more than the seeds differ" if gain > 0 else ""
    return f"{title} does not beat {real['title']}{beyond}: a {name} of {against}"


def arms_table(metrics: dict) -> str:
    task, arms = metrics["task"], list(metrics["arms"].values())
    metric, teacher = task["metric"], (metrics["teacher"] or {}).get("test")
    others = [name for name in arms[0]["test"] if name != metric]
    decimals = {name: num_decimals(metrics, name) for name in (metric, *others)}
    means = [arm["test"][metric]["mean"] for arm in arms]
    best = max(means) if task["higher_is_better"] else min(means)
    title = lambda name: in_unit(SHORT_NAMES[name], "" if name in UNITLESS else task["unit"])  # noqa: E731
    head = ["", "synthetic", "method", "seeds", title(metric), "difference to first arm", *map(title, others)]
    body = []
    for arm, mean in zip(arms, means, strict=True):
        gain = "" if arm is arms[0] else minus(f"{mean - means[0]:+.{decimals[metric]}f}")
        values = [with_spread(arm["test"][name], decimals[name]) for name in (metric, *others)]
        words = [arm["title"], share(arm["synthetic"]), arm["method"]["name"]]
        body.append([*words, str(len(arm["seeds"])), values[0], gain, *values[1:]])
    if teacher:
        values = [with_unit(teacher[name], decimals[name], "") for name in (metric, *others)]
        body.append(["teacher", "", "", "", values[0], "", *values[1:]])
    return as_table(head, body, num_text_columns=3, bold=[*(mean == best for mean in means), *[False] * bool(teacher)])


# --- backbones --------------------------------------------------------------------------------------------------------


def backbones_section(metrics: dict) -> str:
    """What probes find in the features of networks that were trained without labels."""
    task, representation = metrics["task"], metrics["representation"]
    arms, first = representation["arms"].values(), next(iter(representation["protocols"]))
    name, better = probe_name(first, task), "higher is better" if task["higher_is_better"] else "lower is better"
    figure = plots.plot_arms(
        seed_dots(arms, first),
        mark=representation["untrained"][first]["mean"],
        mark_title="untrained",
        axis=f"test {in_unit(name, task['unit'])}, {better}",
    )
    about = (
        f"Test split of {metrics['data']['test']:,} images; mean ± standard deviation over the seeds. Every arm trains the "
        f"same network ({representation['network']}, {representation['parameters']:,} parameters) without labels for "
        f"{representation['steps']:,} steps of {representation['batch_size']:,} images; probes are then fitted to its "
        "frozen features."
    )
    if any(arm["method"]["name"] == "squeeze_and_span" for arm in arms):  # an experiment's generator takes its labels
        about += (
            " The generator is conditional: the features that squeeze_and_span learns from know the labels that the "
            "generator was trained with."
        )
    facts = {"real images": f"{representation['real']:,}, without their labels"}
    if any(arm["synthetic"] for arm in arms):
        facts["generated images"] = f"{representation['generated']:,}, not selected"
    facts["probes fitted to"] = f"{representation['probe_on']:,} labelled images"
    facts |= {PROBES[key]: protocol for key, protocol in representation["protocols"].items()}
    return as_section(
        "Backbones trained without labels",
        key_paragraph(backbone_result(metrics)),
        f'<p class="aside">{escape(about)}</p>',
        backbones_table(metrics),
        as_figure(
            plots.figure_to_svg(figure, f"Test {name} of every backbone and of the untrained network"),
            "Every dot is a seed, the bar their mean. Grey: real images only; colour: with generated images.",
            "wide",
        ),
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


def backbones_table(metrics: dict) -> str:
    task, representation = metrics["task"], metrics["representation"]
    arms, protocols = representation["arms"].values(), list(representation["protocols"])
    decimals = {key: num_decimals(representation, key) for key in protocols}
    values = lambda collected: [with_spread(collected[key], decimals[key]) for key in protocols]  # noqa: E731
    means = [arm["test"][protocols[0]]["mean"] for arm in arms]
    best = max(means) if task["higher_is_better"] else min(means)
    head = ["", "generated", "method", "seeds", *(in_unit(PROBES[key], task["unit"]) for key in protocols)]
    body = [
        [arm["title"], share(arm["synthetic"]), arm["method"]["name"], str(len(arm["seeds"])), *values(arm["test"])]
        for arm in arms
    ]
    body.append(["untrained", "", "", "", *values(representation["untrained"])])
    return as_table(head, body, num_text_columns=3, bold=[*(mean == best for mean in means), False])


# --- notes ------------------------------------------------------------------------------------------------------------


def notes_section(notes: str) -> str:
    paragraphs = [paragraph.strip() for paragraph in re.split(r"\n\s*\n", notes) if paragraph.strip()]
    if not paragraphs:
        return ""
    return as_section("How to read this", *(f"<p>{escape(paragraph)}</p>" for paragraph in paragraphs))


# --- training ---------------------------------------------------------------------------------------------------------


def read_log(path: Path) -> list[dict]:
    """The lines of metrics.jsonl that count.

    A resumed or repeated stage writes steps again: the last writing counts, and what an earlier one wrote from that
    step on is dropped.
    """
    stages: dict[str, list[dict]] = {}
    for text in path.read_text().splitlines():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue  # a run that was killed leaves half a line
        written = stages.setdefault(line["stage"], [])
        while written and "step" in line and written[-1]["step"] >= line["step"]:
            written.pop()
        written.append(line)
    return [line for written in stages.values() for line in written]


def curve(log: list[dict], stage: str, name: str) -> tuple[list[int], list[float]]:
    """The steps of a stage and the values of one of its numbers there."""
    lines = [line for line in log if line["stage"] == stage and name in line]
    return [line["step"] for line in lines], [line[name] for line in lines]


def mean_curve(curves: list[tuple[list[int], list[float]]]) -> tuple[list[int], list[float]]:
    """The mean over curves, at the steps that all of them have."""
    values = [dict(zip(*each, strict=True)) for each in curves]
    steps = sorted(set.intersection(*(set(each) for each in values)))
    return steps, [sum(each[step] for each in values) / len(values) for step in steps]


def training_section(metrics: dict, log: list[dict]) -> str:
    stages, charts = {line["stage"] for line in log}, []

    def add(caption: str, lines: list[plots.Line], axis: str, **settings) -> None:
        figure = plots.plot_curves(lines, axis=axis, **settings)
        charts.append(as_figure(plots.figure_to_svg(figure, caption), caption))

    def pair(stage: str, first: tuple[str, str], second: tuple[str, str]) -> list[plots.Line]:
        names = ((*first, plots.DARK), (*second, plots.BLUE))
        return [plots.Line(title, *curve(log, stage, name), colour) for name, title, colour in names]

    if "generator" in stages:
        lines = pair("generator", ("discriminator_loss", "discriminator"), ("generator_loss", "generator"))
        add("Generator: losses of the two players.", lines, "loss")
        lines = pair("generator", ("real_accuracy", "real"), ("fake_accuracy", "generated"))
        add("Generator: share of images that the discriminator tells right.", lines, "told right", percent=True)
        steps, scores = curve(log, "generator", "score")
        if steps:
            caption = (
                "Generator: Frechet distance to the validation images, while it was trained; the best one was kept."
            )
            add(caption, [plots.Line("", steps, scores)], "Frechet distance", logarithmic=True)
    if "extractor" in stages:
        add("Feature extractor of the density ratio: loss.", [plots.Line("", *curve(log, "extractor", "loss"))], "loss")
    if "density_ratio" in stages:
        add("Density ratio: loss.", [plots.Line("", *curve(log, "density_ratio", "loss"))], "softplus divergence")
        lines = pair("density_ratio", ("real_ratio", "real"), ("fake_ratio", "generated"))
        add("Density ratio: batch means; its penalty pulls that of generated images to 1.", lines, "mean density ratio")
    if "teacher" in stages:
        lines = [plots.Line("", *curve(log, "teacher", "loss"), plots.DARK)]
        add("Teacher: training loss.", lines, "loss", logarithmic=True)
    backbones, curves = backbone_arms(metrics), arm_curves(backbone_arms(metrics), "backbone", log)
    for method in dict.fromkeys(arm["method"]["name"] for arm in backbones.values()):  # each has a loss of its own
        lines = [line for name, line in curves.items() if backbones[name]["method"]["name"] == method]
        if lines:
            add(f"Backbones by {method}: training loss, mean over the seeds.", lines, "loss", logarithmic=True)
    lines = list(arm_curves(metrics["arms"], "student", log).values())
    if lines:
        caption = "Students: training loss, mean over the seeds. Different methods minimise different losses."
        add(caption, lines, "loss", logarithmic=True)
    return as_section("Training", as_charts(charts))


def backbone_arms(metrics: dict) -> dict[str, dict]:
    return metrics["representation"]["arms"] if metrics["representation"] else {}


def arm_curves(arms: dict[str, dict], role: str, log: list[dict]) -> dict[str, plots.Line]:
    """The loss of the networks that the log calls "ROLE ARM seed N", by arm: the mean over its seeds."""
    styles, lines = plots.arm_styles([arm["synthetic"] != 0 for arm in arms.values()]), {}
    for (name, arm), style in zip(arms.items(), styles, strict=True):
        steps, values = mean_curve([curve(log, f"{role} {name} seed {seed}", "loss") for seed in arm["seeds"]])
        if steps:
            lines[name] = plots.Line(arm["title"], steps, values, *style)
    return lines


# --- how to run it again ----------------------------------------------------------------------------------------------


def again_section(metrics: dict, config: str) -> str:
    data, provenance = metrics["data"], metrics["provenance"]
    groups = {"backbones": backbone_arms(metrics).values(), "students": metrics["arms"].values()}
    seeds = {group: sorted({seed for arm in arms for seed in arm["seeds"]}) for group, arms in groups.items()}
    seconds = {stage: (metrics[stage] or {}).get("seconds") for stage in ("generator", "teacher", "synthesis")}
    seconds |= {group: sum(sum(arm["seconds"]) for arm in arms) for group, arms in groups.items()}
    processes, shape = provenance["processes"], " × ".join(map(str, data["image_shape"]))
    code = lambda text: f"<code>{escape(text)}</code>"  # noqa: E731
    facts = {
        "command": code(provenance["command"]),
        "configuration": code(provenance["configuration"]),
        "commit": code(provenance["commit"]),
        "versions": escape(f"Python {provenance['python']}, torch {provenance['torch']}"),
        "device": escape(f"{provenance['device']}, {processes} process{'es' if processes > 1 else ''}"),
        "seeds": "; ".join(
            [f"{provenance['seed']} for data and synthesis"]
            + [f"{group} {', '.join(map(str, numbers))}" for group, numbers in seeds.items() if numbers]
        ),
        "data": escape(
            f"{data['source']}, images {shape} (channels × height × width): {data['train']:,} to train on, of a pool "
            f"of {data['pool']:,}; {data['validation']:,} for validation, {data['test']:,} for the test"
        ),
        "protocol": escape(metrics["protocol"]),
        "time": ", ".join(f"{stage} {duration(value)}" for stage, value in seconds.items() if value),
    }
    return as_section(
        "Run it again",
        as_facts(facts),
        f"<details><summary>The whole configuration (config.yaml)</summary><pre>{escape(config)}</pre></details>",
    )


def duration(seconds: float) -> str:
    seconds = round(seconds)
    if seconds >= 3600:
        hours, minutes = divmod(round(seconds / 60), 60)
        return f"{hours} h {minutes} min"
    minutes, seconds = divmod(seconds, 60)
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
