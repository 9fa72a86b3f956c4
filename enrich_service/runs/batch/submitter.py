"""Sends a batch run's requests: each batch once, even if the process is killed.

If the server has not yet answered this kind of request, the first label is requested live, so that
a wrong API key, model or parameter is reported immediately, and the supported response format is
known. Later batches, in other processes too, use the same format.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, closing
from typing import IO, Final

from enrich_service.core.errors import LanguageModelError, ModelBusy
from enrich_service.generations.models import Batch
from enrich_service.llm.batch_api import PRICE_SHARE, BatchApi
from enrich_service.llm.protocol import ChatRequest
from enrich_service.runs.answering.answer_for_run import answer_for_run
from enrich_service.runs.answering.attempt import Attempt, build_request
from enrich_service.runs.answering.enricher import Caller
from enrich_service.runs.batch.context import BatchContext
from enrich_service.runs.batch.file import BatchFile
from enrich_service.runs.plan import Item

PAGE_SIZE: Final = 500  # labels looked up at a time
TRIES: Final = 3  # of an API call, and of a request after temporary server errors


class BatchSubmitter:
    """Sends the batches of one run. `missing`: its items without a result, in pages."""

    def __init__(self, context: BatchContext, missing: AsyncIterator[list[Item]]) -> None:
        self._enricher, self._active, self._plan = context.enricher, context.active, context.plan
        self._run_id, self._store, self._queue = context.run_id, context.store, context.queue
        self._missing = missing

    async def send(self, api: BatchApi) -> None:
        """Send the missing requests, in as many batches as necessary and as the budget allows."""
        part: BatchFile | None = None
        max_usd, max_tokens = 0.0, 0
        self._queue.items.extend(await self._active.waiting.take_available())
        async with aclosing(self._missing_items()) as missing:
            async for item, attempt in missing:
                request = build_request(self._plan, item, attempt)
                response_format = api.model.format_for(request)
                if response_format is None and (
                    earlier := await asyncio.to_thread(self._store.earlier)
                ):
                    response_format = earlier.response_format
                    api.model.remember(request, response_format, earlier.length_parameter)
                if response_format is None:
                    await self._send_live(item)
                    if not self._active.is_running:
                        return
                    continue
                usd, tokens = self._max_cost(request)
                if not self._active.within_budget(usd=max_usd + usd, tokens=max_tokens + tokens):
                    self._queue.items.appendleft(item)
                    if not max_tokens:
                        self._halt_for_budget()
                    break
                max_usd, max_tokens = max_usd + usd, max_tokens + tokens
                line = api.line(request, response_format)
                if part is not None and not self._has_space(part, line):
                    await self._send_part(api, part)
                    part = None
                    if self._queue.one_at_a_time or not self._active.is_running:
                        self._queue.items.appendleft(item)
                        return
                part = part or BatchFile(response_format, api.model.length_parameter_for(request))
                part.add(item, line)
        if part is not None and self._active.is_running:
            await self._send_part(api, part)

    def _max_cost(self, request: ChatRequest) -> tuple[float, int]:
        """The maximum cost of a request, in dollars and tokens."""
        price = self._enricher.settings.prices.get(self._plan.model, (0.0, 0.0))
        tokens = request.token_limits()
        full_price = sum(p * n for p, n in zip(price, tokens, strict=True)) / 1_000_000
        return PRICE_SHARE * full_price, sum(tokens)

    def _halt_for_budget(self) -> None:
        spent = f"spent: {self._active.spent_tokens} tokens, ${self._active.spent_usd:.4f}"
        self._active.halt(
            f"the rest of the run's budget may not be enough for one more request ({spent}): "
            "raise it and resume",
            pause=True,
        )

    def _has_space(self, part: BatchFile, line: bytes) -> bool:
        return (
            len(part.items) < self._queue.max_requests
            and part.size + len(line) <= self._queue.max_bytes
        )

    async def _missing_items(self) -> AsyncGenerator[tuple[Item, Attempt]]:
        """Yield items without a result that nobody is requesting, with their next attempts.

        Items that are not consumed before this is closed are yielded by the next call.
        """
        while page := await self._page():
            keys = [item.key for item in page]
            owners = await self._enricher.store.owners(keys)
            no_result = [item for item in page if item.key not in owners]
            free = {item.key for item in await self._active.waiting.keep(no_result)}
            attempts = await asyncio.to_thread(self._store.attempts, keys)
            others = sum(owners.get(key, self._run_id) != self._run_id for key in keys)
            if others:
                await self._enricher.store.count(self._run_id, cached=others)
            remaining = deque(page)
            try:
                while remaining:
                    item = remaining.popleft()
                    if item.key in free:
                        yield item, attempts[item.key]
            finally:
                self._queue.items.extendleft(reversed(remaining))

    async def _page(self) -> list[Item]:
        page: list[Item] = []
        while self._queue.items and len(page) < PAGE_SIZE:
            page.append(self._queue.items.popleft())
        while len(page) < PAGE_SIZE:
            try:
                page.extend(await anext(self._missing))
            except StopAsyncIteration:
                break
        return page

    async def _send_live(self, item: Item) -> None:
        """Send one live request to a server that has not yet answered this kind of request."""
        caller = Caller(False, TRIES, self._run_id, self._active.on_generation)
        await answer_for_run(
            self._enricher, self._active, self._plan, item, caller, max_failures=TRIES
        )

    async def _send_part(self, api: BatchApi, part: BatchFile) -> None:
        with closing(part):
            items = part.items
            batch = await asyncio.to_thread(self._store.prepare, part)
            sent = {item.key for item in part.items}
            self._queue.items.extend(item for item in items if item.key not in sent)
            if batch is None:
                return
            for attempt in range(1, TRIES + 1):
                try:
                    await self.submit(api, batch, part.file, known=attempt == 1)
                    return
                except ModelBusy as busy:
                    if attempt == TRIES:
                        raise
                    await asyncio.sleep(busy.retry_after or 2.0**attempt)
                except LanguageModelError:
                    await asyncio.to_thread(self._store.give_up, batch)
                    raise

    async def submit(
        self, api: BatchApi, batch: Batch, lines: IO[bytes] | None, *, known: bool
    ) -> None:
        """Upload and start a batch at the provider, each step once.

        `lines`: the request file, None if it no longer exists; `known`: nothing was sent before.
        """
        if batch.file_id is None and not known:
            batch.file_id = await api.file_named(batch.name, batch.created_at)
        if batch.file_id is None and lines is not None:
            batch.file_id = await api.upload(batch.name, lines)
        if batch.file_id is None:
            await asyncio.to_thread(self._store.give_up, batch)
            return
        await self._store.change(batch, file_id=batch.file_id)
        remote = None if known else await api.batch_of(batch.file_id, batch.created_at)
        if remote is None and not self._active.is_running:
            await asyncio.to_thread(self._store.give_up, batch)
            return
        remote = remote or await api.create(batch.file_id, batch.name)
        await self._store.change(batch, remote_id=remote.id, status=remote.status, error=None)
