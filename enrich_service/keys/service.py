"""API keys: made, found again by their hash, revoked; and the audit log, read."""

import hashlib
import secrets
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final

from sqlmodel import Session, col, or_, select, update

from enrich_service.core.audit import AuditEntry
from enrich_service.core.caller import Scope
from enrich_service.core.database import utcnow
from enrich_service.core.errors import InvalidInput, NoSuch, Unauthorized
from enrich_service.core.text import check_name
from enrich_service.keys.models import ApiKey

MARK: Final = "enrich_"  # by which scanners for leaked secrets know one
SHOWN: Final = len(MARK) + 6  # characters of a key that are kept and shown
LAST_USE: Final = timedelta(minutes=1)  # to which the last use of a key is told


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def create(
    session: Session, name: str, scope: Scope, *, expires_at: datetime | None = None
) -> tuple[ApiKey, str]:
    """Make a key. Gives its row, and the key itself, which is kept nowhere."""
    if expires_at is not None and expires_at <= utcnow():
        raise InvalidInput("expires_at lies in the past: such a key would open nothing")
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
    """Whether a key was ever made: from then on everybody needs one, also when all are revoked."""
    return session.exec(select(ApiKey.id).limit(1)).first() is not None


def find(session: Session, secret: str) -> ApiKey:
    """The living key `secret`; else Unauthorized."""
    key = session.exec(select(ApiKey).where(ApiKey.hash == _hash(secret))).one_or_none()
    if key is None:
        raise Unauthorized("There is no such API key: ask an admin of this service for one.")
    if key.revoked_at is not None:
        raise Unauthorized(f"The API key {key.prefix}… was revoked: ask an admin for a new one.")
    if key.expires_at is not None and key.expires_at <= utcnow():
        raise Unauthorized(f"The API key {key.prefix}… has expired: ask an admin for a new one.")
    return key


def note_use(session: Session, key_id: int) -> None:
    """Remember that the key was used now, unless that was noted within the last minute."""
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
    """Make a key open nothing from now on. Revoking twice is no error."""
    key = session.get(ApiKey, key_id)
    if key is None:
        raise NoSuch(f"API key {key_id}", "keys list", "/v1/keys")
    key.revoked_at = key.revoked_at or utcnow()
    session.add(key)
    return key


def listing(session: Session) -> Sequence[ApiKey]:
    """All keys, the newest first."""
    return session.exec(select(ApiKey).order_by(col(ApiKey.id).desc())).all()


def audit_log(
    session: Session, *, key_id: int | None = None, before: int | None = None, limit: int = 100
) -> Sequence[AuditEntry]:
    """Entries of the audit log, the newest first, with an id below `before`."""
    query = select(AuditEntry).order_by(col(AuditEntry.id).desc()).limit(limit)
    if key_id is not None:
        query = query.where(AuditEntry.key_id == key_id)
    if before is not None:
        query = query.where(col(AuditEntry.id) < before)
    return session.exec(query).all()
