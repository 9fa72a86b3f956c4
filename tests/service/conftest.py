"""A real, migrated SQLite file for tests that need no server."""

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine

from enrich_service.core.settings import Settings
from enrich_service.core.storage.database import make_engine


@pytest.fixture
def settings(tmp_path) -> Settings:
    return Settings(data_dir=tmp_path / "data")


@pytest.fixture
def engine(settings, migrated) -> Iterator[Engine]:
    migrated(settings.data_dir)
    engine = make_engine(settings.sqlalchemy_url)
    yield engine
    engine.dispose()
