"""Events reach the service in order and once, whatever happens meanwhile."""

import json
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("fastapi")

from distill.errors import LeaseLost
from distill.worker.outbox import EventFile, Outbox
from tests.distill.worker.conftest import (
    epochs,
    release_colours,
    running_worker,
    serving,
    state,
    trainings,
    wait_for,
)


def test_nothing_is_lost_while_the_service_is_away(free_port, tmp_path, migrated, queue_job):
    data = migrated(tmp_path / "data")
    with ExitStack() as stack:
        with serving(free_port, data) as client:
            release_colours(client)
            job = queue_job(client, 30)
            address = f"http://127.0.0.1:{free_port}"
            stack.enter_context(running_worker(address, tmp_path / "work"))
            wait_for(lambda: epochs(client, job))
        time.sleep(2)  # killed; the training goes on
        with serving(free_port, data) as client:
            wait_for(lambda: state(client, job) == "succeeded")
            assert epochs(client, job) == list(range(1, 31))
            assert client.get(f"/v1/jobs/{job}").json()["attempts"] == 1


def test_unsent_events_of_a_killed_worker_are_sent_by_the_next(
    free_port, tmp_path, migrated, queue_job
):
    address, work_dir = f"http://127.0.0.1:{free_port}", tmp_path / "work"
    data = migrated(tmp_path / "data")
    with ExitStack() as stack:
        with serving(free_port, data, lease_seconds=2) as client:
            release_colours(client)
            job = queue_job(client, 50)
            first = stack.enter_context(running_worker(address, work_dir))
            wait_for(lambda: epochs(client, job))
        # The service is killed and the training goes on; then the worker is killed too.
        file = next((work_dir / f"job-{job}").glob("events-1-*.jsonl"))
        wait_for(lambda: file.read_text().count('"epoch"') >= 10)
        first.kill()
        wait_for(lambda: not trainings(work_dir, job), 20)  # it wrote a checkpoint and ended
        reported = file.read_text().count('{"kind": "epoch"')
        with serving(free_port, data, lease_seconds=2) as client:
            assert len(epochs(client, job)) < reported < 50
            stack.enter_context(running_worker(address, work_dir))
            wait_for(lambda: state(client, job) == "succeeded")
            assert epochs(client, job) == list(range(1, 51))
            assert client.get(f"/v1/jobs/{job}").json()["attempts"] == 2
            assert not list(file.parent.glob("events-*"))


def write_events(file: Path, *given: tuple[str, int]) -> None:
    with file.open("a") as output:
        for kind, step in given:
            line = {"kind": kind, "data": {"phase": "Training", "step": step}, "at": "now"}
            output.write(json.dumps(line) + "\n")


def test_events_that_wait_keep_their_order_and_only_the_newest_progress(tmp_path):
    posted: list[dict] = []
    old, file = tmp_path / "events-9-a.jsonl", tmp_path / "events-10-b-_1.jsonl"
    write_events(old, ("log", 1), ("progress", 2), ("log", 3))
    write_events(file, ("log", 0), ("progress", 1), ("progress", 2), ("log", 3))
    first, second = EventFile.unsent(tmp_path)
    outbox = Outbox([first], second, posted.extend)
    wait_for(lambda: len(posted) == 5)
    write_events(file, ("progress", 4))
    with file.open("a") as output:
        output.write('{"kind": "log", "da')
    outbox.close()
    sent = [
        (event["fence"], event["worker_seq"], event["data"].get("step", event["data"]))
        for event in posted
    ]
    assert sent[:2] == [("a", 1, 1), ("a", 3, 3)]  # how far it was is over
    assert sent[2:6] == [("b-_1", 1, 0), ("b-_1", 3, 2), ("b-_1", 4, 3), ("b-_1", 5, 4)]
    assert sent[6:] == [("b-_1", 6, {"message": '{"kind": "log", "da'})]
    assert not old.exists() and not file.exists()


def test_nothing_is_sent_once_the_lease_is_lost_and_events_stay(tmp_path):
    calls = []

    def post(batch: list[dict]) -> None:
        calls.append(batch)
        raise LeaseLost("gone")

    file = tmp_path / "events-1-a.jsonl"
    write_events(file, ("log", 1))
    outbox = Outbox([], EventFile.unsent(tmp_path)[0], post)
    wait_for(lambda: calls)
    write_events(file, ("log", 2))
    outbox.close()
    assert len(calls) == 1
    assert len(file.read_text().splitlines()) == 2
