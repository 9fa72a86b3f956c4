"""The demo's waits against the real service: what they show, and when they give up."""

import io
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from rich.console import Console

from contract import TrainConfig
from demo.stack import DemoError, Process, Service, StallTimer, started
from demo.waiting import FollowedJob, finish_images, follow, progress_display
from distill.cli import console as distill_console

CONFIG = TrainConfig(data="/data", teacher="local-dir:/teacher", epochs=4, batch_size=10)
BEGAN = datetime.now(UTC)


@pytest.fixture
def sleeper(tmp_path: Path) -> Iterator[Process]:
    """A process that runs without output."""
    command = [sys.executable, "-c", "import time; time.sleep(600)"]
    with started("worker", command, tmp_path) as process:
        yield process


@pytest.fixture
def output(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """A file in the place of the terminal; lines of progress come at once."""
    monkeypatch.setattr(distill_console, "LINE_INTERVAL_S", 0.0)
    return io.StringIO()


@pytest.fixture
def client(service: httpx.Client) -> httpx.Client:
    """A service with one release."""
    if not service.get("/v1/releases").json():
        form = {"name": "colours", "check_texts": "false"}
        files = {"label2text": "red 1 red\n", "descriptions": "Red all over, as red things are.\n"}
        assert service.post("/v1/import/pairs", data=form, files=files).status_code == 201
        body = {"label_set": "colours", "name": "colours-1"}
        assert service.post("/v1/releases", json=body).status_code == 201
    return service


def claim_job(client: httpx.Client) -> tuple[int, int]:
    """Queue a job and claim it as a worker does; its number and the fence."""
    body = {"release_id": 1, "config": CONFIG.model_dump(mode="json")}
    number = client.post("/v1/jobs", json=body).json()["id"]
    lease = client.post("/v1/jobs/claim", json={"worker": "w"}).json()
    assert lease["job"]["id"] == number
    return number, lease["fence"]


def send_progress(
    client: httpx.Client, job: tuple[int, int], progress: tuple[str, int, int], count: int
) -> None:
    """Send the `count`-th event, as a training with one step per second does."""
    number, fence = job
    phase, step, steps = progress
    event = {
        "worker_seq": count,
        "kind": "progress",
        "data": {"phase": phase, "step": step, "steps": steps},
        "at": (BEGAN + timedelta(seconds=step)).isoformat(),
    }
    body = {"fence": fence, "events": [event]}
    assert client.post(f"/v1/jobs/{number}/events", json=body).is_success


def finish(client: httpx.Client, job: tuple[int, int], state: str, error: str | None) -> None:
    number, fence = job
    body = {"fence": fence, "state": state, "error": error}
    assert client.post(f"/v1/jobs/{number}/finish", json=body).is_success


def test_a_wait_goes_on_while_something_moves_and_ends_when_nothing_does(tmp_path: Path) -> None:
    timer = StallTimer("training", tmp_path / "worker.log", seconds=0.2)
    for step in range(10):
        time.sleep(0.05)
        timer.check(step)
    with pytest.raises(DemoError, match=r"training: no progress for 0\.2 s") as error:
        while True:
            time.sleep(0.05)
            timer.check(9)
    assert error.value.log == tmp_path / "worker.log"


def test_epoch_speed_and_remaining_time_of_a_training_are_shown(
    client: httpx.Client, sleeper: Process, output: io.StringIO
) -> None:
    job = claim_job(client)
    service = Service(sleeper, str(client.base_url))
    with progress_display(Console(file=output, width=200)) as display:
        followed = FollowedJob(service, display, "name", job[0], CONFIG)
        send_progress(client, job, ("Teacher features, train", 256, 2880), 1)
        followed.update(sleeper.log)
        for count, step in enumerate((1, 11), start=2):
            send_progress(client, job, ("Training", step, 40), count)
            followed.update(sleeper.log)
    finish(client, job, "succeeded", None)
    service.close()
    lines = output.getvalue().splitlines()
    assert lines[0] == "Student: name: Teacher features, train, 256 of 2,880"
    assert lines[1].startswith("Student: name: 1 of 40, epoch 1 of 4")
    assert lines[2].startswith("Student: name: 11 of 40, epoch 2 of 4, 10 images/s, 0:00:")
    assert lines[2].endswith(" left")


def test_a_job_that_fails_ends_the_demo_with_its_reason(
    client: httpx.Client, sleeper: Process, output: io.StringIO
) -> None:
    job = claim_job(client)
    service = Service(sleeper, str(client.base_url))
    with progress_display(Console(file=output)) as display:
        followed = FollowedJob(service, display, "name", job[0], CONFIG)
        finish(client, job, "failed", "no space left on the device")
        with pytest.raises(DemoError, match="failed: no space left on the device"):
            follow([followed], [sleeper])
    service.close()


def test_images_that_cannot_be_rendered_end_the_demo(tmp_path: Path, output: io.StringIO) -> None:
    command = [sys.executable, "-c", "raise SystemExit('no space left')"]
    with (
        started("images", command, tmp_path) as renderer,
        progress_display(Console(file=output)) as display,
        pytest.raises(DemoError, match="the images ended early") as error,
    ):
        finish_images(renderer, display, tmp_path / "world", 10)
    assert error.value.log is not None and "no space left" in error.value.log.read_text()
