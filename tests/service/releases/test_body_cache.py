"""Releases that are read often stay in memory, up to a bound."""

import asyncio

import pytest

from enrich_service.core.errors import NotFound
from enrich_service.core.settings import Settings
from enrich_service.core.storage.database import make_engine, writing
from enrich_service.labels.models import LabelSet
from enrich_service.releases.body_cache import BodyCache
from enrich_service.releases.models import ReleaseRow


@pytest.fixture
def engine(tmp_path, migrated):
    settings = Settings(data_dir=migrated(tmp_path))
    engine = make_engine(settings.sqlalchemy_url)
    with writing(engine) as session:
        labels = LabelSet(name="birds", hash="0" * 64)
        session.add(labels)
        session.flush()
        for n in range(3):
            row = {"name": f"r{n}", "hash": f"{n}" * 64, "labels": 1, "body": bytes(100)}
            session.add(ReleaseRow(label_set_id=labels.id, **row))
    yield engine
    engine.dispose()


def test_the_releases_that_were_read_last_are_kept_up_to_so_many_bytes(engine):
    frozen = BodyCache(engine, max_bytes=250)

    def read(number):
        return asyncio.run(frozen.read(number))

    first, second = read(1), read(2)
    assert first == ("0" * 64, bytes(100))
    assert read(1) is first and read(2) is second
    assert read(1) is first
    read(3)  # the third takes the place of the one that was not read for longest
    assert read(1) is first
    assert read(2) is not second and read(2) == second


def test_a_release_above_the_bound_is_read_each_time(engine):
    frozen = BodyCache(engine, max_bytes=99)
    assert asyncio.run(frozen.read(1)) is not asyncio.run(frozen.read(1))


def test_a_release_that_is_not_there_is_told(engine):
    with pytest.raises(NotFound, match="There is no release 9"):
        asyncio.run(BodyCache(engine).read(9))
