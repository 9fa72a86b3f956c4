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

QUEUE_FULL: Final = "token_limit_exceeded"  # a batch's error: too much is under way already

ENDED: Final = frozenset({"completed", "expired", "failed", "cancelled"})
STOPPABLE: Final = frozenset({"validating", "in_progress"})

_T = TypeVar("_T", RemoteBatch, FileObject)


class BatchUnknown(LanguageModelError):
    """The server does not know the batch, or what became of it."""


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
        with self._told(_no_batches(self.model)):
            found = await self._client.files.create(
                file=(name, lines),
                purpose=PURPOSE,
                timeout=httpx2.Timeout(UPLOAD_TIMEOUT_S, connect=10.0),
            )
        return self._checked(found).id

    async def create(self, file_id: str, name: str) -> RemoteBatch:
        """Start the batch of a file, to be answered within a day."""
        with self._told(_no_batches(self.model)):
            found = await self._client.batches.create(
                input_file_id=file_id,
                endpoint=ENDPOINT,
                completion_window="24h",
                metadata={"file": name},
            )
        return self._checked(found)

    async def file_named(self, name: str, since: datetime) -> str | None:
        """The id of the file that was uploaded as `name`, not before `since`."""
        with self._told(_no_batches(self.model)):
            async for file in self._client.files.list(purpose=PURPOSE, order="desc", limit=100):
                if file.filename == name:
                    return file.id
                if file.created_at < since.timestamp() - MAX_CLOCK_SKEW_S:
                    break
        return None

    async def batch_of(self, file_id: str, since: datetime) -> RemoteBatch | None:
        """The batch of a file, if one was started, not before `since`."""
        with self._told(_no_batches(self.model)):
            async for batch in self._client.batches.list(limit=100):
                if batch.input_file_id == file_id:
                    return batch
                if batch.created_at < since.timestamp() - MAX_CLOCK_SKEW_S:
                    break
        return None

    async def retrieve(self, batch_id: str) -> RemoteBatch:
        """The state of a batch. Raises BatchUnknown."""
        with self._told(f"{self.model.provider} does not know the batch {batch_id}", BatchUnknown):
            return self._checked(await self._client.batches.retrieve(batch_id))

    async def cancel(self, batch_id: str) -> RemoteBatch:
        """Cancel a batch; its answers can be read once its status is `cancelled`."""
        with self._told(f"{self.model.provider} does not know the batch {batch_id}", BatchUnknown):
            return self._checked(await self._client.batches.cancel(batch_id))

    async def lines(self, file_id: str) -> AsyncGenerator[dict[str, Any]]:
        """The lines of a file of answers; invalid lines are skipped."""
        unknown = f"{self.model.provider} does not know the file {file_id}"
        with self._told(unknown, BatchUnknown):
            async with self._client.files.with_streaming_response.content(file_id) as response:
                rest = b""
                # Not by the SDK's lines: those end at every character that breaks lines in Unicode.
                async for chunk in response.iter_bytes():
                    *whole, rest = (rest + chunk).split(b"\n")
                    for line in whole:
                        if (read := self._read(line)) is not None:
                            yield read
                if (read := self._read(rest)) is not None:
                    yield read

    def _read(self, line: bytes) -> dict[str, Any] | None:
        try:
            read = json.loads(line.decode(errors="replace"))
        except ValueError:
            return None
        if not isinstance(read, dict) or not isinstance(read.get("custom_id"), str):
            return None
        return read | {"custom_id": storable(read["custom_id"])}

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
                f"the batch did not request it: {self.model.said(error)}", calls=0
            )
        status, body = response.get("status_code"), response.get("body")
        if status != 200:
            return self.model.unanswered(int(status or 500), self.model.said(body), 1)
        messages = tuple(self.model.body(request, fmt)["messages"])
        reply = self.model.read(json.dumps(body, ensure_ascii=False), messages, fmt, None, 1)
        return replace(reply, price_share=PRICE_SHARE)

    @contextmanager
    def _told(
        self, unknown: str, kind: type[LanguageModelError] = LanguageModelError
    ) -> Iterator[None]:
        """Raise the SDK's errors as ours; `unknown` and `kind`: the error for a 404."""
        try:
            yield
        except openai.APIStatusError as error:
            if error.status_code in (404, 405, 501):
                said = self.model.said(error.body or error.message)
                raise kind(f"{unknown} ({error.status_code}, {said})") from None
            raise self.model.explained(error, unknown) from None
        except openai.APIError as error:
            raise self.model.explained(error, unknown) from None
        except httpx2.HTTPError as error:
            raise ModelBusy(f"{self.model.provider} broke off ({error!r})") from None

    def _checked(self, found: _T) -> _T:
        """`found`, which some servers that know no batches fill with something else."""
        if not isinstance(getattr(found, "id", None), str):
            raise LanguageModelError(_no_batches(self.model))
        return found


def _no_batches(model: ChatModel) -> str:
    return f"{model.provider} takes no batches: leave out --batch (over REST the mode) to ask live"
