"""Who is asking what: claims in the database, so that of several processes one asks it.

A claim ends with the lease of its owner, which is renewed while the owner lives.
"""

import functools
import os
import secrets
import socket
from collections.abc import Collection
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import Executable
from sqlmodel import Session, col, delete, exists, select, update

from enrich_service.core.database import utcnow
from enrich_service.core.errors import ServiceError
from enrich_service.generations.models import Claim, Generation
from enrich_service.generations.sql import RESULTS, chunks, insert_into, results_for


class ClaimedElsewhere(ServiceError):
    """Another process is asking this now: its answer is to be waited for."""


@dataclass(frozen=True)
class Claims:
    """What came of claiming dedupe keys: those that are in neither were claimed."""

    results: dict[str, Generation]  # there is nothing to be asked
    elsewhere: set[str]  # another process is asking


class ClaimTable:
    """The claims of this process and of others. Every change needs a writing session."""

    def __init__(self, lease_seconds: float) -> None:
        self.owner = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        self.lease = timedelta(seconds=lease_seconds)

    def claim(self, session: Session, keys: Collection[str]) -> Claims:
        """Claim dedupe keys that have no result and that no other process has claimed."""
        results = {
            row.dedupe_key or "": row
            for some in chunks(keys)
            for row in session.exec(results_for(some))
        }
        elsewhere = self.elsewhere(session, set(keys) - results.keys())
        if free := set(keys) - results.keys() - elsewhere:
            expires_at = utcnow() + self.lease
            rows = [
                {"dedupe_key": key, "owner": self.owner, "expires_at": expires_at} for key in free
            ]
            statement = _insert_claims(session.get_bind().dialect.name)
            session.connection().execute(statement, rows)
        return Claims(results, elsewhere)

    def release(self, session: Session, keys: Collection[str]) -> None:
        """Let others ask these."""
        mine = col(Claim.owner) == self.owner
        for some in chunks(keys):
            session.exec(delete(Claim).where(mine, col(Claim.dedupe_key).in_(some)))

    def renew(self, session: Session) -> None:
        """Prolong the lease of all claims of this process."""
        mine = col(Claim.owner) == self.owner
        session.exec(update(Claim).where(mine).values(expires_at=utcnow() + self.lease))

    def elsewhere(self, session: Session, keys: Collection[str]) -> set[str]:
        """Those of the keys that other processes are asking now.

        What has a result is asked no longer. A lease far in the future is from before the clock was
        set, and over.
        """
        now = utcnow()
        expires_at = col(Claim.expires_at)
        return {
            key
            for some in chunks(keys)
            for key in session.exec(
                select(Claim.dedupe_key).where(
                    col(Claim.dedupe_key).in_(some),
                    col(Claim.owner) != self.owner,
                    expires_at > now,
                    expires_at <= now + 2 * self.lease,
                    ~exists().where(
                        col(Generation.dedupe_key) == col(Claim.dedupe_key),
                        col(Generation.status).in_(RESULTS),
                    ),
                )
            )
        }


@functools.cache
def _insert_claims(dialect: str) -> Executable:
    """Insert claims, in place of those that have ended."""
    insert = insert_into(dialect, Claim)
    new = {"owner": insert.excluded.owner, "expires_at": insert.excluded.expires_at}
    return insert.on_conflict_do_update(index_elements=["dedupe_key"], set_=new)
