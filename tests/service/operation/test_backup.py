import json
import sqlite3
import threading
from contextlib import closing
from pathlib import Path

import httpx
import pytest
from alembic import command
from typer.testing import CliRunner

from enrich_service.cli import app
from enrich_service.core.settings import Settings
from enrich_service.core.storage.database import make_engine
from enrich_service.core.storage.migrate import alembic_config

pytestmark = pytest.mark.sqlite


@pytest.fixture
def enrich(tmp_path, monkeypatch):
    monkeypatch.setenv("ENRICH_DATA_DIR", str(tmp_path / "data"))
    return lambda *arguments: CliRunner().invoke(app, [str(one) for one in arguments])


def data_of(call):
    assert call.exit_code == 0, call.output
    return json.loads(call.stdout)


def names(file):
    with closing(sqlite3.connect(file)) as connection:
        return [name for (name,) in connection.execute("SELECT name FROM label_set ORDER BY id")]


def test_a_backup_taken_while_writes_go_on_is_whole_and_has_what_was_told_before(
    enrich, tmp_path, start_service
):
    url = start_service(Settings(data_dir=tmp_path / "data"))
    told, done = [], threading.Event()

    def write():
        with httpx.Client(base_url=url, timeout=30) as client:
            while not done.is_set() and len(told) < 2000:
                name = f"set {len(told)}"
                body = {"name": name, "labels": [{"name": "x" * 200}]}
                assert client.post("/v1/label-sets", json=body).status_code == 201
                told.append(name)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        backups = []
        for n in range(5):
            before = list(told)
            made = data_of(enrich("backup", tmp_path / f"{n}.db", "--json"))
            backups.append((before, made))
    finally:
        done.set()
        writer.join()
    for before, made in backups:
        kept = names(made["file"])
        assert kept[: len(before)] == before and kept == told[: len(kept)]
    assert len(told) > len(backups[0][0])  # it did go on
    assert not list(tmp_path.glob(".*")) and not list(tmp_path.glob("*-wal"))


def test_a_running_service_shows_what_was_restored_and_the_rest_is_kept_aside(
    enrich, tmp_path, start_service
):
    url = start_service(Settings(data_dir=tmp_path / "data"))
    with httpx.Client(base_url=url) as client:
        body = {"name": "first", "labels": [{"name": "a"}]}
        client.post("/v1/label-sets", json=body)
        assert enrich("backup", tmp_path / "b.db").exit_code == 0
        client.post("/v1/label-sets", json=body | {"name": "second"})
        restored = data_of(enrich("restore", tmp_path / "b.db", "--json"))
        assert [one["name"] for one in client.get("/v1/label-sets").json()] == ["first"]
        assert names(restored["before"]) == ["first", "second"]
        assert client.post("/v1/label-sets", json=body | {"name": "third"}).status_code == 201
    assert names(tmp_path / "data" / "enrich.db") == ["first", "third"]


def test_a_backup_of_an_older_version_is_migrated(enrich, tmp_path):
    assert enrich("labels", "add", "ducks", "mallard").exit_code == 0
    engine = make_engine(Settings().sqlalchemy_url)
    command.downgrade(alembic_config(engine), "0001")
    engine.dispose()
    assert data_of(enrich("backup", tmp_path / "old.db", "--json"))["revision"] == "0001"
    for file in (tmp_path / "data").glob("enrich.db*"):
        file.unlink()
    assert data_of(enrich("restore", tmp_path / "old.db", "--json"))["before"] is None
    assert "ducks" in enrich("labels", "list").stdout
    assert enrich("doctor").stdout.count("the newest") == 1


def test_a_damaged_database_is_moved_aside_and_the_backup_takes_its_place(enrich, tmp_path):
    assert enrich("labels", "add", "ducks", "mallard").exit_code == 0
    assert enrich("backup", tmp_path / "b.db").exit_code == 0
    live = tmp_path / "data" / "enrich.db"
    live.write_bytes(b"no database" * 1000)
    assert "damaged" in enrich("labels", "list").stderr
    before = data_of(enrich("restore", tmp_path / "b.db", "--json"))["before"]
    assert Path(before).read_bytes().startswith(b"no database")
    assert "ducks" in enrich("labels", "list").stdout


def test_what_cannot_be_restored_leaves_everything_as_it_is(enrich, tmp_path):
    assert enrich("labels", "add", "ducks", "mallard").exit_code == 0
    good = tmp_path / "b.db"
    assert enrich("backup", good).exit_code == 0
    cut, strange, newer = tmp_path / "cut.db", tmp_path / "strange.db", tmp_path / "newer.db"
    cut.write_bytes(good.read_bytes()[:50_000])
    with closing(sqlite3.connect(strange)) as connection:
        connection.execute("CREATE TABLE t (x)")
    newer.write_bytes(good.read_bytes())
    with closing(sqlite3.connect(newer)) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    for file, said in [
        (cut, "cannot be restored"),
        (strange, "is not a database of this service"),
        (newer, "newer version"),
        (tmp_path / "none.db", "no backup"),
    ]:
        call = enrich("restore", file)
        assert call.exit_code == 1 and said in call.stderr and call.stderr.count("\n") == 1
    assert "ducks" in enrich("labels", "list").stdout
    assert sorted(file.name for file in (tmp_path / "data").glob("*before*")) == []


def test_a_backup_replaces_nothing_and_needs_a_database_and_room(enrich, tmp_path, small_disk):
    call = enrich("backup", tmp_path / "b.db")
    assert call.exit_code == 1 and "no database" in call.stderr
    labels = [f"label {n} {'x' * 150}" for n in range(3000)]
    assert enrich("labels", "add", "many", *labels).exit_code == 0
    assert enrich("backup", tmp_path / "b.db").exit_code == 0
    call = enrich("backup", tmp_path / "b.db")
    assert call.exit_code == 1 and "exists" in call.stderr
    call = enrich("backup", small_disk / "b.db")
    assert call.exit_code == 1 and "full" in call.stderr
    assert list(small_disk.iterdir()) == []


def test_a_server_database_is_backed_up_with_its_own_tools(enrich, tmp_path, monkeypatch):
    monkeypatch.setenv("DATABASE_URL", "postgresql+psycopg://u:secret@127.0.0.1:1/d")
    call = enrich("backup", tmp_path / "b.db")
    assert call.exit_code == 1 and "pg_dump" in call.stderr and "secret" not in call.stderr
