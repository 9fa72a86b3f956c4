import errno
import sqlite3
import subprocess
import time
from contextlib import suppress

import httpx
import pytest
from sqlalchemy import event

from enrich_service.core.errors import StorageFull, Unavailable
from enrich_service.core.settings import Settings
from enrich_service.core.storage.database import make_engine, reading, storage_error, writing
from enrich_service.core.storage.prestart import prestart
from enrich_service.labels import service as labels
from enrich_service.labels.schemas import LabelIn
from tests.conftest import running
from tests.llm_server import LlmServer
from tests.service.llm_fixtures import add_labels, start_run, wait_for

pytestmark = pytest.mark.sqlite


@pytest.fixture
def disk(small_disk):
    """A file system of 2 MiB: a database fits, and not much more."""
    subprocess.run(["mount", "-o", "remount,size=2m", str(small_disk)], check=True)
    return small_disk


def test_a_full_disk_is_a_507_and_nothing_half_written_stays(disk):
    settings = Settings(data_dir=disk)
    with running(settings) as url, httpx.Client(base_url=url, timeout=30) as client:
        small = {"name": "small", "labels": [{"name": "mallard"}]}
        assert client.post("/v1/label-sets", json=small).status_code == 201
        names = [{"name": f"label {i} " + "x" * 200} for i in range(20_000)]
        answer = client.post("/v1/label-sets", json={"name": "large", "labels": names})
        assert answer.status_code == 507
        assert "disk" in answer.json()["detail"] and "\n" not in answer.json()["detail"]
        assert [one["name"] for one in client.get("/v1/label-sets").json()] == ["small"]
        # Once there is room, it goes on.
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        assert client.post("/v1/label-sets", json={"name": "large", "labels": names}).is_success


def test_a_run_that_met_a_full_disk_goes_on_by_itself_once_there_is_room(disk):
    with LlmServer(latency=0.5) as model:
        settings = Settings(
            data_dir=disk, llm_url=model.url, llm_model="small", run_lease_seconds=0.5
        )
        with running(settings) as url, httpx.Client(base_url=url, timeout=30) as client:
            add_labels(client, ["mallard", "teal", "scoter"])
            run = start_run(client)["id"]
            wait_for(client, run, "running")
            filler = disk / "filler"
            with suppress(OSError), filler.open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(4096))
            time.sleep(1.5)  # the answers come, and neither they nor the end can be stored
            found = client.get(f"/v1/runs/{run}").json()
            assert (found["state"], found["accepted"]) == ("running", 0)
            filler.unlink()
            assert wait_for(client, run)["accepted"] == 3


def test_a_full_database_file_says_so(engine):
    @event.listens_for(engine, "checkout")
    def limit(connection, _record, _proxy):
        connection.execute("PRAGMA max_page_count = 80")

    names = [LabelIn(name=f"label {i} " + "x" * 200) for i in range(10_000)]
    engine.dispose()
    with pytest.raises(Exception) as caught, writing(engine) as session:
        labels.create(session, "large", names)
    assert isinstance(storage_error(caught.value), StorageFull)
    with reading(engine) as session:
        assert labels.listing(session) == []


def test_a_read_only_database_is_a_503(settings, start_service):
    engine = make_engine(settings.sqlalchemy_url)
    prestart(engine, settings)
    engine.dispose()
    read_only = Settings(
        data_dir=settings.data_dir,
        database_url=f"sqlite:///file:{settings.data_dir}/enrich.db?mode=ro&uri=true",
    )
    with httpx.Client(base_url=start_service(read_only), timeout=30) as client:
        answer = client.post("/v1/label-sets", json={"name": "a", "labels": [{"name": "b"}]})
        assert answer.status_code == 503
        assert "read-only" in answer.json()["detail"]
        assert client.get("/v1/label-sets").json() == []


def test_a_writer_that_waits_too_long_says_busy(engine, settings):
    other = sqlite3.connect(settings.data_dir / "enrich.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")

    @event.listens_for(engine, "checkout")
    def hurry(connection, _record, _proxy):
        connection.execute("PRAGMA busy_timeout = 50")

    with pytest.raises(Exception) as caught, writing(engine) as session:
        labels.create(session, "ducks", [LabelIn(name="mallard")])
    other.close()
    assert isinstance(storage_error(caught.value), Unavailable)


def test_what_is_no_storage_error_stays_a_defect():
    assert storage_error(ValueError("?")) is None
    assert storage_error(FileNotFoundError(errno.ENOENT, "?")) is None


def test_a_reader_that_turned_writer_would_fail_but_writers_begin_at_once(engine):
    """Two writers that read first: the second waits for the first instead of failing."""
    import threading

    entered = threading.Event()
    order = []

    def second():
        entered.wait()
        with writing(engine) as session:
            labels.listing(session)
            labels.create(session, "second", [LabelIn(name="b")])
            order.append("second")

    thread = threading.Thread(target=second)
    thread.start()
    with writing(engine) as session:
        labels.listing(session)
        entered.set()
        thread.join(timeout=0.2)
        labels.create(session, "first", [LabelIn(name="a")])
        order.append("first")
    thread.join()
    assert order == ["first", "second"]
