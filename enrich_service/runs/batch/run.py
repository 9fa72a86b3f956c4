"""Runs that ask by batch: a file of requests, a file of answers within a day, half the price.

Notable:
- The tables `batch` and `batch_request` are the truth. What the provider got and we were not told
  of is found again there, by the name of the file.
- What was sent is paid for, so it is looked after whatever became of the run. A cancelled run
  cancels its batches, and takes in what they had answered by then.
- What does not fit into the provider's queue is sent again, one batch at a time, smaller ones where
  it was the only one.
- With a budget one batch is under way at a time, and no more is sent than fits at the very worst.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Collection
from typing import Final

from sqlalchemy import Engine

from enrich_service.core.errors import LanguageModelError
from enrich_service.generations.models import Batch, RunState
from enrich_service.llm.batch_api import BatchApi
from enrich_service.llm.chat_model import ChatModel
from enrich_service.runs.active_run import ActiveRun
from enrich_service.runs.answering.enricher import Enricher
from enrich_service.runs.batch.collector import MIN_POLL_INTERVAL_S, BatchCollector
from enrich_service.runs.batch.context import BatchContext, SendQueue
from enrich_service.runs.batch.store import BatchStore
from enrich_service.runs.batch.submitter import BatchSubmitter
from enrich_service.runs.plan import Item, Plan

MAX_REQUESTS: Final = 50_000  # in a file, as OpenAI allows
MAX_BYTES: Final = 200_000_000
TICK_S: Final = 0.2  # between looks at what became of the run


class BatchRun:
    """The batches of one run in this process, from the first request to the last answer.

    `missing`: the run's items that have no result, some at a time.
    """

    def __init__(
        self,
        engine: Engine,
        enricher: Enricher,
        active: ActiveRun,
        plan: Plan,
        missing: AsyncIterator[list[Item]],
    ) -> None:
        run = active.run
        assert run.id is not None
        self._enricher, self._active = enricher, active
        self._store = BatchStore(engine, enricher.store, run.id, plan, enricher.model.provider)
        limited = run.budget_usd is not None or run.budget_tokens is not None
        self._queue = SendQueue(MAX_REQUESTS, MAX_BYTES, one_at_a_time=limited)
        context = BatchContext(enricher, active, plan, self._store, self._queue)
        self._submitter = BatchSubmitter(context, missing)
        self._collector = BatchCollector(context, self._submitter)

    async def ask_all(self) -> None:
        """Ask what is missing and take in the answers, until there is nothing left to wait for.

        Where the run is not `running`, only what is under way is taken in.

        Raises:
            UserError: nothing can be sent before something is mended.
        """
        while True:
            for batch in await asyncio.to_thread(self._store.under_way):
                if self._collector.due.get(batch.id or 0, 0.0) <= time.monotonic():
                    await self._collector.update(self._api(), batch)
            batches = await asyncio.to_thread(self._store.under_way)
            if self._active.asks and self._queue.may_send(batches):
                await self._submitter.send(self._api())
                batches = await asyncio.to_thread(self._store.under_way)
            if self._active.reason and self._active.pause:
                return  # nobody waits for what a person has to mend first
            if not batches and not (
                self._active.asks and (self._queue.again or self._active.waiting)
            ):
                return
            if not await self._wait(batches):
                return

    def _api(self) -> BatchApi:
        model = self._enricher.model
        if not isinstance(model, ChatModel):
            raise LanguageModelError(f"{model.provider} takes no batches")
        return BatchApi(model)

    async def _wait(self, batches: Collection[Batch]) -> bool:
        """Wait until a batch is to be looked at; False where the run is to be let go of."""
        seen = self._active.state
        until = min(
            (self._collector.due[batch.id] for batch in batches if batch.id in self._collector.due),
            default=time.monotonic() + MIN_POLL_INTERVAL_S,
        )
        while self._active.state is seen and (left := until - time.monotonic()) > 0:
            await asyncio.sleep(min(TICK_S, left))
        if self._active.state is not seen:
            self._collector.due.clear()  # a cancelled run cancels its batches now
        # A run that is queued again begins anew.
        return self._active.state not in (None, RunState.QUEUED)
