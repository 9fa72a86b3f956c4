"""Dependencies of routes.

A session's transaction is committed before the response is sent, so that a success response is
reliable, and a failed commit becomes a problem document.
"""

from collections.abc import Iterator
from typing import Annotated

from fastapi import Depends, Path, Request
from sqlalchemy import Engine, event
from sqlmodel import Session

from enrich_service.core.clock import Clock
from enrich_service.core.errors import Forbidden
from enrich_service.core.rest import audit
from enrich_service.core.rest.caller import Caller, Scope
from enrich_service.core.settings import Settings
from enrich_service.core.storage.database import reading, writing


def _engine(request: Request) -> Engine:
    engine: Engine = request.app.state.engine
    return engine


def _settings(request: Request) -> Settings:
    settings: Settings = request.app.state.settings
    return settings


def _clock(request: Request) -> Clock:
    clock: Clock = request.app.state.clock
    return clock


def _caller(request: Request) -> Caller:
    caller: Caller = request.state.caller  # set by the authentication middleware
    return caller


# The largest database id.
MAX_ID = 2**31 - 1
Id = Annotated[int, Path(ge=1, le=MAX_ID)]

EngineDep = Annotated[Engine, Depends(_engine)]
SettingsDep = Annotated[Settings, Depends(_settings)]
ClockDep = Annotated[Clock, Depends(_clock)]
CallerDep = Annotated[Caller, Depends(_caller)]


def admins_only(caller: CallerDep) -> None:
    """Dependency of routers that require the scope admin."""
    if not caller.scope.includes(Scope.ADMIN):
        raise Forbidden(
            f"The key {caller.name!r} has the scope {caller.scope}; this requires admin."
        )


def _read_session(engine: EngineDep) -> Iterator[Session]:
    with reading(engine) as session:
        yield session


def _write_session(engine: EngineDep, request: Request) -> Iterator[Session]:
    with writing(engine) as session:

        @event.listens_for(session, "before_commit")  # at the end, or earlier in the route
        def record(session: Session) -> None:
            if not audit.is_audited(request):
                audit.record(session, request)

        yield session


def _work_session(engine: EngineDep, request: Request) -> Iterator[Session]:
    audit.mark_audited(request)
    with writing(engine) as session:
        yield session


# The database transaction itself begins with the first statement, inside the route.
# Readers are limited too: they hold a connection while they wait for a thread to close the session.
# If all threads waited for a connection and all connections for a thread, the service would
# deadlock.
ReadSession = Annotated[Session, Depends(_read_session, scope="function", max_concurrency=30)]
# Writers wait for each other before they occupy a thread: if all threads waited for the write lock,
# its holder would have no thread to finish in.
WriteSession = Annotated[Session, Depends(_write_session, scope="function", max_concurrency=4)]
# For frequent requests of workers, which are recorded as events of the job, not in the audit log.
WorkSession = Annotated[Session, Depends(_work_session, scope="function", max_concurrency=4)]
