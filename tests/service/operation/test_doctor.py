import json
import sqlite3
from contextlib import closing

import pytest
from typer.testing import CliRunner

from enrich_service.cli import app
from tests.llm_server import LlmServer

pytestmark = pytest.mark.sqlite


@pytest.fixture
def enrich(tmp_path, monkeypatch):
    monkeypatch.setenv("ENRICH_DATA_DIR", str(tmp_path / "data"))
    return lambda *arguments: CliRunner().invoke(app, [str(one) for one in arguments])


@pytest.fixture
def examine(enrich):
    """Run the doctor; gives its exit status and its findings by name."""

    def run():
        call = enrich("doctor", "--json")
        return call.exit_code, {one["check"]: one for one in json.loads(call.stdout)}

    return run


def test_a_healthy_service_is_found_healthy(enrich, examine, monkeypatch, migrated, tmp_path):
    migrated(tmp_path / "data")
    enrich("labels", "add", "ducks", "mallard")
    enrich("keys", "create", "ann")
    with LlmServer(key="sk-good") as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        monkeypatch.setenv("OPENAI_API_KEY", "sk-good")
        status, found = examine()
    assert {one["verdict"] for one in found.values()} == {"ok"}, found
    assert status == 0
    assert found["API keys"]["detail"] == "1 valid"
    assert "language model" in enrich("doctor").stdout


def test_before_the_first_start_there_is_nothing_wrong_and_nothing_is_made(examine, tmp_path):
    status, found = examine()
    assert status == 0
    assert found["migrations"]["verdict"] == found["language model"]["verdict"] == "warning"
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("harm", "check"),
    [
        (lambda file: file.write_bytes(b"x" * 9000), "integrity"),
        (lambda file: file.write_bytes(file.read_bytes()[:40_000]), "integrity"),
        (lambda file: execute(file, "UPDATE alembic_version SET version_num = 'x'"), "migrations"),
        (lambda file: execute(file, "DELETE FROM label_set"), "integrity"),
        (lambda file: execute(file, "UPDATE api_key SET revoked_at = created_at"), "API keys"),
        (
            lambda file: execute(
                file,
                "INSERT INTO job_artifact VALUES (1, 1, 'a.txt', 't/p', 'ab', 3, '2026-01-01', 0)",
            ),
            "artifacts",
        ),
    ],
)
def test_what_is_broken_is_found_and_the_exit_status_tells(
    enrich, examine, tmp_path, migrated, harm, check
):
    migrated(tmp_path / "data")
    enrich("labels", "add", "ducks", "mallard")
    enrich("keys", "create", "ann")
    assert examine()[0] == 0
    harm(tmp_path / "data" / "enrich.db")
    status, found = examine()
    assert found[check]["verdict"] == "failed" and "\n" not in found[check]["detail"]
    assert status == 1


def execute(file, statement):
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("PRAGMA foreign_keys = OFF")
        connection.execute(statement)


def test_a_full_disk_is_found(examine, small_disk, monkeypatch):
    monkeypatch.setenv("ENRICH_DATA_DIR", str(small_disk))
    status, found = examine()
    assert status == 1 and "free some space" in found["disk"]["detail"]


def test_a_language_model_that_does_not_answer_or_refuses_is_found(examine, monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", "http://u:planted@127.0.0.1:9/v1")
    status, found = examine()
    assert status == 1 and "does not answer" in found["language model"]["detail"]
    assert "planted" not in json.dumps(found)
    with LlmServer(key="sk-good") as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        monkeypatch.setenv("OPENAI_API_KEY", "sk-bad")
        status, found = examine()
    assert status == 1 and "rejected the API key" in found["language model"]["detail"]
    monkeypatch.setenv("OPENAI_BASE_URL", "http://169.254.169.254/v1")
    assert "metadata" in examine()[1]["language model"]["detail"]


def test_an_open_door_is_pointed_at(examine, enrich, monkeypatch, migrated, tmp_path):
    migrated(tmp_path / "data")
    monkeypatch.setenv("ENRICH_ALLOW_REMOTE", "1")
    assert examine()[1]["API keys"]["verdict"] == "warning"
    enrich("keys", "create", "ann", "--days", "2")
    assert "ann will expire" in examine()[1]["API keys"]["detail"]
