"""Whether two texts are equal in content, and whether a text contains a label's name."""

import difflib
import unicodedata
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Literal

from enrich_service.validation.answer import units_of
from enrich_service.validation.lexicon import PLURALS

_ASCII_WORDS = {
    code: None if chr(code) == "'" else " " for code in range(128) if not chr(code).isalnum()
}


@lru_cache(maxsize=4096)
def normalise(text: str) -> str:
    """Lower-case words and digits, separated by single spaces: equal results mean equal texts."""
    if text.isascii():  # most are; the code below takes ten times as long
        return " ".join(text.lower().translate(_ASCII_WORDS).split())
    folded = text
    while (normalised := unicodedata.normalize("NFKC", folded).casefold()) != folded:
        folded = normalised
    # Marks are kept: they are vowels in Hindi or Arabic. Apostrophes are removed: "Brewers".
    kept = ("" if c in "'’" else c if unicodedata.category(c)[0] in "LNM" else " " for c in folded)
    kept_words = " ".join("".join(kept).split())
    # A letter and a mark that an apostrophe separated may now combine: normalise again.
    return kept_words if kept_words == text else normalise(kept_words)


def label_key(label: str) -> str:
    """Key in `Answer.others` for a label's name."""
    return "label:" + " ".join(_singular(word) for word in normalise(label).split())


def accepted_keys(label: str, kind: str, texts: Sequence[str]) -> tuple[str, ...]:
    """Keys of an accepted answer in `Answer.others` of later labels.

    The texts, the texts without the label's name, and the name itself. Captions of images have
    none: two photos of different labels may look alike.
    """
    if kind == "image_caption":
        return ()
    keys = [
        key
        for text in units_of(kind, texts)
        for key in (normalise(text), without_name_key(text, label))
    ]
    return (*(key for key in keys if key), label_key(label))


def text_keys(kind: str, texts: Sequence[str]) -> tuple[str, ...]:
    """The keys of `accepted_keys` that the rule `duplicate` allows for one label only."""
    if kind == "image_caption":
        return ()
    return tuple(key for text in units_of(kind, texts) if (key := normalise(text)))


@lru_cache(maxsize=4096)
def _singular(word: str) -> str:
    """An approximate singular, equal for singular and plural; it may not be a real word."""
    if word in PLURALS:
        return PLURALS[word]
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    if len(word) > 4 and word.endswith("ves"):
        return word[:-3] + "f"
    if len(word) > 4 and word.endswith(("ches", "shes", "sses", "xes", "oes")):
        return word[:-2]
    return word[:-1] if len(word) > 3 and word.endswith("s") and word[-2] not in "su" else word


@lru_cache(maxsize=4096)
def words_of(text: str) -> tuple[str, ...]:
    """The words of a text, each in an approximate singular."""
    return tuple(_singular(word) for word in normalise(text).split())


def _spans(words: tuple[str, ...], name: tuple[str, ...]) -> Iterator[int]:
    """The indices at which `name` begins in `words`."""
    n = len(name)
    return (i for i in range(len(words) - n + 1) if n and words[i : i + n] == name)


@lru_cache(maxsize=4096)
def without_name(text: str, label: str) -> str:
    """The words of a text without its label's name: "goldfish" is not the colour gold."""
    words, name = normalise(text).split(), words_of(label)
    removed = {i + k for i in _spans(words_of(text), name) for k in range(len(name))}
    return " ".join(word for i, word in enumerate(words) if i not in removed)


def without_name_key(text: str, label: str) -> str:
    """Key of a text without its label's name; "" if too few words remain for a comparison."""
    rest = without_name(text, label)
    return f"rest:{rest}" if len(rest.split()) >= 3 else ""


def named_in(text: str, label: str) -> Literal["whole", "part"] | None:
    """Whether a text contains a label's whole name, a distinctive part of it, or neither."""
    words, name = words_of(text), words_of(label)
    if any(True for _ in _spans(words, name)):
        return "whole"
    joined = "".join(name)
    if len(joined) >= 5 and joined in "".join(words):  # "gas mask", "gasmask"
        return "whole"
    distinctive = [word for word in name if len(word) >= 3] or name
    return "part" if any(_alike(word, other) for word in distinctive for other in words) else None


def _alike(word: str, other: str) -> bool:
    """The same word, a longer form ("sax", "saxophone") or another spelling ("disc", "disk")."""
    if word == other:
        return True
    if min(len(word), len(other)) < 4:
        return False
    if word.startswith(other) or other.startswith(word):
        return True
    if abs(len(word) - len(other)) > 2 or word[0] != other[0]:
        return False
    return difflib.SequenceMatcher(None, word, other, autojunk=False).ratio() >= 0.75
