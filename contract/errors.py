"""Errors as messages for people."""

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import ValidationError

_MAX_PART = 60  # characters of one part of a location, which may be a key that a user sent


def first_error_line(error: ValidationError, document: str = "document") -> str:
    """The first error as one line: `losses.cls: Input should be a valid number`.

    `document` is the location of errors that concern the whole input; "" omits it.
    """
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    location = location_path(first["loc"]) or document
    message = error_message(first)
    return f"{location}: {message}" if location else message


def error_line(error: Exception) -> str:
    """The message of any exception on one line, at most 200 characters; without one, its class."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def error_message(details: Mapping[str, Any]) -> str:
    """The message of an item of `ValidationError.errors()`, without pydantic's prefix."""
    message: str = details["msg"]
    if message == "JSON decode error":  # FastAPI's; its location ends in the character
        return f"invalid JSON at this character: {details.get('ctx', {}).get('error', message)}"
    if details["type"] == "model_attributes_type":
        return "expected a JSON object: send one with Content-Type: application/json"
    return message.removeprefix("Value error, ")


def location_path(parts: Iterable[int | str]) -> str:
    """The location of an error in a JSON document, on one line: `labels.0.name`."""
    return ".".join(_part(str(part)) for part in parts)


def _part(part: str) -> str:
    if len(part) <= _MAX_PART and part.isprintable():
        return part
    return repr(part if len(part) <= _MAX_PART else part[: _MAX_PART - 1] + "…")
