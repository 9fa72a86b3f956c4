import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from enrich_service.core.settings import Settings
from tests.conftest import running
from tests.llm_server import LlmServer
from tests.service.llm_fixtures import start_run, wait_for


@contextmanager
def serving(folder, **settings):
    """`enrich serve` as a process; gives a client, and afterwards its log in `client.log`."""
    environment = os.environ | {"ENRICH_DATA_DIR": str(folder / "data"), **settings}
    command = [sys.executable, "-m", "enrich_service.cli", "serve", "--port", "0"]
    log = folder / "service.log"
    with log.open("wb") as stderr:
        process = subprocess.Popen(command, env=environment, stderr=stderr)
    try:
        deadline = time.monotonic() + 60
        while not (found := re.search(r"running on (\S+)", log.read_text())):
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        with httpx.Client(base_url=found.group(1), timeout=30) as client:
            yield client
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=20)
    client.log = log.read_text().splitlines(keepends=True)


def test_the_log_is_one_json_line_an_event_and_each_request_has_an_id(tmp_path, migrated):
    migrated(tmp_path / "data")
    with serving(tmp_path) as client:
        answer = client.get("/v1/label-sets?limit=7", headers={"X-Request-ID": "mine-1"})
        assert answer.headers["x-request-id"] == "mine-1"
        other = client.post("/v1/jobs/9/cancel", headers={"X-Request-ID": "no\tgood"})
        assert other.status_code == 404 and len(other.headers["x-request-id"]) == 16
        client.get("/healthz")
    events = [json.loads(line) for line in client.log if not line.startswith("enrich: ")]
    assert all({"time", "level", "logger", "message"} <= event.keys() for event in events)
    requests = [event for event in events if event["logger"] == "enrich.request"]
    assert [(one["path"], one["status"], one["request_id"]) for one in requests] == [
        ("/v1/label-sets", 200, "mine-1"),
        ("/v1/jobs/9/cancel", 404, other.headers["x-request-id"]),
    ]
    assert requests[1]["route"] == "/v1/jobs/{job_id}/cancel" and requests[0]["ms"] > 0


def test_people_may_have_the_log_as_text(tmp_path, migrated):
    migrated(tmp_path / "data")
    with serving(tmp_path, ENRICH_LOG_FORMAT="text") as client:
        client.get("/v1/jobs")
    line = next(line for line in client.log if "/v1/jobs" in line)
    assert " INFO " in line and "GET /v1/jobs 200" in line and "request_id=" in line


def samples(client):
    text = client.get("/metrics").text
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.fixture
def busy(tmp_path, migrated):
    with LlmServer(latency=0.05) as model:
        settings = Settings(
            data_dir=migrated(tmp_path),
            llm_url=model.url,
            llm_model="small",
            prices={"small": (1e6, 1e6)},
        )
        with running(settings) as url, httpx.Client(base_url=url, timeout=30) as client:
            yield client


def test_prometheus_is_told_of_requests_runs_tokens_cost_queue_and_latency(busy):
    names = [{"name": name} for name in ("mallard", "teal")]
    busy.post("/v1/label-sets", json={"name": "ducks", "labels": names})
    run = start_run(busy, label_set="ducks", prompt="visual-description")
    wait_for(busy, run["id"], "succeeded")
    body = {"label_set": "ducks", "name": "r", "allow_missing": True}
    busy.post("/v1/releases", json=body)
    config = {"data": "/d", "teacher": "hf-hub:a/b"}
    for _ in range(2):
        busy.post("/v1/jobs", json={"release_id": 1, "config": config})
    busy.get("/no/such/page")
    found = samples(busy)
    assert found["enrich_runs", "succeeded"] == 1 and found["enrich_runs", "failed"] == 0
    assert found["enrich_run_tokens_total", "prompt"] == 100
    assert found["enrich_run_tokens_total", "completion"] == 40
    assert found["enrich_run_cost_usd_total",] == 140
    assert found["enrich_run_calls_total",] == 2
    assert found["enrich_run_texts_total", "accepted"] == 2
    assert found["enrich_jobs", "queued"] == 2 and found["enrich_job_queue_seconds",] >= 0
    assert found["enrich_llm_latency_seconds", "0.5"] >= 0.05
    assert found["enrich_http_requests_total", "POST", "/v1/jobs", "201"] == 2
    assert found["enrich_http_requests_total", "", "(none)", "404"] == 1
    assert found["enrich_http_request_seconds_count", "POST", "/v1/jobs"] == 2


def test_the_metrics_need_a_key_once_there_is_one(busy):
    key = busy.post("/v1/keys", json={"name": "prometheus", "scope": "read"}).json()["key"]
    assert busy.get("/metrics").status_code == 401
    assert busy.get("/metrics", headers={"Authorization": f"Bearer {key}"}).status_code == 200
