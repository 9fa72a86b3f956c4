"""Under the usual umask, other users of the machine can read nothing of what the service keeps."""

import os
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from enrich_service.cli import app
from enrich_service.core.settings import Settings
from tests.conftest import running
from tests.service.web.worker import Worker

pytestmark = pytest.mark.sqlite


@pytest.fixture(autouse=True)
def usual_umask():
    before = os.umask(0o022)
    yield
    os.umask(before)


def open_to_others(folder: Path) -> list[str]:
    return [
        f"{path.name} {path.stat().st_mode & 0o777:o}"
        for path in (folder, *sorted(folder.rglob("*")))
        if path.stat().st_mode & 0o077
    ]


def test_a_running_service_keeps_its_files_to_itself(tmp_path):
    data = tmp_path / "data"
    with running(Settings(data_dir=data)) as url, httpx.Client(base_url=url) as client:
        assert client.post(
            "/v1/label-sets", json={"name": "d", "labels": [{"name": "teal"}]}
        ).is_success
        made = client.post(
            "/v1/releases",
            json={
                "label_set": "d",
                "name": "r",
                "sources": [{"prompt": "visual-description", "version": 1}],
                "allow_missing": True,
            },
        )
        assert made.status_code == 201, made.text
        config = {"data": "d", "teacher": "t"}
        client.post("/v1/jobs", json={"release_id": made.json()["id"], "config": config})
        Worker(client).leave("notes.txt", b"private", "text/plain")
        names = {path.name for path in data.rglob("*")}
        assert {"enrich.db", "enrich.db-wal", "enrich.db-shm", "artifacts"} <= names
        assert open_to_others(data) == []


def test_the_command_line_makes_private_files_and_closes_open_ones(tmp_path, monkeypatch):
    data = tmp_path / "data"
    monkeypatch.setenv("ENRICH_DATA_DIR", str(data))

    def enrich(*arguments: str) -> None:
        call = CliRunner().invoke(app, arguments)
        assert call.exit_code == 0, call.output

    enrich("labels", "add", "ducks", "teal")
    assert open_to_others(data) == []
    (data / "enrich.db").chmod(0o644)  # as earlier versions left it
    enrich("labels", "list")
    assert open_to_others(data) == []
    backup = data / "backup.db"
    enrich("backup", str(backup))
    assert open_to_others(data) == []
    (data / "enrich.db").unlink()
    enrich("restore", str(backup))
    enrich("restore", str(backup))
    assert open_to_others(data) == []


def test_a_group_that_was_let_in_stays_in(tmp_path, monkeypatch):
    monkeypatch.setenv("ENRICH_DATA_DIR", str(tmp_path))
    (tmp_path / "enrich.db").touch()
    (tmp_path / "enrich.db").chmod(0o660)
    assert CliRunner().invoke(app, ["labels", "list"]).exit_code == 0
    assert (tmp_path / "enrich.db").stat().st_mode & 0o777 == 0o660
