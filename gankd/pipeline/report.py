"""The report: the test split, read once for every finished network; metrics.json and report.html of what was made."""

import json

from generators.checkpoints import replace_whole


def make_report(run) -> dict:
    """Measure what was made, write metrics.json and report.html; returns what metrics.json holds.

    A score of the generator that cannot be had is a line (`metrics["generator"]["unscored"]`), never the end of the report.
    """
    from gankd.fidelity.scores import quick_scores, score_rows
    from gankd.report import write_report
    from gankd.report.tables import print_tables, summarize

    metrics = summarize(run)
    if run.accelerator.is_main_process:
        write_metrics(run, metrics)  # before anything of less importance could fail
        if metrics["generator"] and metrics["teacher"]:
            # against validation: a teacher knows its training images too well to compare others with them
            task = run.task.plain()
            try:
                if not len(run.data.validation):
                    raise ValueError("data.validation is 0, and test images are for the students alone.")
                scores = quick_scores(
                    run.generator.result,
                    run.teacher.result.for_task(task),
                    task,
                    run.data.validation,
                    seed=run.config.seed,
                )
                metrics["generator"] |= {"scores": scores, "score_rows": score_rows([scores], task)}
            except ValueError as error:
                metrics["generator"]["unscored"] = f"the generator could not be scored: {error}"
                run.console.print(f"  {metrics['generator']['unscored']}", markup=False, soft_wrap=True)
            write_metrics(run, metrics)
        print_tables(metrics)
        write_report(run.directory, run.data, metrics)
    run.accelerator.wait_for_everyone()
    return metrics


def write_metrics(run, metrics: dict) -> None:
    with replace_whole(run.directory / "metrics.json") as temporary:
        temporary.write_text(json.dumps(metrics, indent=2), encoding="utf-8")
