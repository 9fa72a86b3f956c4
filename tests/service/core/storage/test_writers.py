"""Writers and readers at the same time, on whichever database the tests run."""

import threading
from collections.abc import Callable

import pytest
from sqlalchemy import Engine

from enrich_service.core.errors import Unavailable
from enrich_service.core.storage import database
from enrich_service.core.storage.database import make_engine, reading, storage_error, writing
from enrich_service.labels import service as labels
from enrich_service.labels.schemas import LabelIn
from enrich_service.prompts import service as prompts
from enrich_service.prompts.schemas import AliasPut, PromptCreate, VersionCreate

SCHEMA = {"type": "object", "properties": {"description": {"type": "string"}}}


@pytest.fixture
def at_once(settings) -> Callable[[int, Callable[[Engine, int], None]], None]:
    """A function that runs another so many times at once, each with an engine of its own."""

    def run(times: int, act: Callable[[Engine, int], None]) -> None:
        start, failed = threading.Barrier(times), []

        def one(n: int) -> None:
            own = make_engine(settings.sqlalchemy_url)  # as another process would
            start.wait()
            try:
                act(own, n)
            except Exception as error:
                failed.append(error)
            finally:
                own.dispose()

        threads = [threading.Thread(target=one, args=(n,)) for n in range(times)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failed == []

    return run


def test_versions_that_many_write_at_once_are_numbered_without_gaps(engine, at_once):
    """Each reads the last number and writes the next."""
    with writing(engine) as session:
        prompts.create(
            session,
            PromptCreate(
                name="looks", kind="description", user="{{ label }}", output_schema=SCHEMA
            ),
        )

    def write(own, n):
        for k in range(3):
            with writing(own) as session:
                prompt = prompts.get(session, "looks")
                text = f"{{{{ label }}}} {n} {k}"
                prompts.create_version(
                    session, prompt, VersionCreate(user=text, output_schema=SCHEMA)
                )

    at_once(8, write)
    with reading(engine) as session:
        found = prompts.versions(session, prompts.get(session, "looks"))
    assert [version.number for version in found] == list(range(25, 0, -1))


def test_moves_of_an_alias_at_once_are_a_chain(engine, at_once):
    """Each logs the version that it moved the alias away from."""
    with writing(engine) as session:
        prompt, _ = prompts.create(
            session,
            PromptCreate(
                name="looks", kind="description", user="{{ label }}", output_schema=SCHEMA
            ),
        )
        for n in range(8):
            prompts.create_version(
                session, prompt, VersionCreate(user=f"{{{{ label }}}} {n}", output_schema=SCHEMA)
            )
        prompts.move_alias(session, prompt, "production", AliasPut(version=9))

    def move(own, n):
        with writing(own) as session:
            looks = prompts.get(session, "looks")
            prompts.move_alias(session, looks, "production", AliasPut(version=n + 1))

    at_once(8, move)
    with reading(engine) as session:
        moves = prompts.alias_moves(session, prompts.get(session, "looks"), "production")[::-1]
    assert [move.from_version for move in moves] == [None] + [m.to_version for m in moves[:-1]]
    assert sorted(move.to_version for move in moves) == list(range(1, 10))


def test_a_reader_sees_one_state_whatever_is_written_meanwhile(engine):
    with reading(engine) as session:
        before = labels.listing(session)
        with writing(engine) as other:
            labels.create(other, "ducks", [LabelIn(name="mallard")])
        assert labels.listing(session) == before == []
    with reading(engine) as session:
        assert len(labels.listing(session)) == 1


def test_a_writer_that_waits_too_long_says_busy(engine, settings, monkeypatch):
    monkeypatch.setattr(database, "BUSY_TIMEOUT_S", 0.1)
    impatient = make_engine(settings.sqlalchemy_url)
    with writing(engine) as session:
        labels.listing(session)
        with pytest.raises(Exception) as caught, writing(impatient) as other:
            labels.create(other, "ducks", [LabelIn(name="mallard")])
    impatient.dispose()
    known = storage_error(caught.value)
    assert isinstance(known, Unavailable) and "was locked" in str(known)
