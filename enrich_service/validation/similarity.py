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
    if text.isascii():  # most are, and what follows takes ten times as long
        return " ".join(text.lower().translate(_ASCII_WORDS).split())
    folded = text
    while (again := unicodedata.normalize("NFKC", folded).casefold()) != folded:
        folded = again
    # Marks stay: in Hindi or Arabic they are the vowels. Apostrophes vanish: "Brewer's", "Brewers".
    kept = ("" if c in "'’" else c if unicodedata.category(c)[0] in "LNM" else " " for c in folded)
    once = " ".join("".join(kept).split())
    # Where an apostrophe kept a letter and a mark apart they may now melt into one.
    return once if once == text else normalise(once)


def label_key(label: str) -> str:
    """Key in `Answer.others` for a label's name."""
    return "label:" + " ".join(_singular(word) for word in normalise(label).split())


def accepted_keys(label: str, kind: str, texts: Sequence[str]) -> tuple[str, ...]:
    """Keys under which an accepted answer enters `Answer.others` of the labels that follow.

    The texts as they are, the texts with their label's name taken out, and the name itself. The
    caption of an image says nothing of its label: two photos may look alike.
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
    """Those of `accepted_keys` that no two labels may share, by the rule `duplicate`."""
    if kind == "image_caption":
        return ()
    return tuple(key for text in units_of(kind, texts) if (key := normalise(text)))


@lru_cache(maxsize=4096)
def _singular(word: str) -> str:
    """A rough singular, the same for both numbers of a word; it need not be a word itself."""
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
    """The words of a text, each in a rough singular."""
    return tuple(_singular(word) for word in normalise(text).split())


def _spans(words: tuple[str, ...], name: tuple[str, ...]) -> Iterator[int]:
    """Where `name` begins in `words`."""
    n = len(name)
    return (i for i in range(len(words) - n + 1) if n and words[i : i + n] == name)


@lru_cache(maxsize=4096)
def without_name(text: str, label: str) -> str:
    """The words of a text without its label's name: "goldfish" is not the colour gold."""
    words, name = normalise(text).split(), words_of(label)
    gone = {i + k for i in _spans(words_of(text), name) for k in range(len(name))}
    return " ".join(word for i, word in enumerate(words) if i not in gone)


def without_name_key(text: str, label: str) -> str:
    """Key of a text with its label's name taken out; "" where too little is left to compare."""
    rest = without_name(text, label)
    return f"rest:{rest}" if len(rest.split()) >= 3 else ""


def named_in(text: str, label: str) -> Literal["whole", "part"] | None:
    """How a text names a label: all of it, a telling part of it, or not at all."""
    words, name = words_of(text), words_of(label)
    if any(True for _ in _spans(words, name)):
        return "whole"
    joined = "".join(name)
    if len(joined) >= 5 and joined in "".join(words):  # "gas mask", "gasmask"
        return "whole"
    telling = [word for word in name if len(word) >= 3] or name
    return "part" if any(_alike(word, other) for word in telling for other in words) else None


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
