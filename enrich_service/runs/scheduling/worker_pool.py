"""The workers of one live run.

Items wait in a short queue, so that memory does not grow with the label set. An item that the
server delays for long is parked while others continue. Items that another process or batch is
requesting come last.
"""

import asyncio
import heapq
import itertools
import logging
import time
from collections.abc import Sequence

from enrich_service.core.errors import ModelBusy, UserError
from enrich_service.runs.active_run import ActiveRun, internal_error
from enrich_service.runs.answering.answer_for_run import answer_for_run
from enrich_service.runs.answering.enricher import Caller, Enricher
from enrich_service.runs.plan import Item, Plan
from enrich_service.runs.scheduling.pager import RunPager

TRIES = 6  # calls for one answer, in case of temporary server errors
MAX_CONSECUTIVE_FAILURES = 20  # labels without an answer after which the run stops
MIN_CLAIMED = 16  # items claimed at a time; more if the run makes more concurrent calls
WORKERS = 2  # per concurrent call: one waits for an answer while the other stores one
# Seconds between the first calls of two workers, about the CPU time of one call. Calls that start
# together are answered together, and then each answer waits for the processing of all others.
STAGGER_S = 0.003
GRACE_S = 5.0  # for calls in flight to end when a run stops
POLL_INTERVAL_S = 0.5  # between reads of what others are requesting

log = logging.getLogger(__name__)


class WorkerPool:
    """Sends the missing requests of one run concurrently."""

    def __init__(self, enricher: Enricher, active: ActiveRun, plan: Plan, pager: RunPager) -> None:
        self._enricher, self._active, self._plan, self._pager = enricher, active, plan, pager
        self._queue: asyncio.Queue[Item] = asyncio.Queue(maxsize=active.run.concurrency)
        self._caller = Caller(False, TRIES, active.run.id, active.on_generation, group=active)

    async def run_to_end(self) -> None:
        """Send requests until all are answered, or the run stops."""
        # First, because otherwise all workers would wait for it and then continue together.
        await self._enricher.accepted_texts(self._plan)
        workers = [
            asyncio.create_task(self._work(after=number * STAGGER_S))
            for number in range(self._active.run.concurrency * WORKERS)
        ]
        feeder = asyncio.create_task(self._feed())
        stopped = asyncio.create_task(self._active.stop.wait())
        try:
            await asyncio.wait({feeder, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if feeder.done():
                await feeder  # raises its error
                return
            feeder.cancel()
            while not self._queue.empty():
                self._queue.get_nowait()
                self._queue.task_done()
            await self._finish_calls_in_flight()
        finally:
            for task in (feeder, stopped, *workers):
                task.cancel()
            await asyncio.gather(feeder, stopped, *workers, return_exceptions=True)
            self._enricher.release(self._active.claimed)

    async def _finish_calls_in_flight(self) -> None:
        """Wait for the answers of calls in flight; cancel workers whose call has not started."""
        joined = asyncio.create_task(self._queue.join())
        deadline = time.monotonic() + GRACE_S
        while not joined.done() and time.monotonic() < deadline:
            for worker, item in self._active.current_items.items():
                if not self._enricher.limiter.holds(item.key):
                    worker.cancel()
            await asyncio.wait({joined}, timeout=0.1)
        joined.cancel()

    async def _feed(self) -> None:
        """Put all items without a result into the queue; parked ones when they are due."""
        async for items in self._pager.missing():
            available = await self._active.waiting.keep(items)
            size = max(MIN_CLAIMED, self._active.run.concurrency)
            for start in range(0, len(available), size):
                for item in await self._claim(available[start : start + size]):
                    # The server is rate-limiting.
                    while len(self._active.parked) >= self._active.run.concurrency:
                        await self._requeue_parked()
                    await self._queue.put(item)
        while True:
            await self._queue.join()
            if self._active.parked:
                await self._requeue_parked()
            elif self._active.waiting:
                for item in await self._available_items():
                    await self._queue.put(item)
            else:
                return

    async def _claim(self, items: Sequence[Item]) -> list[Item]:
        """Claim items for this process. Returns those that no other process is requesting."""
        keys = {item.key for item in items}
        self._active.claimed |= keys  # first, so that they are released if this is cancelled
        others = (await self._enricher.store.claim(keys)).claimed_by_others
        self._active.claimed -= others
        for item in items:
            if item.key in others:
                self._active.waiting.add_claimed(item)
        return [item for item in items if item.key not in others]

    async def _available_items(self) -> list[Item]:
        """Wait for items that others have stopped requesting; returns those without a result."""
        while not (items := await self._active.waiting.take_available()):
            await asyncio.sleep(POLL_INTERVAL_S)
        return await self._active.waiting.keep(await self._pager.without_result(items))

    async def _requeue_parked(self) -> None:
        parked = self._active.parked
        # An item that is due earlier may be parked during the sleep.
        while (wait := parked[0][0] - time.monotonic()) > 0:
            await asyncio.sleep(min(wait, POLL_INTERVAL_S))
        _, _, item = heapq.heappop(parked)
        await self._queue.put(item)

    async def _work(self, *, after: float) -> None:
        this_task = asyncio.current_task()
        assert this_task is not None
        while True:
            item = await self._queue.get()
            self._active.current_items[this_task] = item
            try:
                if after:  # only before the first item
                    await asyncio.sleep(after)
                    after = 0.0
                if not self._active.stop.is_set():
                    await self._answer(item)
            except UserError as error:
                self._active.halt(str(error))
            except Exception as error:
                log.exception("run %s, label %r", self._active.run.id, item.name)
                self._active.halt(internal_error(error))
            finally:
                del self._active.current_items[this_task]
                self._queue.task_done()

    async def _answer(self, item: Item) -> None:
        run = self._active.run
        assert run.id is not None
        self._active.claimed.discard(item.key)
        try:
            await answer_for_run(
                self._enricher,
                self._active,
                self._plan,
                item,
                self._caller,
                max_failures=MAX_CONSECUTIVE_FAILURES,
            )
        except ModelBusy as busy:
            await self._enricher.store.count(run.id, calls=busy.calls)
            due = time.monotonic() + (busy.retry_after or 0.0)
            heapq.heappush(self._active.parked, (due, next(_order), item))


_order = itertools.count()  # breaks ties between items that are due at the same time
