"""One chat model behind an OpenAI-compatible base URL.

Notable:
- `send` sends one request once. The SDK's own retries are off, so that every call is counted and
  a long Retry-After parks the request instead of losing it; `send_with_retries` waits and repeats.
- If a server does not support json_schema, json_object is requested, then plain text. The format
  that it accepts is remembered until the process ends.
- The reply is returned unchanged; `validation` checks it.
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
    lacks_vision,
    rejects_format,
    retry_after,
    root_cause,
    truncated,
    wants_new_length_parameter,
)
from enrich_service.llm.ssrf_guard import GuardedTransport

FORMATS: Final = ("json_schema", "json_object", "text")
MIN_SECRET_CHARS: Final = 8  # shorter keys are not masked: they may occur in any text


def provider_of(base_url: str) -> str:
    """Scheme, host and port of `base_url`, without path and password. Raises InvalidInput."""
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
    confirmed: bool = False  # the server has answered in this format
    length_parameter: str = "max_tokens"  # newer models require max_completion_tokens


@dataclass
class ChatModel:
    """A server with the OpenAI chat-completions API.

    `timeout`: of one call, in seconds.
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
            api_key=self.api_key or "none",  # the SDK requires a key, local servers do not
            max_retries=0,
            http_client=httpx2.AsyncClient(
                follow_redirects=False,
                timeout=httpx2.Timeout(self.timeout, connect=min(self.timeout, 10.0)),
                transport=GuardedTransport(self.base_url),
            ),
        )
        self._endpoint = str(self.client.base_url.join("chat/completions"))
        # By model, since one base URL may serve many, and by schema, since a server may support
        # only some keywords of JSON Schema.
        self._servers: dict[tuple[str, str], _Server] = {}

    async def aclose(self) -> None:
        """Close the connections."""
        await self.client.close()

    async def send(self, request: ChatRequest) -> Reply:
        """Send a request once per response format, until the server accepts the format."""
        server = self._server(request)
        calls = 0
        format_index = server.format
        while True:
            calls += 1
            try:
                reply = await self._send_once(request, format_index, calls)
            except openai.APIError as error:
                if isinstance(error, openai.APIStatusError):
                    if request.images and lacks_vision(error):
                        raise LanguageModelError(
                            f"the model {request.model!r} at {self.provider} does not support "
                            "images: choose a vision model with --model or ENRICH_LLM_MODEL "
                            f"({self.error_text(error.body or error.message)})"
                        ) from None
                    if (
                        wants_new_length_parameter(error)
                        and server.length_parameter == "max_tokens"
                    ):
                        server.length_parameter = "max_completion_tokens"
                        continue
                    if rejects_format(error, server.confirmed) and format_index + 1 < len(FORMATS):
                        format_index += 1
                        continue
                not_found = (
                    f"{self.provider} does not know the model {request.model!r}: choose another "
                    "with --model or ENRICH_LLM_MODEL, and check the path of OPENAI_BASE_URL"
                )
                raise self.translated(error, not_found, calls) from None
            if reply.problem is None:
                server.format, server.confirmed = max(format_index, server.format), True
            return reply

    def _server(self, request: ChatRequest) -> _Server:
        return self._servers.setdefault((request.model, request.schema_json), _Server())

    def format_for(self, request: ChatRequest) -> str | None:
        """The response format that the server accepts for such a request; None: not known yet."""
        server = self._server(request)
        return FORMATS[server.format] if server.confirmed else None

    def length_parameter_for(self, request: ChatRequest) -> str:
        """The name of the server's parameter for the maximum number of tokens of an answer."""
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

    async def _send_once(self, request: ChatRequest, format_index: int, calls: int) -> Reply:
        with model_call(self.provider, request.model) as span:
            reply = await self._post(request, format_index, calls)
            span.set_attributes(
                {
                    "gen_ai.response.model": reply.resolved_model or "",
                    "gen_ai.usage.input_tokens": reply.prompt_tokens or 0,
                    "gen_ai.usage.output_tokens": reply.completion_tokens or 0,
                }
            )
            return reply

    async def _post(self, request: ChatRequest, format_index: int, calls: int) -> Reply:
        body = self.body(request, FORMATS[format_index])
        started = time.perf_counter()
        # Not the SDK's typed method: it also scans all messages, which doubles the time. The full
        # address saves parsing it again.
        try:
            # For the whole call: some servers keep sending blanks, so no read times out.
            async with asyncio.timeout(self.timeout):
                response = await self.client.post(
                    self._endpoint, cast_to=httpx2.Response, body=body
                )
        except TimeoutError:
            raise self._timed_out(calls) from None
        # JSON is UTF-8 (RFC 8259), whatever charset a header gives.
        text = response.content.decode(errors="replace")
        took = (time.perf_counter() - started) * 1000
        return self.read(text, tuple(body["messages"]), FORMATS[format_index], took, calls)

    def read(
        self,
        body: str,
        messages: tuple[dict[str, Any], ...],
        fmt: str,
        latency_ms: float | None,
        calls: int,
    ) -> Reply:
        """The reply in the body of an answer.

        If the body is not a chat completion, it is an error of the server, and secrets are masked.
        """
        reply = read_completion(body, messages, fmt, latency_ms, calls)
        return reply if reply.problem is None else replace(reply, text=self.masked(reply.text))

    def masked(self, text: str) -> str:
        """An error text of the server with our secrets masked; some servers repeat them."""
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text

    def translated(
        self, error: openai.APIError, not_found: str, calls: int = 1
    ) -> LanguageModelError:
        """The error with a one-line message; its type tells whether a retry may help.

        `not_found`: the message for a 404.
        """
        if isinstance(error, openai.APITimeoutError):
            return self._timed_out(calls)
        if isinstance(error, openai.APIConnectionError):
            cause = root_cause(error)
            if isinstance(cause, RequestRejected):
                return RequestRejected(str(cause), calls=calls)
            reason = " ".join(str(cause).split()) or type(cause).__name__
            return ModelBusy(
                f"cannot reach {self.shown} ({reason}): "
                "check OPENAI_BASE_URL and that the server is running",
                calls=calls,
                unreachable=True,
            )
        reason = self.error_text(error.body or error.message)
        if not isinstance(error, openai.APIStatusError):
            return LanguageModelError(
                f"{self.provider} sent an answer that cannot be parsed ({reason})"
            )
        status = error.status_code
        if "insufficient_quota" in (error.code, error.type) or status == 402:
            return LanguageModelError(
                f"the quota at {self.provider} is exhausted: add credit there, then resume "
                f"({reason})"
            )
        if status in (401, 403):
            remedy = (
                "OPENAI_API_KEY is wrong or not allowed to use this model"
                if self.api_key
                else "set OPENAI_API_KEY"
            )
            return LanguageModelError(f"{self.provider} rejected the API key: {remedy} ({reason})")
        if status == 404:
            return LanguageModelError(f"{not_found} ({reason})")
        if 300 <= status < 400:
            target = self.masked(error.response.headers.get("location", "elsewhere"))
            return LanguageModelError(
                f"{self.shown} redirects to {target}: set OPENAI_BASE_URL to the final address"
            )
        return self.status_error(status, reason, calls, retry_after(error.response.headers))

    def _timed_out(self, calls: int) -> ModelBusy:
        return ModelBusy(f"{self.provider} did not answer within {self.timeout:g} s", calls=calls)

    def status_error(
        self, status: int, reason: str, calls: int, wait: float | None = None
    ) -> ModelBusy | RequestRejected:
        """The error for an HTTP status that concerns only this request."""
        message = f"{self.provider} answers {status} ({reason})"
        if wait is not None and wait > MAX_RETRY_AFTER_S:
            message += f" and asks to wait for {wait:.0f} s"
        if status in (408, 409, 429) or status >= 500:
            return ModelBusy(message, calls=calls, retry_after=wait)
        return RequestRejected(message, calls=calls)

    def error_text(self, body: object) -> str:
        """The server's message in the body of an error, on one line, with our secrets masked."""
        if isinstance(body, dict):
            inner = body.get("error")
            if isinstance(inner, dict):
                body = inner
            body = body.get("message") or body.get("detail") or inner or body
        return truncated(self.masked(" ".join(storable(str(body)).split())))


def _one_system_message(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """All system messages joined into the first: many chat templates support only that."""
    system = "\n\n".join(m["content"] for m in messages if m["role"] == "system")
    return [{"role": "system", "content": system}] + [m for m in messages if m["role"] != "system"]
