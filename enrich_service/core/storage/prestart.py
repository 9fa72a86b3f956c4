"""Preparation before the service or a command uses the database: folders and migrations."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path

from sqlalchemy import Engine, inspect, text
from sqlalchemy.exc import DBAPIError

from enrich_service.core.errors import Unavailable
from enrich_service.core.settings import Settings
from enrich_service.core.storage.database import storage_error
from enrich_service.core.storage.private_files import (
    make_private_database,
    make_private_file,
    make_private_folder,
)

_POSTGRES_LOCK = 0x656E7269  # arbitrary, but unique in the database


@contextmanager
def _migration_lock(engine: Engine, settings: Settings) -> Iterator[None]:
    """Hold the lock that makes processes migrate one at a time."""
    if engine.dialect.name == "postgresql":
        with engine.connect() as connection:
            connection.execute(text("SELECT pg_advisory_lock(:n)"), {"n": _POSTGRES_LOCK})
            try:
                yield
            finally:
                connection.execute(text("SELECT pg_advisory_unlock(:n)"), {"n": _POSTGRES_LOCK})
        return
    file = settings.data_dir / "migrate.lock"
    make_private_file(file)
    with file.open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def prestart(engine: Engine, settings: Settings) -> None:
    """Create the data folder and apply the missing migrations.

    Raises Unavailable or StorageFull if the folder or database cannot be used.
    """
    try:
        _make_folders(engine, settings)
        # Before the first connection: SQLite's switch to WAL does not wait for locks.
        with _migration_lock(engine, settings):
            if _revision(engine) != newest_revision():
                # Importing Alembic takes longer than most commands.
                from enrich_service.core.storage.migrate import upgrade

                upgrade(engine)
    except (DBAPIError, OSError) as error:
        known = storage_error(error)
        if known is None:
            raise
        raise known from error


def _make_folders(engine: Engine, settings: Settings) -> None:
    database = engine.url.database
    try:
        make_private_folder(settings.data_dir)
        if engine.dialect.name == "sqlite" and database and not database.startswith((":", "file:")):
            make_private_folder(Path(database).parent)
            make_private_database(Path(database))
    except FileNotFoundError as error:  # e.g. in /proc
        raise Unavailable(
            f"The data folder cannot be created ({error.strerror}): check ENRICH_DATA_DIR."
        ) from error


def newest_revision() -> str:
    """The revision of the newest migration: the number at the start of its file name."""
    names = (file.name for file in (files("migrations") / "versions").iterdir())
    return max(name.partition("_")[0] for name in names if name[0].isdigit())


def _revision(engine: Engine) -> str | None:
    with engine.connect() as connection:
        if not inspect(connection).has_table("alembic_version"):
            return None
        revision: str | None = connection.scalar(text("SELECT version_num FROM alembic_version"))
        return revision
