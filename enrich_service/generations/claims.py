"""Claims on dedupe keys in the database, so that each is requested once across processes.

Notable:
- Live requests are claimed by their process. A claim ends with its owner's lease, which is renewed
  while the owner lives.
- Requests of a batch are in the table `batch_request` until their answers are stored. Claims
  exclude them, and batches exclude claimed keys; both are decided in a writing transaction.
"""

import functools
from collections.abc import Collection
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import Executable
from sqlmodel import Session, col, delete, exists, select, update

from enrich_service.core.errors import ServiceError
from enrich_service.core.storage.database import utcnow
from enrich_service.core.storage.lease_owner import new_lease_owner
from enrich_service.generations.models import BatchRequest, Claim, Generation
from enrich_service.generations.queries import RESULTS, chunks, insert_into, results_of

ABANDONED_AFTER = timedelta(days=1)  # since its lease ended; then any process deletes a claim


class ClaimedByOther(ServiceError):
    """Another process or a batch is requesting this: wait for its answer."""


@dataclass(frozen=True)
class Claims:
    """The outcome of claiming dedupe keys: those in neither field were claimed."""

    results: dict[str, Generation]  # nothing is to be requested
    claimed_by_others: set[str]  # another process or a batch is requesting it


class ClaimTable:
    """The claims of this process and of others. Every change needs a writing session."""

    def __init__(self, lease_seconds: float) -> None:
        self.owner = new_lease_owner()
        self.lease = timedelta(seconds=lease_seconds)

    def claim(self, session: Session, keys: Collection[str]) -> Claims:
        """Claim dedupe keys without a result that nobody else is requesting."""
        results = results_of(session, keys)
        missing = set(keys) - results.keys()
        others = self.claimed(session, missing, by_others=True) | _in_batches(session, missing)
        if free := missing - others:
            expires_at = utcnow() + self.lease
            rows = [
                {"dedupe_key": key, "owner": self.owner, "expires_at": expires_at} for key in free
            ]
            statement = _insert_claims(session.get_bind().dialect.name)
            session.connection().execute(statement, rows)
        return Claims(results, others)

    def release(self, session: Session, keys: Collection[str]) -> None:
        """Delete the claims of this process on these keys."""
        own = col(Claim.owner) == self.owner
        for chunk in chunks(keys):
            session.exec(delete(Claim).where(own, col(Claim.dedupe_key).in_(chunk)))

    def renew(self, session: Session) -> None:
        """Renew the lease of all claims of this process; delete abandoned claims."""
        now = utcnow()
        own = col(Claim.owner) == self.owner
        session.exec(update(Claim).where(own).values(expires_at=now + self.lease))
        session.exec(delete(Claim).where(col(Claim.expires_at) < now - ABANDONED_AFTER))

    def claimed(
        self, session: Session, keys: Collection[str], *, by_others: bool = False
    ) -> set[str]:
        """The keys that a process is requesting live; `by_others`: not this process.

        Keys with a result are excluded. A lease that ends far in the future was written before the
        clock was changed, and counts as expired.
        """
        now = utcnow()
        expires_at = col(Claim.expires_at)
        current = [
            expires_at > now,
            expires_at <= now + 2 * self.lease,
            ~exists().where(
                col(Generation.dedupe_key) == col(Claim.dedupe_key),
                col(Generation.status).in_(RESULTS),
            ),
        ]
        if by_others:
            current.append(col(Claim.owner) != self.owner)
        return {
            key
            for chunk in chunks(keys)
            for key in session.exec(
                select(Claim.dedupe_key).where(col(Claim.dedupe_key).in_(chunk), *current)
            )
        }

    def free_for_batch(self, session: Session, keys: Collection[str]) -> set[str]:
        """The keys without a result that no process or batch is requesting."""
        missing = set(keys) - results_of(session, keys).keys()
        return missing - self.claimed(session, missing) - _in_batches(session, missing)


def _in_batches(session: Session, keys: Collection[str]) -> set[str]:
    """The keys that a batch is requesting."""
    return {
        key
        for chunk in chunks(keys)
        for key in session.exec(
            select(BatchRequest.dedupe_key).where(col(BatchRequest.dedupe_key).in_(chunk))
        )
    }


@functools.cache
def _insert_claims(dialect: str) -> Executable:
    """Insert claims, replacing expired ones."""
    insert = insert_into(dialect, Claim)
    new = {"owner": insert.excluded.owner, "expires_at": insert.excluded.expires_at}
    return insert.on_conflict_do_update(index_elements=["dedupe_key"], set_=new)
