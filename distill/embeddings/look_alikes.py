"""Look-alikes: classes outside a label set that resemble its classes (EOE, arXiv 2406.00806).

A language model lists them. An image that is more similar to one of them than to any class of a
classifier is probably of none of its classes.

Does not import torch, so that a classifier without torch can compare look-alikes with its classes.
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
    """`name` normalised for comparison: letters and digits, without case or accents.

    A name that has neither, such as an emoji, only with single spaces.
    """
    plain = unicodedata.normalize("NFKD", name.casefold())
    letters = re.sub(r"[\W_]+", "", "".join(x for x in plain if not unicodedata.combining(x)))
    return letters or " ".join(plain.split())


def look_alikes_of(release: Release) -> tuple[str, ...]:
    """The distinct look-alikes of all labels of `release` that are not labels of it."""
    names = (name for label in release.labels for name in label.look_alikes)
    return distinct(names, [label.name for label in release.labels])


def read_look_alikes(path: Path, classes: Iterable[str]) -> tuple[str, ...]:
    """The distinct names in a file, one per line, that are not names of `classes`.

    Raises:
        TextError: the file cannot be read, or has only names of classes.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise TextError(f"cannot read {path} ({error.strerror})") from None
    except UnicodeDecodeError:
        raise TextError(f"{path} is not UTF-8 text: save it as UTF-8") from None
    names = distinct(lines, classes)
    if not names:
        raise TextError(f"{path} has no names besides those of classes: write one name per line")
    return names


def distinct(names: Iterable[str], classes: Iterable[str]) -> tuple[str, ...]:
    """`names` without duplicates in another spelling, names of `classes`, and lines without a
    letter or digit.
    """
    known = {plain_spelling(name) for name in classes}
    by_spelling: dict[str, str] = {}
    for name in names:
        if any(map(str.isalnum, name)) and plain_spelling(name) not in known:
            by_spelling.setdefault(plain_spelling(name), " ".join(name.split()))
    return tuple(by_spelling.values())


def prompt_of(name: str) -> str:
    """The prompt of a look-alike."""
    return f"a photo of {name}"
