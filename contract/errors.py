"""Validation errors as messages for people."""

from pydantic import ValidationError


def first_error_line(error: ValidationError, document: str = "document") -> str:
    """The first error as one line: `losses.cls: Input should be a valid number`.

    `document` stands for the location where the error concerns the whole input.
    """
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    location = ".".join(str(part) for part in first["loc"]) or document
    return f"{location}: {first['msg'].removeprefix('Value error, ')}"
