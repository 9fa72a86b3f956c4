"""The check of benchmarks.faults.service_faults finds each kind of damage."""

import shutil
import sqlite3
import time
from contextlib import closing

import pytest

pytest.importorskip("fastapi")

from benchmarks.faults._clients import Clients, check
from enrich_service.core.settings import Settings
from tests.conftest import running
from tests.llm_server import LlmServer

pytestmark = pytest.mark.sqlite

DAMAGES = {
    "DELETE FROM generation WHERE label_name = 'teal'": "is lost or was changed",
    "UPDATE generation SET parsed = '{}' WHERE label_name = 'teal'": "is lost or was changed",
    "UPDATE generation SET status = 'rejected' WHERE label_name = 'teal'": "'teal' has 0 texts",
    "DELETE FROM label_set": "label set ducks is lost",
    "UPDATE run SET state = 'running'": "run 1 is running",
    "DELETE FROM audit_entry WHERE route = 'POST /v1/runs'": "1 runs, and 0 in the audit log",
}


@pytest.fixture(scope="module")
def confirmed(tmp_path_factory, migrated):
    """What a stopped service has confirmed to a client, its data folder, the model's counts."""
    folder = migrated(tmp_path_factory.mktemp("faults"))
    with LlmServer() as model:
        with running(Settings(data_dir=folder, llm_url=model.url, llm_model="small")) as url:
            clients = Clients(url, {}, no_answer_statuses=())
            path = clients.add_run("ducks", [{"name": "mallard"}, {"name": "teal"}])
            while not clients.poll(path):
                time.sleep(0.05)
            clients.close()
        yield clients.confirmed, folder, {"answered": dict(model.answered)}


def found(confirmed, folder, counts):
    work = folder / "work"
    return check(confirmed, folder, work, counts, lost_calls=0, attempts=0)[1]


def test_nothing_is_wrong_where_nothing_is(confirmed):
    assert found(*confirmed) == []


@pytest.mark.parametrize("damage", DAMAGES)
def test_each_damage_is_seen(confirmed, tmp_path, damage):
    records, folder, counts = confirmed
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    with closing(sqlite3.connect(tmp_path / "enrich.db")) as database, database:
        database.execute(damage)
    assert any(DAMAGES[damage] in words for words in found(records, tmp_path, counts))


def test_an_answer_that_was_requested_twice_is_seen(confirmed):
    records, folder, counts = confirmed
    counts = {"answered": counts["answered"] | {"teal": 2}}
    assert found(records, folder, counts) == [
        "1 good answers were requested again, 0 were in flight"
    ]
