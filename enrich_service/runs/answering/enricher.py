"""Sends requests about labels to the language model and stores the outcomes."""

import asyncio
import threading
from collections.abc import Callable, Iterable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from functools import partial

from sqlalchemy import Engine

from enrich_service.core.errors import (
    LanguageModelError,
    ModelBusy,
    RequestRejected,
    UnreadableImage,
)
from enrich_service.core.settings import Settings
from enrich_service.generations.claims import ClaimedByOther
from enrich_service.generations.models import GenerationFields, GenerationSource, GenerationStatus
from enrich_service.generations.store import GenerationStore
from enrich_service.llm.images import data_url
from enrich_service.llm.open_model import open_model
from enrich_service.llm.protocol import ChatRequest, LanguageModel, Reply
from enrich_service.llm.rate_limiter import CallGroup, PriorityRateLimiter, Slot
from enrich_service.llm.retry import MAX_RETRY_AFTER_S, send_with_retries
from enrich_service.runs.answering.attempt import Attempt, build_request
from enrich_service.runs.answering.build_generation import (
    BuildContext,
    Outcome,
    build_generation,
    judge_reply,
)
from enrich_service.runs.plan import Item, Plan
from enrich_service.validation.accepted_texts import AcceptedTextIndex
from enrich_service.validation.judge import Judgement


def _ignore(_: GenerationFields) -> None:
    pass


@dataclass(frozen=True)
class Caller:
    """Who requests an answer: priority, number of tries, and budget.

    `on_generation` is called for every generation that this caller pays for, including rejected
    ones, before it is stored and before the `group` may start another call, so that budgets are
    exact.
    """

    urgent: bool
    tries: int  # calls for one reply, in case of temporary server errors
    run_id: int | None = None
    on_generation: Callable[[GenerationFields], None] = _ignore
    group: CallGroup | None = None


@dataclass
class _Pending:
    task: asyncio.Task[GenerationFields]
    waiting: int = 0  # number of callers


@dataclass
class Enricher:
    """Sends each request once, even if several callers wait for its answer."""

    engine: Engine
    settings: Settings
    store: GenerationStore = field(init=False)
    limiter: PriorityRateLimiter = field(init=False)

    def __post_init__(self) -> None:
        self.store = GenerationStore(
            self.engine,
            lambda: len(self._pending),
            lease_seconds=self.settings.run_lease_seconds,
        )
        self.limiter = PriorityRateLimiter(
            self.settings.llm_concurrency,
            calls_per_minute=self.settings.llm_calls_per_minute,
            tokens_per_minute=self.settings.llm_tokens_per_minute,
        )
        self._model: LanguageModel | None = None
        self._opening = threading.Lock()  # routes open the model from several threads
        self._pending: dict[str, _Pending] = {}
        self._accepted_texts: dict[int, asyncio.Task[AcceptedTextIndex]] = {}

    @property
    def model(self) -> LanguageModel:
        """The language model, opened at first use (see `open_model` for its errors)."""
        with self._opening:
            if self._model is None:
                self._model = open_model(self.settings)
            return self._model

    @property
    def source(self) -> GenerationSource:
        """The source of the language model's generations."""
        return GenerationSource(self.model.source)

    async def aclose(self) -> None:
        """Cancel pending requests and close connections."""
        tasks = [pending.task for pending in self._pending.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.store.aclose()
        if self._model is not None:
            await self._model.aclose()

    async def answer(self, plan: Plan, item: Item, caller: Caller) -> GenerationFields:
        """The result for `item`, or a `failed` generation if there was no answer.

        A caller of a pending request shares its answer.

        Raises:
            ClaimedByOther: another process or a batch is requesting it; try again later.
            ModelBusy: the server requests a wait of more than `MAX_RETRY_AFTER_S`.
            LanguageModelError: an error that affects all requests, for example a wrong API key.
        """
        pending = self._pending.get(item.key)
        if pending is None:
            task = asyncio.create_task(self._answer(plan, item, caller))
            pending = self._pending[item.key] = _Pending(task)
            task.add_done_callback(lambda done: self._forget(item.key, done))
        elif caller.urgent:  # the request may be queued behind a whole run
            self.limiter.prioritise(item.key)
        pending.waiting += 1
        try:
            return await asyncio.shield(pending.task)
        finally:
            pending.waiting -= 1
            if not pending.task.done():
                if pending.waiting:  # it may be queued for a run that has stopped
                    self.limiter.prioritise(item.key)
                else:
                    pending.task.cancel()

    def _forget(self, key: str, task: asyncio.Task[GenerationFields]) -> None:
        del self._pending[key]
        self.store.release(key)
        self.limiter.forget(key)
        if not task.cancelled():
            task.exception()  # retrieved, to avoid a warning if no caller waits any more

    async def _answer(self, plan: Plan, item: Item, caller: Caller) -> GenerationFields:
        if not self.store.has_claimed(item.key):
            claims = await self.store.claim([item.key])
            if item.key in claims.results:
                return claims.results[item.key]
            if item.key in claims.claimed_by_others:
                raise ClaimedByOther(item.name)
        context = await self.context(plan, caller.run_id)
        image_url, unreadable = await _image_url(item)
        attempt, slot_kept = Attempt(1, plan.parameters), False
        while True:
            request = build_request(plan, item, attempt, image_url)
            build = partial(build_generation, context, item, attempt, request)
            if unreadable is not None:
                return await self.add(context, build, unreadable, build(unreadable))
            async with self._slot(request, caller, slot_kept=slot_kept) as slot:
                outcome = await self._send(request, slot, caller.tries)
                generation = build(outcome)
                caller.on_generation(generation)
                slot.keep = slot_kept = needs_retry(generation)
            stored = await self.add(context, build, outcome, generation)
            if not needs_retry(stored):
                return stored
            attempt = attempt.after(stored)

    def _slot(
        self, request: ChatRequest, caller: Caller, *, slot_kept: bool = False
    ) -> AbstractAsyncContextManager[Slot]:
        return self.limiter.slot(
            urgent=caller.urgent,
            tokens=sum(request.token_limits()),
            key=request.key,
            group=caller.group,
            kept=slot_kept,
        )

    async def _send(self, request: ChatRequest, slot: Slot, tries: int) -> Outcome:
        """The reply, or the error that affects this request alone; other errors are raised."""
        try:
            return await send_with_retries(self.model, request, slot, tries=tries)
        except ModelBusy as busy:
            if busy.unreachable:
                raise LanguageModelError(str(busy)) from None
            if busy.retry_after is not None and busy.retry_after > MAX_RETRY_AFTER_S:
                raise
            return busy
        except RequestRejected as rejection:
            return rejection

    async def add(
        self,
        context: BuildContext,
        build: Callable[[Outcome], GenerationFields],
        outcome: Outcome,
        generation: GenerationFields,
        batch_id: int | None = None,
    ) -> GenerationFields:
        """Store a generation; rebuild it if its text has been accepted for another label meanwhile.

        Another process may have stored the same text after this text was checked.
        """
        accepted_texts = context.accepted_texts if context.plan.unique_texts else None
        return await self.store.add(
            generation, batch_id, accepted_texts=accepted_texts, rebuild=partial(build, outcome)
        )

    def release(self, keys: Iterable[str]) -> None:
        """Release claims on keys that are not being requested, for other processes."""
        self.store.release(*(key for key in keys if key not in self._pending))

    async def try_out(
        self, plan: Plan, item: Item, accepted_texts: AcceptedTextIndex, *, tries: int
    ) -> tuple[Reply, Judgement]:
        """The first answer for `item` with its judgement; nothing is stored.

        Raises:
            LanguageModelError: there was no answer.
        """
        request = build_request(plan, item, Attempt(1, plan.parameters))
        async with self._slot(request, Caller(urgent=True, tries=tries)) as slot:
            reply = await send_with_retries(self.model, request, slot, tries=tries)
        return reply, judge_reply(plan, item, reply, accepted_texts)

    async def context(self, plan: Plan, run_id: int | None) -> BuildContext:
        """The context of all generations of `plan`."""
        accepted_texts = await self.accepted_texts(plan)
        prices, provider = self.settings.prices, self.model.provider
        return BuildContext(plan, accepted_texts, provider, prices, run_id)

    async def accepted_texts(self, plan: Plan) -> AcceptedTextIndex:
        """The accepted texts of the plan's prompt version by label, read once."""
        version_id = plan.version.id
        assert version_id is not None
        index_task = self._accepted_texts.get(version_id)
        if index_task is None or (index_task.done() and index_task.exception() is not None):
            index_task = asyncio.create_task(self.store.accepted_texts(version_id))
            self._accepted_texts[version_id] = index_task
        return await asyncio.shield(index_task)


async def _image_url(item: Item) -> tuple[str | None, RequestRejected | None]:
    """The image of an item as a data URL, if any, or the reason why it cannot be read."""
    if item.image is None:
        return None, None
    try:
        return await asyncio.to_thread(data_url, item.image), None
    except UnreadableImage as error:
        return None, RequestRejected(str(error), calls=0)


def needs_retry(answer: GenerationFields) -> bool:
    """Whether the answer was rejected and another attempt follows."""
    return answer.status is GenerationStatus.RETRIED
