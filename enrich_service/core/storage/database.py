"""The database: one engine, read and write sessions, and column types.

Notable:
- SQLite runs in WAL mode with foreign keys on; each connection is set up the same way.
- A writer begins with BEGIN IMMEDIATE: a deferred transaction that reads first and writes later
  fails at once with SQLITE_BUSY_SNAPSHOT, regardless of busy_timeout.
- PostgreSQL has one writer at a time too, by an advisory lock: what a writer has read (the last
  version of a prompt, whether a name is free) stays valid until it commits, on both databases.
- The names of constraints follow one convention, so that batch migrations can find them.
"""

import errno
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import DateTime, Dialect, Engine, Enum, event
from sqlalchemy.engine import Connection
from sqlalchemy.exc import ArgumentError, DataError, DBAPIError, IntegrityError, OperationalError
from sqlalchemy.types import TypeDecorator
from sqlmodel import Session, SQLModel, create_engine

from enrich_service.core.errors import Conflict, InvalidInput, StorageFull, Unavailable, UserError
from enrich_service.core.text import shortened

SQLModel.metadata.naming_convention = {
    "ix": "ix_%(column_0_label)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}

BUSY_TIMEOUT_S = 30  # maximum wait for the write lock
_WRITER_LOCK = 0x77726974  # arbitrary, but unique in the database


class UtcDateTime(TypeDecorator[datetime]):
    """A point in time in UTC. SQLite drops the time zone; this type restores it."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Convert to UTC. Raises ValueError for a naive datetime."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"naive datetime {value!r}: give a time zone")
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Restore the time zone."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def enum_column(cls: type[StrEnum]) -> Enum:
    """A text column for the values (not the Python names) of `cls`."""
    return Enum(cls, native_enum=False, length=16, values_callable=lambda e: [m.value for m in e])


def utcnow() -> datetime:
    """The current time in UTC."""
    return datetime.now(UTC)


def make_engine(url: str) -> Engine:
    """An engine for `url` (sqlite:///FILE or postgresql+psycopg://…), configured for concurrency.

    Raises InvalidInput if `url` is not a database URL, or its driver is not installed.
    """
    # Enough connections for all sessions that hold one across threads (30 readers and 8 writers,
    # see dependencies), the 40 threads, and background tasks.
    # Error messages contain no parameters, which may be texts of users.
    options: dict[str, Any] = {"pool_size": 10, "max_overflow": 80, "hide_parameters": True}
    if not url.startswith("sqlite"):
        try:
            engine = create_engine(url, pool_pre_ping=True, **options)
        except ModuleNotFoundError as error:
            raise InvalidInput(
                f"DATABASE_URL needs the package {error.name}, which is not installed: install the "
                "extra postgres"
            ) from None
        except ArgumentError:  # its message would contain the password
            raise InvalidInput(
                "DATABASE_URL is not a database URL: write sqlite:///FILE or "
                "postgresql+psycopg://USER@HOST/NAME"
            ) from None

        @event.listens_for(engine, "begin")
        def wait_for_turn(connection: Connection) -> None:
            if connection.get_execution_options().get("write", False):
                connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{BUSY_TIMEOUT_S}s'")
                connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_WRITER_LOCK})")

        return engine
    engine = create_engine(
        url, connect_args={"check_same_thread": False, "timeout": BUSY_TIMEOUT_S}, **options
    )

    @event.listens_for(engine, "connect")
    def set_up(connection: Any, _record: Any) -> None:  # noqa: ANN401 - a DBAPI connection
        connection.isolation_level = None  # the events below begin transactions, not sqlite3
        cursor = connection.cursor()
        if cursor.execute("PRAGMA journal_mode").fetchone() != ("wal",):
            cursor.execute("PRAGMA journal_mode = WAL")
        cursor.execute("PRAGMA foreign_keys = ON")
        cursor.execute("PRAGMA synchronous = NORMAL")
        cursor.close()

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        write = connection.get_execution_options().get("write", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")

    return engine


@contextmanager
def reading(engine: Engine) -> Iterator[Session]:
    """A read session with one consistent snapshot of the database."""
    if engine.dialect.name == "postgresql":  # its default is a snapshot per statement
        engine = engine.execution_options(isolation_level="REPEATABLE READ")
    with Session(engine, expire_on_commit=False) as session:
        yield session


@contextmanager
def writing(engine: Engine) -> Iterator[Session]:
    """A session in one write transaction: commits at the end, rolls back on an error."""
    with (
        Session(engine.execution_options(write=True), expire_on_commit=False) as session,
        session.begin(),
    ):
        yield session


def _locked() -> Unavailable:
    return Unavailable(f"The database was locked for {BUSY_TIMEOUT_S} seconds: try again.")


def storage_error(error: BaseException) -> UserError | None:
    """The UserError for an error of the database or the disk; None for an internal error."""
    if isinstance(error, IntegrityError):
        return Conflict(
            "Another request stored or used the same object at the same time: try again."
        )
    cause = error.orig if isinstance(error, DBAPIError) else error
    if isinstance(cause, sqlite3.Error):
        code = getattr(cause, "sqlite_errorcode", 0) & 0xFF  # without the extended code
        if code == sqlite3.SQLITE_FULL:
            return StorageFull("The disk of the database is full: free some space and try again.")
        if code == sqlite3.SQLITE_READONLY:
            return Unavailable("The database is read-only: make its file and folder writable.")
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return _locked()
        if code in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR):
            return Unavailable(f"The database cannot be read or written ({cause}): check its disk.")
        if code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
            return Unavailable(f"The database file is damaged ({cause}): restore a backup.")
    elif isinstance(cause, OSError):
        if cause.errno in (errno.ENOSPC, errno.EDQUOT):
            return StorageFull(
                "The disk of the data folder is full: free some space and try again."
            )
        if cause.errno in (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST):
            return Unavailable(
                f"The data folder cannot be written ({cause.strerror}): check ENRICH_DATA_DIR."
            )
    elif isinstance(error, DBAPIError):
        return _postgres_error(error)
    return None


def _postgres_error(error: DBAPIError) -> UserError | None:
    match getattr(error.orig, "sqlstate", None):
        case "55P03":  # lock_not_available
            return _locked()
        case "53100":  # disk_full
            return StorageFull("The disk of the database is full: free some space and try again.")
        case "25006":  # read_only_sql_transaction
            return Unavailable(
                "The database is read-only: grant write access, or connect to the primary."
            )
    if isinstance(error, DataError):
        return InvalidInput(
            "The request contains a value that the database cannot store, such as a NUL "
            "character: remove it."
        )
    if isinstance(error, OperationalError) or error.connection_invalidated:
        message = shortened(" ".join(str(error.orig).split()), 200)
        return Unavailable(
            f"The database does not answer: start it or check DATABASE_URL ({message})."
        )
    return None
