"""JSON Schema for answers that cannot hang the service.

A pattern such as ^(a+)+$ takes Python's `re` for ever over a short text. RE2 matches in linear
time; what it lacks for that, look-around and back-references, is refused when a prompt is saved.
So is a schema that references make large: parts that each refer twice to the next one double the
work of a check with every part.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import re2
from jsonschema import Draft202012Validator, ValidationError
from jsonschema.validators import extend
from referencing import Registry
from referencing.exceptions import Unresolvable
from referencing.jsonschema import DRAFT202012

from enrich_service.core.errors import InvalidInput

MOST_PARTS: Final = 5_000  # of a schema with its references expanded


def _match(
    _validator: object, pattern: str, value: object, _schema: object
) -> Iterator[ValidationError]:
    if isinstance(value, str) and not re2.search(pattern, value):
        yield ValidationError(f"{value!r} does not match {pattern!r}")


SchemaValidator: type[Draft202012Validator] = extend(  # type: ignore[no-untyped-call]
    Draft202012Validator, {"pattern": _match}
)


def check_patterns(schema: Any) -> None:  # noqa: ANN401 - any JSON
    """Raise InvalidInput if a pattern in `schema` cannot be matched in linear time."""
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


def parts_of(schema: Mapping[str, Any]) -> Callable[[str], Any]:
    """Return a function that resolves a reference in `schema`, or raises Unresolvable."""
    # The registry is empty, so that nothing is fetched from a URL.
    resolver = Registry().resolver_with_root(DRAFT202012.create_resource(schema))
    return lambda reference: resolver.lookup(reference).contents


def check_references(schema: Mapping[str, Any]) -> None:
    """Raise InvalidInput if `schema` is too large once its references are expanded."""
    part_at = parts_of(schema)
    within: set[int] = {id(schema)}  # what is being written out
    again: set[int] = set()  # of that, what was referred to from within
    parts = 0

    def write_out(part: Any) -> None:  # noqa: ANN401 - any JSON
        nonlocal parts
        if isinstance(part, list):
            for value in part:
                write_out(value)
        if not isinstance(part, Mapping):
            return
        parts += 1
        if parts > MOST_PARTS:
            raise InvalidInput(
                f"The output schema has more than {MOST_PARTS} parts once each reference in it is "
                "written out: refer to fewer parts"
            )
        for value in part.values():
            write_out(value)
        if not isinstance(reference := part.get("$ref", part.get("$dynamicRef")), str):
            return
        try:
            target = part_at(reference)
        except Unresolvable:
            return  # reported elsewhere
        if id(target) not in within:
            within.add(id(target))
            write_out(target)
            within.remove(id(target))
            again.discard(id(target))  # it may stand elsewhere too, and refer to itself there
        elif id(target) in again:
            raise InvalidInput(
                f"The output schema refers to {reference!r} within itself more than once: write "
                "out what an answer may hold"
            )
        else:
            again.add(id(target))

    write_out(schema)
