"""Processes that need not import torch and open_clip: forks of a server that has imported them.

Importing them takes ten seconds of CPU time, more than what most tests of a killed training
compute. Each is a process as any other, with its own signals, output and exit status.
"""

import atexit
import multiprocessing
import os
import runpy
import signal
import socket
import sys
from collections.abc import Iterator
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from typing import TextIO

import pytest

PRELOADED = ("distill.cli.train", "distill.pipeline.job", __name__)
TIMEOUT_S = 300  # then the process is ended, so that its test fails


class ForkedProcess:
    """A program in a fork; its standard output and error arrive as one stream, `stdout`."""

    def __init__(self, process: ForkServerProcess, stdout: TextIO) -> None:
        self._process, self.stdout = process, stdout

    def send_signal(self, number: int) -> None:
        os.kill(self._process.pid, number)

    def wait(self) -> tuple[int, str]:
        """The exit status, and what is still unread of the output."""
        with self.stdout:
            rest = self.stdout.read()
        self._process.join()
        return self._process.exitcode, rest

    def stop(self) -> None:
        self._process.kill()
        self._process.join()
        self.stdout.close()


class ForkServer:
    """Starts programs in forks of one process. `stop` ends those that still run."""

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._started: list[ForkedProcess] = []

    def start(self, *program: str, **environment: str) -> ForkedProcess:
        """Run what `python` would: "-m", a module and arguments, or a script and arguments."""
        reading, writing = multiprocessing.Pipe(duplex=False)
        process = self._context.Process(
            target=_run, args=(program, {**os.environ, **environment}, writing)
        )
        process.start()
        writing.close()
        self._started.append(ForkedProcess(process, os.fdopen(os.dup(reading.fileno()))))
        reading.close()
        return self._started[-1]

    def start_two(self, *program: str) -> tuple[ForkedProcess, ForkedProcess]:
        """Run a program in two processes, which find each other as those of torchrun do."""
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = str(free.getsockname()[1])
        shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        first, second = (
            self.start(*program, RANK=rank, LOCAL_RANK=rank, **shared) for rank in ("0", "1")
        )
        return first, second

    def stop(self) -> None:
        for process in self._started:
            process.stop()


def _run(program: tuple[str, ...], environment: dict[str, str], output: Connection) -> None:
    signal.alarm(TIMEOUT_S)
    os.environ.update(environment)
    for stream in (1, 2):
        os.dup2(output.fileno(), stream)
    output.close()
    try:
        if program[0] == "-m":
            sys.argv = list(program[1:])
            runpy.run_module(program[1], run_name="__main__")
        else:
            sys.argv = list(program)
            runpy.run_path(program[0], run_name="__main__")
    finally:
        atexit._run_exitfuncs()  # which multiprocessing leaves out


@pytest.fixture(scope="session")
def running_fork_server() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")  # read when torch is imported
        multiprocessing.get_context("forkserver").set_forkserver_preload(list(PRELOADED))
        forkserver.ensure_running()


@pytest.fixture
def fork_server(running_fork_server) -> Iterator[ForkServer]:
    server = ForkServer()
    yield server
    server.stop()
