"""Requests to a language model and its replies, for all implementations."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, Literal, Protocol

DEFAULT_MAX_TOKENS: Final = 512  # tokens of an answer, where the prompt sets no limit
CHARACTERS_A_TOKEN: Final = 4  # of English
IMAGE_TOKENS: Final = 300  # of an image of 512 pixels a side, roughly; servers count differently
RESERVED_PARAMETERS: Final = frozenset(
    {"messages", "model", "n", "response_format", "stream", "stream_options", "tools", "functions"}
)


@dataclass(frozen=True)
class ChatRequest:
    """What one call sends: the messages, and of what label and prompt they speak."""

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

    def token_limits(self) -> tuple[int, int]:
        """What the call may use at most, as servers count it: the text's size, and max_tokens."""
        room = next(
            (v for k, v in self.parameters.items() if k.startswith("max_")), DEFAULT_MAX_TOKENS
        )
        parts = [part for message in self.messages for part in parts_of(message)]
        size = sum(len(json.dumps(part["text"])) for part in parts if "text" in part)
        asked = size // CHARACTERS_A_TOKEN + IMAGE_TOKENS * self.images
        return asked, room if isinstance(room, int) else DEFAULT_MAX_TOKENS

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
    """Anything that answers requests: a server, or recorded replies."""

    provider: str
    source: Literal["model", "replay"]

    async def send(self, request: ChatRequest) -> Reply:
        """Send a request once.

        Raises:
            ModelBusy: try again, perhaps much later.
            RequestRejected: the server will not answer this one request.
            LanguageModelError: no request will be answered before something is mended.
        """
        ...

    async def aclose(self) -> None:
        """Let go of connections."""
        ...
