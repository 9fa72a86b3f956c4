"""Runs that ask by batch: a file of questions, a file of answers within a day, half the price.

Notable:
- The tables `batch` and `batch_request` are the truth. They are written before anything is sent,
  and a request leaves them in the transaction that stores its answer: whenever the process is
  killed, nothing is sent twice and no answer is counted twice. What the provider got and we were
  not told of is found again there, by the name of the file.
- An answer is judged and stored as a live one is (`Enricher.noted`). What is to be asked again
  goes into the next batch.
- The first label is asked live, where the server has not answered such a question yet: a wrong
  key, model or parameter is told at once and not after a day, and so is the response format. Later
  batches, of another process too, are asked as the ones before.
- What was sent is paid for, so it is looked after whatever became of the run. A cancelled run
  cancels its batches, and takes in what they had answered by then.
- What does not fit into the provider's queue is sent again, one batch at a time, smaller ones where
  it was the only one.
- With a budget one batch is under way at a time, and no more is sent than fits at the very worst.
"""

import asyncio
import secrets
import tempfile
import time
from collections import Counter, defaultdict, deque
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Mapping
from contextlib import aclosing, closing
from dataclasses import dataclass, field
from functools import partial
from typing import IO, Any, Final

from openai.types import Batch as RemoteBatch
from sqlalchemy import Engine
from sqlmodel import col, delete, or_, select, update

from enrich_service.core.database import reading, utcnow, writing
from enrich_service.core.errors import LanguageModelError, ModelBusy, QuestionRefused, UserError
from enrich_service.generations.models import (
    Batch,
    BatchRequest,
    Generation,
    GenerationStatus,
    Run,
    RunState,
)
from enrich_service.generations.store import ClaimedElsewhere
from enrich_service.labels.models import Label
from enrich_service.llm.batch_api import (
    ENDED,
    PRICE_SHARE,
    QUEUE_FULL,
    STOPPABLE,
    BatchApi,
    BatchUnknown,
)
from enrich_service.llm.chat_model import ChatModel, Question
from enrich_service.runs.active_run import Work
from enrich_service.runs.enricher import Enricher, Item, Plan, Turn

MOST_REQUESTS: Final = 50_000  # in a file, as OpenAI allows
MOST_BYTES: Final = 200_000_000
PAGE: Final = 500  # labels looked up at a time
TAKEN_IN: Final = 100  # answers judged at a time
TRIES: Final = 3  # of one call, and of one question while the server has passing faults
SHORTEST_WAIT: Final = 0.5  # seconds between looks at a batch, at first
LONGEST_WAIT: Final = 60.0
WAIT_SHARE: Final = 0.05  # of a batch's age, between the two
FULL_WAIT: Final = 60.0  # seconds before something is sent again into a full queue
TICK: Final = 0.2  # seconds between looks at what became of the run


@dataclass
class _Part:
    """A file of questions as it grows."""

    response_format: str
    length_parameter: str
    file: IO[bytes] = field(default_factory=tempfile.TemporaryFile)
    items: list[Item] = field(default_factory=list)
    size: int = 0

    def add(self, item: Item, line: bytes) -> None:
        self.file.write(line)
        self.items.append(item)
        self.size += len(line)


class BatchRun:
    """The batches of one run in this process, from the first question to the last answer.

    `missing`: the run's items that have no result, some at a time. `most_requests`, `most_bytes`:
    of one file.
    """

    def __init__(
        self,
        engine: Engine,
        enricher: Enricher,
        work: Work,
        plan: Plan,
        missing: AsyncIterator[list[Item]],
        *,
        most_requests: int | None = None,
        most_bytes: int | None = None,
    ) -> None:
        assert work.run.id is not None
        self._engine, self._enricher, self._work, self._plan = engine, enricher, work, plan
        self._run_id = work.run.id
        self._missing = missing
        self._most_requests = most_requests or MOST_REQUESTS
        self._most_bytes = most_bytes or MOST_BYTES
        self._again: deque[Item] = deque()  # to be asked in the next batch
        self._tries: Counter[str] = Counter()  # by key, that ended in a passing fault
        self._due: dict[int, float] = {}  # when to look at a batch, monotonic
        self._one_at_a_time = work.run.budget_usd is not None or work.run.budget_tokens is not None
        self._not_before = 0.0  # when to send the next batch, monotonic

    async def ask_all(self) -> None:
        """Ask what is missing and take in the answers, until there is nothing left to wait for.

        Where the run is not `running`, only what is under way is taken in.

        Raises:
            UserError: nothing can be sent before something is mended.
        """
        while True:
            for batch in await asyncio.to_thread(self._under_way):
                if self._due.get(batch.id or 0, 0.0) <= time.monotonic():
                    await self._look_at(batch)
            batches = await asyncio.to_thread(self._under_way)
            if self._asks and self._may_send(batches):
                await self._send()
                batches = await asyncio.to_thread(self._under_way)
            if self._work.reason and self._work.pause:
                return  # nobody waits for what a person has to mend first
            if not batches and not (self._asks and (self._again or self._work.elsewhere)):
                return
            if not await self._wait(batches):
                return

    @property
    def _asks(self) -> bool:
        return self._work.state is RunState.RUNNING and not self._work.stop.is_set()

    def _may_send(self, under_way: Collection[Batch]) -> bool:
        if self._one_at_a_time and under_way:
            return False
        at_rest = all(batch.remote_id for batch in under_way)
        return at_rest and self._not_before <= time.monotonic()

    def _api(self) -> BatchApi:
        model = self._enricher.model
        if not isinstance(model, ChatModel):
            raise LanguageModelError(f"{model.provider} takes no batches")
        return BatchApi(model)

    async def _wait(self, batches: Collection[Batch]) -> bool:
        """Wait until a batch is to be looked at; False where the run is to be let go of."""
        seen = self._work.state
        until = min(
            (self._due[batch.id] for batch in batches if batch.id in self._due),
            default=time.monotonic() + SHORTEST_WAIT,
        )
        while self._work.state is seen and (left := until - time.monotonic()) > 0:
            await asyncio.sleep(min(TICK, left))
        if self._work.state is not seen:
            self._due.clear()  # a cancelled run cancels its batches now
        # A run that is queued again begins anew.
        return self._work.state not in (None, RunState.QUEUED)

    # ------------------------------------------------------------------------------------ sending

    async def _send(self) -> None:
        """Send what is missing, in as many batches as it takes and as the budget allows."""
        api, part = self._api(), None
        most_usd, most_tokens = 0.0, 0
        self._again.extend(await self._work.elsewhere.give_back())
        async with aclosing(self._to_ask()) as to_ask:
            async for item, turn in to_ask:
                question = self._enricher.question(self._plan, item, turn)
                fmt = api.model.format_for(question)
                if fmt is None and (earlier := await asyncio.to_thread(self._earlier_batch)):
                    fmt = earlier.response_format
                    api.model.remember(question, fmt, earlier.length_parameter)
                if fmt is None:
                    await self._ask_live(item)
                    if not self._asks:
                        return
                    continue
                usd, tokens = self._most(question)
                if not self._work.within_budget(usd=most_usd + usd, tokens=most_tokens + tokens):
                    self._again.appendleft(item)
                    if not most_tokens:
                        self._halt_for_budget()
                    break
                most_usd, most_tokens = most_usd + usd, most_tokens + tokens
                line = api.line(question, fmt)
                if part is not None and not self._takes(part, line):
                    await self._send_part(api, part)
                    part = None
                    if self._one_at_a_time or not self._asks:
                        self._again.appendleft(item)
                        return
                part = part or _Part(fmt, api.model.length_parameter_for(question))
                part.add(item, line)
        if part is not None and self._asks:
            await self._send_part(api, part)

    def _most(self, question: Question) -> tuple[float, int]:
        """What a question may cost at the very worst, in dollars and in tokens."""
        price = self._enricher.settings.prices.get(self._plan.model, (0.0, 0.0))
        tokens = question.most_tokens()
        full = sum(p * n for p, n in zip(price, tokens, strict=True)) / 1_000_000
        return PRICE_SHARE * full, sum(tokens)

    def _halt_for_budget(self) -> None:
        spent = f"{self._work.spent_tokens} tokens, ${self._work.spent_usd:.4f} are spent"
        self._work.halt(
            "what is left of the run's budget may not be enough for one more question "
            f"({spent}): raise it and resume",
            pause=True,
        )

    def _takes(self, part: _Part, line: bytes) -> bool:
        return len(part.items) < self._most_requests and part.size + len(line) <= self._most_bytes

    async def _to_ask(self) -> AsyncGenerator[tuple[Item, Turn]]:
        """What has no result and is not under way, each with the attempt that is its next.

        What is not taken of it, once it is closed, comes with the next call.
        """
        while page := await self._page():
            keys = [item.key for item in page]
            owners = await self._enricher.ledger.owners(keys)
            free = {item.key for item in await self._work.elsewhere.keep(page)}
            turns = await asyncio.to_thread(self._turns, keys)
            others = sum(owners.get(key, self._run_id) != self._run_id for key in keys)
            if others:
                await self._enricher.ledger.count(self._run_id, cached=others)
            left = deque(page)
            try:
                while left:
                    item = left.popleft()
                    if item.key in free and item.key not in owners:
                        yield item, turns[item.key]
            finally:
                self._again.extendleft(reversed(left))

    async def _page(self) -> list[Item]:
        page: list[Item] = []
        while self._again and len(page) < PAGE:
            page.append(self._again.popleft())
        while len(page) < PAGE:
            try:
                page.extend(await anext(self._missing))
            except StopAsyncIteration:
                break
        return page

    async def _ask_live(self, item: Item) -> None:
        """Ask one question of the server that has not answered such a one yet."""
        try:
            generation = await self._enricher.answer(
                self._plan,
                item,
                urgent=False,
                tries=TRIES,
                run_id=self._run_id,
                note=self._work.note,
            )
        except ClaimedElsewhere:
            self._work.elsewhere.add_claimed(item)
            return
        if generation.run_id != self._run_id:
            await self._enricher.ledger.count(self._run_id, cached=1)
            return
        if self._work.failed_in_row == TRIES:
            self._work.halt(
                f"{TRIES} labels in a row got no answer, the last because {generation.problems[0]}"
            )

    async def _send_part(self, api: BatchApi, part: _Part) -> None:
        with closing(part.file):
            batch = await asyncio.to_thread(self._prepare, part)
            for attempt in range(1, TRIES + 1):
                try:
                    await self._submit(api, batch, part.file, known=attempt == 1)
                    return
                except ModelBusy as busy:
                    if attempt == TRIES:
                        raise
                    await asyncio.sleep(busy.retry_after or 2.0**attempt)
                except LanguageModelError:
                    await asyncio.to_thread(self._give_up, batch)
                    raise

    def _prepare(self, part: _Part) -> Batch:
        """Write down what is about to be sent."""
        batch = Batch(
            run_id=self._run_id,
            name=f"enrich-run-{self._run_id}-{secrets.token_hex(8)}.jsonl",
            provider=self._enricher.model.provider,
            response_format=part.response_format,
            length_parameter=part.length_parameter,
            requests=len(part.items),
        )
        with writing(self._engine) as session:
            session.add(batch)
            session.flush()
            session.execute(
                BatchRequest.__table__.insert(),  # type: ignore[attr-defined]
                [
                    {
                        "batch_id": batch.id,
                        "dedupe_key": item.key,
                        "label_id": item.label_id,
                        "sample_index": item.sample_index,
                        "confusable": list(item.confusable),
                        "texts": list(item.texts),
                        "parent_id": item.parent_id,
                    }
                    for item in part.items
                ],
            )
        return batch

    async def _submit(
        self, api: BatchApi, batch: Batch, lines: IO[bytes] | None, *, known: bool
    ) -> None:
        """Have the batch begin at the provider, each step once.

        `lines` is None where the file is at hand no longer; `known`: nothing was sent yet.
        """
        if batch.file_id is None and not known:
            batch.file_id = await api.file_named(batch.name, batch.created_at)
        if batch.file_id is None and lines is not None:
            batch.file_id = await api.upload(batch.name, lines)
        if batch.file_id is None:
            await asyncio.to_thread(self._give_up, batch)
            return
        await self._change(batch, file_id=batch.file_id)
        remote = None if known else await api.batch_of(batch.file_id, batch.created_at)
        if remote is None and not self._asks:
            await asyncio.to_thread(self._give_up, batch)
            return
        remote = remote or await api.create(batch.file_id, batch.name)
        await self._change(batch, remote_id=remote.id, status=remote.status, error=None)

    # ---------------------------------------------------------------------------------- taking in

    async def _look_at(self, batch: Batch) -> None:
        """See how far a batch is, and take it in where it has ended.

        What goes wrong is written down, and looked at again later; where it does not pass by
        itself the run pauses.
        """
        assert batch.id is not None
        try:
            await self._follow(batch)
        except UserError as error:
            if isinstance(error, BatchUnknown) and self._work.state is RunState.CANCELLED:
                await asyncio.to_thread(self._close, batch, str(error))
                return
            await self._change(batch, error=str(error))
            if not isinstance(error, ModelBusy) and self._asks:
                self._work.halt(f"{error}; mend it and resume, or cancel the run", pause=True)
        age = (utcnow() - batch.created_at).total_seconds()
        wait = max(SHORTEST_WAIT, min(LONGEST_WAIT, WAIT_SHARE * age))
        self._due[batch.id] = time.monotonic() + wait

    async def _follow(self, batch: Batch) -> None:
        if batch.provider != self._enricher.model.provider:
            raise BatchUnknown(
                f"the batch was sent to {batch.provider}: set OPENAI_BASE_URL to it again"
            )
        api = self._api()
        if batch.remote_id is None:
            await self._submit(api, batch, None, known=False)
            return
        remote = await api.look(batch.remote_id)
        if self._work.state is RunState.CANCELLED and remote.status in STOPPABLE:
            remote = await api.cancel(batch.remote_id)
        counts = remote.request_counts
        news: dict[str, str | int | None] = {"status": remote.status, "error": None}
        if counts is not None:
            news |= {"completed": counts.completed, "failed": counts.failed}
        await self._change(batch, **news)
        if remote.status in ENDED:
            await self._take_in(api, batch, remote)

    async def _take_in(self, api: BatchApi, batch: Batch, remote: RemoteBatch) -> None:
        for file_id in filter(None, (remote.output_file_id, remote.error_file_id)):
            async with aclosing(api.lines(file_id)) as lines:
                some: dict[str, dict[str, Any]] = {}
                async for line in lines:
                    some[line["custom_id"]] = line
                    if len(some) == TAKEN_IN:
                        await self._settle_all(api, batch, some)
                        some = {}
                        if self._work.state is None:
                            return
                await self._settle_all(api, batch, some)
        if remote.status == "failed":
            errors = (remote.errors and remote.errors.data) or ()
            why = "; ".join(str(error.message) for error in errors)
            if batch.requests > 1 and any(error.code == QUEUE_FULL for error in errors):
                await self._send_less(batch, api.model.said(why))
                return
            said = f"{batch.provider} refused the batch {batch.remote_id}: {api.model.said(why)}"
            self._work.halt(f"{said}; mend it and retry the run")
            await asyncio.to_thread(self._close, batch, said)
            return
        if self._work.state is not RunState.CANCELLED:
            said = f"the batch has {remote.status} without asking it"
            while left := await asyncio.to_thread(self._requests, batch, None):
                refused = {"error": {"message": said}}
                await self._settle_all(api, batch, {item.key: refused for item in left})
        await asyncio.to_thread(self._close, batch, None)

    async def _send_less(self, batch: Batch, said: str) -> None:
        """Ask what found no room in the provider's queue once more, in smaller pieces."""
        if len(await asyncio.to_thread(self._under_way)) == 1:  # it was not for another of the run
            self._most_requests = max(1, batch.requests // 2)
            self._not_before = time.monotonic() + FULL_WAIT
        self._one_at_a_time = True
        self._again.extend(
            await asyncio.to_thread(self._requests, batch, None, most=batch.requests)
        )
        await asyncio.to_thread(
            self._close,
            batch,
            f"{batch.provider} had no room for it ({said}): it is sent again, "
            "smaller and one batch at a time",
        )

    async def _settle_all(
        self, api: BatchApi, batch: Batch, lines: Mapping[str, Mapping[str, Any]]
    ) -> None:
        """Judge and store what some lines of a batch's files say; lines that were are passed by."""
        items = await asyncio.to_thread(self._requests, batch, list(lines))
        turns = await asyncio.to_thread(self._turns, [item.key for item in items])
        await asyncio.gather(
            *(self._settle(api, batch, item, turns[item.key], lines[item.key]) for item in items)
        )

    async def _settle(
        self, api: BatchApi, batch: Batch, item: Item, turn: Turn, line: Mapping[str, Any]
    ) -> None:
        assert batch.id is not None
        ledger, request = self._enricher.ledger, (batch.id, item.key)
        question = self._enricher.question(self._plan, item, turn)
        outcome = api.outcome(line, question, batch.response_format)
        cancelled = self._work.state is RunState.CANCELLED
        if cancelled and isinstance(outcome, QuestionRefused) and not outcome.calls:
            # It was never asked, and nobody wants it any more.
            await ledger.count(self._run_id, request=request)
            return
        if isinstance(outcome, ModelBusy):
            self._tries[item.key] += 1
            if self._tries[item.key] < TRIES:
                await ledger.count(self._run_id, request=request, calls=outcome.calls)
                self._again.append(item)
                return
        taken = await self._enricher.taken_by(self._plan)
        judged = partial(
            self._enricher.noted,
            self._plan,
            item,
            turn,
            question,
            outcome,
            taken=taken,
            run_id=self._run_id,
        )
        generation = await self._enricher.stored(
            self._plan, judged(note=self._work.note), judged, taken, batch.id
        )
        self._work.finished.append(time.monotonic())
        if generation.run_id != self._run_id:
            await ledger.count(self._run_id, cached=1)
            return
        if generation.status is GenerationStatus.RETRIED:
            self._again.append(item)

    # ------------------------------------------------------------------------------------- tables

    def _under_way(self) -> list[Batch]:
        with reading(self._engine) as session:
            return list(
                session.exec(
                    select(Batch)
                    .where(Batch.run_id == self._run_id, col(Batch.ended_at).is_(None))
                    .order_by(col(Batch.id))
                )
            )

    def _earlier_batch(self) -> Batch | None:
        """The newest batch of such questions that the server has answered, or still may."""
        with reading(self._engine) as session:
            return session.exec(
                select(Batch)
                .join(Run, col(Run.id) == col(Batch.run_id))
                .where(
                    Batch.provider == self._enricher.model.provider,
                    Run.model == self._plan.model,
                    Run.prompt_version_id == self._plan.version.id,
                    or_(col(Batch.completed) > 0, col(Batch.ended_at).is_(None)),
                )
                .order_by(col(Batch.id).desc())
                .limit(1)
            ).first()

    def _requests(
        self, batch: Batch, keys: list[str] | None, *, most: int = TAKEN_IN
    ) -> list[Item]:
        """What a batch asks still: of the keys, or else the next ones."""
        found = (
            select(BatchRequest, Label)
            .join(Label, col(Label.id) == col(BatchRequest.label_id))
            .where(BatchRequest.batch_id == batch.id)
            .limit(most)
        )
        if keys is not None:
            found = found.where(col(BatchRequest.dedupe_key).in_(keys))
        with reading(self._engine) as session:
            return [
                Item(
                    label.name,
                    label.context,
                    asked.sample_index,
                    label.id,
                    asked.dedupe_key,
                    tuple(asked.confusable),
                    texts=tuple(asked.texts),
                    parent_id=asked.parent_id,
                )
                for asked, label in session.exec(found)
            ]

    def _turns(self, keys: list[str]) -> dict[str, Turn]:
        """The next attempt at each key, after what the run has had for an answer."""
        turns: defaultdict[str, Turn] = defaultdict(lambda: Turn(1, self._plan.parameters))
        with reading(self._engine) as session:
            for bad in session.exec(
                select(Generation)
                .where(
                    col(Generation.dedupe_key).in_(keys),
                    Generation.run_id == self._run_id,
                    Generation.status == GenerationStatus.RETRIED,
                )
                .order_by(col(Generation.id))
            ):
                turns[bad.dedupe_key or ""] = turns[bad.dedupe_key or ""].after(bad)
        return turns

    async def _change(self, batch: Batch, **values: str | int | None) -> None:
        if any(getattr(batch, name) != value for name, value in values.items()):
            await asyncio.to_thread(self._write, batch, values)

    def _write(self, batch: Batch, values: Mapping[str, Any]) -> None:
        with writing(self._engine) as session:
            session.exec(update(Batch).where(col(Batch.id) == batch.id).values(values))
        for name, value in values.items():
            setattr(batch, name, value)

    def _close(self, batch: Batch, error: str | None) -> None:
        """Nothing more comes of a batch: what it asks still is not under way any longer."""
        with writing(self._engine) as session:
            session.exec(delete(BatchRequest).where(col(BatchRequest.batch_id) == batch.id))
            session.exec(
                update(Batch)
                .where(col(Batch.id) == batch.id)
                .values(ended_at=utcnow(), error=error)
            )

    def _give_up(self, batch: Batch) -> None:
        """Forget a batch that was never sent."""
        with writing(self._engine) as session:
            session.exec(delete(BatchRequest).where(col(BatchRequest.batch_id) == batch.id))
            session.exec(delete(Batch).where(col(Batch.id) == batch.id))
