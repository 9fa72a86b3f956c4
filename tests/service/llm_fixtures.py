"""A service that asks the local language-model server, both real and both new for each test."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from enrich_service.cli import app
from enrich_service.core.settings import Settings
from tests.conftest import running
from tests.llm_server import LlmServer

PRICES = {"small": (1.0, 10.0)}  # USD per million tokens


@pytest.fixture
def model() -> Iterator[LlmServer]:
    with LlmServer() as server:
        yield server


@pytest.fixture
def connect(
    model: LlmServer, tmp_path: Path, migrated: Callable[[Path], Path]
) -> Iterator[Callable[..., httpx.Client]]:
    """A function that starts a service with given settings and gives a client of it."""
    with ExitStack() as stack:

        def start(**settings: Any) -> httpx.Client:
            given: dict[str, Any] = {
                "data_dir": tmp_path / "data",
                "llm_url": model.url,
                "llm_model": "small",
                "prices": PRICES,
            }
            migrated(given["data_dir"])
            url = stack.enter_context(running(Settings(**(given | settings))))
            return stack.enter_context(httpx.Client(base_url=url, timeout=30))

        yield start


@pytest.fixture
def client(connect: Callable[..., httpx.Client]) -> httpx.Client:
    return connect()


@pytest.fixture
def enrich(tmp_path, monkeypatch, model, migrated):
    """Run `enrich` on an empty data folder with the local model; gives the finished call."""
    monkeypatch.setenv("ENRICH_DATA_DIR", str(migrated(tmp_path / "data")))
    monkeypatch.setenv("OPENAI_BASE_URL", model.url)
    monkeypatch.setenv("ENRICH_LLM_MODEL", "small")
    monkeypatch.setenv("ENRICH_PRICES", '{"small": [1, 10]}')
    return lambda *arguments: CliRunner().invoke(app, [str(one) for one in arguments])


def data_of(call):
    assert call.exit_code == 0, call.output
    return json.loads(call.stdout)


def add_labels(client: httpx.Client, names: list[str], label_set: str = "birds") -> None:
    body = {"name": label_set, "labels": [{"key": f"n{i}", "name": n} for i, n in enumerate(names)]}
    assert client.post("/v1/label-sets", json=body).status_code == 201


def start_run(client: httpx.Client, **body: Any) -> dict[str, Any]:
    answer = client.post("/v1/runs", json={"label_set": "birds", **body})
    assert answer.status_code == 201, answer.text
    return answer.json()


def wait_for(
    client: httpx.Client, run_id: int, *states: str, seconds: float = 30.0
) -> dict[str, Any]:
    """The run once it is in one of `states` (by default: ended or paused)."""
    states = states or ("succeeded", "failed", "cancelled", "paused")
    until = time.monotonic() + seconds
    while True:
        run = client.get(f"/v1/runs/{run_id}").json()
        if run["state"] in states:
            return run
        assert time.monotonic() < until, run
        time.sleep(0.02)
