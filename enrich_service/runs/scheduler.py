"""Works on runs in the background: takes them up, keeps them alive, lets go of them.

Notable:
- The `run` table is the truth. Pause and cancel are written there, by any process; whoever owns
  the run sees it within a second and stops asking.
- The owner renews its lease; when it is killed, the lease runs out and another process (or the
  same one, started again) goes on. What is stored is never asked for again.
- Labels are read in pages and wait in a short queue, so memory does not grow with the label set.
- A label that the server puts off for long is parked while the others go on.
- What a run sent as a batch is looked after until its answers are in, whatever became of the run.
- What another run's batch or another process is asking is waited for, last of all.
"""

import asyncio
import heapq
import itertools
import logging
import os
import secrets
import socket
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from datetime import timedelta

from sqlalchemy import Engine
from sqlmodel import and_, col, exists, or_, select, true, update

from enrich_service.core.clock import Clock
from enrich_service.core.database import reading, storage_error, utcnow, writing
from enrich_service.core.errors import ModelBusy, UserError
from enrich_service.generations.models import Batch, GenerationStatus, Run, RunMode, RunState
from enrich_service.generations.store import ClaimedElsewhere
from enrich_service.labels.models import Label
from enrich_service.llm.images import checked_folder
from enrich_service.runs import service
from enrich_service.runs.active_run import Work
from enrich_service.runs.batch_run import BatchRun
from enrich_service.runs.enricher import Enricher, Item, Plan
from enrich_service.runs.other_batches import Elsewhere

PAGE = 500  # labels read at a time
TRIES = 6  # calls for one answer, while the server has passing faults
FAILURES_IN_A_ROW = 20  # labels without an answer after which the run stops
WORKERS = 2  # for each call at a time: while one asks, the other stores or waits to ask
# Seconds between the first calls of two workers, about as long as one keeps the processor busy:
# what is asked at once is answered at once, and then each answer waits for all others, every time.
APART = 0.003
GRACE = 5.0  # seconds that calls in flight have to end when a run stops
LOOK = 0.5  # seconds between looks at the table
PATIENCE = 60.0  # seconds until a batch is looked after again where that was not possible
OPEN_STATES = (RunState.QUEUED, RunState.RUNNING)

log = logging.getLogger(__name__)


class RunEngine:
    """Runs everything in the `run` table that nobody else is running.

    `only`: the one run to work on (the command line), in place of all.
    """

    def __init__(self, engine: Engine, enricher: Enricher, *, only: int | None = None) -> None:
        self._engine = engine
        self._enricher = enricher
        self._only = only
        self._lease = timedelta(seconds=enricher.settings.run_lease_seconds)
        self._owner = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        self._clock = Clock()
        self._works: dict[int, Work] = {}
        self._put_off: dict[int, float] = {}  # runs whose batches are to wait, until when
        self._awake = asyncio.Event()
        self._watching: asyncio.Task[None] | None = None
        self._stopping = False

    def start(self) -> None:
        """Begin to look for runs."""
        self._watching = asyncio.create_task(self._watch())

    async def stop(self) -> None:
        """Let go of all runs, so that another process can take them up at once."""
        if self._watching is not None:
            # Not cancelled: a thread that looks at the table would go on, and could claim a run.
            self._stopping = True
            self._awake.set()
            await self._watching
        for work in self._works.values():
            work.state = None
            work.stop.set()
        tasks = [work.task for work in self._works.values() if work.task]
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=GRACE + 1.0)
            for task in late:  # a long upload, say, which is found again or made anew
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def wake(self) -> None:
        """Look at the table now."""
        self._awake.set()

    def work(self, run_id: int) -> Work | None:
        """What this process knows of a run that it is working on."""
        return self._works.get(run_id)

    async def _watch(self) -> None:
        while not self._stopping:
            try:
                if self._clock.was_set():
                    await asyncio.to_thread(self._put_leases_right)
                    self._clock.note()
                states = await asyncio.to_thread(self._renew, list(self._works))
                for run_id, work in list(self._works.items()):
                    work.state = states.get(run_id)
                    if work.state is not RunState.RUNNING:
                        work.stop.set()  # paused, cancelled, or taken over by another process
                for run in await asyncio.to_thread(self._claim):
                    assert run.id is not None
                    elsewhere = Elsewhere(self._enricher.ledger, run.id)
                    work = self._works[run.id] = Work(run, elsewhere, run.state)
                    if run.state is not RunState.RUNNING:
                        work.stop.set()  # there are batches to be taken in, and no more
                    work.task = asyncio.create_task(self._run(work))
            except Exception as error:
                if known := storage_error(error):
                    log.warning("cannot look after the runs: %s", known)
                else:
                    log.exception("cannot look after the runs; trying again")
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK):
                    await self._awake.wait()
            self._awake.clear()

    def _put_leases_right(self) -> None:
        """Let no lease end before its owner can renew it, nor last for longer than a whole one.

        For when the clock was set, or may have been. Owners look every half second.
        """
        ends, now = col(Run.owner_expires_at), utcnow()
        for wrong, right in (
            (ends < now + self._lease / 2, now + self._lease / 2),
            (ends > now + self._lease, now + self._lease),
        ):
            with reading(self._engine) as session:
                ids = session.exec(select(Run.id).where(wrong)).all()
            if ids:  # a start has mostly nothing to write, and must not wait for those who do
                with writing(self._engine) as session:
                    session.exec(
                        update(Run)
                        .where(col(Run.id).in_(ids), wrong)
                        .values(owner_expires_at=right)
                    )

    def _renew(self, ids: list[int]) -> dict[int, RunState]:
        """Prolong the leases of own runs; the states of those that are still own."""
        if not ids:
            return {}
        mine = and_(col(Run.id).in_(ids), col(Run.owner) == self._owner)
        with reading(self._engine) as session:
            rows = session.exec(select(Run).where(mine)).all()
        soon = utcnow() + self._lease / 2
        if any(run.owner_expires_at is None or run.owner_expires_at < soon for run in rows):
            with writing(self._engine) as session:
                session.exec(
                    update(Run).where(mine).values(owner_expires_at=utcnow() + self._lease)
                )
        return {run.id: run.state for run in rows if run.id is not None}

    def _claim(self) -> list[Run]:
        """Make every run that is open, or has batches under way, and nobody holds one's own."""
        now = utcnow()
        put_off = [run_id for run_id, until in self._put_off.items() if until > time.monotonic()]
        under_way = exists().where(
            col(Batch.run_id) == col(Run.id),
            col(Batch.ended_at).is_(None),
            col(Run.id).not_in(put_off),
        )
        free = and_(
            or_(col(Run.state).in_(OPEN_STATES), under_way),
            or_(
                col(Run.owner).is_(None),
                # One's own too, if how it ended could not be stored.
                (col(Run.owner_expires_at) < now) & col(Run.id).not_in(list(self._works)),
            ),
            true() if self._only is None else col(Run.id) == self._only,
        )
        with reading(self._engine) as session:
            ids = session.exec(select(Run.id).where(free)).all()
        if not ids:
            return []
        with writing(self._engine) as session:
            session.exec(
                update(Run)
                .where(col(Run.id).in_(ids), free)
                .values(owner=self._owner, owner_expires_at=now + self._lease)
            )
            mine = and_(col(Run.id).in_(ids), col(Run.owner) == self._owner)
            session.exec(
                update(Run)
                .where(mine, col(Run.state).in_(OPEN_STATES))
                .values(
                    state=RunState.RUNNING,
                    started_at=utcnow(),
                    error=None,
                    cached=0,  # counted anew as the labels are gone through
                    failed=0,
                )
            )
            return list(session.exec(select(Run).where(mine)))

    async def _run(self, work: Work) -> None:
        run = work.run
        assert run.id is not None
        try:
            plan = await asyncio.to_thread(self._plan, run)
            work.spent_usd = run.cost_usd or 0.0
            work.spent_tokens = run.prompt_tokens + run.completion_tokens
            if run.mode is RunMode.BATCH:
                missing = self._missing(work, plan)
                await BatchRun(self._engine, self._enricher, work, plan, missing).ask_all()
            else:
                await self._ask_all(work, plan)
        except UserError as error:
            work.halt(str(error))
            self._put_off[run.id] = time.monotonic() + PATIENCE
        except Exception as error:
            log.exception("run %s failed", run.id)
            self._put_off[run.id] = time.monotonic() + PATIENCE
            work.halt(f"the service has a defect ({type(error).__name__}); its log tells more")
        finally:
            try:
                await self._enricher.ledger.flush()  # whoever sees the end sees all answers
                await asyncio.to_thread(self._finish, work)
            except Exception:
                log.exception("cannot store how run %s ended", run.id)
            self._works.pop(run.id, None)

    def _plan(self, run: Run) -> Plan:
        with reading(self._engine) as session:
            return service.plan_of(session, run, self._enricher.model.source)

    def _finish(self, work: Work) -> None:
        """Write down how the run ended, if it did, and let go of it."""
        with writing(self._engine) as session:
            run = session.exec(
                select(Run).where(Run.id == work.run.id, Run.owner == self._owner)
            ).one_or_none()
            if run is None:
                return  # another process has it
            run.owner = run.owner_expires_at = None
            session.add(run)
            if run.state is not RunState.RUNNING or (work.stop.is_set() and not work.reason):
                return  # paused, cancelled, or this process ends
            if work.reason:
                run.error = work.reason
                run.state = RunState.PAUSED if work.pause else RunState.FAILED
            elif run.failed:
                run.error = (
                    f"{run.failed} of {run.total} got no answer; retry the run to ask them again"
                )
                run.state = RunState.FAILED
            else:
                run.state = RunState.SUCCEEDED
            run.finished_at = None if run.state is RunState.PAUSED else utcnow()

    async def _ask_all(self, work: Work, plan: Plan) -> None:
        await self._enricher.taken_by(plan)  # or all workers would wait for it, and go on together
        queue: asyncio.Queue[Item] = asyncio.Queue(maxsize=work.run.concurrency)
        workers = [
            asyncio.create_task(self._ask_from(queue, work, plan, after=number * APART))
            for number in range(work.run.concurrency * WORKERS)
        ]
        feeder = asyncio.create_task(self._feed(queue, work, plan))
        stopped = asyncio.create_task(work.stop.wait())
        try:
            await asyncio.wait({feeder, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if feeder.done():
                await feeder  # raises what it met
                return
            feeder.cancel()
            while not queue.empty():
                queue.get_nowait()
                queue.task_done()
            await self._let_in_flight_land(queue, work)
        finally:
            for task in (feeder, stopped, *workers):
                task.cancel()
            await asyncio.gather(feeder, stopped, *workers, return_exceptions=True)

    async def _let_in_flight_land(self, queue: asyncio.Queue[Item], work: Work) -> None:
        """Wait for calls that are paid for; who only waits for a turn goes home."""
        joined = asyncio.create_task(queue.join())
        until = time.monotonic() + GRACE
        while not joined.done() and time.monotonic() < until:
            for worker, item in work.asking.items():
                if not self._enricher.turnstile.holds(item.key):
                    worker.cancel()
            await asyncio.wait({joined}, timeout=0.1)
        joined.cancel()

    async def _feed(self, queue: asyncio.Queue[Item], work: Work, plan: Plan) -> None:
        """Put every item without a result in the queue, parked ones again when they are due."""
        async for items in self._missing(work, plan):
            for item in await work.elsewhere.keep(items):
                while len(work.parked) >= work.run.concurrency:  # the server has enough for now
                    await self._unpark(queue, work)
                await queue.put(item)
        while True:
            await queue.join()
            if work.parked:
                await self._unpark(queue, work)
            elif work.elsewhere:
                for item in await self._back(work):
                    await queue.put(item)
            else:
                return

    async def _back(self, work: Work) -> list[Item]:
        """What has still no result of what was being asked elsewhere, once that has ended."""
        while not (items := await work.elsewhere.give_back()):
            await asyncio.sleep(LOOK)
        return await work.elsewhere.keep(await self._without_result(work, items))

    async def _unpark(self, queue: asyncio.Queue[Item], work: Work) -> None:
        due, _, item = work.parked[0]
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        heapq.heappop(work.parked)
        await queue.put(item)

    async def _missing(self, work: Work, plan: Plan) -> AsyncIterator[list[Item]]:
        """The run's items that have no result yet, some at a time."""
        seen: set[bytes] = set()  # a label may stand twice in a set, an image twice in a folder
        async for items in self._pages(work.run, plan):
            new = []
            for item in items:
                short = bytes.fromhex(item.key)[:16]
                if short not in seen:
                    new.append(item)
                seen.add(short)
            yield await self._without_result(work, new, repeated=len(items) - len(new))

    async def _without_result(
        self, work: Work, items: Sequence[Item], *, repeated: int = 0
    ) -> list[Item]:
        """Those of `items` that have none; what others have, and the repeated, count as cached."""
        run = work.run
        assert run.id is not None
        owners = await self._enricher.ledger.owners([item.key for item in items])
        cached = repeated + sum(owner != run.id for owner in owners.values())
        if cached:
            await self._enricher.ledger.count(run.id, cached=cached)
        return [item for item in items if item.key not in owners]

    async def _pages(self, run: Run, plan: Plan) -> AsyncIterator[list[Item]]:
        """All that the run asks, some labels or some images at a time."""
        position = -1
        # At the command line a person reads what that person may read.
        roots = self._enricher.settings.image_roots if self._only is None else None
        folder = None if run.images is None else checked_folder(run.images, roots)
        while page := await asyncio.to_thread(self._page, run, plan, position):
            position, keys, items = page
            if folder is None:
                yield items
                continue
            for key, item in zip(keys, items, strict=True):
                pages = service.image_items(plan, item, key, folder, roots, run.samples)
                while some := await asyncio.to_thread(next, pages, None):
                    yield some

    def _page(self, run: Run, plan: Plan, after: int) -> tuple[int, list[str], list[Item]] | None:
        """The position of the last of the next labels, their keys and items; None after the end.

        Where images are asked about: one item a label, to which its images are put.
        """
        # At first no more than can be asked at once: they need not wait for the others.
        size = PAGE if after >= 0 else min(PAGE, run.concurrency)
        with reading(self._engine) as session:
            labels = session.exec(
                select(Label)
                .where(Label.label_set_id == run.label_set_id, Label.position > after)
                .order_by(col(Label.position))
                .limit(size)
            ).all()
            if not labels:
                return None
            samples = run.samples if run.images is None else 1
            texts = service.source_texts(session, run, labels) if plan.rewrites else None
            items = service.items_of(session, plan, labels, samples, texts)
            return labels[-1].position, [label.key for label in labels], items

    async def _ask_from(
        self, queue: asyncio.Queue[Item], work: Work, plan: Plan, *, after: float
    ) -> None:
        me = asyncio.current_task()
        assert me is not None
        while True:
            item = await queue.get()
            work.asking[me] = item
            try:
                if after:  # once there is something to ask
                    await asyncio.sleep(after)
                    after = 0.0
                if not work.stop.is_set():
                    await self._ask(item, work, plan)
            except UserError as error:
                work.halt(str(error))
            except Exception as error:
                log.exception("run %s, label %r", work.run.id, item.name)
                work.halt(f"the service has a defect ({type(error).__name__}); its log tells more")
            finally:
                del work.asking[me]
                queue.task_done()

    async def _ask(self, item: Item, work: Work, plan: Plan) -> None:
        run = work.run
        assert run.id is not None
        try:
            generation = await self._enricher.answer(
                plan, item, urgent=False, tries=TRIES, run_id=run.id, note=work.note, group=work
            )
        except ClaimedElsewhere:
            work.elsewhere.add_claimed(item)
            return
        except ModelBusy as busy:
            await self._enricher.ledger.count(run.id, calls=busy.calls)
            due = time.monotonic() + (busy.retry_after or 0.0)
            heapq.heappush(work.parked, (due, next(_order), item))
            return
        work.finished.append(time.monotonic())
        if generation.run_id != run.id:
            await self._enricher.ledger.count(run.id, cached=1)
            return
        failed = generation.status is GenerationStatus.FAILED
        if failed and work.failed_in_row >= FAILURES_IN_A_ROW:
            work.halt(
                f"{work.failed_in_row} labels in a row got no answer, the last because "
                f"{generation.problems[0]}"
            )


_order = itertools.count()  # breaks ties between items that are due at the same moment
