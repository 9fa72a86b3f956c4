"""What a server's errors mean: how long to wait, which parameter or format it rejects."""

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


def cut(words: str) -> str:
    """The beginning of a server's words, for a message of one line."""
    return words if len(words) <= 200 else words[:199] + "…"


def root_cause(error: BaseException) -> BaseException:
    """The error that all others came from."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def wants_other_length(error: openai.APIStatusError) -> bool:
    """Whether the server knows the limit of an answer by its newer name only."""
    return error.status_code == 400 and "max_completion_tokens" in str(error.body)


# As OpenAI, llama.cpp, vLLM and others put it. One image that is refused is not meant.
_NO_VISION = re.compile(
    r"image_url is only supported|not a multi-?modal model|\bmmproj\b|at most 0 image"
    r"|(?:images?|vision|multi-?modal)(?: inputs?| data)? (?:is|are) not (?:supported|enabled)"
    r"|not support (?:\w+ )?(?:image|vision|multi-?modal)|no (?:vision|image) (?:support|input)"
    r"|only (?:supports? )?text\b|text[- ]only|input should be 'text'",
    re.IGNORECASE,
)


def lacks_vision(error: openai.APIStatusError) -> bool:
    """Whether the server says that the model takes no images at all."""
    return error.status_code not in (401, 403, 429) and bool(_NO_VISION.search(str(error.body)))


def rejects_format(error: openai.APIStatusError, confirmed: bool) -> bool:
    """Whether the status means "I do not know this response_format".

    A server that has answered in the format before is believed to know it. A bare 400 says
    nothing, so the next format is tried; a bare 500 is taken for the fault that it says it is.
    """
    if confirmed or error.status_code not in (400, 415, 422, 500, 501):
        return False
    words = str(error.body).lower()
    named = any(word in words for word in ("response_format", "json_schema", "json_object"))
    return named or "grammar" in words or error.status_code in (400, 422)
