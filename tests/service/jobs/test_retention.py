"""`enrich jobs prune`: what goes, what stays, and when."""

import json
import os
import time
from datetime import timedelta

import httpx
import pytest
from sqlmodel import select
from typer.testing import CliRunner

from enrich_service.cli import app
from enrich_service.core.settings import Settings
from enrich_service.core.storage.database import make_engine, utcnow, writing
from enrich_service.jobs.models import JobRow
from tests.service.jobs.test_jobs import claim, events, log, post_events, put, queue

NAMES = ["report.json", "student.safetensors", "text_bank.safetensors"]


@pytest.fixture
def client(start_service, tmp_path, monkeypatch):
    monkeypatch.setenv("ENRICH_DATA_DIR", str(tmp_path))
    settings = Settings(data_dir=tmp_path)
    with httpx.Client(base_url=start_service(settings), timeout=30) as client:
        client.post("/v1/label-sets", json={"name": "ducks", "labels": [{"name": "mallard"}]})
        body = {"label_set": "ducks", "name": "r", "allow_missing": True}
        client.post("/v1/releases", json=body)
        yield client


@pytest.fixture
def grow_old(client, tmp_path):
    """Let jobs have ended ten days ago, and all files be as old."""

    def grow_old(*job_ids):
        engine = make_engine(Settings(data_dir=tmp_path).sqlalchemy_url)
        with writing(engine) as session:
            for job_id in job_ids:
                job = session.exec(select(JobRow).where(JobRow.id == job_id)).one()
                job.finished_at = utcnow() - timedelta(days=10)
        engine.dispose()
        for path in (tmp_path / "artifacts").glob("??/*"):
            os.utime(path, (time.time() - 864_000,) * 2)

    return grow_old


def train(client, student, end="succeeded"):
    job_id = queue(client)
    lease = claim(client)
    numbers = {"learning_rate": 1, "loss": 1, "seen_top1": 1, "seconds": 1, "images_per_second": 1}
    data = numbers | {"epoch": 1, "losses": {}}
    epoch = {"worker_seq": 2, "kind": "epoch", "data": data}
    assert post_events(client, lease, log(1), epoch).status_code == 200
    for name, content in zip(NAMES, (b'{"a": %d}' % job_id, student, b"bank"), strict=True):
        assert put(client, lease, name, content).status_code < 300
    if end:
        body = {"fence": lease.fence, "state": end}
        assert client.post(f"/v1/jobs/{job_id}/finish", json=body).status_code == 200
    return job_id


def artifacts(client, job_id):
    return [one["name"] for one in client.get(f"/v1/jobs/{job_id}/artifacts").json()]


def kinds(client, job_id):
    return {event.kind for event in events(client, job_id)}


def prune(*words):
    call = CliRunner().invoke(app, ["jobs", "prune", "--json", *map(str, words)])
    assert call.exit_code == 0, call.output
    return json.loads(call.stdout)


def test_weights_and_log_lines_of_old_jobs_go_and_what_they_reached_stays(
    client, grow_old, tmp_path
):
    old, new, running = (
        train(client, b"old"),
        train(client, b"new"),
        train(client, b"running", end=None),
    )
    grow_old(old)
    rules = ("--weights", 7, "--logs", 7)
    counted = {"weights": 2, "log_lines": 1, "files": 1, "bytes": 3, "removed": False}
    assert prune(*rules) == counted  # the text bank is that of the others, too
    assert artifacts(client, old) == NAMES and "log" in kinds(client, old)

    assert prune(*rules, "--yes") == counted | {"removed": True}
    assert artifacts(client, old) == NAMES[:1] and kinds(client, old) == {"state", "epoch"}
    assert client.get(f"/v1/jobs/{old}/artifacts/student.safetensors").status_code == 404
    assert client.get(f"/jobs/{old}").status_code == 200
    for job_id in (new, running):
        assert artifacts(client, job_id) == NAMES and "log" in kinds(client, job_id)
        for name in NAMES:
            assert client.get(f"/v1/jobs/{job_id}/artifacts/{name}").status_code == 200
    assert prune(*rules)["files"] == 0


def test_without_a_rule_only_files_of_no_job_go_once_nobody_sent_them_for_a_day(
    client, grow_old, tmp_path
):
    job_id = train(client, b"kept")
    lost = tmp_path / "artifacts" / "ab" / f"ab{'0' * 62}"
    lost.parent.mkdir(exist_ok=True)
    lost.write_bytes(b"left by a kill")
    grow_old(job_id)
    fresh = tmp_path / "artifacts" / "ab" / f"ab{'1' * 62}"
    fresh.write_bytes(b"just received")
    assert prune("--yes")["files"] == 1
    assert fresh.exists() and not lost.exists() and artifacts(client, job_id) == NAMES
