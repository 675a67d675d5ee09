"""What the commands in scripts/ share: parse, validate, describe, run."""

from __future__ import annotations

import argparse
import os
import sys
import warnings


def main(description: str, *, until: str = "report", default_config: str = "configs/digits.yaml") -> int:
    """Run an experiment up to a stage from the command line; returns the exit status.

    A user's mistake (a ValueError) ends with its sentence and status 2, without a traceback; Ctrl-C ends with status 130 and
    the same command continues.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--config", default=default_config, help=f"YAML file of the experiment (default: {default_config})"
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would happen, and touch nothing")
    parser.add_argument(
        "--replace", action="store_true", help="make stages again that other settings left in the run directory"
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="settings that replace the file's: student.epochs=20"
    )
    args = parser.parse_args()
    # one line for the user, not the libraries' notices about hubs and defaults that this command does not use
    warnings.filterwarnings("ignore", category=FutureWarning, module="diffusers|torch|accelerate")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        return _run(args, until)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # a full disk, a folder that is a file or may not be written
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command continues where this one stopped.", file=sys.stderr)
        return 130


def _run(args: argparse.Namespace, until: str) -> int:
    from gankd.experiment.config import load_config

    config = load_config(
        args.config, args.overrides
    )  # before anything heavy is imported: a misspelt key answers at once
    from accelerate import Accelerator

    from gankd.pipeline import Run
    from gankd.pipeline.describe import plan

    accelerator = Accelerator(
        mixed_precision=config.runtime.mixed_precision,
        log_with=config.runtime.tracker,
        project_dir=str(config.directory),
    )
    run = Run(config, accelerator, replace=args.replace)
    if args.dry_run:
        for line in plan(run):
            run.console.print(line, highlight=False, soft_wrap=True)
        return 0
    accelerator.init_trackers(config.name, config={"seed": config.seed, "source": config.data.name})
    run.run(until)
    accelerator.end_training()
    if accelerator.is_main_process and until == "report":
        print(f"report: {config.directory / 'report.html'}\nnumbers: {config.directory / 'metrics.json'}")
    return 0
