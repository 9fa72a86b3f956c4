"""A filled database, and an empty one to take its exports."""

import pytest

from enrich_service.core.settings import Settings
from enrich_service.core.storage.database import make_engine


@pytest.fixture
def elsewhere(tmp_path, migrated):
    settings = Settings(data_dir=migrated(tmp_path / "elsewhere"))
    engine = make_engine(settings.sqlalchemy_url)
    yield engine
    engine.dispose()
