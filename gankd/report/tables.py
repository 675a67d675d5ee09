"""The numbers of a finished run: `metrics.json`, and the table in the terminal."""

from __future__ import annotations

import math
import shlex
import statistics
import sys

from rich.console import Console
from rich.table import Table
from torch import nn

from gankd.evaluation import PROBES, evaluate
from gankd.experiment import provenance
from gankd.experiment.experiment import num_parameters
from gankd.models.store import load_model
from gankd.synthesis.store import read_manifest

METRICS = {"top1": "top-1", "mae": "MAE", "rmse": "RMSE", "r2": "R2", "top5": "top-5"}


def summarize(experiment) -> dict:
    """Everything that `metrics.json` holds. The one place that reads the test split.

    Accuracies are in %, errors in the unit of the labels; spreads are sample standard deviations over the seeds.
    """
    config, task, data = experiment.config, experiment.task, experiment.data
    recorded = {stage.name: stage.results for stage in experiment.stages()}  # of what was made, which nothing else is here

    def on_test(path: str) -> dict[str, float]:
        model, normalize = (part.to(experiment.accelerator.device) for part in load_model(experiment.directory / path))
        answers_in = getattr(model, "output_task", task)  # a teacher may have another head, or other units
        return evaluate(model, normalize, answers_in, data.test, accelerator=experiment.accelerator)

    representation, arms = summarize_backbones(experiment, recorded), {}
    for name, arm in config.student.arms.items():
        paths = [f"students/{name}/seed-{seed}" for seed in config.student.seeds]
        test = [on_test(path) for path in paths]
        validation = [recorded[path]["validation"] for path in paths]
        arms[name] = {
            "title": arm.title or name,
            "synthetic": arm.synthetic,
            "method": arm.method.model_dump(mode="json"),
            "seeds": list(config.student.seeds),
            "test": _collect(test),
            "validation": _collect(validation),
            "seconds": [recorded[path]["seconds"] for path in paths],
        }
    synthesis = None
    if "synthetic" in recorded:
        manifest = read_manifest(experiment.directory / "synthetic")
        synthesis = {key: value for key, value in manifest.items() if key not in ("shards", "inputs")}
        synthesis |= recorded["synthetic"]
    return {
        "name": config.name,
        "title": config.title,
        "notes": config.notes,
        "task": {
            "kind": task.kind,
            "metric": task.metric,
            "unit": task.unit,
            "higher_is_better": task.higher_is_better,
        },
        "data": {
            "source": config.data.name,
            "image_shape": data.train.image_shape,
            "train": len(data.train),
            "pool": len(data.pool),
            "validation": len(data.validation),
            "test": len(data.test),
        },
        "teacher": {
            "network": config.teacher.model.name,
            "parameters": num_parameters(experiment.network(config.teacher.model, experiment.teacher_task)),
            "test": on_test("teacher"),
            **recorded["teacher"],
        }
        if "teacher" in recorded
        else None,
        "student": {
            "network": config.student.model.name,
            "parameters": num_parameters(experiment.network(config.student.model)),
            "batch_size": config.student.batch_size,
            "steps": config.student.resolved(len(data.train)).steps,
        },
        "generator": {"trained": config.generator.checkpoint is None, **recorded["generator"]}
        if "generator" in recorded
        else None,
        "synthesis": synthesis,
        "representation": representation,
        "arms": arms,
        "protocol": "networks after their last step; choices on the validation split; test split read once, for this table",
        "provenance": {
            **provenance.versions(),
            "configuration": provenance.config_hash(config),
            "seed": config.seed,
            "processes": experiment.accelerator.num_processes,
            "command": shlex.join(["accelerate", "launch", *sys.argv]),
        },
    }


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

    arms = {}
    for name, arm in config.arms.items():
        paths = [f"representation/{name}/seed-{seed}" for seed in config.seeds]
        arms[name] = {
            "title": arm.title or name,
            "synthetic": arm.synthetic,
            "method": arm.method.model_dump(mode="json"),
            "seeds": list(config.seeds),
            "test": _collect([on_test(load_model(experiment.directory / path)[0]) for path in paths]),
            "validation": _collect([recorded[path]["validation"] for path in paths]),
            "seconds": [recorded[path]["seconds"] for path in paths],
        }
    untrained = _collect([on_test(experiment.build(experiment.backbone, seed)) for seed in config.seeds])
    real = experiment.unlabelled
    return {
        "arms": arms,
        "untrained": untrained,
        "protocols": protocols,
        "network": experiment.backbone.name,
        "parameters": num_parameters(experiment.network(experiment.backbone)),
        "batch_size": config.batch_size,
        "steps": config.resolved(len(real)).steps,
        "real": len(real),
        "generated": config.num_generated,
        "probe_on": len(experiment.part(config.probe_on)),
    }


def _collect(values: list[dict[str, float]]) -> dict[str, dict]:
    """Per metric: the values of the seeds, their mean and their spread."""
    collected = {}
    for metric in values[0]:
        series = [value[metric] for value in values]
        spread = statistics.stdev(series) if len(series) > 1 else 0.0
        collected[metric] = {"values": series, "mean": statistics.fmean(series), "std": spread}
    return collected


def in_digits(mean: float, spread: float | None = None) -> str:
    """A number with three significant digits, and its spread with as many decimals."""
    decimals = max(0, 2 - math.floor(math.log10(abs(mean)))) if mean else 2
    return f"{mean:.{decimals}f}" + ("" if spread is None else f" ± {spread:.{decimals}f}")


def print_tables(metrics: dict) -> None:
    """Backbones and students with mean and spread, in the terminal."""
    if metrics["representation"]:
        print_backbones(metrics)
    if metrics["arms"]:
        print_students(metrics)
    scores = ", ".join(f"{name} {value}" for name, _, value in (metrics["generator"] or {}).get("score_rows", []))
    if scores:
        Console().print(f"generator, before selection: {scores}")


def print_backbones(metrics: dict) -> None:
    representation, task = metrics["representation"], metrics["task"]
    protocols = representation["protocols"]
    title = f"{metrics['name']}: backbones without labels, test {METRICS[task['metric']]} [{task['unit']}]"
    table = Table(title=title, title_justify="left")
    for heading, justify in (("backbone", "left"), ("generated", "right"), ("seeds", "right")):
        table.add_column(heading, justify=justify)
    for key in protocols:
        table.add_column(PROBES[key], justify="right")
    cells = lambda values: [in_digits(values[key]["mean"], values[key]["std"]) for key in protocols]  # noqa: E731
    for arm in representation["arms"].values():
        table.add_row(arm["title"], f"{arm['synthetic']:.0%}", str(len(arm["seeds"])), *cells(arm["test"]))
    table.add_section()
    table.add_row("untrained", "", "", *cells(representation["untrained"]), style="dim")
    Console().print(table)
    for key, protocol in protocols.items():
        Console().print(f"{PROBES[key]}: {protocol}", highlight=False, soft_wrap=True, style="dim")


def print_students(metrics: dict) -> None:
    task, teacher = metrics["task"], metrics["teacher"]
    metric, unit = task["metric"], task["unit"]
    metric_names = list(next(iter(metrics["arms"].values()))["test"])
    table = Table(title=f"{metrics['name']}: test {METRICS[metric]} [{unit}]", title_justify="left")
    table.add_column("arm")
    table.add_column("seeds", justify="right")
    for name in metric_names:
        table.add_column(METRICS[name], justify="right")
    best = max if task["higher_is_better"] else min
    leader = best(metrics["arms"], key=lambda arm: metrics["arms"][arm]["test"][metric]["mean"])
    for name, arm in metrics["arms"].items():
        cells = [in_digits(arm["test"][key]["mean"], arm["test"][key]["std"]) for key in metric_names]
        table.add_row(arm["title"], str(len(arm["seeds"])), *cells, style="bold" if name == leader else None)
    if teacher:
        table.add_section()
        table.add_row("teacher", "", *(in_digits(teacher["test"][key]) for key in metric_names), style="dim")
    Console().print(table)
