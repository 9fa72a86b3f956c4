"""API keys: create, look up by hash, revoke; and queries of the audit log."""

import hashlib
import secrets
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final

from sqlmodel import Session, col, or_, select, update

from enrich_service.core.errors import InvalidInput, NoSuch, Unauthorized
from enrich_service.core.rest.audit import AuditEntry
from enrich_service.core.rest.caller import Scope
from enrich_service.core.storage.database import utcnow
from enrich_service.core.text import check_name
from enrich_service.keys.models import ApiKey

PREFIX: Final = "enrich_"  # lets scanners for leaked secrets recognise a key
STORED_PREFIX: Final = len(PREFIX) + 6  # characters
LAST_USE_PRECISION: Final = timedelta(minutes=1)


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def create(
    session: Session, name: str, scope: Scope, *, expires_at: datetime | None = None
) -> tuple[ApiKey, str]:
    """Create a key. Returns its row and the secret, which is not stored.

    Raises InvalidInput for an invalid name, or an expiry in the past.
    """
    if expires_at is not None and expires_at <= utcnow():
        raise InvalidInput("expires_at is in the past: give a later time")
    secret = PREFIX + secrets.token_urlsafe(32)
    key = ApiKey(
        name=check_name("The key's name", name),
        prefix=secret[:STORED_PREFIX],
        hash=_hash(secret),
        scope=scope,
        expires_at=expires_at,
    )
    session.add(key)
    session.flush()
    return key, secret


def exist(session: Session) -> bool:
    """Whether any key exists, even a revoked one. If so, every request needs one."""
    return session.exec(select(ApiKey.id).limit(1)).first() is not None


def find(session: Session, secret: str) -> ApiKey:
    """The valid key with this secret. Raises Unauthorized if it is unknown, revoked or expired."""
    key = session.exec(select(ApiKey).where(ApiKey.hash == _hash(secret))).one_or_none()
    if key is None:
        raise Unauthorized("Unknown API key: ask an admin of this service for one.")
    if key.revoked_at is not None:
        raise Unauthorized(f"The API key {key.prefix}… was revoked: ask an admin for a new one.")
    if key.expires_at is not None and key.expires_at <= utcnow():
        raise Unauthorized(f"The API key {key.prefix}… has expired: ask an admin for a new one.")
    return key


def record_use(session: Session, key_id: int) -> None:
    """Record the use of a key, unless one was recorded within the last minute."""
    now = utcnow()
    session.exec(
        update(ApiKey)
        .where(
            col(ApiKey.id) == key_id,
            or_(
                col(ApiKey.last_used_at).is_(None),
                col(ApiKey.last_used_at) < now - LAST_USE_PRECISION,
            ),
        )
        .values(last_used_at=now)
    )


def revoke(session: Session, key_id: int) -> ApiKey:
    """Revoke a key; idempotent. Raises NotFound."""
    key = session.get(ApiKey, key_id)
    if key is None:
        raise NoSuch(f"API key {key_id}", "keys list", "/v1/keys")
    key.revoked_at = key.revoked_at or utcnow()
    session.add(key)
    return key


def listing(session: Session) -> Sequence[ApiKey]:
    """All keys, newest first."""
    return session.exec(select(ApiKey).order_by(col(ApiKey.id).desc())).all()


def audit_log(
    session: Session, *, key_id: int | None = None, before: int | None = None, limit: int = 100
) -> Sequence[AuditEntry]:
    """Entries of the audit log with an id below `before`, newest first."""
    query = select(AuditEntry).order_by(col(AuditEntry.id).desc()).limit(limit)
    if key_id is not None:
        query = query.where(AuditEntry.key_id == key_id)
    if before is not None:
        query = query.where(col(AuditEntry.id) < before)
    return session.exec(query).all()
