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

MARK: Final = "enrich_"  # recognised by scanners for leaked secrets
SHOWN: Final = len(MARK) + 6  # length of the stored prefix
LAST_USE: Final = timedelta(minutes=1)  # precision of the last use


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def create(
    session: Session, name: str, scope: Scope, *, expires_at: datetime | None = None
) -> tuple[ApiKey, str]:
    """Create a key. Returns its row and the secret, which is not stored."""
    if expires_at is not None and expires_at <= utcnow():
        raise InvalidInput("expires_at is in the past")
    secret = MARK + secrets.token_urlsafe(32)
    key = ApiKey(
        name=check_name("The key's name", name),
        prefix=secret[:SHOWN],
        hash=_hash(secret),
        scope=scope,
        expires_at=expires_at,
    )
    session.add(key)
    session.flush()
    return key, secret


def exist(session: Session) -> bool:
    """Whether any key exists, even if revoked: then every request needs one."""
    return session.exec(select(ApiKey.id).limit(1)).first() is not None


def find(session: Session, secret: str) -> ApiKey:
    """The valid key with this secret. Raises Unauthorized."""
    key = session.exec(select(ApiKey).where(ApiKey.hash == _hash(secret))).one_or_none()
    if key is None:
        raise Unauthorized("Unknown API key: ask an admin of this service for one.")
    if key.revoked_at is not None:
        raise Unauthorized(f"The API key {key.prefix}… was revoked: ask an admin for a new one.")
    if key.expires_at is not None and key.expires_at <= utcnow():
        raise Unauthorized(f"The API key {key.prefix}… has expired: ask an admin for a new one.")
    return key


def note_use(session: Session, key_id: int) -> None:
    """Record the use of a key, unless one was recorded within the last minute."""
    now = utcnow()
    session.exec(
        update(ApiKey)
        .where(
            col(ApiKey.id) == key_id,
            or_(col(ApiKey.last_used_at).is_(None), col(ApiKey.last_used_at) < now - LAST_USE),
        )
        .values(last_used_at=now)
    )


def revoke(session: Session, key_id: int) -> ApiKey:
    """Revoke a key. Idempotent."""
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
