"""The numbers of a finished run: `metrics.json`, and the table in the terminal."""

from __future__ import annotations

import math
import shlex
import statistics
import sys

from rich.console import Console
from rich.table import Table

from gankd import provenance
from gankd.describe import num_parameters
from gankd.evaluation import evaluate
from gankd.experiment import Experiment
from gankd.model_store import load_model
from gankd.synthesis.store import read_manifest


def summarize(experiment: Experiment) -> dict:
    """Everything that `metrics.json` holds. The one place that reads the test split.

    Accuracies are in %, errors in the unit of the labels; spreads are sample standard deviations over the seeds.
    """
    config, task, data = experiment.config, experiment.task, experiment.data
    recorded = experiment.recorded()

    def on_test(path: str) -> dict[str, float]:
        model, normalize = (part.to(experiment.accelerator.device) for part in load_model(experiment.directory / path))
        answers_in = getattr(model, "output_task", task)  # a teacher may have another head, or other units
        return evaluate(model, normalize, answers_in, data.test, accelerator=experiment.accelerator)

    arms = {}
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
    manifest = read_manifest(experiment.directory / "synthetic")
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
        },
        "student": {
            "network": config.student.model.name,
            "parameters": num_parameters(experiment.network(config.student.model)),
            "batch_size": config.student.batch_size,
            "steps": experiment.num_steps(config.student, data.train),
        },
        "generator": {"trained": config.generator.checkpoint is None, **recorded.get("generator", {})},
        "synthesis": {key: value for key, value in manifest.items() if key not in ("shards", "inputs")}
        | recorded["synthetic"],
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


def print_table(metrics: dict) -> None:
    """The arms with mean and spread, in the terminal."""
    task, teacher = metrics["task"], metrics["teacher"]
    metric, unit = task["metric"], task["unit"]
    names = {"top1": "top-1", "mae": "MAE", "rmse": "RMSE", "r2": "R2", "top5": "top-5"}
    metric_names = list(next(iter(metrics["arms"].values()))["test"])
    table = Table(title=f"{metrics['name']}: test {names.get(metric, metric)} [{unit}]", title_justify="left")
    table.add_column("arm")
    table.add_column("seeds", justify="right")
    for name in metric_names:
        table.add_column(names.get(name, name), justify="right")
    best = max if task["higher_is_better"] else min
    leader = best(metrics["arms"], key=lambda arm: metrics["arms"][arm]["test"][metric]["mean"])
    for name, arm in metrics["arms"].items():
        cells = [in_digits(arm["test"][key]["mean"], arm["test"][key]["std"]) for key in metric_names]
        table.add_row(arm["title"], str(len(arm["seeds"])), *cells, style="bold" if name == leader else None)
    table.add_section()
    table.add_row("teacher", "", *(in_digits(teacher["test"][key]) for key in metric_names), style="dim")
    scores = ", ".join(f"{name} {value}" for name, _, value in metrics["generator"].get("score_rows", []))
    Console().print(table, *([f"generator, before selection: {scores}"] if scores else []))
