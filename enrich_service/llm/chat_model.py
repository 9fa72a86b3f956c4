"""One chat model behind an OpenAI-compatible base URL.

Notable:
- `ask` sends one question once. The SDK's own retries are off, so that every call is counted and
  a long Retry-After parks the question instead of losing it; `ask_patiently` waits and repeats.
- A server that lacks json_schema is asked for json_object, then for plain text; which one it
  takes is remembered for as long as the process lives.
- The reply is handed over as it came. Whether it is any good is judged elsewhere.
"""

import asyncio
import base64
import email.utils
import json
import random
import re
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Final, Protocol, TypeVar
from urllib.parse import urlsplit

import httpx2
import openai

from enrich_service.core.database import utcnow
from enrich_service.core.errors import InvalidInput, LanguageModelError, ModelBusy, QuestionRefused
from enrich_service.core.text import without_password
from enrich_service.core.traces import model_call
from enrich_service.generations.models import GenerationSource
from enrich_service.llm.ssrf_guard import GuardedTransport

Judged = TypeVar("Judged")
FORMATS: Final = ("json_schema", "json_object", "text")
LONGEST_WAIT: Final = 120.0  # seconds of Retry-After that are waited out; longer ones are parked
FIRST_BACKOFF: Final = 0.5  # seconds, doubled on each try
LONGEST_BACKOFF: Final = 8.0
ROOM: Final = 512  # tokens of an answer, where the prompt sets no limit
CHARACTERS_A_TOKEN: Final = 4  # of English
IMAGE_TOKENS: Final = 300  # of an image of 512 pixels a side, roughly; servers count differently
MIN_SECRET_CHARS: Final = 8  # a shorter key may be a part of any word, and is never masked
RESERVED_PARAMETERS: Final = frozenset(
    {"messages", "model", "n", "response_format", "stream", "stream_options", "tools", "functions"}
)


@dataclass(frozen=True)
class Question:
    """What one call asks: the messages, and of what label and prompt they speak."""

    label: str
    prompt: str
    model: str
    messages: tuple[dict[str, Any], ...]
    parameters: Mapping[str, Any]
    schema: Mapping[str, Any]
    sample_index: int = 0
    key: str = ""  # the dedupe key

    @cached_property
    def schema_json(self) -> str:
        """The schema in one way of writing it, by which it is looked up."""
        return json.dumps(self.schema, sort_keys=True)

    def most_tokens(self) -> tuple[int, int]:
        """What the call may use at most, as servers count it: the text's size, and max_tokens."""
        room = next((v for k, v in self.parameters.items() if k.startswith("max_")), ROOM)
        parts = [part for message in self.messages for part in parts_of(message)]
        size = sum(len(json.dumps(part["text"])) for part in parts if "text" in part)
        asked = size // CHARACTERS_A_TOKEN + IMAGE_TOKENS * self.images
        return asked, room if isinstance(room, int) else ROOM

    @property
    def images(self) -> int:
        """How many images it shows."""
        parts = [part for message in self.messages for part in parts_of(message)]
        return sum("image_url" in part for part in parts)


def parts_of(message: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The parts of a message: texts, images. Most messages are one text."""
    content = message["content"]
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


@dataclass(frozen=True)
class Reply:
    """What came back, unjudged. `problem` is set where the body was no chat completion at all."""

    text: str
    messages: tuple[dict[str, Any], ...]  # as sent
    response_format: str
    latency_ms: float | None  # None: nobody waited for it
    finish_reason: str | None = None
    refusal: str | None = None
    resolved_model: str | None = None
    fingerprint: str | None = None
    response_id: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    problem: str | None = None
    calls: int = 1
    price_share: float = 1.0  # of the price by the token


class LanguageModel(Protocol):
    """Anything that answers questions: a server, or recorded replies."""

    provider: str
    source: GenerationSource

    async def ask(self, question: Question) -> Reply:
        """Ask once.

        Raises:
            ModelBusy: try again, perhaps much later.
            QuestionRefused: the server will not answer this one question.
            LanguageModelError: no question will be answered before something is mended.
        """
        ...

    async def aclose(self) -> None:
        """Let go of connections."""
        ...


def provider_of(base_url: str) -> str:
    """Scheme, host and port of `base_url`: no path, and never a password."""
    try:
        parts = urlsplit(base_url)
        port = parts.port
        httpx2.URL(base_url)
    except (ValueError, httpx2.InvalidURL):
        port, parts = None, urlsplit("")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InvalidInput(
            f"OPENAI_BASE_URL is {without_password(base_url)!r}: give an address such as "
            "http://127.0.0.1:8080/v1, or replay:FILE.jsonl"
        )
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}" + (f":{port}" if port else "")


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that the server asks to wait: `retry-after-ms`, seconds, or an HTTP date."""
    try:
        return max(0.0, float(headers["retry-after-ms"]) / 1000)
    except (KeyError, ValueError):
        pass
    value = headers.get("retry-after")
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, (email.utils.parsedate_to_datetime(value) - utcnow()).total_seconds())
    except (TypeError, ValueError):
        return None


@dataclass
class _Server:
    """What has been learned of how the server wants to be asked."""

    format: int = 0  # index into FORMATS
    confirmed: bool = False  # an answer came in this format
    length_parameter: str = "max_tokens"  # newer models demand max_completion_tokens


@dataclass
class ChatModel:
    """A server that speaks the OpenAI chat-completions protocol.

    `timeout` is in seconds and holds for one call.
    """

    base_url: str
    api_key: str | None
    timeout: float = 60.0
    source: GenerationSource = field(default=GenerationSource.MODEL, init=False)

    def __post_init__(self) -> None:
        self.provider = provider_of(self.base_url)
        self.shown = without_password(self.base_url)
        secrets = [self.api_key or ""]
        if password := urlsplit(self.base_url).password:
            sent = f"{urlsplit(self.base_url).username}:{password}"
            secrets += [password, base64.b64encode(sent.encode()).decode()]
        self._secrets = [secret for secret in secrets if len(secret) >= MIN_SECRET_CHARS]
        self.client = openai.AsyncOpenAI(
            base_url=self.base_url,
            api_key=self.api_key or "none",  # local servers ask for none, the SDK insists on one
            max_retries=0,
            http_client=httpx2.AsyncClient(
                follow_redirects=False,
                timeout=httpx2.Timeout(self.timeout, connect=min(self.timeout, 10.0)),
                transport=GuardedTransport(self.base_url),
            ),
        )
        self._endpoint = str(self.client.base_url.join("chat/completions"))
        # By model, since one base URL may stand before many, and by schema, since a server may
        # know json_schema and yet not every keyword of it.
        self._servers: dict[tuple[str, str], _Server] = {}

    async def aclose(self) -> None:
        """Close the connections."""
        await self.client.close()

    async def ask(self, question: Question) -> Reply:
        """Ask once, stepping down in response format until the server takes the question."""
        server = self._server(question)
        calls = 0
        asked = server.format
        while True:
            calls += 1
            try:
                reply = await self._send(question, asked, calls)
            except openai.APIError as error:
                if isinstance(error, openai.APIStatusError):
                    if question.images and _lacks_vision(error):
                        raise LanguageModelError(
                            f"the model {question.model!r} at {self.provider} takes no images: "
                            "name a vision model with --model or ENRICH_LLM_MODEL "
                            f"({self.said(error.body or error.message)})"
                        ) from None
                    if _wants_other_length(error) and server.length_parameter == "max_tokens":
                        server.length_parameter = "max_completion_tokens"
                        continue
                    if _rejects_format(error, server.confirmed) and asked + 1 < len(FORMATS):
                        asked += 1
                        continue
                unknown = (
                    f"{self.provider} does not know the model {question.model!r}: name another "
                    "with --model or ENRICH_LLM_MODEL, and check the path of OPENAI_BASE_URL"
                )
                raise self.explained(error, unknown, calls) from None
            if reply.problem is None:
                server.format, server.confirmed = max(asked, server.format), True
            return reply

    def _server(self, question: Question) -> _Server:
        return self._servers.setdefault((question.model, question.schema_json), _Server())

    def format_for(self, question: Question) -> str | None:
        """The response format in which the server has answered such a question; None: not yet."""
        server = self._server(question)
        return FORMATS[server.format] if server.confirmed else None

    def length_parameter_for(self, question: Question) -> str:
        """The name by which the server takes the limit of an answer's tokens."""
        return self._server(question).length_parameter

    def remember(self, question: Question, fmt: str, length_parameter: str) -> None:
        """Ask such questions as the server was asked before, by this process or another."""
        server = self._server(question)
        server.format, server.confirmed = FORMATS.index(fmt), True
        server.length_parameter = length_parameter

    def body(self, question: Question, fmt: str) -> dict[str, Any]:
        """What is sent to ask `question`, with its answer wanted in the response format `fmt`."""
        messages = [dict(message) for message in question.messages]
        body = {"model": question.model, **question.parameters}
        if "max_tokens" in body:
            body[self._server(question).length_parameter] = body.pop("max_tokens")
        match fmt:
            case "json_schema":
                body["response_format"] = {
                    "type": "json_schema",
                    "json_schema": {"name": "answer", "strict": True, "schema": question.schema},
                }
            case "json_object":
                body["response_format"] = {"type": "json_object"}
        if fmt != "json_schema":
            messages.append(
                {
                    "role": "system",
                    "content": "Answer with one JSON object and nothing else. Its JSON schema: "
                    + json.dumps(question.schema, ensure_ascii=False),
                }
            )
            messages = _one_system_message(messages)
        return {**body, "messages": messages}

    async def _send(self, question: Question, asked: int, calls: int) -> Reply:
        with model_call(self.provider, question.model) as span:
            reply = await self._post(question, asked, calls)
            span.set_attributes(
                {
                    "gen_ai.response.model": reply.resolved_model or "",
                    "gen_ai.usage.input_tokens": reply.prompt_tokens or 0,
                    "gen_ai.usage.output_tokens": reply.completion_tokens or 0,
                }
            )
            return reply

    async def _post(self, question: Question, asked: int, calls: int) -> Reply:
        body = self.body(question, FORMATS[asked])
        started = time.perf_counter()
        # Past the SDK's typed method, which takes as long again to look through the messages, and
        # with the whole address, which is parsed once less.
        try:
            async with asyncio.timeout(
                self.timeout
            ):  # of it all: some servers send blanks for ever
                response = await self.client.post(
                    self._endpoint, cast_to=httpx2.Response, body=body
                )
        except TimeoutError:
            raise self._late(calls) from None
        # JSON is UTF-8 (RFC 8259), whatever a header says of it.
        text = response.content.decode(errors="replace")
        took = (time.perf_counter() - started) * 1000
        return self.read(text, tuple(body["messages"]), FORMATS[asked], took, calls)

    def read(
        self,
        body: str,
        messages: tuple[dict[str, Any], ...],
        fmt: str,
        latency_ms: float | None,
        calls: int,
    ) -> Reply:
        """The reply in the body of an answer. What a model wrote is never changed.

        A body that is no chat completion is an error of the server, and is masked as one.
        """
        reply = read_completion(body, messages, fmt, latency_ms, calls)
        return reply if reply.problem is None else replace(reply, text=self.masked(reply.text))

    def masked(self, text: str) -> str:
        """An error `text` of the server without our secrets, which some servers repeat."""
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text

    def explained(self, error: openai.APIError, unknown: str, calls: int = 1) -> LanguageModelError:
        """The one line that says what is wrong, and whether asking again may help.

        `unknown`: what a 404 means.
        """
        if isinstance(error, openai.APITimeoutError):
            return self._late(calls)
        if isinstance(error, openai.APIConnectionError):
            cause = _root_cause(error)
            if isinstance(cause, QuestionRefused):
                return QuestionRefused(str(cause), calls=calls)
            said = " ".join(str(cause).split()) or type(cause).__name__
            return ModelBusy(
                f"cannot reach {self.shown} ({said}): "
                "check OPENAI_BASE_URL and that the server is running",
                calls=calls,
                unreachable=True,
            )
        said = self.said(error.body or error.message)
        if not isinstance(error, openai.APIStatusError):
            return LanguageModelError(f"{self.provider} answers what nobody understands ({said})")
        status = error.status_code
        if "insufficient_quota" in (error.code, error.type) or status == 402:
            return LanguageModelError(
                f"the quota at {self.provider} is used up: add credit there, then resume ({said})"
            )
        if status in (401, 403):
            remedy = (
                "OPENAI_API_KEY is wrong or not allowed to use this model"
                if self.api_key
                else "set OPENAI_API_KEY"
            )
            return LanguageModelError(f"{self.provider} refuses the key: {remedy} ({said})")
        if status == 404:
            return LanguageModelError(f"{unknown} ({said})")
        if 300 <= status < 400:
            target = self.masked(error.response.headers.get("location", "elsewhere"))
            return LanguageModelError(
                f"{self.shown} redirects to {target}: set OPENAI_BASE_URL to the final address"
            )
        return self.unanswered(status, said, calls, retry_after(error.response.headers))

    def _late(self, calls: int) -> ModelBusy:
        return ModelBusy(f"{self.provider} did not answer within {self.timeout:g} s", calls=calls)

    def unanswered(
        self, status: int, said: str, calls: int, wait: float | None = None
    ) -> ModelBusy | QuestionRefused:
        """What a status means that tells of no more than this one question."""
        line = f"{self.provider} answers {status} ({said})"
        if wait is not None and wait > LONGEST_WAIT:
            line += f" and asks to be left alone for {wait:.0f} s"
        if status in (408, 409, 429) or status >= 500:
            return ModelBusy(line, calls=calls, retry_after=wait)
        return QuestionRefused(line, calls=calls)

    def said(self, body: object) -> str:
        """The server's own words in the body of an error, on one line and without our secrets."""
        if isinstance(body, dict):
            inner = body.get("error")
            if isinstance(inner, dict):
                body = inner
            body = body.get("message") or body.get("detail") or inner or body
        return _cut(self.masked(" ".join(str(body).split())))


def _cut(words: str) -> str:
    return words if len(words) <= 200 else words[:199] + "…"


def _root_cause(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _wants_other_length(error: openai.APIStatusError) -> bool:
    return error.status_code == 400 and "max_completion_tokens" in str(error.body)


# As OpenAI, llama.cpp, vLLM and others put it. One image that is refused is not meant.
_NO_VISION = re.compile(
    r"image_url is only supported|not a multi-?modal model|\bmmproj\b|at most 0 image"
    r"|(?:images?|vision|multi-?modal)(?: inputs?| data)? (?:is|are) not (?:supported|enabled)"
    r"|not support (?:\w+ )?(?:image|vision|multi-?modal)|no (?:vision|image) (?:support|input)"
    r"|only (?:supports? )?text\b|text[- ]only|input should be 'text'",
    re.IGNORECASE,
)


def _lacks_vision(error: openai.APIStatusError) -> bool:
    """Whether the server says that the model takes no images at all."""
    return error.status_code not in (401, 403, 429) and bool(_NO_VISION.search(str(error.body)))


def _rejects_format(error: openai.APIStatusError, confirmed: bool) -> bool:
    """Whether the status means "I do not know this response_format".

    A server that has answered in the format before is believed to know it. A bare 400 says
    nothing, so the next format is tried; a bare 500 is taken for the fault that it says it is.
    """
    if confirmed or error.status_code not in (400, 415, 422, 500, 501):
        return False
    words = str(error.body).lower()
    named = any(word in words for word in ("response_format", "json_schema", "json_object"))
    return named or "grammar" in words or error.status_code in (400, 422)


def _one_system_message(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """System messages joined in front: many chat templates take one, at the start."""
    system = "\n\n".join(m["content"] for m in messages if m["role"] == "system")
    return [{"role": "system", "content": system}] + [m for m in messages if m["role"] != "system"]


def read_completion(
    body: str,
    messages: tuple[dict[str, Any], ...],
    fmt: str,
    latency_ms: float | None,
    calls: int,
) -> Reply:
    """The parts of a chat completion that are kept; a body that is none is kept whole."""
    try:
        completion = json.loads(body)
        choice = completion["choices"][0]
        message = choice["message"]
        content = message.get("content") or ""
        if isinstance(content, list):  # some servers send parts
            content = "".join(part.get("text", "") for part in content)
        usage = completion.get("usage") or {}
        return Reply(
            text=str(content),
            messages=messages,
            response_format=fmt,
            latency_ms=latency_ms,
            finish_reason=choice.get("finish_reason"),
            refusal=message.get("refusal"),
            resolved_model=completion.get("model"),
            fingerprint=completion.get("system_fingerprint"),
            response_id=completion.get("id"),
            prompt_tokens=usage.get("prompt_tokens"),
            completion_tokens=usage.get("completion_tokens"),
            calls=calls,
        )
    except (ValueError, TypeError, KeyError, IndexError, AttributeError):
        return Reply(
            text=body,
            messages=messages,
            response_format=fmt,
            latency_ms=latency_ms,
            problem="the server's answer is not a chat completion",
            calls=calls,
        )


class Pace:
    """At most `per_minute` units in a minute, in even steps; None: as many as one likes.

    A bucket that is overdrawn by one call at most and holds no more than a second's worth, since
    servers that allow 600 calls a minute refuse 600 calls in the first second.
    """

    def __init__(self, per_minute: int | None) -> None:
        self._seconds_each = 60 / per_minute if per_minute else 0.0
        self._free_at = 0.0  # monotonic time at which the next unit may be taken

    def wait(self) -> float:
        """Seconds until more may be taken."""
        return max(0.0, self._free_at - time.monotonic())

    def take(self, units: float) -> None:
        """Take units, or give back (a negative number) what was taken too much."""
        start = max(self._free_at, time.monotonic() - 1.0)
        self._free_at = start + units * self._seconds_each


class Group(Protocol):
    """Calls that belong together, as those of a run do."""

    inside: int  # how many of them are let in, or about to be let in again

    def lets_in(self) -> bool:
        """Whether one more of its calls may be made now."""

    def halt(self, reason: str) -> None:
        """Let none in any more."""


@dataclass(eq=False)
class Place:
    """One call's place, which its group may keep for the next call about the same label."""

    tokens: int
    key: str
    group: Group | None
    kept: bool  # by the call before
    given: asyncio.Future[None] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )
    keep: bool = False


class Turnstile:
    """At most `capacity` calls at a time, and so many calls and tokens a minute.

    Who is urgent goes before all who are not, and does not wait for its group to let it in; nor
    does a call whose place was kept. `hurry` makes a key urgent that was not.
    """

    def __init__(
        self,
        capacity: int,
        *,
        calls_per_minute: int | None = None,
        tokens_per_minute: int | None = None,
    ) -> None:
        self._free = capacity
        self._calls, self._tokens = Pace(calls_per_minute), Pace(tokens_per_minute)
        self._urgent: deque[Place] = deque()
        self._patient: deque[Place] = deque()
        self._inside: Counter[str] = Counter()
        self._hurried: set[str] = set()
        self._timer: asyncio.TimerHandle | None = None

    @asynccontextmanager
    async def __call__(
        self,
        *,
        urgent: bool,
        tokens: int = 0,
        key: str = "",
        group: Group | None = None,
        kept: bool = False,
    ) -> AsyncIterator[Place]:
        """Hold one place, for a call that is expected to use so many tokens.

        `kept`: the call before, about the same label, set `keep` on its place.
        """
        place = Place(tokens, key, group, kept)
        at_once = urgent or kept or key in self._hurried
        (self._urgent if at_once else self._patient).append(place)
        self._admit()
        try:
            await place.given
        except asyncio.CancelledError:
            if place.given.cancelled():
                self._queue(place).remove(place)
                if group is not None and kept:
                    group.inside -= 1
            else:
                self._leave(place)  # the place had just been given
            raise
        try:
            yield place
        finally:
            self._leave(place)

    def holds(self, key: str) -> bool:
        """Whether a call with this key has been let in and is not out again."""
        return self._inside[key] > 0

    def hurry(self, key: str) -> None:
        """From now on, and where they wait already, calls with this key are urgent."""
        self._hurried.add(key)
        for place in [place for place in self._patient if place.key == key]:
            self._patient.remove(place)
            self._urgent.append(place)
        self._admit()

    def forget(self, key: str) -> None:
        """No more calls with this key will come."""
        self._hurried.discard(key)

    def settle(self, *, calls: int, tokens: int) -> None:
        """Correct what was taken for a call, once it is known what it used."""
        self._calls.take(calls)
        self._tokens.take(tokens)
        self._admit()

    def _admit(self) -> None:
        while self._free and (place := self._next()) is not None:
            if wait := max(self._calls.wait(), self._tokens.wait()):
                if self._timer is None:
                    self._timer = asyncio.get_running_loop().call_later(wait, self._ring)
                return
            self._queue(place).remove(place)
            self._free -= 1
            self._inside[place.key] += 1
            if place.group is not None and not place.kept:
                place.group.inside += 1
            self._calls.take(1)
            self._tokens.take(place.tokens)
            place.given.set_result(None)

    def _queue(self, place: Place) -> deque[Place]:
        """Where it waits."""
        return self._urgent if place in self._urgent else self._patient

    def _next(self) -> Place | None:
        """Who is to be let in next, of those whose group lets them in."""
        if self._urgent:
            return self._urgent[0]
        full: Group | None = None  # mostly one run waits, with all that it has
        for place in self._patient:
            if place.group is None or (place.group is not full and place.group.lets_in()):
                return place
            full = place.group
        return None

    def _ring(self) -> None:
        self._timer = None
        self._admit()

    def _leave(self, place: Place) -> None:
        self._free += 1
        if place.group is not None and not place.keep:
            place.group.inside -= 1
        self._inside[place.key] -= 1
        if not self._inside[place.key]:
            del self._inside[place.key]
        self._admit()


async def ask_patiently(
    model: LanguageModel,
    question: Question,
    turnstile: Turnstile,
    *,
    urgent: bool,
    tries: int,
    judge: Callable[[Reply], Judged],
    keeps: Callable[[Judged], bool] = lambda _: False,
    group: Group | None = None,
    kept: bool = False,
) -> Judged:
    """Ask until there is an answer: exponential backoff with jitter, Retry-After honoured.

    Gives what `judge` makes of it before another call is let in, so that whoever lets calls in
    knows what this one has cost. Where `keeps` says so the group keeps the place, for the same
    question in other words, which then comes with `kept`. An error that ends a run halts `group`
    as early.

    Raises:
        ModelBusy: asked `tries` times in vain, or told to wait longer than `LONGEST_WAIT`.
        QuestionRefused, LanguageModelError: as `LanguageModel.ask`.
    """
    calls = 0
    expected = sum(question.most_tokens())
    for attempt in range(1, tries + 1):
        try:
            async with turnstile(
                urgent=urgent, tokens=expected, key=question.key, group=group, kept=kept
            ) as place:
                kept = False
                reply = await _ask_for(group, model, question)
                if calls:
                    reply = replace(reply, calls=reply.calls + calls)
                judged = judge(reply)
                place.keep = keeps(judged)
        except ModelBusy as busy:
            calls += busy.calls
            turnstile.settle(calls=busy.calls - 1, tokens=-expected)
            wait = busy.retry_after
            if attempt == tries or (wait is not None and wait > LONGEST_WAIT):
                busy.calls = calls
                raise
            if wait is None:
                wait = min(LONGEST_BACKOFF, FIRST_BACKOFF * 2 ** (attempt - 1))
            # Jitter only adds to what the server asked for: coming early is another refusal.
            await asyncio.sleep(wait * random.uniform(1.0, 1.25))
        except QuestionRefused as refused:
            turnstile.settle(calls=refused.calls - 1, tokens=-expected)
            refused.calls += calls
            raise
        else:
            used = (reply.prompt_tokens or 0) + (reply.completion_tokens or 0)
            turnstile.settle(calls=reply.calls - 1, tokens=used - expected if used else 0)
            return judged
    raise AssertionError("tries is at least 1")


async def _ask_for(group: Group | None, model: LanguageModel, question: Question) -> Reply:
    try:
        return await model.ask(question)
    except (ModelBusy, QuestionRefused):
        raise
    except LanguageModelError as error:  # no question of the run would be answered
        if group is not None:
            group.halt(str(error))
        raise
