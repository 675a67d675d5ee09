"""report.html: one page that answers the experiment's question, shows the data behind it, and says how to run it again.

The file needs nothing beside it: pictures and style are inside, there are no scripts. Its sections, in their order:
"""

import re
from html import escape
from pathlib import Path

from gankd.data.splits import Splits
from gankd.report.comparison import backbones_section, result_section
from gankd.report.curves import backbone_arms, training_section
from gankd.report.html import PAGE, as_facts, as_section
from gankd.report.images import REAL, images_section, label_rows, stored_images
from gankd.report.judge import judge_section
from gankd.report.sections import SECTIONS, FinishedRun, drawn
from gankd.report.selection import generator_section, selection_section
from gankd.synthesis.store import read_tensors
from generators.checkpoints import replace_whole


def write_report(directory: Path, data: Splits, metrics: dict) -> Path:
    """Write `directory/report.html` for a finished run, and return its path.

    directory: of the run; config.yaml, metrics.jsonl and the store of images, if there is one, are read.
    data: for examples of the training images.
    metrics: what `gankd.report.tables.summarize` made.
    """
    sections = "\n".join(drawn(FinishedRun(directory, data, metrics)))
    page = PAGE.substitute(name=escape(metrics["name"]), question=escape(metrics["title"]), sections=sections)
    path = directory / "report.html"
    with replace_whole(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


SECTIONS["students"] = lambda run: result_section(run.metrics) if run.metrics["arms"] else ""
SECTIONS["backbones"] = lambda run: backbones_section(run.metrics) if run.metrics["representation"] else ""


@SECTIONS.register("notes")
def notes(run: FinishedRun) -> str:
    paragraphs = [paragraph.strip() for paragraph in re.split(r"\n\s*\n", run.metrics["notes"]) if paragraph.strip()]
    return as_section("How to read this", *(f"<p>{escape(text)}</p>" for text in paragraphs)) if paragraphs else ""


@SECTIONS.register("images")
def images(run: FinishedRun) -> str:
    train = run.data.train
    sources = {REAL: train, **stored_images(run.directory)}
    return images_section(sources, label_rows(train), run.metrics["task"]["unit"])


@SECTIONS.register("generator")
def generator(run: FinishedRun) -> str:
    metrics = run.metrics["generator"] or {}
    return (judge_section(run) if "judged" in metrics else "") + (generator_section(metrics) if metrics else "")


@SECTIONS.register("selection")
def selection(run: FinishedRun) -> str:
    synthesis = run.metrics["synthesis"]
    if not synthesis:
        return ""
    folder = run.directory / "synthetic"
    scores, examples = (read_tensors(folder / f"{name}.safetensors") for name in ("scores", "examples"))
    return selection_section(synthesis, run.metrics["task"], scores, examples, label_rows(run.data.train), run.log)


SECTIONS["training"] = lambda run: training_section(run.metrics, run.log)


@SECTIONS.register("again")
def again(run: FinishedRun) -> str:
    metrics, config = run.metrics, (run.directory / "config.yaml").read_text()
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
