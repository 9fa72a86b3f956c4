"""Asks the language model for one label's texts, judges, asks again, and stores every answer."""

import asyncio
import hashlib
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from sqlalchemy import Engine

from enrich_service.core.database import utcnow
from enrich_service.core.errors import (
    InvalidInput,
    LanguageModelError,
    ModelBusy,
    QuestionRefused,
    UnreadableImage,
)
from enrich_service.core.settings import Settings
from enrich_service.generations.models import (
    Generation,
    GenerationSource,
    GenerationStatus,
    new_generation,
)
from enrich_service.generations.store import Ledger
from enrich_service.llm.chat_model import (
    LONGEST_WAIT,
    ROOM,
    ChatModel,
    Group,
    LanguageModel,
    Question,
    Reply,
    Turnstile,
    ask_patiently,
)
from enrich_service.llm.images import SIDE, ImageFile, data_url
from enrich_service.llm.replay import ReplayModel
from enrich_service.llm.ssrf_guard import check_host
from enrich_service.prompts.models import PromptVersion
from enrich_service.prompts.templates import render, variables_of
from enrich_service.validation.answers import Checks, Judgement, Taken, correction, judge
from enrich_service.validation.rules import ENGLISH

ATTEMPTS = 3  # answers that may be bad before the label is given up
MORE_ROOM = 2  # factor on max_tokens after an answer that was cut off
KEPT_OF_BAD_ANSWER = 2000  # characters that go back to the model with the reason

_JSON = json.JSONEncoder(sort_keys=True, separators=(",", ":")).encode
_PROTOCOL = "protocol: "  # what the problem of a reply that is no answer at all begins with

Outcome = Reply | ModelBusy | QuestionRefused
Prices = Mapping[str, tuple[float, float]]  # as Settings.prices


@dataclass(frozen=True)
class Plan:
    """How labels are asked about: one prompt version, one model, one set of parameters."""

    prompt: str
    kind: str
    version: PromptVersion
    source: GenerationSource
    model: str
    parameters: Mapping[str, Any]
    variables: Mapping[str, Any] = field(default_factory=dict)  # n and language, where set

    @cached_property
    def compares(self) -> bool:
        """Whether the prompt reads the names of confusable labels."""
        return "labels" in variables_of(self.version)

    @cached_property
    def _head(self) -> str:
        """The part of each key's text that is the same for all labels."""
        kind = "replay" if self.source is GenerationSource.REPLAY else "model"
        return _JSON([self.version.content_hash, self.model, kind, dict(self.parameters)])[:-1]

    @cached_property
    def checks(self) -> Checks:
        """What the answers have to pass."""
        return Checks.of(self.version.output_schema, self.version.validators)

    @cached_property
    def unique_texts(self) -> bool:
        """Whether the prompt's rules let no two labels have the same text."""
        return any(rule.get("rule") == "duplicate" for rule in self.version.validators)

    @cached_property
    def rewrites(self) -> bool:
        """Whether the prompt works on texts that are there, such as to translate them."""
        return "texts" in variables_of(self.version)

    def item(
        self,
        name: str,
        context: str | None,
        *,
        sample_index: int = 0,
        label_id: int | None = None,
        confusable: Sequence[str] = (),
        image: ImageFile | None = None,
        texts: Sequence[str] = (),
        parent_id: int | None = None,
    ) -> "Item":
        """One label, or one image of it, to be asked about, with its dedupe key.

        `confusable`: names of the labels it is easily taken for; part of the question, and so of
        the key, where the prompt reads them. Of an image, its bytes and its size as sent are.
        `texts`: of the generation `parent_id`, to be worked on; part of the key.
        """
        parts: list[Any] = [name, context, sample_index]
        near = tuple(confusable) if self.compares else ()
        if near:
            parts.append(near)
        if self.variables:
            parts.append(dict(self.variables))
        if image is not None:
            parts.append({"image": image.hash, "side": SIDE})
        if texts:
            parts.append({"texts": list(texts)})
        key = hashlib.sha256(f"{self._head},{_JSON(parts)[1:]}".encode()).hexdigest()
        return Item(
            name, context, sample_index, label_id, key, near, image, tuple(texts), parent_id
        )


@dataclass(frozen=True)
class Item:
    """One label or image, and sample; `key` is the same wherever and whenever the same is asked."""

    name: str
    context: str | None
    sample_index: int
    label_id: int | None
    key: str
    confusable: tuple[str, ...] = ()
    image: ImageFile | None = None
    texts: tuple[str, ...] = ()
    parent_id: int | None = None


@dataclass(frozen=True)
class Turn:
    """One attempt at an answer: what is asked, after what came of the attempts before it."""

    number: int  # from 1 to ATTEMPTS
    parameters: Mapping[str, Any]
    bad: str = ""  # an answer that could not be used, and why
    wrong: tuple[str, ...] = ()

    def after(self, answer: Generation) -> "Turn":
        """The next attempt, after an answer that could not be used."""
        number = min(self.number + 1, ATTEMPTS)
        if answer.finish_reason == "length":
            name = next((n for n in self.parameters if n.startswith("max_")), "max_tokens")
            room = MORE_ROOM * int(self.parameters.get(name, ROOM))
            return Turn(number, {**self.parameters, name: room}, self.bad, self.wrong)
        if answer.problems[0].startswith(_PROTOCOL):
            return replace(self, number=number)
        bad = (answer.raw_reply or "")[:KEPT_OF_BAD_ANSWER]
        return Turn(number, self.parameters, bad, tuple(answer.problems))


def open_model(settings: Settings) -> LanguageModel:
    """The language model that the settings name.

    Raises:
        LanguageModelError: nothing is set.
        InvalidInput: the address or the replay file cannot be used.
    """
    scheme, _, path = settings.llm_url.partition(":")
    if scheme == "replay":
        return ReplayModel(Path(path))
    key = settings.llm_api_key.get_secret_value() if settings.llm_api_key else None
    if not key and settings.llm_url == Settings.model_fields["llm_url"].default:
        raise LanguageModelError(
            "no language model is set: give OPENAI_API_KEY, and OPENAI_BASE_URL for another "
            "server than OpenAI's (a local one such as http://127.0.0.1:8080/v1 needs no key, "
            "replay:FILE.jsonl answers from a file)"
        )
    if key and not (key.isascii() and key.isprintable()):  # it would break the HTTP header
        raise InvalidInput("OPENAI_API_KEY holds characters that no key has: copy it once more")
    check_host(settings.llm_url, settings.llm_hosts)
    return ChatModel(settings.llm_url, key, settings.llm_timeout_seconds)


@dataclass
class _Asked:
    task: asyncio.Task[Generation]
    waiting: int = 0


@dataclass
class Enricher:
    """Asks each question once, however many wait for its answer."""

    engine: Engine
    settings: Settings
    ledger: Ledger = field(init=False)
    turnstile: Turnstile = field(init=False)

    def __post_init__(self) -> None:
        self.ledger = Ledger(
            self.engine,
            lambda: len(self._asked),
            lease_seconds=self.settings.run_lease_seconds,
        )
        self.turnstile = Turnstile(
            self.settings.llm_concurrency,
            calls_per_minute=self.settings.llm_calls_per_minute,
            tokens_per_minute=self.settings.llm_tokens_per_minute,
        )
        self._model: LanguageModel | None = None
        self._opening = threading.Lock()  # routes ask for the model from several threads
        self._asked: dict[str, _Asked] = {}
        self._taken: dict[int, asyncio.Task[Taken]] = {}

    @property
    def model(self) -> LanguageModel:
        """The language model, opened when first needed (see `open_model` for its errors)."""
        with self._opening:
            if self._model is None:
                self._model = open_model(self.settings)
            return self._model

    async def aclose(self) -> None:
        """Stop asking and let go of the connections."""
        tasks = [asked.task for asked in self._asked.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.ledger.aclose()
        if self._model is not None:
            await self._model.aclose()

    async def answer(
        self,
        plan: Plan,
        item: Item,
        *,
        urgent: bool,
        tries: int,
        run_id: int | None = None,
        note: Callable[[Generation], None] = lambda _: None,
        group: Group | None = None,
    ) -> Generation:
        """The result for `item`, or a `failed` generation where there was no answer.

        Whoever asks what is being asked already shares its answer. `note` is told of every answer
        that the one who asked first has paid for, so of the bad ones too, before it is stored and
        before another call of the `group` is let in.

        Raises:
            ClaimedElsewhere: another process is asking it; it may be asked for again later.
            ModelBusy: the server wants to be left alone for longer than `LONGEST_WAIT`.
            LanguageModelError: no question will be answered before something is mended.
        """
        asked = self._asked.get(item.key)
        if asked is None:
            task = asyncio.create_task(self._answer(plan, item, urgent, tries, run_id, note, group))
            asked = self._asked[item.key] = _Asked(task)
            task.add_done_callback(lambda done: self._forget(item.key, done))
        elif urgent:  # it may have waited behind a whole run until now
            self.turnstile.hurry(item.key)
        asked.waiting += 1
        try:
            return await asyncio.shield(asked.task)
        finally:
            asked.waiting -= 1
            if not asked.task.done():
                if asked.waiting:  # it may belong to a run that lets nothing in any more
                    self.turnstile.hurry(item.key)
                else:
                    asked.task.cancel()

    async def try_out(
        self, plan: Plan, item: Item, taken: Taken, *, tries: int
    ) -> tuple[Reply, Judgement]:
        """The first answer for `item` and what is wrong with it; nothing is stored.

        Raises:
            LanguageModelError: there was no answer.
        """
        question = self.question(plan, item, Turn(1, plan.parameters))
        return await ask_patiently(
            self.model,
            question,
            self.turnstile,
            urgent=True,
            tries=tries,
            judge=lambda reply: (reply, self._judge(plan, item, reply, taken)),
        )

    def _forget(self, key: str, task: asyncio.Task[Generation]) -> None:
        del self._asked[key]
        self.ledger.release(key)
        self.turnstile.forget(key)
        if not task.cancelled():
            task.exception()  # seen: whoever waited has it, and perhaps none waits any more

    async def taken_by(self, plan: Plan) -> Taken:
        """What labels have been given by the prompt version of `plan`, read once."""
        version_id = plan.version.id
        assert version_id is not None
        reading = self._taken.get(version_id)
        if reading is None or (reading.done() and reading.exception() is not None):
            reading = self._taken[version_id] = asyncio.create_task(self.ledger.taken(version_id))
        return await asyncio.shield(reading)

    async def _answer(
        self,
        plan: Plan,
        item: Item,
        urgent: bool,
        tries: int,
        run_id: int | None,
        note: Callable[[Generation], None],
        group: Group | None,
    ) -> Generation:
        known = await self.ledger.claim(item.key)
        if known is not None:
            return known
        taken = await self.taken_by(plan)
        turn, kept = Turn(1, plan.parameters), False
        picture = unreadable = None
        if item.image is not None:
            try:
                picture = await asyncio.to_thread(data_url, item.image)
            except UnreadableImage as error:
                unreadable = QuestionRefused(str(error), calls=0)
        while True:
            question = self.question(plan, item, turn, picture)
            judged = partial(self.noted, plan, item, turn, question, taken=taken, run_id=run_id)
            noted = partial(judged, note=note)
            outcome: Outcome
            try:
                if unreadable is not None:
                    raise unreadable
                outcome, generation = await ask_patiently(
                    self.model,
                    question,
                    self.turnstile,
                    urgent=urgent,
                    tries=tries,
                    judge=partial(_with_reply, noted),
                    keeps=lambda both: _is_asked_again(both[1]),
                    group=group,
                    kept=kept,
                )
                kept = _is_asked_again(generation)
            except ModelBusy as busy:
                if busy.unreachable:
                    raise LanguageModelError(str(busy)) from None
                if busy.retry_after is not None and busy.retry_after > LONGEST_WAIT:
                    raise
                outcome, generation, kept = busy, noted(busy), False
            except QuestionRefused as refused:
                outcome, generation, kept = refused, noted(refused), False
            stored = await self.stored(plan, generation, partial(judged, outcome), taken)
            if not _is_asked_again(stored):
                return stored
            turn = turn.after(stored)

    async def stored(
        self,
        plan: Plan,
        generation: Generation,
        judged_again: Callable[[], Generation],
        taken: Taken,
        batch_id: int | None = None,
    ) -> Generation:
        """The generation as it is stored: `judged_again` where its text is another label's by now.

        Another process may have stored the same text after it was judged here.
        """
        accepted_texts = taken if plan.unique_texts else None
        stored = await self.ledger.store(generation, batch_id, accepted_texts=accepted_texts)
        if stored is None:
            stored = await self.ledger.store(
                judged_again(), batch_id, accepted_texts=accepted_texts
            )
        assert stored is not None, "an answer with another label's text was accepted twice"
        return stored

    def question(self, plan: Plan, item: Item, turn: Turn, picture: str | None = None) -> Question:
        """What is asked about `item` in one attempt. `picture`: its image as a data URL."""
        return Question(
            label=item.image.name if item.image else item.name,
            prompt=plan.prompt,
            model=plan.model,
            messages=_messages(plan, item, turn.bad, turn.wrong, picture),
            parameters=dict(turn.parameters),
            schema=plan.version.output_schema,
            sample_index=item.sample_index,
            key=item.key,
        )

    def noted(
        self,
        plan: Plan,
        item: Item,
        turn: Turn,
        question: Question,
        outcome: Outcome,
        *,
        taken: Taken,
        run_id: int | None,
        note: Callable[[Generation], None] = lambda _: None,
    ) -> Generation:
        """What came of `question`, judged, to be stored; `retried` asks for the next turn.

        `note` is told before it is stored: a budget is to know at once what was spent.
        """
        status, messages = GenerationStatus.FAILED, question.messages
        if isinstance(outcome, Reply):
            found = self._judge(plan, item, outcome, taken)
            came, messages = self._came(plan, outcome, found), outcome.messages
            if found.accepted:
                status = GenerationStatus.ACCEPTED
                taken.reserve(item.name, plan.kind, found.texts)
            elif turn.number < ATTEMPTS:
                status = GenerationStatus.RETRIED
            elif outcome.problem is None:
                status = GenerationStatus.REJECTED
        else:
            came = {"problems": [str(outcome)], "flags": [], "calls": outcome.calls}
        generation = new_generation(
            source=self.model.source,
            status=status,
            kind=plan.kind,
            label_id=item.label_id,
            label_name=item.name,
            label_context=item.context,
            image=item.image.name if item.image else None,
            image_hash=item.image.hash if item.image else None,
            run_id=run_id,
            prompt_version_id=plan.version.id,
            parent_id=item.parent_id,
            dedupe_key=item.key,
            sample_index=item.sample_index,
            attempt=turn.number,
            provider=self.model.provider,
            requested_model=plan.model,
            parameters=dict(turn.parameters),
            variables=dict(plan.variables),
            messages=_kept(messages, item.image),
            created_at=utcnow(),
            **came,
        )
        note(generation)
        return generation

    def _came(self, plan: Plan, reply: Reply, found: Judgement) -> dict[str, Any]:
        """The fields of a generation that tell of an answer."""
        return {
            "raw_reply": reply.text,
            "response_format": reply.response_format,
            "latency_ms": reply.latency_ms,
            "finish_reason": reply.finish_reason,
            "resolved_model": reply.resolved_model,
            "fingerprint": reply.fingerprint,
            "response_id": reply.response_id,
            "prompt_tokens": reply.prompt_tokens,
            "completion_tokens": reply.completion_tokens,
            "calls": reply.calls,
            "cost_usd": cost_usd(self.settings.prices, (plan.model, reply.resolved_model), reply),
            "parsed": found.parsed,
            "problems": list(found.problems),
            "flags": list(found.flags),
        }

    def _judge(self, plan: Plan, item: Item, reply: Reply, taken: Taken) -> Judgement:
        if reply.problem is not None:
            return Judgement(None, (), (f"{_PROTOCOL}{reply.problem}",), ())
        return judge(
            reply,
            plan.checks,
            label=item.name,
            context=item.context,
            kind=plan.kind,
            taken=taken,
            n=plan.variables.get("n"),
            language=plan.variables.get("language", ENGLISH),
        )


def _with_reply(judge: Callable[[Outcome], Generation], reply: Reply) -> tuple[Outcome, Generation]:
    return reply, judge(reply)


def _is_asked_again(answer: Generation) -> bool:
    return answer.status is GenerationStatus.RETRIED


def _kept(messages: Sequence[dict[str, Any]], image: ImageFile | None) -> list[dict[str, Any]]:
    """The messages as they are stored: an image by its hash, its bytes stay in its file."""
    if image is None:
        return list(messages)
    shown = {"type": "image_url", "image_url": {"url": f"sha256:{image.hash}"}}
    return [
        message
        if isinstance(message["content"], str)
        else message
        | {"content": [shown if "image_url" in part else part for part in message["content"]]}
        for message in messages
    ]


def _messages(
    plan: Plan, item: Item, bad: str, problems: Sequence[str], picture: str | None = None
) -> tuple[dict[str, Any], ...]:
    """The prompt for a label, and after a bad answer that answer and what was wrong with it.

    `picture`: an image to be shown with it, as a data URL.
    """
    about = {
        "label": item.name,
        "context": item.context,
        "labels": item.confusable,
        "texts": item.texts,
        "problems": tuple(problems),
    }
    text = render(plan.version, {**about, **plan.variables})
    asked = text.user
    if problems and not bad:  # many chat templates allow no two user messages in a row
        asked += "\n\n" + correction(problems)
    content: str | list[dict[str, Any]] = asked
    if picture is not None:
        content = [
            {"type": "text", "text": asked},
            {"type": "image_url", "image_url": {"url": picture}},
        ]
    messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
    if text.system:
        messages.insert(0, {"role": "system", "content": text.system})
    if problems and bad:
        messages.append({"role": "assistant", "content": bad})
        messages.append({"role": "user", "content": correction(problems)})
    return tuple(messages)


def cost_usd(prices: Prices, models: Sequence[str | None], used: Reply) -> float | None:
    """What a reply cost; None where neither model name has a price."""
    price = next((prices[model] for model in models if model and model in prices), None)
    if price is None or (used.prompt_tokens is None and used.completion_tokens is None):
        return None
    full = price[0] * (used.prompt_tokens or 0) + price[1] * (used.completion_tokens or 0)
    return used.price_share * full / 1_000_000
