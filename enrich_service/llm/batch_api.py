"""The Batch API of an OpenAI-compatible server: upload a file of requests, read one of answers.

Errors and answers are read as in `chat_model`.
"""

import json
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from typing import IO, Any, Final, TypeVar

import httpx2
import openai
from openai.types import Batch as RemoteBatch
from openai.types import FileObject

from enrich_service.core.errors import LanguageModelError, ModelBusy, RequestRejected
from enrich_service.core.text import storable
from enrich_service.llm.chat_model import ChatModel
from enrich_service.llm.protocol import ChatRequest, Reply

PRICE_SHARE: Final = 0.5  # of the live price
PURPOSE: Final = "batch"
ENDPOINT: Final = "/v1/chat/completions"
UPLOAD_TIMEOUT_S: Final = 600.0
MAX_CLOCK_SKEW_S: Final = 3600.0  # between this machine and the server

QUEUE_FULL: Final = "token_limit_exceeded"  # error code: too many tokens are enqueued

ENDED: Final = frozenset({"completed", "expired", "failed", "cancelled"})
STOPPABLE: Final = frozenset({"validating", "in_progress"})

_T = TypeVar("_T", RemoteBatch, FileObject)


class BatchUnknown(LanguageModelError):
    """The server does not know the batch or its result file."""


class BatchApi:
    """The Batch API of the server of `model`.

    Every method raises ModelBusy for temporary errors, and LanguageModelError for others.
    """

    def __init__(self, model: ChatModel) -> None:
        self.model = model
        self._client = model.client

    async def upload(self, name: str, lines: IO[bytes]) -> str:
        """Upload a file of requests (see `line`). Returns its id."""
        lines.seek(0)
        with self._translated_errors(_no_batches(self.model)):
            file = await self._client.files.create(
                file=(name, lines),
                purpose=PURPOSE,
                timeout=httpx2.Timeout(UPLOAD_TIMEOUT_S, connect=10.0),
            )
        return self._checked(file).id

    async def create(self, file_id: str, name: str) -> RemoteBatch:
        """Start the batch of a file, to be answered within a day."""
        with self._translated_errors(_no_batches(self.model)):
            batch = await self._client.batches.create(
                input_file_id=file_id,
                endpoint=ENDPOINT,
                completion_window="24h",
                metadata={"file": name},
            )
        return self._checked(batch)

    async def file_named(self, name: str, since: datetime) -> str | None:
        """The id of the file that was uploaded as `name` after `since`, or None."""
        with self._translated_errors(_no_batches(self.model)):
            async for file in self._client.files.list(purpose=PURPOSE, order="desc", limit=100):
                if file.filename == name:
                    return file.id
                if file.created_at < since.timestamp() - MAX_CLOCK_SKEW_S:
                    break
        return None

    async def batch_of(self, file_id: str, since: datetime) -> RemoteBatch | None:
        """The batch of a file that was started after `since`, or None."""
        with self._translated_errors(_no_batches(self.model)):
            async for batch in self._client.batches.list(limit=100):
                if batch.input_file_id == file_id:
                    return batch
                if batch.created_at < since.timestamp() - MAX_CLOCK_SKEW_S:
                    break
        return None

    async def retrieve(self, batch_id: str) -> RemoteBatch:
        """The state of a batch. Raises BatchUnknown."""
        with self._translated_errors(self._unknown(batch_id), BatchUnknown):
            return self._checked(await self._client.batches.retrieve(batch_id))

    async def cancel(self, batch_id: str) -> RemoteBatch:
        """Cancel a batch; its answers can be read once its status is `cancelled`."""
        with self._translated_errors(self._unknown(batch_id), BatchUnknown):
            return self._checked(await self._client.batches.cancel(batch_id))

    def _unknown(self, batch_id: str) -> str:
        return f"{self.model.provider} does not know the batch {batch_id}"

    async def lines(self, file_id: str) -> AsyncGenerator[dict[str, Any]]:
        """The lines of a file of answers; invalid lines are skipped."""
        unknown = f"{self.model.provider} does not know the file {file_id}"
        with self._translated_errors(unknown, BatchUnknown):
            async with self._client.files.with_streaming_response.content(file_id) as response:
                buffer = b""
                # Not the SDK's line iterator: it splits at every Unicode line separator.
                async for chunk in response.iter_bytes():
                    *complete, buffer = (buffer + chunk).split(b"\n")
                    for line in complete:
                        if (result := self._read(line)) is not None:
                            yield result
                if (result := self._read(buffer)) is not None:
                    yield result

    def _read(self, line: bytes) -> dict[str, Any] | None:
        try:
            result = json.loads(line.decode(errors="replace"))
        except ValueError:
            return None
        if not isinstance(result, dict) or not isinstance(result.get("custom_id"), str):
            return None
        return result | {"custom_id": storable(result["custom_id"])}

    def line(self, request: ChatRequest, fmt: str) -> bytes:
        """A request as a line of a file; its `custom_id` is the dedupe key."""
        line = {
            "custom_id": request.key,
            "method": "POST",
            "url": ENDPOINT,
            "body": self.model.body(request, fmt),
        }
        return json.dumps(line, ensure_ascii=False).encode() + b"\n"

    def outcome(
        self, line: Mapping[str, Any], request: ChatRequest, fmt: str
    ) -> Reply | ModelBusy | RequestRejected:
        """The outcome of a request, from a line of a file of answers."""
        response, error = line.get("response"), line.get("error")
        if not isinstance(response, dict):
            return RequestRejected(
                f"the batch did not send the request: {self.model.error_text(error)}", calls=0
            )
        status, body = response.get("status_code"), response.get("body")
        if status != 200:
            return self.model.status_error(int(status or 500), self.model.error_text(body), 1)
        messages = tuple(self.model.body(request, fmt)["messages"])
        reply = self.model.read(json.dumps(body, ensure_ascii=False), messages, fmt, None, 1)
        return replace(reply, price_share=PRICE_SHARE)

    @contextmanager
    def _translated_errors(
        self, unknown: str, kind: type[LanguageModelError] = LanguageModelError
    ) -> Iterator[None]:
        """Translate errors of the SDK; `unknown`, `kind`: message and type for a 404."""
        try:
            yield
        except openai.APIStatusError as error:
            if error.status_code in (404, 405, 501):
                reason = self.model.error_text(error.body or error.message)
                raise kind(f"{unknown} ({error.status_code}, {reason})") from None
            raise self.model.translated(error, unknown) from None
        except openai.APIError as error:
            raise self.model.translated(error, unknown) from None
        except httpx2.HTTPError as error:
            raise ModelBusy(f"{self.model.provider} closed the connection ({error!r})") from None

    def _checked(self, answer: _T) -> _T:
        """Return `answer` if it has an id: servers without a Batch API may send anything."""
        if not isinstance(getattr(answer, "id", None), str):
            raise LanguageModelError(_no_batches(self.model))
        return answer


def _no_batches(model: ChatModel) -> str:
    return (
        f"{model.provider} does not support batches: leave out --batch (`mode` over REST) to send "
        "live requests"
    )
