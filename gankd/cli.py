"""What the commands in scripts/ share: parse, validate, describe, run."""

import argparse
import importlib.util
import os
import signal
import subprocess
import sys
import warnings

LAUNCHERS = (
    "accelerate",
    "accelerate.commands.launch",
    "torchrun",
    "torch.distributed.run",
    "torch.distributed.launch",
)

ECHO = r"""
i=0
while [ $i -lt 300 ] && kill -0 "$0" 2>/dev/null && ! grep -qs '^State:[[:space:]]*Z' "/proc/$0/status"
do sleep 0.1; i=$((i + 1)); done
printf '%s\n' "$1" >&2
"""
"""Prints a sentence when the launcher has ended, be it that nobody has asked for its status yet, or after half a minute."""


def main(description: str, *, until: str = "report", default_config: str = "configs/digits.yaml") -> int:
    """Run an experiment up to a stage from the command line; returns the exit status.

    A user's mistake (a ValueError) ends with its sentence and status 2, without a traceback; Ctrl-C ends with status 130,
    SIGTERM with 143, and the same command continues.
    """
    description += "\nStages that are done are skipped, a stage that was cut off is continued."
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
    args = parser.parse_intermixed_args()  # overrides on both sides of an option
    # one line for the user, not the libraries' notices about hubs and defaults that this command does not use
    warnings.filterwarnings("ignore", category=FutureWarning, module="diffusers|torch|accelerate")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    signal.signal(signal.SIGTERM, _terminate)
    launcher = _launcher()
    if launcher:
        _end_with_parent()
    try:
        return _run(args, until)
    except Terminated:
        return _last_words("terminated; the same command continues where this one stopped.", 143, launcher)
    except KeyboardInterrupt:
        return _last_words("interrupted; the same command continues where this one stopped.", 130, launcher)
    except (ValueError, OSError) as error:  # a user's mistake; a full disk, a folder that may not be written
        return _last_words(f"error: {error}", 2, launcher)


class Terminated(BaseException):
    """SIGTERM has come."""


def _terminate(number: int, frame: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough
    raise Terminated


def _launcher() -> int | None:
    """The process number of the launcher that started this process, None where there is none."""
    import psutil

    try:
        parent = psutil.Process().parent()
        words = [] if parent is None else [word.rsplit("/", 1)[-1] for word in parent.cmdline()[:4]]
    except psutil.Error:
        return None
    return parent.pid if any(word in LAUNCHERS for word in words) else None


def _end_with_parent() -> None:
    """Ask the kernel to end this process when its launcher is killed, so that no orphan goes on writing (Linux)."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def _last_words(sentence: str, status: int, launcher: int | None) -> int:
    """Print a sentence; under a launcher, which prints a traceback of its own after it, once more behind that."""
    print(sentence, file=sys.stderr, flush=True)
    if launcher and os.name == "posix" and os.environ.get("LOCAL_RANK", "0") == "0":
        subprocess.Popen(["sh", "-c", ECHO, str(launcher), sentence], start_new_session=True, stdin=subprocess.DEVNULL)
    return status


def _run(args: argparse.Namespace, until: str) -> int:
    from gankd.experiment.config import load_config

    if args.dry_run:
        os.environ["HF_HUB_OFFLINE"] = "1"  # nothing is downloaded
    # before anything heavy is imported: a misspelt key answers at once
    config = load_config(args.config, args.overrides)
    if args.dry_run and config.data.own.get("download"):
        config = load_config(args.config, [*args.overrides, "data.download=false"])
    if config.runtime.tracker and not importlib.util.find_spec(config.runtime.tracker):
        raise ValueError(
            f"runtime.tracker: {config.runtime.tracker} is not installed: pip install 'gankd[tensorboard]'."
        )
    from accelerate import Accelerator

    from gankd.pipeline import Run

    accelerator = Accelerator(
        mixed_precision=config.runtime.mixed_precision,
        log_with=config.runtime.tracker,
        project_dir=str(config.directory),
    )
    run = Run(config, accelerator, replace=args.replace)
    if args.dry_run:
        for line in run.plan(until):
            run.say(line)
        return 0
    accelerator.init_trackers(config.name, config={"seed": config.seed, "source": config.data.name})
    run.run(until)
    accelerator.end_training()
    if accelerator.is_main_process and until == "report":
        print(f"report: {config.directory / 'report.html'}\nnumbers: {config.directory / 'metrics.json'}")
    return 0
