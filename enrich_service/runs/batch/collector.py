"""Polls the batches of a run and stores their answers.

Answers are checked and stored like live ones; rejected ones are requested again in the next batch.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import aclosing
from functools import partial
from typing import Any, Final

from openai.types import Batch as RemoteBatch

from enrich_service.core.errors import ModelBusy, RequestRejected, UserError
from enrich_service.core.storage.database import utcnow
from enrich_service.generations.models import Batch, GenerationStatus, RunState
from enrich_service.llm.batch_api import ENDED, QUEUE_FULL, STOPPABLE, BatchApi, BatchUnknown
from enrich_service.runs.answering.attempt import Attempt, build_request
from enrich_service.runs.answering.build_generation import build_generation
from enrich_service.runs.batch.context import BatchContext
from enrich_service.runs.batch.store import PAGE_SIZE
from enrich_service.runs.batch.submitter import TRIES, BatchSubmitter
from enrich_service.runs.plan import Item

MIN_POLL_INTERVAL_S: Final = 0.5  # between polls of a new batch
MAX_POLL_INTERVAL_S: Final = 60.0
POLL_SHARE: Final = 0.05  # poll interval as a share of the batch's age, within these limits
QUEUE_FULL_DELAY_S: Final = 60.0  # until the next batch after the provider's queue was full


class BatchCollector:
    """Stores the answers of one run's batches."""

    def __init__(self, context: BatchContext, submitter: BatchSubmitter) -> None:
        self._enricher, self._active, self._plan = context.enricher, context.active, context.plan
        self._run_id, self._store, self._queue = context.run_id, context.store, context.queue
        self._submitter = submitter
        self._tries: Counter[str] = Counter()  # key → tries that ended in a temporary error
        self.due: dict[int, float] = {}  # batch id → monotonic time of the next poll

    async def update(self, api: BatchApi, batch: Batch) -> None:
        """Get the state of a batch, and store its answers if it has ended.

        A temporary error is stored and the batch is polled again later; any other error pauses the
        run.
        """
        assert batch.id is not None
        try:
            await self._follow(api, batch)
        except UserError as error:
            if isinstance(error, BatchUnknown) and self._active.state is RunState.CANCELLED:
                await asyncio.to_thread(self._store.close, batch, str(error))
                return
            await self._store.change(batch, error=str(error))
            if not isinstance(error, ModelBusy) and self._active.is_running:
                self._active.halt(f"{error}; fix it and resume, or cancel the run", pause=True)
        age = (utcnow() - batch.created_at).total_seconds()
        wait = max(MIN_POLL_INTERVAL_S, min(MAX_POLL_INTERVAL_S, POLL_SHARE * age))
        self.due[batch.id] = time.monotonic() + wait

    async def _follow(self, api: BatchApi, batch: Batch) -> None:
        if batch.provider != self._enricher.model.provider:
            raise BatchUnknown(
                f"the batch was sent to {batch.provider}: set OPENAI_BASE_URL to this server again"
            )
        if batch.remote_id is None:
            await self._submitter.submit(api, batch, None, known=False)
            return
        remote = await api.retrieve(batch.remote_id)
        if self._active.state is RunState.CANCELLED and remote.status in STOPPABLE:
            remote = await api.cancel(batch.remote_id)
        counts = remote.request_counts
        changes: dict[str, str | int | None] = {"status": remote.status, "error": None}
        if counts is not None:
            changes |= {"completed": counts.completed, "failed": counts.failed}
        await self._store.change(batch, **changes)
        if remote.status in ENDED:
            await self._store_results(api, batch, remote)

    async def _store_results(self, api: BatchApi, batch: Batch, remote: RemoteBatch) -> None:
        for file_id in filter(None, (remote.output_file_id, remote.error_file_id)):
            async with aclosing(api.lines(file_id)) as lines:
                page: dict[str, dict[str, Any]] = {}
                async for line in lines:
                    page[line["custom_id"]] = line
                    if len(page) == PAGE_SIZE:
                        await self._store_answers(api, batch, page)
                        page = {}
                        if self._active.state is None:
                            return
                await self._store_answers(api, batch, page)
        if remote.status == "failed":
            errors = (remote.errors and remote.errors.data) or ()
            reason = api.model.error_text("; ".join(str(error.message) for error in errors))
            if batch.requests > 1 and any(error.code == QUEUE_FULL for error in errors):
                await self._requeue_smaller(batch, reason)
                return
            message = f"{batch.provider} rejected the batch {batch.remote_id}: {reason}"
            self._active.halt(f"{message}; fix it and retry the run")
            await asyncio.to_thread(self._store.close, batch, message)
            return
        if self._active.state is not RunState.CANCELLED:
            line = {"error": {"message": f"the batch has {remote.status} before this request"}}
            while unanswered := await asyncio.to_thread(self._store.requests, batch, None):
                await self._store_answers(api, batch, {item.key: line for item in unanswered})
        await asyncio.to_thread(self._store.close, batch, None)

    async def _requeue_smaller(self, batch: Batch, reason: str) -> None:
        """Queue the requests of a batch again after it exceeded the provider's queue limit."""
        if len(await asyncio.to_thread(self._store.pending)) == 1:  # the batch itself is too large
            self._queue.max_requests = max(1, batch.requests // 2)
            self._queue.not_before = time.monotonic() + QUEUE_FULL_DELAY_S
        self._queue.one_at_a_time = True
        self._queue.items.extend(
            await asyncio.to_thread(self._store.requests, batch, None, limit=batch.requests)
        )
        await asyncio.to_thread(
            self._store.close,
            batch,
            f"the queue of {batch.provider} is full ({reason}): the requests are sent again, "
            "in smaller batches, one at a time",
        )

    async def _store_answers(
        self, api: BatchApi, batch: Batch, lines: Mapping[str, Mapping[str, Any]]
    ) -> None:
        """Check and store the answers in some lines of a batch's files; stored ones are skipped."""
        items = await asyncio.to_thread(self._store.requests, batch, list(lines))
        attempts = await asyncio.to_thread(self._store.attempts, [item.key for item in items])
        await asyncio.gather(
            *(
                self._store_answer(api, batch, item, attempts[item.key], lines[item.key])
                for item in items
            )
        )

    async def _store_answer(
        self, api: BatchApi, batch: Batch, item: Item, attempt: Attempt, line: Mapping[str, Any]
    ) -> None:
        assert batch.id is not None
        store, request = self._enricher.store, (batch.id, item.key)
        chat_request = build_request(self._plan, item, attempt)
        outcome = api.outcome(line, chat_request, batch.response_format)
        cancelled = self._active.state is RunState.CANCELLED
        if cancelled and isinstance(outcome, RequestRejected) and not outcome.calls:
            # The provider never processed it, and the run is cancelled.
            await store.count(self._run_id, request=request)
            return
        if isinstance(outcome, ModelBusy):
            self._tries[item.key] += 1
            if self._tries[item.key] < TRIES:
                await store.count(self._run_id, request=request, calls=outcome.calls)
                self._queue.items.append(item)
                return
        context = await self._enricher.context(self._plan, self._run_id)
        build = partial(build_generation, context, item, attempt, chat_request)
        generation = build(outcome)
        self._active.on_generation(generation)
        generation = await self._enricher.add(context, build, outcome, generation, batch.id)
        self._active.finished.append(time.monotonic())
        if generation.run_id != self._run_id:
            await store.count(self._run_id, cached=1)
            return
        if generation.status is GenerationStatus.RETRIED:
            self._queue.items.append(item)
