"""Executes runs in the background: claims them, renews their leases, releases them.

Notable:
- The `run` table is authoritative. Any process may write pause and cancel there; the run's owner
  reads it within a second and stops. Stored results are never requested again.
- Batches that a run has sent are polled until their answers are stored, even if the run was paused
  or cancelled.
"""

import asyncio
import logging
from contextlib import suppress

from sqlalchemy import Engine

from enrich_service.core.clock import Clock
from enrich_service.core.errors import UserError
from enrich_service.core.storage.database import reading, storage_error
from enrich_service.generations.models import Run, RunMode, RunState
from enrich_service.runs.active_run import ActiveRun, internal_error
from enrich_service.runs.answering.enricher import Enricher
from enrich_service.runs.answering.waiting_items import WaitingItems
from enrich_service.runs.batch.run import BatchRun
from enrich_service.runs.plan import Plan, plan_of
from enrich_service.runs.scheduling.leases import RunLeases
from enrich_service.runs.scheduling.pager import RunPager
from enrich_service.runs.scheduling.worker_pool import GRACE_S, WorkerPool

POLL_INTERVAL_S = 0.5  # between reads of the table
RETRY_INTERVAL_S = 60.0  # until batches are polled again after an error

log = logging.getLogger(__name__)


class RunScheduler:
    """Executes all runs that no other process holds.

    `only`: id of the only run to execute (command line).
    """

    def __init__(self, engine: Engine, enricher: Enricher, *, only: int | None = None) -> None:
        self._engine, self._enricher = engine, enricher
        self._leases = RunLeases(engine, enricher.settings.run_lease_seconds, only=only)
        # Commands may read all files of their user.
        self._image_roots = enricher.settings.image_roots if only is None else None
        self._clock = Clock()
        self._active: dict[int, ActiveRun] = {}
        self._awake = asyncio.Event()
        self._watch_task: asyncio.Task[None] | None = None
        self._stopping = False

    def start(self) -> None:
        """Start polling for runs."""
        self._watch_task = asyncio.create_task(self._watch())

    async def stop(self) -> None:
        """Release all runs, so that another process can claim them immediately."""
        if self._watch_task is not None:
            # Not cancelled, because its thread would continue and could claim a run.
            self._stopping = True
            self._awake.set()
            await self._watch_task
        for active in self._active.values():
            active.state = None
            active.stop.set()
        tasks = [active.task for active in self._active.values() if active.task]
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=GRACE_S + 1.0)
            for task in late:  # e.g. a long upload, which is found or repeated later
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def wake(self) -> None:
        """Poll the table now."""
        self._awake.set()

    def active(self, run_id: int) -> ActiveRun | None:
        """The live state of a run that this process is working on."""
        return self._active.get(run_id)

    async def _watch(self) -> None:
        while not self._stopping:
            try:
                await self._update()
            except Exception as error:
                if known := storage_error(error):
                    log.warning("cannot update the runs: %s", known)
                else:
                    log.exception("cannot update the runs; trying again")
            with suppress(TimeoutError):
                async with asyncio.timeout(POLL_INTERVAL_S):
                    await self._awake.wait()
            self._awake.clear()

    async def _update(self) -> None:
        """Renew the leases of active runs, read their states, and start new ones."""
        if self._clock.was_set():
            await asyncio.to_thread(self._leases.correct)
            self._clock.remember()
        states = await asyncio.to_thread(self._leases.renew, list(self._active))
        for run_id, active in list(self._active.items()):
            active.state = states.get(run_id)
            if active.state is not RunState.RUNNING:
                active.stop.set()  # paused, cancelled, or taken over by another process
        for run in await asyncio.to_thread(self._leases.claim, list(self._active)):
            assert run.id is not None
            waiting = WaitingItems(self._enricher.store, run)
            active = self._active[run.id] = ActiveRun(run, waiting, run.state)
            if run.state is not RunState.RUNNING:
                active.stop.set()  # only its pending batches are collected
            active.task = asyncio.create_task(self._run(active))

    async def _run(self, active: ActiveRun) -> None:
        run = active.run
        assert run.id is not None
        try:
            await self._work_on(active)
        except UserError as error:
            active.halt(str(error))
            self._leases.delay_batches(run.id, RETRY_INTERVAL_S)
        except Exception as error:
            log.exception("run %s failed", run.id)
            self._leases.delay_batches(run.id, RETRY_INTERVAL_S)
            active.halt(internal_error(error))
        finally:
            try:
                await self._enricher.store.flush()  # before the end of the run becomes visible
                await asyncio.to_thread(self._leases.release, active)
            except Exception:
                log.exception("cannot store the outcome of run %s", run.id)
            self._active.pop(run.id, None)

    async def _work_on(self, active: ActiveRun) -> None:
        run = active.run
        plan = await asyncio.to_thread(self._plan, run)
        active.spent_usd = run.cost_usd or 0.0
        active.spent_tokens = run.prompt_tokens + run.completion_tokens
        pager = RunPager(self._engine, self._enricher.store, run, plan, self._image_roots)
        if run.mode is RunMode.BATCH:
            await BatchRun(self._engine, self._enricher, active, plan, pager.missing()).run_to_end()
        else:
            await WorkerPool(self._enricher, active, plan, pager).run_to_end()

    def _plan(self, run: Run) -> Plan:
        with reading(self._engine) as session:
            return plan_of(session, run, self._enricher.source)
