"""What routes ask for, each named once.

A session's transaction ends before the answer is sent, so that a client that was told "done" can
rely on it, and a failed commit becomes a problem document.
"""

from collections.abc import Iterator
from typing import Annotated

from fastapi import Depends, Path, Request
from sqlalchemy import Engine
from sqlmodel import Session

from enrich_service.core.database import reading, writing
from enrich_service.core.settings import Settings


def _engine(request: Request) -> Engine:
    engine: Engine = request.app.state.engine
    return engine


def _settings(request: Request) -> Settings:
    settings: Settings = request.app.state.settings
    return settings


# As much as a database id can be.
MAX_ID = 2**31 - 1
Id = Annotated[int, Path(ge=1, le=MAX_ID)]

EngineDep = Annotated[Engine, Depends(_engine)]
SettingsDep = Annotated[Settings, Depends(_settings)]


def _read_session(engine: EngineDep) -> Iterator[Session]:
    with reading(engine) as session:
        yield session


def _write_session(engine: EngineDep) -> Iterator[Session]:
    with writing(engine) as session:
        yield session


# The database transaction itself begins with the first statement, inside the route.
ReadSession = Annotated[Session, Depends(_read_session, scope="function")]
# Writers wait for each other before they take a thread: were all threads waiting for the write
# lock, the one that holds it would find no thread to finish in.
WriteSession = Annotated[Session, Depends(_write_session, scope="function", max_concurrency=4)]
