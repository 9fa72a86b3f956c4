"""A local Ray cluster, and the service and worker that train on it."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import httpx
import pytest

from tests.distill.worker.conftest import address, queue_job, service, wait_for, work_dir

__all__ = ["address", "queue_job", "service", "work_dir"]
RAY = Path(sys.executable).with_name("ray")


@pytest.fixture(scope="module")
def ray_installed() -> None:
    """Skips in a fixture and not at import: CI deselects these tests, and fails on any skip."""
    pytest.importorskip("ray", reason="Ray is not installed: make ray-test installs it")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


@contextmanager
def node(*options: str) -> Iterator[subprocess.Popen[bytes]]:
    """A Ray node, which lives as long as its process group."""
    here = ("--node-ip-address", "127.0.0.1", "--object-store-memory", "100000000")
    command = [RAY, "start", "--block", *here, *options]
    path = f"{RAY.parent}{os.pathsep}{os.environ['PATH']}"
    process = subprocess.Popen(
        command,
        env=os.environ
        | {
            "PATH": path,
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_DEDUP_LOGS": "0",
            "OMP_NUM_THREADS": "1",
        },
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        kill(process)


def kill(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


class Cluster:
    """A head that trains nothing, and nodes of one CPU each."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._port, dashboard = free_port(), free_port()
        self.jobs = f"http://127.0.0.1:{dashboard}"
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="ray"))  # short: sockets
        self.head = self._start(
            *("--head", "--num-cpus", "0", "--port", str(self._port), "--temp-dir", folder),
            *("--dashboard-port", str(dashboard)),
        )
        self.nodes = [self.add() for _ in range(2)]

    def add(self) -> subprocess.Popen[bytes]:
        return self._start("--address", f"127.0.0.1:{self._port}", "--num-cpus", "1")

    def _start(self, *options: str) -> subprocess.Popen[bytes]:
        """Start a node and wait for it: two that start at once may choose the same ports.

        Ray gives up after 30 s, which a busy machine exceeds; the node is then started again.
        """
        known = self._ids()
        for _ in range(5):
            new = self._stack.enter_context(node(*options))
            wait_for(lambda new=new: self._ids() - known or new.poll() is not None, 300)
            if new.poll() is None:
                return new
            kill(new)
        raise AssertionError("no Ray node started in five attempts")

    def _ids(self) -> set[str]:
        return {one["node_id"] for one in self.alive()}

    def alive(self) -> list[dict]:
        with suppress(httpx.HTTPError, KeyError, TypeError):
            found = httpx.get(f"{self.jobs}/api/v0/nodes").json()["data"]["result"]["result"]
            return [one for one in found if one["state"] == "ALIVE"]
        return []

    def running(self) -> list[dict]:
        found = httpx.get(f"{self.jobs}/api/jobs/").json()
        return [one for one in found if one["type"] == "SUBMISSION" and one["status"] == "RUNNING"]


@pytest.fixture(scope="module")
def cluster(ray_installed) -> Iterator[Cluster]:
    with ExitStack() as stack:
        yield Cluster(stack)


def on_ray(cluster: Cluster) -> tuple[str, ...]:
    return ("--ray", cluster.jobs, "--ray-processes", "2")
