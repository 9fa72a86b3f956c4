"""Batch runs: requests are sent as a file and answered within a day, at half the price.

Notable:
- The tables `batch` and `batch_request` are authoritative. A batch whose acceptance by the provider
  was not received is found there by its file name.
- Requests that were sent are paid for, so their answers are collected even if the run was paused or
  cancelled. A cancelled run cancels its batches and stores the answers they already have.
- Requests that exceed the provider's queue limit are sent again, one batch at a time, and in
  smaller batches if a single one was too large.
- With a budget, only one batch is pending at a time, and its maximum cost is within the budget.
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

MAX_REQUESTS: Final = 50_000  # per file, OpenAI's limit
MAX_BYTES: Final = 200_000_000
TICK_S: Final = 0.2  # between checks of the run's state


class BatchRun:
    """The batches of one run in this process, from the first request to the last answer.

    `missing`: the run's items without a result, in pages.
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

    async def run_to_end(self) -> None:
        """Send the missing requests and collect the answers until none is pending.

        If the run is not `running`, only pending batches are collected.

        Raises:
            UserError: an error that affects all requests.
        """
        while True:
            for batch in await asyncio.to_thread(self._store.pending):
                if self._collector.due.get(batch.id or 0, 0.0) <= time.monotonic():
                    await self._collector.update(self._api(), batch)
            batches = await asyncio.to_thread(self._store.pending)
            if self._active.is_running and self._queue.may_send(batches):
                await self._submitter.send(self._api())
                batches = await asyncio.to_thread(self._store.pending)
            if self._active.reason and self._active.pause:
                return  # a user must fix something first
            if not batches and not (
                self._active.is_running and (self._queue.items or self._active.waiting)
            ):
                return
            if not await self._wait(batches):
                return

    def _api(self) -> BatchApi:
        model = self._enricher.model
        if not isinstance(model, ChatModel):
            raise LanguageModelError(
                f"{model.provider} does not support batches: run without --batch"
            )
        return BatchApi(model)

    async def _wait(self, batches: Collection[Batch]) -> bool:
        """Wait until the next poll of a batch; False if the run should be released."""
        state_before = self._active.state
        next_poll = min(
            (self._collector.due[batch.id] for batch in batches if batch.id in self._collector.due),
            default=time.monotonic() + MIN_POLL_INTERVAL_S,
        )
        while (
            self._active.state is state_before and (remaining := next_poll - time.monotonic()) > 0
        ):
            await asyncio.sleep(min(TICK_S, remaining))
        if self._active.state is not state_before:
            self._collector.due.clear()  # so that a cancelled run cancels its batches now
        # A run that was queued again is released, and starts over.
        return self._active.state not in (None, RunState.QUEUED)
