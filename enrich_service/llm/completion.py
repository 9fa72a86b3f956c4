"""Parses the body of a chat completion into a reply."""

import json
from typing import Any, Final

from enrich_service.core.text import storable
from enrich_service.llm.protocol import Reply

MAX_COUNT: Final = 2**31 - 1  # of an integer column


def read_completion(
    body: str,
    messages: tuple[dict[str, Any], ...],
    fmt: str,
    latency_ms: float | None,
    calls: int,
) -> Reply:
    """The reply in the body of a chat completion; any other body becomes its text, with a problem.

    Characters that cannot be stored become U+FFFD (see `storable`); a field of the wrong type is
    None.
    """
    try:
        completion = json.loads(body)
        choice = completion["choices"][0]
        message = choice["message"]
        content = message.get("content") or ""
        if isinstance(content, list):  # some servers send parts
            content = "".join(part.get("text", "") for part in content)
        usage = completion.get("usage") or {}
        return Reply(
            text=storable(str(content)),
            messages=messages,
            response_format=fmt,
            latency_ms=latency_ms,
            finish_reason=_text(choice.get("finish_reason")),
            refusal=_text(message.get("refusal")),
            resolved_model=_text(completion.get("model")),
            fingerprint=_text(completion.get("system_fingerprint")),
            response_id=_text(completion.get("id")),
            prompt_tokens=_count(usage.get("prompt_tokens")),
            completion_tokens=_count(usage.get("completion_tokens")),
            calls=calls,
        )
    except (ValueError, TypeError, KeyError, IndexError, AttributeError):
        return Reply(
            text=storable(body),
            messages=messages,
            response_format=fmt,
            latency_ms=latency_ms,
            problem="the server's answer is not a chat completion",
            calls=calls,
        )


def _text(value: object) -> str | None:
    return storable(value) if isinstance(value, str) else None


def _count(value: object) -> int | None:
    return int(value) if isinstance(value, int | float) and 0 <= value <= MAX_COUNT else None
