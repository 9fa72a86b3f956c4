"""Requests to a language model and its replies, for all implementations."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, Literal, Protocol

DEFAULT_MAX_TOKENS: Final = 512  # of an answer, if the prompt sets no limit
CHARACTERS_PER_TOKEN: Final = 4  # of English
IMAGE_TOKENS: Final = 300  # of an image of 512 pixels a side, roughly; servers count differently
RESERVED_PARAMETERS: Final = frozenset(
    {"messages", "model", "n", "response_format", "stream", "stream_options", "tools", "functions"}
)


@dataclass(frozen=True)
class ChatRequest:
    """The content of one call: the messages, and the label and prompt that they belong to."""

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
        """The schema in canonical form, for lookups."""
        return json.dumps(self.schema, sort_keys=True)

    def token_limits(self) -> tuple[int, int]:
        """The maximum numbers of prompt tokens (estimated) and completion tokens of the call."""
        max_tokens = next(
            (v for k, v in self.parameters.items() if k.startswith("max_")), DEFAULT_MAX_TOKENS
        )
        parts = [part for message in self.messages for part in parts_of(message)]
        size = sum(len(json.dumps(part["text"])) for part in parts if "text" in part)
        prompt_tokens = size // CHARACTERS_PER_TOKEN + IMAGE_TOKENS * self.images
        return prompt_tokens, max_tokens if isinstance(max_tokens, int) else DEFAULT_MAX_TOKENS

    @property
    def images(self) -> int:
        """The number of images in the messages."""
        parts = [part for message in self.messages for part in parts_of(message)]
        return sum("image_url" in part for part in parts)


def parts_of(message: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The parts of a message, texts and images; plain text is one part."""
    content = message["content"]
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


@dataclass(frozen=True)
class Reply:
    """An unchecked reply. `problem` is set if the body was not a chat completion."""

    text: str
    messages: tuple[dict[str, Any], ...]  # as sent
    response_format: str
    latency_ms: float | None  # None: from a batch
    finish_reason: str | None = None
    refusal: str | None = None
    resolved_model: str | None = None
    fingerprint: str | None = None
    response_id: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    problem: str | None = None
    calls: int = 1
    price_share: float = 1.0  # of the price per token


class LanguageModel(Protocol):
    """A source of answers: a server, or recorded replies."""

    provider: str
    source: Literal["model", "replay"]

    async def send(self, request: ChatRequest) -> Reply:
        """Send a request once.

        Raises:
            ModelBusy: a retry may help, perhaps much later.
            RequestRejected: the server rejects this request only.
            LanguageModelError: no request will succeed until a setting or the server is fixed.
        """
        ...

    async def aclose(self) -> None:
        """Close the connections."""
        ...
