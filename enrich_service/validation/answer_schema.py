"""JSON Schema for answers, with limits so that a check cannot block the service.

With a pattern such as ^(a+)+$, Python's `re` needs exponential time on a short text. RE2 matches in
linear time; look-around and back-references, which it does not support, are rejected when a prompt
is saved. So are schemas that grow when references are expanded: a chain of parts that each refer
twice to the next one doubles the work with every part.
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

MAX_PARTS: Final = 5_000  # of a schema with its references expanded


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
        raise InvalidInput("The output schema has patternProperties: use properties instead")
    if isinstance(pattern := schema.get("pattern"), str):
        try:
            re2.compile(pattern)
        except re2.error as error:
            raise InvalidInput(
                f"The output schema has the pattern {pattern!r}, which RE2 does not support "
                f"({error}): remove look-around and back-references"
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
    open_parts: set[int] = {id(schema)}  # being expanded, from the root to the current part
    recursive: set[int] = set()  # those of them that were referred to from within
    parts = 0

    def expand(part: Any) -> None:  # noqa: ANN401 - any JSON
        nonlocal parts
        if isinstance(part, list):
            for value in part:
                expand(value)
        if not isinstance(part, Mapping):
            return
        parts += 1
        if parts > MAX_PARTS:
            raise InvalidInput(
                f"The output schema has more than {MAX_PARTS} parts once its references are "
                "expanded: use fewer references"
            )
        for value in part.values():
            expand(value)
        if not isinstance(reference := part.get("$ref", part.get("$dynamicRef")), str):
            return
        try:
            target = part_at(reference)
        except Unresolvable:
            return  # reported elsewhere
        if id(target) not in open_parts:
            open_parts.add(id(target))
            expand(target)
            open_parts.remove(id(target))
            recursive.discard(id(target))  # it may occur again elsewhere
        elif id(target) in recursive:
            raise InvalidInput(
                f"The output schema refers to {reference!r} within itself more than once: limit "
                "the depth of an answer instead"
            )
        else:
            recursive.add(id(target))

    expand(schema)
