"""Commands of scripts/ and modules of the tests in processes of their own, one or several.

An interpreter that has imported torch and its kin has worked for five seconds, far longer than what most tests ask of it. So
commands are forked from a server that has imported them once and done nothing else; `fresh=True` and a `launcher` start
them as a user's shell does.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

ROOT = Path(__file__).parent.parent
TWO_PROCESSES = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
"""The launcher of two processes."""
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    [
        "torch._dynamo",
        "torch.distributed.run",
        "accelerate",
        "sklearn.datasets",
        "matplotlib.figure",
        "matplotlib.backends.backend_svg",
        "torchmetrics.classification",
        "gankd.cli",
        "gankd.pipeline",
        "gankd.api",
        "gankd.plugins",
        "gankd.fidelity.scores",
        "gankd.report.page",
        "generators.pretrained",
    ]
)


class Forked:
    """A command in a forked process, with the methods of a `subprocess.Popen` that the tests use."""

    def __init__(self, command: list[str], cwd: Path, variables: dict[str, str]):
        handle, name = tempfile.mkstemp(prefix="output-")
        os.close(handle)
        self.output = Path(name)
        self.process = SERVER.Process(target=_work, args=(command, str(cwd), variables, str(self.output)))
        self.process.start()

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode

    poll = returncode.fget

    def send_signal(self, number: int) -> None:
        if self.process.exitcode is None:
            os.kill(self.process.pid, number)

    def communicate(self, timeout: float | None = None) -> tuple[str, None]:
        self.process.join(timeout)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
            raise subprocess.TimeoutExpired(str(self.output), timeout, self.output.read_text())
        text = self.output.read_text()
        self.output.unlink()
        return text, None


def _work(command: list[str], cwd: str, variables: dict[str, str], output: str) -> None:
    """What `python COMMAND` does, `python -m MODULE` where it does not end in .py."""
    for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)):
        signal.signal(number, handler)
    file = os.open(output, os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(file, stream)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(variables)
    torch.set_num_threads(1)  # the server was started with other variables
    sys.argv = command
    sys.path.insert(0, str(Path(command[0]).absolute().parent) if command[0].endswith(".py") else cwd)
    if command[0].endswith(".py"):
        runpy.run_path(command[0], run_name="__main__")
    else:
        runpy.run_module(command[0], run_name="__main__", alter_sys=True)


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "TOKENIZERS_PARALLELISM": "false"}


def start(*arguments, launcher: tuple[str, ...] = (), fresh: bool = False, cwd: Path = ROOT, **variables: str):
    """Start a command as a user would, with other environment `variables` than the tests have."""
    command, settings = list(map(str, arguments)), {"cwd": cwd, "env": environment() | variables}
    if not (launcher or fresh):
        return Forked(command, cwd, settings["env"])
    return subprocess.Popen(
        [sys.executable, *launcher, *command],
        **settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # tests in the background of a shell ignore it
    )


def run(*arguments, status: int = 0, **settings) -> str:
    """Run a command to its end and return what it printed; settings as for `start`."""
    process = start(*arguments, **settings)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == status, output
    return output


def run_two(*arguments, cwd: Path = ROOT) -> str:
    """Run a command, or a module, as two processes that train together; return what the one and then the other printed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2)]
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", **address}
    processes = [start(*arguments, cwd=cwd, **shared, **rank) for rank in ranks]
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)
    return "".join(outputs)
