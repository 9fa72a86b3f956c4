"""What text may enter the database: lines that a person can see whole, and names fit for a URL."""

import re
import unicodedata
from collections.abc import Callable
from typing import Any

from enrich_service.core.errors import InvalidInput

# They reorder what is shown around them, so that a label reads as something that it is not.
BIDI_CONTROLS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")

_NAME = re.compile(r"\w[\w .+-]{0,99}")


def check_name(what: str, name: str) -> str:
    """`name`, if it can name a thing in a URL; else InvalidInput."""
    if not _NAME.fullmatch(name) or name != name.strip():
        raise InvalidInput(
            f"{what} {shortened(name)} is no valid name: use 1 to 100 letters, digits, spaces "
            "and . _ + -, beginning with a letter or digit"
        )
    return name


def check_line(what: str, value: str, *, limit: int) -> str:
    """`value` without surrounding blanks, if it is one visible line; else InvalidInput."""
    value = value.strip()
    if not value:
        raise InvalidInput(f"{what} is empty")
    if len(value) > limit:
        raise InvalidInput(f"{what} has {len(value)} characters; at most {limit} are allowed")
    if value.isascii() and value.isprintable():
        return value
    for character in value:
        if character in BIDI_CONTROLS:
            raise InvalidInput(f"{what} contains the bidi control U+{ord(character):04X}; drop it")
        if unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp"):
            raise InvalidInput(
                f"{what} contains the control character U+{ord(character):04X}; drop it"
            )
    return value


def check_text(what: str, value: str, *, limit: int) -> str:
    """`value`, if it is text of several visible lines at most; may be empty; else InvalidInput."""
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
    """`value` with control and bidi characters as backslash escapes, cut to `limit` characters.

    For what programs and models say, which is stored as far as it can be and never refused. Line
    breaks and tabs stay.
    """
    cut = value if len(value) <= limit else value[: limit - 1] + "…"
    shown = _INVISIBLE.sub(lambda found: _escape(found.group()), cut.replace("\r\n", "\n"))
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"


def _escape(character: str) -> str:
    return f"\\u{ord(character):04x}"


def shortened(value: str, limit: int = 60) -> str:
    """`value` quoted and cut for a message."""
    return repr(value if len(value) <= limit else value[: limit - 1] + "…")


def once(what: str) -> Callable[[list[tuple[str, Any]]], dict[str, Any]]:
    """An `object_pairs_hook` for json: raises InvalidInput for a name with two of `what`."""

    def made(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names: set[str] = set()
        for name, _ in pairs:
            if name in names:
                raise InvalidInput(f"The file has two {what} for {shortened(name)}")
            names.add(name)
        return dict(pairs)

    return made


def without_password(url: str) -> str:
    """`url` as it may be shown: what stands before the @, if anything, is masked."""
    scheme, separator, rest = url.rpartition("://")
    if "@" not in rest:
        return url
    return f"{scheme}{separator}***@{rest.rpartition('@')[2]}"
