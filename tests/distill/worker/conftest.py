"""Workers against the real service, with real training in their child processes."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest

pytest.importorskip("torch")
pytest.importorskip("fastapi")

from tests.distill.conftest import COLOURS

LEASE_SECONDS = 4.0
KEY = "planted-key-4711"


@pytest.fixture(scope="module")
def address(start_service, tmp_path_factory) -> str:
    from enrich_service.core.settings import Settings

    folder = tmp_path_factory.mktemp("service")
    return start_service(Settings(data_dir=folder, lease_seconds=LEASE_SECONDS))


@pytest.fixture(scope="module")
def service(address) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=address, timeout=30) as client:
        release_colours(client)
        yield client


@pytest.fixture(scope="module")
def work_dir(tmp_path_factory) -> Path:
    """One for all tests: teacher features are computed once."""
    return tmp_path_factory.mktemp("work")


def release_colours(client: httpx.Client) -> None:
    labels = "".join(f"{name} {n} {name}\n" for n, name in enumerate(COLOURS, start=1))
    texts = "".join(f"Things that are {name} look {name} all over.\n" for name in COLOURS)
    files = {"label2text": labels, "descriptions": texts}
    form = {"name": "colours", "check_texts": "false"}
    assert client.post("/v1/import/pairs", data=form, files=files).status_code == 201
    body = {"label_set": "colours", "name": "colours-1"}
    assert client.post("/v1/releases", json=body).json()["id"] == 1


@pytest.fixture(scope="module")
def queue_job(colour_images, colour_teacher) -> Callable[..., int]:
    """A function that queues a job and returns its id. An epoch takes about 0.1 s."""

    def queue(
        client: httpx.Client, epochs: int, job: dict[str, object] | None = None, **config: object
    ) -> int:
        config = {
            "data": str(colour_images),
            "teacher": colour_teacher,
            "student": "test_resnet",
            "image_size": 32,
            "batch_size": 16,
            "optimiser": "adamw",  # a third of the time of a step would be Muon's
            "text_strategy": "name",
            "epochs": epochs,
            "export": False,
        } | config
        answer = client.post("/v1/jobs", json={"release_id": 1, "config": config} | (job or {}))
        assert answer.status_code == 201, answer.text
        return answer.json()["id"]

    return queue


@contextmanager
def running_worker(address: str, work_dir: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """`distill worker` as users start it; killed at the end if it still runs."""
    command = [sys.executable, "-m", "distill", "worker", "--service", address, *options]
    with running([*command, "--work-dir", str(work_dir), "--name", "w"]) as process:
        yield process


@contextmanager
def running(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "OMP_DISPLAY_ENV": "TRUE", "ENRICH_API_KEY": KEY},
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGCONT)
        process.kill()
        process.communicate()


def wait_for(condition: Callable[[], object], seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition was not met in time"
        time.sleep(0.2)  # each look takes time from the worker, too


def state(client: httpx.Client, job: int) -> str:
    return client.get(f"/v1/jobs/{job}").json()["state"]


def events(client: httpx.Client, job: int, kind: str) -> list[dict]:
    found = client.get(f"/v1/jobs/{job}/events", params={"limit": 10_000}).json()
    assert [event["seq"] for event in found] == list(range(1, len(found) + 1))
    return [event["data"] for event in found if event["kind"] == kind]


def epochs(client: httpx.Client, job: int) -> list[int]:
    return [data["epoch"] for data in events(client, job, "epoch")]


def trainings(work_dir: Path, job: int) -> list[int]:
    """Process ids of living trainings that work in the job's folder."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            words = (folder / "cmdline").read_bytes().split(b"\0")
            if str(work_dir / f"job-{job}").encode() in words:
                found.append(int(folder.name))
    return found


@pytest.fixture
def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


@contextmanager
def serving(port: int, folder: Path, lease_seconds: int = 60) -> Iterator[httpx.Client]:
    """The service in a separate process (the client's `pid`); killed at the end."""
    process = subprocess.Popen(
        [sys.executable, "-m", "enrich_service.cli", "serve", "--port", str(port)],
        env=os.environ
        | {"ENRICH_DATA_DIR": str(folder), "ENRICH_LEASE_SECONDS": str(lease_seconds)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:

            def answers() -> bool:
                with suppress(httpx.TransportError):
                    return client.get("/healthz").is_success
                return False

            wait_for(answers)
            client.pid = process.pid
            yield client
    finally:
        process.kill()
        process.wait()
