"""From the body of a chat completion to a reply."""

import json
from typing import Any

from enrich_service.llm.protocol import Reply


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
