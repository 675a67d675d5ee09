"""The numbers of a finished run: `metrics.json`, and the table in the terminal."""

import shlex
import statistics
import sys
from collections.abc import Callable, Collection

from rich.table import Table
from torch import nn

from gankd.evaluation import PROBES, network_metrics
from gankd.experiment import provenance
from gankd.experiment.config import RepresentationConfig, StudentConfig
from gankd.experiment.experiment import num_parameters
from gankd.fidelity.judge import JUDGED_HEAD
from gankd.fidelity.scores import score_rows
from gankd.models import ModelConfig
from gankd.models.store import load_model
from gankd.report.comparison import backbones_table, students_table
from gankd.report.text import plain_console
from gankd.synthesis.store import read_manifest
from gankd.tasks import Task


def summarize(experiment) -> dict:
    """Everything that `metrics.json` holds. The one place that reads the test split.

    Accuracies are in %, errors in the unit of the labels; spreads are sample standard deviations over the seeds.
    """
    config, task, data = experiment.config, experiment.task, experiment.data
    # of what was made, which nothing else is here
    recorded = {stage.name: stage.results for stage in experiment.stages()}

    def on_test(path: str) -> dict[str, float]:
        model, normalize = (part.to(experiment.accelerator.device) for part in load_model(experiment.directory / path))
        answers_in = getattr(model, "output_task", task)  # a teacher may have another head, or other units
        return network_metrics(model, normalize, answers_in, data.test, accelerator=experiment.accelerator)

    def network(model: ModelConfig, *task: Task) -> dict:
        return {"network": model.name, "parameters": num_parameters(experiment.network(model, *task))}

    teacher = generator = synthesis = None
    if "teacher" in recorded:
        teacher = network(config.teacher.model, experiment.teacher_task)
        teacher |= {"test": on_test("teacher"), **recorded["teacher"]}
    if "generator" in recorded:
        generator = {"trained": config.generator.checkpoint is None, **recorded["generator"]}
    if "judged" in recorded:
        generator["judged"] = recorded["judged"]
    if "synthetic" in recorded:
        manifest = read_manifest(experiment.directory / "synthetic")
        synthesis = {key: value for key, value in manifest.items() if key not in ("shards", "inputs")}
        synthesis |= recorded["synthetic"]
    choices = "choices on the validation split" if len(data.validation) else "no validation split, and nothing chosen"
    return {
        "name": config.name,
        "title": config.title,
        "notes": config.notes,
        "task": {name: getattr(task, name) for name in ("kind", "metric", "unit", "higher_is_better")},
        "data": {
            "source": config.data.name,
            "image_shape": data.train.image_shape,
            **{part: len(getattr(data, part)) for part in ("train", "pool", "validation", "test")},
        },
        "teacher": teacher,
        "student": {
            **network(config.student.model),
            "batch_size": config.student.batch_size,
            "steps": config.student.resolved(len(data.train)).steps,
        },
        "generator": generator,
        "synthesis": synthesis,
        "representation": summarize_backbones(experiment, recorded),
        "arms": summarize_arms("students", config.student, recorded, on_test),
        "protocol": f"networks after their last step; {choices}; test split read once, for this table",
        "provenance": {
            **provenance.versions(),
            "configuration": provenance.config_hash(config),
            "seed": config.seed,
            "processes": experiment.accelerator.num_processes,
            "command": shlex.join(["accelerate", "launch", *sys.argv]),
        },
    }


def summarize_arms(
    folder: str,
    config: StudentConfig | RepresentationConfig,
    recorded: dict[str, dict],
    on_test: Callable[[str], dict[str, float]],
) -> dict[str, dict]:
    """The networks in `folder`, arm by arm: how they were trained, and every metric with its mean and spread."""
    arms = {}
    for name, arm in config.arms.items():
        paths = [f"{folder}/{name}/seed-{seed}" for seed in config.seeds]
        has_validation = recorded[paths[0]]["validation"] is not None
        arms[name] = {
            "title": arm.title or name,
            "synthetic": arm.synthetic,
            "method": arm.method.model_dump(mode="json"),
            "seeds": list(config.seeds),
            "test": _collect([on_test(path) for path in paths]),
            "validation": _collect([recorded[path]["validation"] for path in paths]) if has_validation else None,
            "seconds": [recorded[path]["seconds"] for path in paths],
        }
    return arms


def summarize_backbones(experiment, recorded: dict[str, dict]) -> dict | None:
    """What the probes find in the backbones on the test split; None where there are none.

    Beside them the untrained network, which is what a probe makes of features that nobody trained.
    """
    config = experiment.config.representation
    if not config.arms:
        return None
    protocols: dict[str, str] = {}

    def on_test(model: nn.Module) -> dict[str, float]:
        results = experiment.probe(model, experiment.data.test)
        protocols.update({key: result.protocol for key, result in results.items()})
        return {key: result.value for key, result in results.items()}

    probed = lambda path: on_test(load_model(experiment.directory / path)[0])  # noqa: E731
    arms = summarize_arms("representation", config, recorded, probed)
    untrained = _collect([on_test(experiment.build(experiment.backbone, seed)) for seed in config.seeds])
    real = experiment.unlabelled
    return {
        "arms": arms,
        "untrained": untrained,
        "protocols": protocols,
        "network": experiment.backbone.name,
        "parameters": num_parameters(experiment.network(experiment.backbone)),
        "batch_size": config.batch_size,
        "steps": config.steps_on(len(real)),
        "real": len(real),
        "generated": config.num_generated,
        "probe_on": len(experiment.part(config.probe_on)),
    }


def _collect(values: list[dict[str, float]]) -> dict[str, dict]:
    """Per metric: the values of the seeds, their mean and their spread, which one seed does not show (None)."""
    collected = {}
    for metric in values[0]:
        series = [value[metric] for value in values]
        spread = statistics.stdev(series) if len(series) > 1 else None
        collected[metric] = {"values": series, "mean": statistics.fmean(series), "std": spread}
    return collected


def print_tables(metrics: dict) -> None:
    """Backbones and students with mean and spread, in the terminal."""
    name = metrics["name"]
    if metrics["representation"]:
        print_table(f"{name}: backbones without labels, test split", *backbones_table(metrics))
        for key, protocol in metrics["representation"]["protocols"].items():
            plain_console().print(f"{PROBES[key]}: {protocol}", soft_wrap=True, style="dim")
    if metrics["arms"]:
        print_table(f"{name}: students, test split", *students_table(metrics))
    if judged := (metrics["generator"] or {}).get("judged"):
        print_judged(name, judged)
    scores = ", ".join(f"{name} {value}" for name, _, value in (metrics["generator"] or {}).get("score_rows", []))
    if scores:
        plain_console().print(f"generator, before selection: {scores}")


def print_judged(name: str, judged: dict) -> None:
    """What a judge finds in a generator, beside what real images reach, in the terminal."""
    print_table(f"{name}: the generator, judged", JUDGED_HEAD, judged["rows"], (0, 1))
    for warning in judged["warnings"]:
        plain_console().print(f"warning: {warning}", soft_wrap=True)


def print_scores(columns: dict[str, dict], task: Task) -> None:
    """A table of a generator's scores, a column each, and what the first one warns of, in the terminal."""
    first = next(iter(columns.values()))
    head = ["", "better", *(f"{name.replace('_', ' ')} ({scores['num_fake']:,})" for name, scores in columns.items())]
    print_table(f"against {first['num_real']:,} real images", head, score_rows(list(columns.values()), task), (0, 1))
    for warning in first["warnings"]:
        plain_console().print(f"note: {warning}", soft_wrap=True)


def print_table(
    title: str, head: list[str], body: list[list[str]], text_columns: Collection[int], bold: Collection[int] = ()
) -> None:
    """As `html.as_table`, in the terminal, without the columns that make it wider than one."""
    shown = [
        column for column, name in enumerate(head) if name not in ("difference to first arm", "synthetic", "method")
    ]
    table = Table(title=title, title_justify="left")
    for column in shown:
        table.add_column(head[column], justify="left" if column in text_columns else "right")
    for row, cells in enumerate(body):
        table.add_row(*(cells[column] for column in shown), style="bold" if row in bold else None)
    plain_console().print(table)
