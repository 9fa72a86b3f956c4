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
        self.head = stack.enter_context(
            node(
                *("--head", "--num-cpus", "0", "--port", str(self._port), "--temp-dir", folder),
                *("--dashboard-port", str(dashboard)),
            )
        )
        wait_for(lambda: len(self.alive()) == 1, 120)
        self.nodes = [self.add() for _ in range(2)]

    def add(self) -> subprocess.Popen[bytes]:
        known = {one["node_id"] for one in self.alive()}
        address = f"127.0.0.1:{self._port}"
        new = self._stack.enter_context(node("--address", address, "--num-cpus", "1"))
        # One after the other: two that start at once may choose the same ports.
        wait_for(lambda: {one["node_id"] for one in self.alive()} - known, 120)
        return new

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
