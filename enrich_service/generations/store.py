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

FLUSH_INTERVAL_S = 0.01  # wait for more answers before a transaction, in seconds


@dataclass
class _Entry:
    """Something to write; `stored` receives the result."""

    generation: GenerationFields | None = None
    run_id: int | None = None
    counts: dict[str, int | float] = field(default_factory=dict)
    request: tuple[int, str] | None = None  # batch id and key of a request that has ended
    accepted_texts: AcceptedTextIndex | None = None  # if no two labels may share a text
    rebuild: Callable[[], GenerationFields] | None = None  # for a text of another label
    claim: tuple[str, ...] = ()  # dedupe keys to claim
    renew: bool = False  # the leases of all claims of this process
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
            for chunk in chunks(keys):
                session.exec(
                    delete(BatchRequest).where(
                        col(BatchRequest.batch_id) == batch_id,
                        col(BatchRequest.dedupe_key).in_(chunk),
                    )
                )
        for run_id, total in self._counts.items():
            session.exec(
                update(Run)
                .where(col(Run.id) == run_id)
                .values({name: _incremented(name, value) for name, value in total.items() if value})
            )


class GenerationStore:
    """The only writer of generations by language models.

    `pending_requests` returns their number; once as many answers have arrived, they are written
    without waiting for more. `lease_seconds`: after which the claims of a killed process expire.
    """

    def __init__(
        self, engine: Engine, pending_requests: Callable[[], int], *, lease_seconds: float = 10.0
    ) -> None:
        self._engine, self._pending_requests = engine, pending_requests
        self._claims = ClaimTable(lease_seconds)
        self._claimed: set[str] = set()
        self._released: set[str] = set()  # ended claims whose rows still have to be deleted
        self._renewing: asyncio.Task[None] | None = None
        self._all_arrived = asyncio.Event()
        self._pending: list[_Entry] = []
        self._writing = 0
        self._writer: asyncio.Task[None] | None = None
        # For each prompt version with loaded texts: the id of the newest generation among them.
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
        stored = await self._submit(
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
        await self._submit(_Entry(run_id=run_id, counts=dict(counts), request=request))

    def has_claimed(self, key: str) -> bool:
        """Whether this process has claimed `key`."""
        return key in self._claimed

    async def claim(self, keys: Collection[str]) -> Claims:
        """Claim dedupe keys, so that no other process or batch requests them too.

        Keys with a result are not claimed, nor those that another process or batch is requesting.
        """
        claims = await self._submit(_Entry(claim=tuple(keys)))
        assert isinstance(claims, Claims)
        if self._renewing is None or self._renewing.done():
            self._renewing = asyncio.create_task(self._renew())
        return claims

    def release(self, *keys: str) -> None:
        """Release the keys that this process has claimed.

        The rows are deleted with the next claim or renewal; until then, others see the result.
        """
        own = self._claimed.intersection(keys)
        self._claimed -= own
        self._released |= own

    async def _renew(self) -> None:
        while self._claimed or self._released:
            await asyncio.sleep(self._claims.lease.total_seconds() / 3)
            with suppress(Exception):  # reported to callers that store answers; retried here
                await self._submit(_Entry(renew=True))

    async def flush(self) -> None:
        """Wait until all entries are stored or have failed."""
        if self._writer is not None:
            await asyncio.shield(self._writer)

    async def aclose(self) -> None:
        """Wait until everything is stored, then release all claims."""
        if self._renewing is not None:
            self._renewing.cancel()
        await self.flush()
        self.release(*self._claimed)
        if self._released:
            self._append(_Entry(renew=True))
            await self.flush()

    async def _submit(self, entry: _Entry) -> _Outcome:
        self._append(entry)
        return await entry.stored

    def _append(self, entry: _Entry) -> None:
        self._pending.append(entry)
        if len(self._pending) + self._writing >= self._pending_requests():
            self._all_arrived.set()
        if self._writer is None:
            self._writer = asyncio.create_task(self._write_all())

    async def _write_all(self) -> None:
        while self._pending:
            with suppress(TimeoutError):
                async with asyncio.timeout(FLUSH_INTERVAL_S):
                    await self._all_arrived.wait()
            self._all_arrived.clear()
            batch, self._pending = self._pending, []
            self._writing = len(batch)
            try:
                outcomes = await asyncio.to_thread(self._write, batch)
            except Exception as error:
                known = storage_error(error) if isinstance(error, DBAPIError | OSError) else None
                for entry in batch:
                    if not entry.stored.done():
                        entry.stored.set_exception(known or error)
                        entry.stored.exception()  # retrieved, if the caller is gone
            else:
                for entry, outcome in zip(batch, outcomes, strict=True):
                    await self._resolve(entry, outcome)
            self._writing = 0
        self._writer = None

    async def _resolve(self, entry: _Entry, outcome: _Outcome) -> None:
        if isinstance(outcome, Claims):
            claimed = set(entry.claim) - outcome.results.keys() - outcome.claimed_by_others
            self._claimed |= claimed
            self._released -= claimed  # released by another caller while this was written
            if entry.stored.done():  # the caller was cancelled
                self.release(*claimed)
        if not entry.stored.done():
            entry.stored.set_result(outcome)
            await asyncio.sleep(0)  # first handle answers that have arrived meanwhile

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
                    if row is not entry.generation:  # paid for, but the result of another is kept
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
        """Renew and claim as the entries of `batch` request; set the outcomes of the claims."""
        self._claims.release(session, released)
        if any(entry.renew for entry in batch):
            self._claims.renew(session)
        claims = self._claims.claim(session, {key for entry in batch for key in entry.claim})
        for i, entry in enumerate(batch):
            if entry.claim:
                own = set(entry.claim)
                results = {key: claims.results[key] for key in own & claims.results.keys()}
                outcomes[i] = Claims(results, own & claims.claimed_by_others)

    async def claimed(self, keys: Collection[str], *, by_others: bool = False) -> set[str]:
        """The keys that a process is requesting live; `by_others`: not this process."""
        return await asyncio.to_thread(self._read_claimed, keys, by_others=by_others)

    def _read_claimed(self, keys: Collection[str], *, by_others: bool) -> set[str]:
        with reading(self._engine) as session:
            return self._claims.claimed(session, keys, by_others=by_others)

    def free_for_batch(self, session: Session, keys: Collection[str]) -> set[str]:
        """The keys without a result that no process or batch is requesting.

        They stay free until the write transaction of `session` ends.
        """
        return self._claims.free_for_batch(session, keys)

    def _read_new_texts(self, session: Session, batch: list[_Entry]) -> None:
        """Read the texts that other processes have stored for the prompt versions in `batch`.

        The database has one writer at a time, so they stay current until this transaction commits.
        """
        for version_id, accepted_texts in {
            entry.generation.prompt_version_id: entry.accepted_texts
            for entry in batch
            if entry.generation is not None and entry.accepted_texts is not None
        }.items():
            assert version_id is not None
            newest = self._newest_known[version_id]
            rows = session.connection().execute(
                _NEW_TEXTS, {"newest": newest, "version_id": version_id}
            )
            for label, kind, parsed in rows:
                accepted_texts.add(label, kind, texts_of(kind, parsed))

    def _add_own_texts(self, batch: list[_Entry], rows: list[_Outcome]) -> None:
        """Index the committed texts of this process, so that they are not read again."""
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
        """The run (None: a single request) that produced the result of each key."""
        return await asyncio.to_thread(self._owners, keys)

    def _owners(self, keys: Collection[str]) -> dict[str, int | None]:
        with reading(self._engine) as session:
            return {
                key: run_id
                for chunk in chunks(keys)
                for key, run_id in session.exec(
                    select(Generation.dedupe_key, Generation.run_id).where(
                        col(Generation.dedupe_key).in_(chunk), col(Generation.status).in_(RESULTS)
                    )
                )
                if key
            }

    async def in_batches(self, keys: Collection[str]) -> dict[str, tuple[int, int]]:
        """For each key that is pending in a batch: the ids of the batch and its run."""
        return await asyncio.to_thread(self._in_batches, keys)

    def _in_batches(self, keys: Collection[str]) -> dict[str, tuple[int, int]]:
        with reading(self._engine) as session:
            return {
                key: (batch_id, run_id)
                for chunk in chunks(keys)
                for key, batch_id, run_id in session.exec(
                    select(BatchRequest.dedupe_key, BatchRequest.batch_id, Batch.run_id)
                    .join(Batch, col(Batch.id) == col(BatchRequest.batch_id))
                    .where(col(BatchRequest.dedupe_key).in_(chunk))
                )
            }

    async def open_batches(self, ids: Collection[int]) -> set[int]:
        """The batches among `ids` that have not ended."""
        return await asyncio.to_thread(self._open_batches, ids)

    def _open_batches(self, ids: Collection[int]) -> set[int]:
        open_ids = select(Batch.id).where(col(Batch.id).in_(ids), col(Batch.ended_at).is_(None))
        with reading(self._engine) as session:
            return {batch_id for batch_id in session.exec(open_ids) if batch_id is not None}

    async def accepted_texts(self, prompt_version_id: int) -> AcceptedTextIndex:
        """The accepted texts of a prompt version with their labels."""
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


# A prebuilt Core statement: it runs in every transaction and mostly returns nothing.
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
    """The generation. Raises NotFound."""
    generation = session.get(Generation, generation_id)
    if generation is None:
        raise NoSuch(f"generation {generation_id}", "texts list", "/v1/generations")
    return generation


def _findings(generation: GenerationFields) -> Iterator[tuple[int, str, str]]:
    """The rules that an answer of a run violated or was flagged by, each once."""
    if generation.run_id is None or generation.raw_reply is None:
        return
    for verdict, lines in (("problem", generation.problems), ("flag", generation.flags)):
        for rule in dict.fromkeys(line.partition(":")[0] for line in lines):
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


def _incremented(name: str, value: float) -> Any:  # noqa: ANN401 - a SQL expression
    column = getattr(Run, name)
    return (func.coalesce(column, 0.0) if name == "cost_usd" else column) + value


def _insert(session: Session, generation: GenerationFields) -> GenerationFields:
    """Insert the row, or return the existing result for its key."""
    values = {name: getattr(generation, name) for name in _COLUMNS}
    # One cached Core statement: building and compiling it takes longer than running it.
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
