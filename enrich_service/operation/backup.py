"""Backup and restore of the SQLite database while the service runs.

Artifacts are immutable files named by their content: copy the folder `artifacts` with any tool, at
any time.
"""

import os
import sqlite3
from contextlib import closing, suppress
from datetime import datetime
from pathlib import Path

from alembic.script import ScriptDirectory
from alembic.util import CommandError
from pydantic import BaseModel
from sqlalchemy.engine import make_url

from enrich_service.core.errors import Conflict, InvalidInput, NotFound, Unavailable
from enrich_service.core.settings import Settings
from enrich_service.core.storage.database import make_engine, storage_error, utcnow
from enrich_service.core.storage.migrate import alembic_config
from enrich_service.core.storage.prestart import prestart
from enrich_service.core.storage.private_files import (
    make_private_database,
    make_private_file,
    make_private_folder,
)

BUSY_TIMEOUT_S = 30.0  # of a restore, while the service writes


class Backup(BaseModel):
    """A complete, verified copy of a database."""

    file: Path
    size: int  # bytes
    revision: str  # of the database's schema
    taken_at: datetime


class Restored(BaseModel):
    """The restored backup, and the path of the previous database."""

    file: Path
    revision: str
    before: Path | None


def database_file(settings: Settings) -> Path:
    """The file of the database. Raises InvalidInput if it is not SQLite."""
    url = make_url(settings.sqlalchemy_url)
    if url.get_backend_name() != "sqlite" or not url.database:
        raise InvalidInput(
            f"the database is {url.get_backend_name()}: back it up and restore it with its own "
            "tools (pg_dump, pg_restore)"
        )
    return Path(url.database)


def check(connection: sqlite3.Connection) -> str:
    """Check a database and return its schema revision.

    Raises Unavailable if it is damaged or not a database of this service.
    """
    try:
        errors = [row[0] for row in connection.execute("PRAGMA integrity_check(3)")]
        if errors != ["ok"]:
            raise Unavailable(f"the database is damaged: {errors[0].splitlines()[0]}")
        if broken := connection.execute("PRAGMA foreign_key_check").fetchone():
            raise Unavailable(
                f"the database is damaged: a row of {broken[0]} has a dangling foreign key"
            )
        (revision,) = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    except (sqlite3.DatabaseError, TypeError) as error:
        raise Unavailable(f"this is not a database of this service ({error})") from None
    return str(revision)


def back_up(settings: Settings, target: Path) -> Backup:
    """Copy a snapshot of the database to `target` and verify the copy.

    Raises:
        InvalidInput: the database is not SQLite.
        NotFound, Conflict: there is no database, or `target` exists.
        Unavailable, StorageFull: the copy is damaged, or cannot be written.
    """
    source = database_file(settings)
    if not source.is_file():
        raise NotFound(f"there is no database {source}: check ENRICH_DATA_DIR")
    if target.exists():
        raise Conflict(f"{target} exists: choose another name")
    partial = target.with_name(f".{target.name}.partial")
    now = utcnow()
    try:
        make_private_file(partial)
        with closing(_open(source)) as live, closing(sqlite3.connect(partial)) as copy:
            live.backup(copy)  # one read transaction: in WAL mode, writers do not wait for it
            copy.execute("PRAGMA journal_mode = DELETE")  # one file, no companions
            revision = check(copy)
        _sync(partial)
        partial.replace(target)
    except (sqlite3.Error, OSError) as error:
        raise storage_error(error) or Unavailable(
            f"cannot write the backup {target} ({error}): choose another path"
        ) from error
    finally:
        partial.unlink(missing_ok=True)
    return Backup(file=target, size=target.stat().st_size, revision=revision, taken_at=now)


def restore(settings: Settings, backup: Path) -> Restored:
    """Replace the database with a backup; the previous one is kept next to it.

    A running service sees the old content until the new content is complete. A backup of an
    older version is migrated.

    Raises:
        InvalidInput: the database is not SQLite.
        NotFound: there is no such backup.
        Unavailable, StorageFull: the backup is damaged or of a newer version, or the disk is full.
    """
    live = database_file(settings)
    if not backup.is_file():
        raise NotFound(f"there is no backup {backup}")
    with closing(sqlite3.connect(f"{backup.absolute().as_uri()}?mode=ro", uri=True)) as given:
        try:
            revision = check(given)
        except Unavailable as error:
            raise Unavailable(f"{backup} cannot be restored: {error}") from None
        engine = make_engine(settings.sqlalchemy_url)
        try:
            ScriptDirectory.from_config(alembic_config(engine)).get_revision(revision)
        except CommandError:
            raise Unavailable(
                f"{backup} is of a newer version of this service: upgrade the service first"
            ) from None
        finally:
            engine.dispose()
        try:
            make_private_folder(live.parent)
            before = _keep(settings, live) if live.exists() else None
            make_private_database(live)
            with closing(_open(live)) as target:
                given.backup(target)
        except (sqlite3.Error, OSError) as error:
            raise storage_error(error) or Unavailable(f"cannot write {live} ({error})") from error
    engine = make_engine(settings.sqlalchemy_url)
    try:
        prestart(engine, settings)
    finally:
        engine.dispose()
    return Restored(file=live, revision=revision, before=before)


def _keep(settings: Settings, live: Path) -> Path:
    """Copy the current database to a file next to it; a damaged one is moved."""
    kept = live.with_name(f"{live.stem}-before-{utcnow():%Y%m%d-%H%M%S-%f}.db")
    try:
        back_up(settings, kept)
    except Unavailable:
        for suffix in ("", "-wal", "-shm"):
            with suppress(FileNotFoundError):
                Path(f"{live}{suffix}").replace(f"{kept}{suffix}")
    return kept


def _open(file: Path) -> sqlite3.Connection:
    return sqlite3.connect(file, timeout=BUSY_TIMEOUT_S, isolation_level=None)


def _sync(file: Path) -> None:
    with file.open("rb") as content:
        os.fsync(content.fileno())
