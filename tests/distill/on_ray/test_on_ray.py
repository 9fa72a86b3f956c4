"""Jobs on a local Ray cluster of three nodes, as a worker with --ray hands them over."""

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

pytest.importorskip("torch")
pytest.importorskip("fastapi")

from contract import Report
from tests.distill.worker.conftest import (
    address,
    epochs,
    events,
    queue_job,
    running_worker,
    service,
    state,
    wait_for,
    work_dir,
)

pytestmark = pytest.mark.ray

__all__ = ["address", "queue_job", "service", "work_dir"]
RAY = Path(sys.executable).with_name("ray")


@pytest.fixture(scope="module", autouse=True)
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
def cluster() -> Iterator[Cluster]:
    with ExitStack() as stack:
        yield Cluster(stack)


def on_ray(cluster: Cluster) -> tuple[str, ...]:
    return ("--ray", cluster.jobs, "--ray-processes", "2")


def test_a_job_trains_in_two_processes_of_the_cluster(
    service, address, work_dir, queue_job, cluster
):
    job = queue_job(service, 3, {"needs": {"memory_gb": 0.1}})
    with running_worker(address, work_dir, "--once", *on_ray(cluster)) as process:
        _, said = process.communicate(timeout=300)
    assert f"job {job}: succeeded" in said
    assert epochs(service, job) == [1, 2, 3]
    assert "2 processes on Ray" in str(events(service, job, "log"))
    report = Report.model_validate_json(service.get(f"/v1/jobs/{job}/report").content)
    assert len(report.epochs) == 3


def test_a_job_goes_on_elsewhere_when_its_node_is_killed(
    service, address, work_dir, queue_job, cluster
):
    job = queue_job(service, 200)
    with running_worker(address, work_dir, *on_ray(cluster)):
        wait_for(lambda: epochs(service, job), 200)
        kill(cluster.nodes.pop())
        cluster.nodes.append(cluster.add())
        wait_for(lambda: state(service, job) != "running", 400)
    assert state(service, job) == "succeeded"
    assert service.get(f"/v1/jobs/{job}").json()["attempts"] == 1  # the service knew nothing of it
    assert str(events(service, job, "log")).count("2 processes on Ray") == 2
    report = Report.model_validate_json(service.get(f"/v1/jobs/{job}/report").content)
    assert [epoch.epoch for epoch in report.epochs] == list(range(1, 201))


def test_a_cancel_ends_the_ray_job_and_leaves_a_checkpoint(
    service, address, work_dir, queue_job, cluster
):
    job = queue_job(service, 10_000)
    with running_worker(address, work_dir, *on_ray(cluster)):
        wait_for(lambda: epochs(service, job), 200)
        service.post(f"/v1/jobs/{job}/cancel")
        wait_for(lambda: state(service, job) == "cancelled", 60)
        wait_for(lambda: not cluster.running(), 60)
    assert (work_dir / f"job-{job}" / "checkpoint.safetensors").is_file()


def test_the_job_of_a_killed_worker_is_ended_before_the_next_one_goes_on(
    service, address, work_dir, queue_job, cluster
):
    job = queue_job(service, 300)
    with running_worker(address, work_dir, *on_ray(cluster)) as first:
        wait_for(lambda: epochs(service, job), 200)
        first.kill()
        [left] = cluster.running()
    with running_worker(address, work_dir, *on_ray(cluster)):
        wait_for(lambda: state(service, job) == "succeeded", 400)
    assert left["submission_id"] not in [one["submission_id"] for one in cluster.running()]
    assert service.get(f"/v1/jobs/{job}").json()["attempts"] == 2
    report = Report.model_validate_json(service.get(f"/v1/jobs/{job}/report").content)
    assert [epoch.epoch for epoch in report.epochs] == list(range(1, 301))


def test_what_a_user_has_to_mend_is_told_in_one_line_and_not_tried_again(
    service, address, work_dir, queue_job, cluster
):
    job = queue_job(service, 1, data="/nowhere")
    with running_worker(address, work_dir, "--once", *on_ray(cluster)) as process:
        process.communicate(timeout=300)
    found = service.get(f"/v1/jobs/{job}").json()
    assert found["state"] == "failed" and "/nowhere" in found["error"]
    assert "\n" not in found["error"]


def test_a_cluster_that_is_not_there_is_told(service, address, work_dir, queue_job):
    job = queue_job(service, 1)
    there = f"http://127.0.0.1:{free_port()}"
    with running_worker(address, work_dir, "--once", "--ray", there) as process:
        process.communicate(timeout=120)
    found = service.get(f"/v1/jobs/{job}").json()
    assert found["state"] == "failed"
    assert f"the Ray cluster at {there} does not answer" in found["error"]


def test_a_job_fails_when_the_head_of_the_cluster_dies(
    service, address, work_dir, queue_job, cluster
):
    """The last one: there is no cluster after it."""
    job = queue_job(service, 10_000)
    with running_worker(address, work_dir, *on_ray(cluster)):
        wait_for(lambda: epochs(service, job), 200)
        kill(cluster.head)
        wait_for(lambda: state(service, job) == "failed", 120)
    assert "does not answer" in service.get(f"/v1/jobs/{job}").json()["error"]
    assert (work_dir / f"job-{job}" / "checkpoint.safetensors").is_file()
