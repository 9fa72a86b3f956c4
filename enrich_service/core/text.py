"""Validation of text before it is stored: visible lines, and names that can be part of a URL."""

import re
import unicodedata
from collections.abc import Callable
from typing import Any

from enrich_service.core.errors import InvalidInput

# They reorder the surrounding text, so that one label could be displayed as another.
BIDI_CONTROLS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")

_UNSTORABLE = re.compile("[\0\ud800-\udfff]")
_NAME = re.compile(r"\w[\w .+-]{0,99}")
_MAX_DIGITS = 18  # enough for all stored numbers; int() raises ValueError for very long ones
_ALIAS = re.compile(r"[a-z][a-z0-9_-]{0,49}")


def check_name(what: str, name: str) -> str:
    """Return `name` if it can be part of a URL. Raises InvalidInput."""
    if not _NAME.fullmatch(name) or name != name.strip():
        raise InvalidInput(
            f"{what} {shortened(name)} is not a valid name: use 1 to 100 letters, digits, spaces "
            "and . _ + -, beginning with a letter or digit"
        )
    return name


def check_alias(name: str) -> str:
    """Return `name` if it is a valid alias name. Raises InvalidInput."""
    if not _ALIAS.fullmatch(name):
        raise InvalidInput(
            f"{shortened(name)} is not an alias: use a to z, 0 to 9, _ and -, with a letter first"
        )
    return name


def check_line(what: str, value: str, *, limit: int) -> str:
    """Return `value`, stripped, if it is one visible line of at most `limit` characters.

    Raises InvalidInput; `what` is the subject of its message.
    """
    value = value.strip()
    if not value:
        raise InvalidInput(f"{what} is empty")
    if len(value) > limit:
        raise InvalidInput(f"{what} has {len(value)} characters; at most {limit} are allowed")
    if value.isascii() and value.isprintable():
        return value
    for character in value:
        if character in BIDI_CONTROLS:
            raise InvalidInput(
                f"{what} contains the bidi control U+{ord(character):04X}; remove it"
            )
        if unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp"):
            raise InvalidInput(
                f"{what} contains the control character U+{ord(character):04X}; remove it"
            )
    return value


def check_text(what: str, value: str, *, limit: int) -> str:
    """Return `value` if it has only visible lines and at most `limit` characters.

    Raises InvalidInput; `what` is the subject of its message.
    """
    if len(value) > limit:
        raise InvalidInput(f"{what} has {len(value)} characters; at most {limit} are allowed")
    for line in value.replace("\r\n", "\n").replace("\t", " ").split("\n"):
        if line.strip():
            check_line(what, line, limit=limit)
    return value


_INVISIBLE = re.compile(
    "[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\\u2028\\u2029\\ud800-\\udfff"
    f"{''.join(sorted(BIDI_CONTROLS))}]"
)


def escaped(value: str, limit: int) -> str:
    """Escape control and bidi characters with backslashes and truncate to `limit` characters.

    For output of programs and models, which is stored in any case. Line breaks and tabs are
    kept.
    """
    truncated = value if len(value) <= limit else value[: limit - 1] + "…"
    visible = _INVISIBLE.sub(lambda match: _escape(match.group()), truncated.replace("\r\n", "\n"))
    return visible if len(visible) <= limit else visible[: limit - 1] + "…"


def _escape(character: str) -> str:
    return f"\\u{ord(character):04x}"


def storable(text: str) -> str:
    """Replace NUL and lone surrogates, which databases cannot store as text, by U+FFFD."""
    return text if text.isascii() and "\0" not in text else _UNSTORABLE.sub("\ufffd", text)


def shortened(value: str, limit: int = 60) -> str:
    """Quote `value` and truncate it to `limit` characters, for a message."""
    return repr(value if len(value) <= limit else value[: limit - 1] + "…")


def unique_keys(what: str) -> Callable[[list[tuple[str, Any]]], dict[str, Any]]:
    """An `object_pairs_hook` for json that raises InvalidInput for a duplicate key.

    `what`: plural noun for the values, for the message.
    """

    def build(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names: set[str] = set()
        for name, _ in pairs:
            if name in names:
                raise InvalidInput(f"The file has two {what} for {shortened(name)}")
            names.add(name)
        return dict(pairs)

    return build


def whole_number(value: str) -> int | None:
    """Parse decimal digits; None for any other text, or more than 18 digits."""
    return int(value) if value.isdecimal() and len(value) <= _MAX_DIGITS else None


def without_password(url: str) -> str:
    """Mask the user and password of `url`."""
    scheme, separator, rest = url.rpartition("://")
    if "@" not in rest:
        return url
    return f"{scheme}{separator}***@{rest.rpartition('@')[2]}"
