"""JSON Schema for answers, whose regular expressions cannot hang the service.

A pattern such as ^(a+)+$ takes Python's `re` for ever over a short text. RE2 matches in linear
time; what it lacks for that, look-around and back-references, is refused when a prompt is saved.
"""

from collections.abc import Iterator
from typing import Any

import re2
from jsonschema import Draft202012Validator, ValidationError
from jsonschema.validators import extend

from enrich_service.core.errors import InvalidInput


def _match(
    _validator: object, pattern: str, value: object, _schema: object
) -> Iterator[ValidationError]:
    if isinstance(value, str) and not re2.search(pattern, value):
        yield ValidationError(f"{value!r} does not match {pattern!r}")


SchemaValidator: type[Draft202012Validator] = extend(  # type: ignore[no-untyped-call]
    Draft202012Validator, {"pattern": _match}
)


def check_patterns(schema: Any) -> None:  # noqa: ANN401 - any JSON
    """Raise InvalidInput where a pattern in `schema` cannot be matched in linear time."""
    if isinstance(schema, list):
        for value in schema:
            check_patterns(value)
    if not isinstance(schema, dict):
        return
    if "patternProperties" in schema:
        raise InvalidInput("The output schema has patternProperties: name the properties instead")
    if isinstance(pattern := schema.get("pattern"), str):
        try:
            re2.compile(pattern)
        except re2.error as error:
            raise InvalidInput(
                f"The output schema has the pattern {pattern!r}, which RE2 does not take "
                f"({error}): leave out look-around and back-references"
            ) from error
    for value in schema.values():
        check_patterns(value)
