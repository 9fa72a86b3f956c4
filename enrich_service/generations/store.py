"""Where generations are stored and found again.

Notable: answers that arrive within a moment, or while a transaction is being written, share the
next one, since a commit costs as much for one row as for fifty. A run's counters change in the
transaction that stores the generation, so the two never disagree, whenever the process is killed.
"""

import asyncio
import functools
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine, Executable
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError
from sqlmodel import Session, SQLModel, col, delete, func, select, update

from enrich_service.core.database import reading, storage_error, writing
from enrich_service.core.errors import NoSuch
from enrich_service.generations.models import (
    Batch,
    BatchRequest,
    Generation,
    GenerationStatus,
    Run,
    RunFinding,
)
from enrich_service.validation.answers import Taken, texts_of

GATHER = 0.01  # seconds in which answers gather before a transaction
RESULTS = (GenerationStatus.ACCEPTED, GenerationStatus.REJECTED)


@dataclass
class _Entry:
    generation: Generation | None
    run_id: int | None
    counts: dict[str, int | float]
    request: tuple[int, str] | None  # the batch and the key of what is under way no longer
    stored: asyncio.Future[Generation | None]


class Ledger:
    """The only writer of generations that language models made.

    `asked`: how many questions are being asked; once so many answers are here, none is waited for.
    """

    def __init__(self, engine: Engine, asked: Callable[[], int]) -> None:
        self._engine, self._asked = engine, asked
        self._all_here = asyncio.Event()
        self._pending: list[_Entry] = []
        self._in_writing = 0
        self._writer: asyncio.Task[None] | None = None

    async def store(self, generation: Generation, batch_id: int | None = None) -> Generation:
        """Store a generation and count it in its run.

        Gives the stored row; where another process had a result for the key first, that one.
        `batch_id`: the batch that asked for it, and now asks for it no longer.
        """
        request = (batch_id, generation.dedupe_key or "") if batch_id is not None else None
        stored = await self._enter(generation, generation.run_id, _counts(generation), request)
        assert stored is not None
        return stored

    async def count(
        self, run_id: int, *, request: tuple[int, str] | None = None, **counts: int
    ) -> None:
        """Add to a run's counters without a generation: `cached`, `failed`, `calls`.

        `request`: the batch and the key of what that batch asks for no longer.
        """
        await self._enter(None, run_id, dict(counts), request)

    async def flush(self) -> None:
        """Wait until everything that was handed in is stored, or known not to be."""
        if self._writer is not None:
            await asyncio.shield(self._writer)

    async def _enter(
        self,
        generation: Generation | None,
        run_id: int | None,
        counts: dict[str, int | float],
        request: tuple[int, str] | None,
    ) -> Generation | None:
        stored = asyncio.get_running_loop().create_future()
        entry = _Entry(generation, run_id, counts, request, stored)
        self._pending.append(entry)
        if len(self._pending) + self._in_writing >= self._asked():
            self._all_here.set()
        if self._writer is None:
            self._writer = asyncio.create_task(self._write_all())
        return await entry.stored

    async def _write_all(self) -> None:
        while self._pending:
            with suppress(TimeoutError):
                async with asyncio.timeout(GATHER):
                    await self._all_here.wait()
            self._all_here.clear()
            batch, self._pending = self._pending, []
            self._in_writing = len(batch)
            try:
                rows = await asyncio.to_thread(self._write, batch)
            except Exception as error:
                known = storage_error(error) if isinstance(error, DBAPIError | OSError) else None
                for entry in batch:
                    if not entry.stored.done():
                        entry.stored.set_exception(known or error)
            else:
                for entry, row in zip(batch, rows, strict=True):
                    if not entry.stored.done():
                        entry.stored.set_result(row)
                        await asyncio.sleep(0)  # answers that have come meanwhile go first
            self._in_writing = 0
        self._writer = None

    def _write(self, batch: list[_Entry]) -> list[Generation | None]:
        rows: list[Generation | None] = []
        totals: defaultdict[int, defaultdict[str, int | float]] = defaultdict(
            lambda: defaultdict(int)
        )
        findings: Counter[tuple[int, str, str]] = Counter()
        settled: defaultdict[int, list[str]] = defaultdict(list)  # keys by batch
        with writing(self._engine) as session:
            for entry in batch:
                counts = entry.counts
                if entry.request is not None:
                    settled[entry.request[0]].append(entry.request[1])
                if entry.generation is None:
                    rows.append(None)
                else:
                    row = _insert(session, entry.generation)
                    rows.append(row)
                    findings.update(_findings(entry.generation))
                    if row is not entry.generation:  # paid for, and yet another's result stands
                        counts = {name: counts[name] for name in _SPENT}
                if entry.run_id is not None:
                    for name, value in counts.items():
                        totals[entry.run_id][name] += value
            for (run_id, verdict, rule), answers in findings.items():
                _add_finding(session, run_id, verdict, rule, answers)
            for batch_id, keys in settled.items():
                for some in _chunks(keys):
                    session.exec(
                        delete(BatchRequest).where(
                            col(BatchRequest.batch_id) == batch_id,
                            col(BatchRequest.dedupe_key).in_(some),
                        )
                    )
            for run_id, total in totals.items():
                session.exec(
                    update(Run)
                    .where(col(Run.id) == run_id)
                    .values({name: _plus(name, value) for name, value in total.items() if value})
                )
        return rows

    async def results(self, keys: Collection[str]) -> dict[str, Generation]:
        """The stored results (accepted or rejected) for dedupe keys."""
        return await asyncio.to_thread(self._results, keys)

    def _results(self, keys: Collection[str]) -> dict[str, Generation]:
        with reading(self._engine) as session:
            return {
                row.dedupe_key: row
                for some in _chunks(keys)
                for row in session.exec(
                    select(Generation).where(
                        col(Generation.dedupe_key).in_(some), col(Generation.status).in_(RESULTS)
                    )
                )
                if row.dedupe_key
            }

    async def owners(self, keys: Collection[str]) -> dict[str, int | None]:
        """The run (None: a single request) that each key with a result was made by."""
        return await asyncio.to_thread(self._owners, keys)

    def _owners(self, keys: Collection[str]) -> dict[str, int | None]:
        with reading(self._engine) as session:
            return {
                key: run_id
                for some in _chunks(keys)
                for key, run_id in session.exec(
                    select(Generation.dedupe_key, Generation.run_id).where(
                        col(Generation.dedupe_key).in_(some), col(Generation.status).in_(RESULTS)
                    )
                )
                if key
            }

    async def in_batches(self, keys: Collection[str]) -> dict[str, tuple[int, int]]:
        """The batch that is asking each key that is under way, and the run of that batch."""
        return await asyncio.to_thread(self._in_batches, keys)

    def _in_batches(self, keys: Collection[str]) -> dict[str, tuple[int, int]]:
        with reading(self._engine) as session:
            return {
                key: (batch_id, run_id)
                for some in _chunks(keys)
                for key, batch_id, run_id in session.exec(
                    select(BatchRequest.dedupe_key, BatchRequest.batch_id, Batch.run_id)
                    .join(Batch, col(Batch.id) == col(BatchRequest.batch_id))
                    .where(col(BatchRequest.dedupe_key).in_(some))
                )
            }

    async def open_batches(self, ids: Collection[int]) -> set[int]:
        """Those of the batches that have not ended."""
        return await asyncio.to_thread(self._open_batches, ids)

    def _open_batches(self, ids: Collection[int]) -> set[int]:
        open_ones = select(Batch.id).where(col(Batch.id).in_(ids), col(Batch.ended_at).is_(None))
        with reading(self._engine) as session:
            return {batch_id for batch_id in session.exec(open_ones) if batch_id is not None}

    async def taken(self, prompt_version_id: int) -> Taken:
        """What the accepted generations of a prompt version have given to which label."""
        return await asyncio.to_thread(self._taken, prompt_version_id)

    def _taken(self, prompt_version_id: int) -> Taken:
        taken = Taken()
        with reading(self._engine) as session:
            for label, kind, parsed in session.exec(
                select(Generation.label_name, Generation.kind, Generation.parsed)
                .where(
                    Generation.prompt_version_id == prompt_version_id,
                    Generation.status == GenerationStatus.ACCEPTED,
                )
                .execution_options(yield_per=1000)
            ):
                taken.add(label, kind, texts_of(kind, parsed))
        return taken


def get_generation(session: Session, generation_id: int) -> Generation:
    """The generation; else NotFound."""
    found = session.get(Generation, generation_id)
    if found is None:
        raise NoSuch(f"generation {generation_id}", "texts list", "/v1/generations")
    return found


def _findings(generation: Generation) -> Iterator[tuple[int, str, str]]:
    """The rules that an answer of a run broke or was flagged by, each once."""
    if generation.run_id is None or generation.raw_reply is None:
        return
    for verdict, said in (("problem", generation.problems), ("flag", generation.flags)):
        for rule in dict.fromkeys(line.partition(":")[0] for line in said):
            yield generation.run_id, verdict, rule


def _add_finding(session: Session, run_id: int, verdict: str, rule: str, answers: int) -> None:
    statement = _insert_into(session.get_bind().dialect.name, RunFinding).values(
        run_id=run_id, verdict=verdict, rule=rule, answers=answers
    )
    session.execute(
        statement.on_conflict_do_update(
            index_elements=["run_id", "verdict", "rule"],
            set_={"answers": col(RunFinding.answers) + answers},
        )
    )


_SPENT = ("calls", "prompt_tokens", "completion_tokens", "cost_usd")


def _counts(generation: Generation) -> dict[str, int | float]:
    counts: dict[str, int | float] = {
        "calls": generation.calls,
        "prompt_tokens": generation.prompt_tokens or 0,
        "completion_tokens": generation.completion_tokens or 0,
        "cost_usd": generation.cost_usd or 0.0,
    }
    if generation.status is not GenerationStatus.RETRIED:
        counts[generation.status] = 1
    return counts


def _plus(name: str, value: float) -> Any:  # noqa: ANN401 - a SQL expression
    column = getattr(Run, name)
    return (func.coalesce(column, 0.0) if name == "cost_usd" else column) + value


def _insert(session: Session, generation: Generation) -> Generation:
    """Insert the row, unless there is a result for its key: then that one."""
    values = {name: getattr(generation, name) for name in _COLUMNS}
    # One statement for all rows and past the ORM: to make and compile it costs more than to run it.
    statement = _insert_new(session.get_bind().dialect.name)
    new_id = session.connection().execute(statement, values).scalar_one_or_none()
    if new_id is not None:
        generation.id = new_id
        return generation
    return session.exec(
        select(Generation).where(
            Generation.dedupe_key == generation.dedupe_key, col(Generation.status).in_(RESULTS)
        )
    ).one()


_COLUMNS = tuple(name for name in Generation.model_fields if name != "id")


@functools.cache
def _insert_new(dialect: str) -> Executable:
    insert = _insert_into(dialect, Generation)
    return insert.on_conflict_do_nothing().returning(col(Generation.id))


def _insert_into(dialect: str, table: type[SQLModel]) -> sqlite.Insert | postgresql.Insert:
    return postgresql.insert(table) if dialect == "postgresql" else sqlite.insert(table)


def _chunks(keys: Iterable[str], size: int = 500) -> Iterable[list[str]]:
    """SQLite takes a bounded number of parameters."""
    listed = list(keys)
    return (listed[i : i + size] for i in range(0, len(listed), size))
