"""Secrets are planted in every setting that can hold one; then all that was written is searched."""

import base64
import json
import sqlite3
import traceback
from contextlib import closing, contextmanager
from pathlib import Path

import httpx
import pytest
from pydantic import SecretStr
from typer.testing import CliRunner

from enrich_service.cli import app
from enrich_service.core.settings import Settings, environment_names
from tests.llm_server import Answer, LlmServer
from tests.service.llm_fixtures import add_labels, start_run, wait_for
from tests.service.operation.test_observability import serving

pytestmark = pytest.mark.sqlite

URL_PASSWORD = "planted-url-password"


def secret_settings():
    """Every setting that is declared as a secret, each with a secret of its own."""
    return {
        environment_names(name)[0]: f"planted-{name}"
        for name, field in Settings.model_fields.items()
        if "SecretStr" in str(field.annotation)
    }


def enrich(folder, settings, *arguments):
    """What `enrich` says, on both streams and in a traceback."""
    done = CliRunner().invoke(
        app,
        [str(one) for one in arguments],
        env={"ENRICH_DATA_DIR": str(folder / "data"), **settings},
    )
    return done.output + "".join(traceback.format_exception(*(done.exc_info or [None] * 3)))


@contextmanager
def spiteful_server():
    """A language model's server that says back what it was sent, in every way it can."""

    def behave(call):
        said = json.dumps({"error": {"message": f"you sent {json.dumps(call.headers)}"}})
        match call.label:
            case "refused":
                return Answer(401, body=said)
            case "bad request":
                return Answer(400, body=said)
            case "broken":
                return Answer(500, body=said)
            case "elsewhere":
                secret = call.headers["authorization"].split()[-1]
                return Answer(307, headers={"Location": f"http://u:{secret}@127.0.0.1:1/v1"})
            case "no completion":
                return Answer(body=said)
        return None

    with LlmServer(behave=behave) as server:
        yield server


LABELS = ["mallard", "bad request", "no completion", "elsewhere", "refused"]


@pytest.mark.parametrize("password", ["", f"user:{URL_PASSWORD}@"])
def test_no_secret_is_written_or_told_anywhere(tmp_path, migrated, password):
    migrated(tmp_path / "data")
    settings = secret_settings()
    assert settings
    with spiteful_server() as server:
        settings["ENRICH_LLM_URL"] = server.url.replace("127", f"{password}127", 1)
        key, said = drive(tmp_path, settings)
        assert sum(server.calls.values()) >= len(LABELS)
    planted = [URL_PASSWORD, *secret_settings().values(), key]
    planted += [base64.b64encode(f"user:{URL_PASSWORD}".encode()).decode()]
    files = {str(path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert any(name.endswith("enrich.db") for name in files)
    for place, content in (files | said).items():
        for secret in planted:
            assert secret.encode() not in content, f"{secret} stands in {place}"


def drive(folder: Path, settings: dict[str, str]) -> tuple[str, dict[str, bytes]]:
    """Use everything that could let a secret slip; the API key, and what was said, by where."""
    said: dict[str, bytes] = {}
    made = enrich(folder, settings, "keys", "create", "ann", "--scope=admin", "--json")
    key = json.JSONDecoder().raw_decode(made)[0]["key"]

    def listen(response: httpx.Response) -> None:
        response.read()
        headers = str(response.headers).encode()
        said[f"answer {len(said)} to {response.request.url}"] = headers + response.content

    with serving(folder, **settings) as client:
        client.event_hooks = {"response": [listen]}
        client.headers["Authorization"] = f"Bearer {key}"
        for label in LABELS:
            client.post("/v1/describe", json={"labels": [{"name": label}]})
        add_labels(client, [*LABELS, "teal"])
        run = start_run(client, prompt="visual-description")
        wait_for(client, run["id"])
        assert client.get("/v1/generations").json()["items"]
        for generation in client.get("/v1/generations").json()["items"]:
            client.get(f"/v1/generations/{generation['id']}")
        release = {"label_set": "birds", "name": "r", "allow_missing": True}
        assert client.post("/v1/releases", json=release).status_code == 201
        job = {"release_id": 1, "config": {"data": "/d", "teacher": "hf-hub:a/b"}}
        client.post("/v1/jobs", json=job)
        with closing(sqlite3.connect(folder / "data" / "enrich.db")) as connection, connection:
            connection.execute("UPDATE job SET config = '{}'")  # so that showing it is a defect
        # The server drops the connection after a defect.
        assert client.get("/v1/jobs/1", headers={"Connection": "close"}).status_code == 500
        client.get("/v1/keys"), client.get("/v1/audit"), client.get("/metrics")
        for wrong in (f"{key}x", f"{key} "):
            client.get("/v1/jobs", headers={"Authorization": f"Bearer {wrong}x"})
            client.get("/", auth=("ann", wrong))
        client.post(f"/v1/jobs/claim?key={key}", json={"worker": "w", "unknown": 1})
        client.event_hooks = {}
    said["log"] = "".join(client.log).encode()
    assert b"Traceback" in said["log"]
    backup = folder / "backup.db"
    for arguments in (
        ["settings", "--json"],
        ["settings"],
        ["doctor", "--json"],
        ["backup", backup],
        ["export", "jsonl"],
        ["describe", "refused"],
        ["describe", "elsewhere", "--json"],
        ["run", "start", "birds"],
        ["keys", "list", "--json"],
    ):
        said[f"enrich {arguments[0]}"] = enrich(folder, settings, *arguments).encode()
    assert backup.is_file()
    return key, said


def test_the_password_of_a_database_server_is_not_told(tmp_path):
    pytest.importorskip("psycopg")
    url = "postgresql+psycopg://ann:planted-database-password@127.0.0.1:9/enrich"
    for arguments in (["labels", "list"], ["doctor"], ["settings"], ["serve"], ["backup", "x.db"]):
        said = enrich(tmp_path, {"DATABASE_URL": url}, *arguments)
        assert said and "planted" not in said


def test_a_secret_is_masked_when_the_settings_are_printed():
    assert "planted" not in repr(Settings(llm_api_key=SecretStr("planted")))
