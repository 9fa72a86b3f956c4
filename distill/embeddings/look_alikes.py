"""Look-alikes: classes of no label set that look like its classes (EOE, arXiv 2406.00806).

A language model names them. An image that is more like one of them than like any class of a
classifier is likely of none of its classes.

Imports no torch, so that a classifier without torch knows which look-alikes are its classes.
"""

import re
import unicodedata
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from contract import Release
from distill.errors import TextError


@lru_cache(maxsize=100_000)  # each new class is compared with all others
def plain_spelling(name: str) -> str:
    """What two spellings of a name have in common: letters and digits, without case or accents."""
    plain = unicodedata.normalize("NFKD", name.casefold())
    return re.sub(r"[\W_]+", "", "".join(x for x in plain if not unicodedata.combining(x)))


def look_alikes_of(release: Release) -> tuple[str, ...]:
    """The look-alikes of all labels of `release`, each once, without those that are its labels."""
    names = (name for label in release.labels for name in label.look_alikes)
    return distinct(names, [label.name for label in release.labels])


def read_look_alikes(path: Path, classes: Iterable[str]) -> tuple[str, ...]:
    """The names in a file, one a line, each once, without those of `classes`.

    Raises:
        TextError: the file cannot be read, or has no name that is not of a class.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise TextError(f"cannot read {path} ({error.strerror})") from None
    except UnicodeDecodeError:
        raise TextError(f"{path} is not UTF-8 text: save it as UTF-8") from None
    names = distinct(lines, classes)
    if not names:
        raise TextError(f"{path} names no look-alike that is not a class: write one name a line")
    return names


def distinct(names: Iterable[str], classes: Iterable[str]) -> tuple[str, ...]:
    """`names`, each once, whatever its spelling, without empty ones and those of `classes`."""
    known = {plain_spelling(name) for name in classes} | {""}
    found: dict[str, str] = {}
    for name in names:
        if plain_spelling(name) not in known:
            found.setdefault(plain_spelling(name), " ".join(name.split()))
    return tuple(found.values())


def prompt_of(name: str) -> str:
    """What is encoded of a look-alike."""
    return f"a photo of {name}"
