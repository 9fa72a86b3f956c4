"""State shared by the parts of one batch run."""

import time
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, field

from enrich_service.generations.models import Batch
from enrich_service.runs.active_run import ActiveRun
from enrich_service.runs.answering.enricher import Enricher
from enrich_service.runs.batch.store import BatchStore
from enrich_service.runs.plan import Item, Plan


@dataclass
class SendQueue:
    """Items to send, and the maximum size of a batch."""

    max_requests: int  # per batch
    max_bytes: int
    one_at_a_time: bool  # only one batch may be pending
    items: deque[Item] = field(default_factory=deque)  # for the next batch
    not_before: float = 0.0  # monotonic time from which the next batch may be sent

    def may_send(self, pending: Collection[Batch]) -> bool:
        """Whether another batch may be sent now."""
        if self.one_at_a_time and pending:
            return False
        all_sent = all(batch.remote_id for batch in pending)
        return all_sent and self.not_before <= time.monotonic()


@dataclass(frozen=True)
class BatchContext:
    """One batch run in this process."""

    enricher: Enricher
    active: ActiveRun
    plan: Plan
    store: BatchStore
    queue: SendQueue

    @property
    def run_id(self) -> int:
        """The id of the run."""
        assert self.active.run.id is not None
        return self.active.run.id
