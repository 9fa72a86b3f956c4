"""Interprets a server's errors: Retry-After, rejected parameters and formats."""

import email.utils
import re
from collections.abc import Mapping

import openai

from enrich_service.core.storage.database import utcnow


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


def truncated(message: str) -> str:
    """A server's message, limited to 200 characters."""
    return message if len(message) <= 200 else message[:199] + "…"


def root_cause(error: BaseException) -> BaseException:
    """The first error in the chain of causes."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def wants_new_length_parameter(error: openai.APIStatusError) -> bool:
    """Whether the server requires max_completion_tokens instead of max_tokens."""
    return error.status_code == 400 and "max_completion_tokens" in str(error.body)


# Messages of OpenAI, llama.cpp, vLLM and others; not those that reject one image.
_NO_VISION = re.compile(
    r"image_url is only supported|not a multi-?modal model|\bmmproj\b|at most 0 image"
    r"|(?:images?|vision|multi-?modal)(?: inputs?| data)? (?:is|are) not (?:supported|enabled)"
    r"|not support (?:\w+ )?(?:image|vision|multi-?modal)|no (?:vision|image) (?:support|input)"
    r"|only (?:supports? )?text\b|text[- ]only|input should be 'text'",
    re.IGNORECASE,
)


def lacks_vision(error: openai.APIStatusError) -> bool:
    """Whether the error means that the model does not support images."""
    return error.status_code not in (401, 403, 429) and bool(_NO_VISION.search(str(error.body)))


def rejects_format(error: openai.APIStatusError, confirmed: bool) -> bool:
    """Whether the error means that the server does not support the response_format.

    Not if the server has answered in this format before (`confirmed`). A 400 or 422 without a
    reason counts, so that the next format is tried; a 500 without a reason does not.
    """
    if confirmed or error.status_code not in (400, 415, 422, 500, 501):
        return False
    message = str(error.body).lower()
    named = any(name in message for name in ("response_format", "json_schema", "json_object"))
    return named or "grammar" in message or error.status_code in (400, 422)
