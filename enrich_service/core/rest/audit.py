"""The audit log: one row per change over HTTP, written in the transaction of the change.

Rows are append-only. Request bodies are not stored, since they may contain secrets.
"""

from datetime import datetime

from fastapi import Request
from sqlmodel import Field, Session, SQLModel

from enrich_service.core.rest.caller import Caller
from enrich_service.core.storage.database import UtcDateTime, utcnow

MAX_PATH = 500  # characters


class AuditEntry(SQLModel, table=True):
    """Who did what to which object, and when."""

    __tablename__ = "audit_entry"

    id: int | None = Field(default=None, primary_key=True)
    at: datetime = Field(default_factory=utcnow, sa_type=UtcDateTime)
    key_id: int | None = Field(default=None, foreign_key="api_key.id", index=True)
    who: str  # name of the key at that time
    action: str  # the name of the operation: create_job
    route: str  # POST /v1/jobs/{job_id}/cancel
    object: str  # the requested path: /v1/jobs/7/cancel
    request_id: str | None = None  # as in the server log


def record(session: Session, request: Request) -> None:
    """Add a row for `request`, in the transaction that makes its change."""
    caller: Caller = request.state.caller
    route = request.scope.get("route")
    session.add(
        AuditEntry(
            key_id=caller.key_id,
            who=caller.name,
            action=getattr(route, "name", "") or "",
            route=f"{request.method} {getattr(route, 'path', '')}",
            object=request.url.path[:MAX_PATH],
            request_id=getattr(request.state, "request_id", None),
        )
    )
    mark_audited(request)


def mark_audited(request: Request) -> None:
    """Mark `request` as audited, or as exempt."""
    request.state.audited = True


def is_audited(request: Request) -> bool:
    """Whether `request` is audited or exempt."""
    return getattr(request.state, "audited", False)
