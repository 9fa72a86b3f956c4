"""One chat model behind an OpenAI-compatible base URL.

Notable:
- `send` sends one request once. The SDK's own retries are off, so that every call is counted and
  a long Retry-After parks the request instead of losing it; `send_with_retries` waits and repeats.
- A server that lacks json_schema is asked for json_object, then for plain text; which one it
  takes is remembered for as long as the process lives.
- The reply is handed over as it came. Whether it is any good is judged elsewhere.
"""

import asyncio
import base64
import json
import time
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal
from urllib.parse import urlsplit

import httpx2
import openai

from enrich_service.core.errors import InvalidInput, LanguageModelError, ModelBusy, RequestRejected
from enrich_service.core.rest.traces import model_call
from enrich_service.core.text import storable, without_password
from enrich_service.llm.completion import read_completion
from enrich_service.llm.protocol import ChatRequest, Reply
from enrich_service.llm.retry import MAX_RETRY_AFTER_S
from enrich_service.llm.server_errors import (
    cut,
    lacks_vision,
    rejects_format,
    retry_after,
    root_cause,
    wants_other_length,
)
from enrich_service.llm.ssrf_guard import GuardedTransport

FORMATS: Final = ("json_schema", "json_object", "text")
MIN_SECRET_CHARS: Final = 8  # a shorter key may be a part of any word, and is never masked


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


@dataclass
class _Server:
    """The request format that a server is known to accept."""

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
    source: Literal["model", "replay"] = field(default="model", init=False)

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

    async def send(self, request: ChatRequest) -> Reply:
        """Ask once, stepping down in response format until the server takes the request."""
        server = self._server(request)
        calls = 0
        asked = server.format
        while True:
            calls += 1
            try:
                reply = await self._send_once(request, asked, calls)
            except openai.APIError as error:
                if isinstance(error, openai.APIStatusError):
                    if request.images and lacks_vision(error):
                        raise LanguageModelError(
                            f"the model {request.model!r} at {self.provider} takes no images: "
                            "name a vision model with --model or ENRICH_LLM_MODEL "
                            f"({self.said(error.body or error.message)})"
                        ) from None
                    if wants_other_length(error) and server.length_parameter == "max_tokens":
                        server.length_parameter = "max_completion_tokens"
                        continue
                    if rejects_format(error, server.confirmed) and asked + 1 < len(FORMATS):
                        asked += 1
                        continue
                unknown = (
                    f"{self.provider} does not know the model {request.model!r}: name another "
                    "with --model or ENRICH_LLM_MODEL, and check the path of OPENAI_BASE_URL"
                )
                raise self.explained(error, unknown, calls) from None
            if reply.problem is None:
                server.format, server.confirmed = max(asked, server.format), True
            return reply

    def _server(self, request: ChatRequest) -> _Server:
        return self._servers.setdefault((request.model, request.schema_json), _Server())

    def format_for(self, request: ChatRequest) -> str | None:
        """The response format in which the server has answered such a request; None: not yet."""
        server = self._server(request)
        return FORMATS[server.format] if server.confirmed else None

    def length_parameter_for(self, request: ChatRequest) -> str:
        """The name by which the server takes the limit of an answer's tokens."""
        return self._server(request).length_parameter

    def remember(self, request: ChatRequest, fmt: str, length_parameter: str) -> None:
        """Use the format that the server accepted before, in this process or another."""
        server = self._server(request)
        server.format, server.confirmed = FORMATS.index(fmt), True
        server.length_parameter = length_parameter

    def body(self, request: ChatRequest, fmt: str) -> dict[str, Any]:
        """The body of `request`, with the response format `fmt`."""
        messages = [dict(message) for message in request.messages]
        body = {"model": request.model, **request.parameters}
        if "max_tokens" in body:
            body[self._server(request).length_parameter] = body.pop("max_tokens")
        match fmt:
            case "json_schema":
                body["response_format"] = {
                    "type": "json_schema",
                    "json_schema": {"name": "answer", "strict": True, "schema": request.schema},
                }
            case "json_object":
                body["response_format"] = {"type": "json_object"}
        if fmt != "json_schema":
            messages.append(
                {
                    "role": "system",
                    "content": "Answer with one JSON object and nothing else. Its JSON schema: "
                    + json.dumps(request.schema, ensure_ascii=False),
                }
            )
            messages = _one_system_message(messages)
        return {**body, "messages": messages}

    async def _send_once(self, request: ChatRequest, asked: int, calls: int) -> Reply:
        with model_call(self.provider, request.model) as span:
            reply = await self._post(request, asked, calls)
            span.set_attributes(
                {
                    "gen_ai.response.model": reply.resolved_model or "",
                    "gen_ai.usage.input_tokens": reply.prompt_tokens or 0,
                    "gen_ai.usage.output_tokens": reply.completion_tokens or 0,
                }
            )
            return reply

    async def _post(self, request: ChatRequest, asked: int, calls: int) -> Reply:
        body = self.body(request, FORMATS[asked])
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
        """The reply in the body of an answer. What a model wrote is kept as it can be stored.

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
            cause = root_cause(error)
            if isinstance(cause, RequestRejected):
                return RequestRejected(str(cause), calls=calls)
            said = " ".join(str(cause).split()) or type(cause).__name__
            return ModelBusy(
                f"cannot reach {self.shown} ({said}): "
                "check OPENAI_BASE_URL and that the server is running",
                calls=calls,
                unreachable=True,
            )
        said = self.said(error.body or error.message)
        if not isinstance(error, openai.APIStatusError):
            return LanguageModelError(
                f"{self.provider} sent an answer that cannot be parsed ({said})"
            )
        status = error.status_code
        if "insufficient_quota" in (error.code, error.type) or status == 402:
            return LanguageModelError(
                f"the quota at {self.provider} is exhausted: add credit there, then resume ({said})"
            )
        if status in (401, 403):
            remedy = (
                "OPENAI_API_KEY is wrong or not allowed to use this model"
                if self.api_key
                else "set OPENAI_API_KEY"
            )
            return LanguageModelError(f"{self.provider} rejected the API key: {remedy} ({said})")
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
    ) -> ModelBusy | RequestRejected:
        """The error for a status that concerns this request alone."""
        line = f"{self.provider} answers {status} ({said})"
        if wait is not None and wait > MAX_RETRY_AFTER_S:
            line += f" and asks to wait for {wait:.0f} s"
        if status in (408, 409, 429) or status >= 500:
            return ModelBusy(line, calls=calls, retry_after=wait)
        return RequestRejected(line, calls=calls)

    def said(self, body: object) -> str:
        """The server's own words in the body of an error, on one line and without our secrets."""
        if isinstance(body, dict):
            inner = body.get("error")
            if isinstance(inner, dict):
                body = inner
            body = body.get("message") or body.get("detail") or inner or body
        return cut(self.masked(" ".join(storable(str(body)).split())))


def _one_system_message(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """System messages joined in front: many chat templates take one, at the start."""
    system = "\n\n".join(m["content"] for m in messages if m["role"] == "system")
    return [{"role": "system", "content": system}] + [m for m in messages if m["role"] != "system"]
