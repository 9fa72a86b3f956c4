"""Batched writes and lookups of generations.

Notable: answers that arrive within a moment, or while a transaction is being written, share the
next transaction, since committing one row costs as much as fifty. A run's counters change in the
transaction that stores the generation, so they always agree, even if the process is killed.
Requests are claimed first, so that only one process sends each; the claims of a killed process end
with its lease.
"""

import asyncio
import functools
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Engine, Executable, bindparam
from sqlalchemy.exc import DBAPIError
from sqlmodel import Session, col, delete, func, select, update

from enrich_service.core.errors import NoSuch
from enrich_service.core.storage.database import reading, storage_error, writing
from enrich_service.generations.claims import Claims, ClaimTable
from enrich_service.generations.models import (
    Batch,
    BatchRequest,
    Generation,
    GenerationFields,
    GenerationStatus,
    Run,
    RunFinding,
)
from enrich_service.generations.queries import RESULTS, chunks, insert_into, results_of
from enrich_service.validation.accepted_texts import AcceptedTextIndex
from enrich_service.validation.answer import texts_of

FLUSH_INTERVAL_S = 0.01  # seconds in which answers gather before a transaction


@dataclass
class _Entry:
    """Something to write; `stored` receives the result."""

    generation: GenerationFields | None = None
    run_id: int | None = None
    counts: dict[str, int | float] = field(default_factory=dict)
    request: tuple[int, str] | None = None  # the batch and the key of what is under way no longer
    accepted_texts: AcceptedTextIndex | None = None  # where no two labels may share a text
    rebuild: Callable[[], GenerationFields] | None = None  # if another label has its text by now
    claim: tuple[str, ...] = ()  # dedupe keys to be claimed
    renew: bool = False  # the leases of all that this process has claimed
    stored: "asyncio.Future[_Outcome]" = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


_Outcome = GenerationFields | Claims | None


class _Totals:
    """Changes of run counters and batch requests by a batch of entries."""

    def __init__(self) -> None:
        self.findings: Counter[tuple[int, str, str]] = Counter()
        self._counts: defaultdict[int, defaultdict[str, int | float]] = defaultdict(
            lambda: defaultdict(int)
        )  # by run
        self._answered: defaultdict[int, list[str]] = defaultdict(list)  # keys by batch

    def add(self, entry: _Entry, counts: Mapping[str, int | float]) -> None:
        if entry.request is not None:
            self._answered[entry.request[0]].append(entry.request[1])
        if entry.run_id is not None:
            for name, value in counts.items():
                self._counts[entry.run_id][name] += value

    def write(self, session: Session) -> None:
        for (run_id, verdict, rule), answers in self.findings.items():
            _add_finding(session, run_id, verdict, rule, answers)
        for batch_id, keys in self._answered.items():
            for some in chunks(keys):
                session.exec(
                    delete(BatchRequest).where(
                        col(BatchRequest.batch_id) == batch_id,
                        col(BatchRequest.dedupe_key).in_(some),
                    )
                )
        for run_id, total in self._counts.items():
            session.exec(
                update(Run)
                .where(col(Run.id) == run_id)
                .values({name: _plus(name, value) for name, value in total.items() if value})
            )


class GenerationStore:
    """The only writer of generations by language models.

    `asked`: the number of pending requests; when as many answers are here, no more are waited for.
    `lease_seconds`: after which the claims of a killed process expire.
    """

    def __init__(
        self, engine: Engine, asked: Callable[[], int], *, lease_seconds: float = 10.0
    ) -> None:
        self._engine, self._asked = engine, asked
        self._claims = ClaimTable(lease_seconds)
        self._claimed: set[str] = set()
        self._released: set[str] = set()  # claims that have ended and whose rows are still there
        self._renewing: asyncio.Task[None] | None = None
        self._all_here = asyncio.Event()
        self._pending: list[_Entry] = []
        self._in_writing = 0
        self._writer: asyncio.Task[None] | None = None
        # Of each prompt version whose texts are known: the newest generation that they hold.
        self._newest_known: dict[int, int] = {}

    async def add(
        self,
        generation: GenerationFields,
        batch_id: int | None = None,
        *,
        accepted_texts: AcceptedTextIndex | None = None,
        rebuild: Callable[[], GenerationFields] | None = None,
    ) -> GenerationFields:
        """Store a generation and count it in its run; its claim ends unless it is requested again.

        Returns the stored row, or the result of another process if that was stored first.
        `batch_id`: the batch whose request it answers. `accepted_texts`: the index of the prompt
        version, if no two labels may share a text. If another process has stored the text for
        another label, the index is updated and the generation that `rebuild` returns is stored
        instead.
        """
        key = generation.dedupe_key or ""
        stored = await self._enter(
            _Entry(
                generation,
                generation.run_id,
                _counts(generation),
                request=(batch_id, key) if batch_id is not None else None,
                accepted_texts=accepted_texts,
                rebuild=rebuild,
            )
        )
        assert isinstance(stored, GenerationFields)
        if stored.status is not GenerationStatus.RETRIED:
            self.release(key)
        return stored

    async def count(
        self, run_id: int, *, request: tuple[int, str] | None = None, **counts: int
    ) -> None:
        """Add to a run's counters without a generation: `cached`, `failed`, `calls`.

        `request`: the batch and key of a request that is no longer pending.
        """
        await self._enter(_Entry(run_id=run_id, counts=dict(counts), request=request))

    def has_claimed(self, key: str) -> bool:
        """Whether this process is the one to ask."""
        return key in self._claimed

    async def claim(self, keys: Collection[str]) -> Claims:
        """Claim what is to be requested, so that no other process or batch requests it too.

        What has a result is not claimed, nor what another process or a batch is requesting.
        """
        claims = await self._enter(_Entry(claim=tuple(keys)))
        assert isinstance(claims, Claims)
        if self._renewing is None or self._renewing.done():
            self._renewing = asyncio.create_task(self._renew())
        return claims

    def release(self, *keys: str) -> None:
        """Let others ask this, as far as this process has claimed it.

        The rows go with the next claims or renewal: whoever looks before them sees the result.
        """
        own = self._claimed.intersection(keys)
        self._claimed -= own
        self._released |= own

    async def _renew(self) -> None:
        while self._claimed or self._released:
            await asyncio.sleep(self._claims.lease.total_seconds() / 3)
            with suppress(Exception):  # told to those who store answers, and tried again
                await self._enter(_Entry(renew=True))

    async def flush(self) -> None:
        """Wait until everything that was handed in is stored, or known not to be."""
        if self._writer is not None:
            await asyncio.shield(self._writer)

    async def aclose(self) -> None:
        """Let go of all claims, once everything is stored."""
        if self._renewing is not None:
            self._renewing.cancel()
        await self.flush()
        self.release(*self._claimed)
        if self._released:
            self._append(_Entry(renew=True))
            await self.flush()

    async def _enter(self, entry: _Entry) -> _Outcome:
        self._append(entry)
        return await entry.stored

    def _append(self, entry: _Entry) -> None:
        self._pending.append(entry)
        if len(self._pending) + self._in_writing >= self._asked():
            self._all_here.set()
        if self._writer is None:
            self._writer = asyncio.create_task(self._write_all())

    async def _write_all(self) -> None:
        while self._pending:
            with suppress(TimeoutError):
                async with asyncio.timeout(FLUSH_INTERVAL_S):
                    await self._all_here.wait()
            self._all_here.clear()
            batch, self._pending = self._pending, []
            self._in_writing = len(batch)
            try:
                outcomes = await asyncio.to_thread(self._write, batch)
            except Exception as error:
                known = storage_error(error) if isinstance(error, DBAPIError | OSError) else None
                for entry in batch:
                    if not entry.stored.done():
                        entry.stored.set_exception(known or error)
                        entry.stored.exception()  # nobody may wait for it
            else:
                for entry, outcome in zip(batch, outcomes, strict=True):
                    await self._tell(entry, outcome)
            self._in_writing = 0
        self._writer = None

    async def _tell(self, entry: _Entry, outcome: _Outcome) -> None:
        if isinstance(outcome, Claims):
            claimed = set(entry.claim) - outcome.results.keys() - outcome.claimed_by_others
            self._claimed |= claimed
            self._released -= claimed  # released by another caller while this was written
            if entry.stored.done():  # whoever wanted to ask was cancelled
                self.release(*claimed)
        if not entry.stored.done():
            entry.stored.set_result(outcome)
            await asyncio.sleep(0)  # answers that have come meanwhile go first

    def _write(self, batch: list[_Entry]) -> list[_Outcome]:
        outcomes: list[_Outcome] = []
        released: set[str] = set()
        totals = _Totals()
        with writing(self._engine) as session:
            self._read_new_texts(session, batch)
            for entry in batch:
                if entry.rebuild is not None and _is_text_of_another_label(entry):
                    # In this transaction: a paid answer is stored even if its caller is cancelled.
                    entry.generation = entry.rebuild()
                    entry.counts = _counts(entry.generation)
                row, counts = None, entry.counts
                if entry.generation is not None:
                    row = _insert(session, entry.generation)
                    totals.findings.update(_findings(entry.generation))
                    if row is not entry.generation:  # paid for, and yet another's result stands
                        counts = {name: counts[name] for name in _SPENT}
                outcomes.append(row)
                totals.add(entry, counts)
            totals.write(session)
            if any(entry.claim or entry.renew for entry in batch):
                released = set(self._released)
                self._change_claims(session, batch, released, outcomes)
        self._released -= released
        self._add_own_texts(batch, outcomes)
        return outcomes

    def _change_claims(
        self,
        session: Session,
        batch: list[_Entry],
        released: set[str],
        outcomes: list[_Outcome],
    ) -> None:
        """Renew and claim what `batch` wants; what came of its claims goes into `outcomes`."""
        self._claims.release(session, released)
        if any(entry.renew for entry in batch):
            self._claims.renew(session)
        claims = self._claims.claim(session, {key for entry in batch for key in entry.claim})
        for i, entry in enumerate(batch):
            if entry.claim:
                own = set(entry.claim)
                found = {key: claims.results[key] for key in own & claims.results.keys()}
                outcomes[i] = Claims(found, own & claims.claimed_by_others)

    async def claimed(self, keys: Collection[str], *, by_others: bool = False) -> set[str]:
        """The keys that some process is requesting live now; `by_others`: not this one."""
        return await asyncio.to_thread(self._read_claimed, keys, by_others=by_others)

    def _read_claimed(self, keys: Collection[str], *, by_others: bool) -> set[str]:
        with reading(self._engine) as session:
            return self._claims.claimed(session, keys, by_others=by_others)

    def free_for_batch(self, session: Session, keys: Collection[str]) -> set[str]:
        """Those of the keys that have no result and that no process or batch is requesting.

        They stay free until the writing transaction of `session` ends.
        """
        return self._claims.free_for_batch(session, keys)

    def _read_new_texts(self, session: Session, batch: list[_Entry]) -> None:
        """Learn which texts other processes have stored, of the prompt versions in `batch`.

        There is one writer at a time, so what is read here stays true until this one commits.
        """
        for version_id, accepted_texts in {
            entry.generation.prompt_version_id: entry.accepted_texts
            for entry in batch
            if entry.generation is not None and entry.accepted_texts is not None
        }.items():
            assert version_id is not None
            newest = self._newest_known[version_id]
            found = session.connection().execute(
                _NEW_TEXTS, {"newest": newest, "version_id": version_id}
            )
            for label, kind, parsed in found:
                accepted_texts.add(label, kind, texts_of(kind, parsed))

    def _add_own_texts(self, batch: list[_Entry], rows: list[_Outcome]) -> None:
        """Note what this process has stored, once it is committed, so that it is not read again."""
        for entry, row in zip(batch, rows, strict=True):
            if entry.accepted_texts is None or row is not entry.generation:
                continue
            assert isinstance(row, GenerationFields)
            assert row.prompt_version_id is not None and row.id is not None
            if row.status is GenerationStatus.ACCEPTED:
                texts = texts_of(row.kind, row.parsed)
                entry.accepted_texts.add(row.label_name, row.kind, texts)
            newest = self._newest_known[row.prompt_version_id]
            self._newest_known[row.prompt_version_id] = max(newest, row.id)

    async def results(self, keys: Collection[str]) -> dict[str, Generation]:
        """The stored results (accepted or rejected) for dedupe keys."""
        return await asyncio.to_thread(self._results, keys)

    def _results(self, keys: Collection[str]) -> dict[str, Generation]:
        with reading(self._engine) as session:
            return results_of(session, keys)

    async def owners(self, keys: Collection[str]) -> dict[str, int | None]:
        """The run (None: a single request) that each key with a result was made by."""
        return await asyncio.to_thread(self._owners, keys)

    def _owners(self, keys: Collection[str]) -> dict[str, int | None]:
        with reading(self._engine) as session:
            return {
                key: run_id
                for some in chunks(keys)
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
                for some in chunks(keys)
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

    async def accepted_texts(self, prompt_version_id: int) -> AcceptedTextIndex:
        """What the accepted generations of a prompt version have given to which label."""
        return await asyncio.to_thread(self._read_accepted_texts, prompt_version_id)

    def _read_accepted_texts(self, prompt_version_id: int) -> AcceptedTextIndex:
        index = AcceptedTextIndex()
        with reading(self._engine) as session:
            newest = session.exec(select(func.max(Generation.id))).one()
            for label, kind, parsed in session.exec(
                select(Generation.label_name, Generation.kind, Generation.parsed)
                .where(
                    Generation.prompt_version_id == prompt_version_id,
                    Generation.status == GenerationStatus.ACCEPTED,
                )
                .execution_options(yield_per=1000)
            ):
                index.add(label, kind, texts_of(kind, parsed))
        self._newest_known[prompt_version_id] = newest or 0
        return index


# One statement and past the ORM: it is sent with every transaction, and mostly finds nothing.
_NEW_TEXTS = select(Generation.label_name, Generation.kind, Generation.parsed).where(
    col(Generation.id) > bindparam("newest"),
    col(Generation.prompt_version_id) == bindparam("version_id"),
    col(Generation.status) == GenerationStatus.ACCEPTED,
)


def _is_text_of_another_label(entry: _Entry) -> bool:
    row, accepted_texts = entry.generation, entry.accepted_texts
    if row is None or accepted_texts is None or row.status is not GenerationStatus.ACCEPTED:
        return False
    texts = texts_of(row.kind, row.parsed)
    return accepted_texts.stored_for_another(row.label_name, row.kind, texts)


def get_generation(session: Session, generation_id: int) -> Generation:
    """The generation; else NotFound."""
    found = session.get(Generation, generation_id)
    if found is None:
        raise NoSuch(f"generation {generation_id}", "texts list", "/v1/generations")
    return found


def _findings(generation: GenerationFields) -> Iterator[tuple[int, str, str]]:
    """The rules that an answer of a run violated or was flagged by, each once."""
    if generation.run_id is None or generation.raw_reply is None:
        return
    for verdict, said in (("problem", generation.problems), ("flag", generation.flags)):
        for rule in dict.fromkeys(line.partition(":")[0] for line in said):
            yield generation.run_id, verdict, rule


def _add_finding(session: Session, run_id: int, verdict: str, rule: str, answers: int) -> None:
    statement = insert_into(session.get_bind().dialect.name, RunFinding).values(
        run_id=run_id, verdict=verdict, rule=rule, answers=answers
    )
    session.execute(
        statement.on_conflict_do_update(
            index_elements=["run_id", "verdict", "rule"],
            set_={"answers": col(RunFinding.answers) + answers},
        )
    )


_SPENT = ("calls", "prompt_tokens", "completion_tokens", "cost_usd")


def _counts(generation: GenerationFields) -> dict[str, int | float]:
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


def _insert(session: Session, generation: GenerationFields) -> GenerationFields:
    """Insert the row, or return the existing result for its key."""
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
    insert = insert_into(dialect, Generation)
    return insert.on_conflict_do_nothing().returning(col(Generation.id))
