"""The checker of benchmarks.faults.storms must see what it is there to see."""

import shutil
import sqlite3
import time
from contextlib import closing

import pytest

pytest.importorskip("fastapi")

from benchmarks.faults._told import Clients, check
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
def told(tmp_path_factory):
    """What a client was told by a service that has stopped, its data folder, the model's counts."""
    folder = tmp_path_factory.mktemp("faults")
    with LlmServer() as model:
        with running(Settings(data_dir=folder, llm_url=model.url, llm_model="small")) as url:
            clients = Clients(url, {}, excused=())
            path = clients.add_run("ducks", [{"name": "mallard"}, {"name": "teal"}])
            while not clients.look(path):
                time.sleep(0.05)
            clients.close()
        yield clients.told, folder, {"answered": dict(model.answered)}


def found(told, folder, counts):
    work = folder / "work"
    return check(told, folder, work, counts, lost_calls=0, attempts=0)[1]


def test_nothing_is_wrong_where_nothing_is(told):
    assert found(*told) == []


@pytest.mark.parametrize("damage", DAMAGES)
def test_each_damage_is_seen(told, tmp_path, damage):
    notes, folder, counts = told
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    with closing(sqlite3.connect(tmp_path / "enrich.db")) as database, database:
        database.execute(damage)
    assert any(DAMAGES[damage] in words for words in found(notes, tmp_path, counts))


def test_an_answer_that_was_asked_for_twice_is_seen(told):
    notes, folder, counts = told
    counts = {"answered": counts["answered"] | {"teal": 2}}
    assert found(notes, folder, counts) == ["1 good answers were asked for again, 0 were in flight"]
