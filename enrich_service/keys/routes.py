"""API keys and the audit log over REST, for admins."""

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Response

from enrich_service.core.rest.dependencies import (
    MAX_ID,
    Id,
    ReadSession,
    WriteSession,
    admins_only,
)
from enrich_service.core.rest.problems import problems
from enrich_service.keys import service
from enrich_service.keys.schemas import AuditView, KeyCreate, KeyCreated, KeyView

router = APIRouter(prefix="/v1", tags=["keys"], dependencies=[Depends(admins_only)])


@router.post("/keys", status_code=201, summary="Create an API key", responses=problems())
def create_key(body: KeyCreate, session: WriteSession, response: Response) -> KeyCreated:
    """Create an API key. Only this response contains the key."""
    key, secret = service.create(session, body.name, body.scope, expires_at=body.expires_at)
    response.headers["Cache-Control"] = "no-store"
    return KeyCreated(**key.model_dump(), key=secret)


@router.get("/keys", summary="List API keys", responses=problems())
def list_keys(session: ReadSession) -> list[KeyView]:
    """List API keys with their prefixes, newest first."""
    return [KeyView(**key.model_dump()) for key in service.listing(session)]


@router.post("/keys/{key_id}/revoke", summary="Revoke an API key", responses=problems(404))
def revoke_key(key_id: Id, session: WriteSession) -> KeyView:
    """Revoke an API key."""
    return KeyView(**service.revoke(session, key_id).model_dump())


@router.get("/audit", summary="Read the audit log", responses=problems())
def read_audit_log(
    session: ReadSession,
    key_id: Annotated[int | None, Query(ge=1, le=MAX_ID, description="Filter by key id")] = None,
    before: Annotated[
        int | None, Query(ge=1, le=MAX_ID, description="Only entries with a lower id")
    ] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> list[AuditView]:
    """List changes over HTTP with the key that made them, newest first."""
    entries = service.audit_log(session, key_id=key_id, before=before, limit=limit)
    return [AuditView(**entry.model_dump()) for entry in entries]
