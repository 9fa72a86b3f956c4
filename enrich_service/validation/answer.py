"""One parsed answer of a language model, and the verdict of the rules on it."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from enrich_service.core.text import storable

ENGLISH = "English"
SHORT_KINDS = ("attributes", "look_alikes")  # phrases and names, no sentences


@dataclass(frozen=True)
class Answer:
    """One parsed reply, possibly incomplete.

    `texts` are the texts used in training: one description, K sentences or captions, or the values
    of all attributes. `parsed` is None if the reply is not a JSON object. `others` contains the
    keys of other labels; fill it with `accepted_keys` and `label_key`.
    """

    label: str
    context: str | None
    kind: str  # as Prompt.kind
    raw: str
    parsed: dict[str, Any] | None
    texts: tuple[str, ...]
    others: Mapping[str, str]
    n: int | None = None  # number of requested texts; None: as the schema says
    language: str = ENGLISH  # as requested; rules with English word lists check only English

    @property
    def english(self) -> bool:
        """Whether the requested language is English."""
        return self.language.casefold() in ("english", "en")

    @property
    def prose(self) -> tuple[str, ...]:
        """The texts that are sentences: no attribute values ("red") and no names."""
        return () if self.kind in SHORT_KINDS else self.texts


@dataclass(frozen=True)
class Verdict:
    """The findings of the rules. Each string begins with the name of its rule and a colon."""

    problems: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()


Rule = Callable[..., Verdict]
Check = Callable[[Answer], Verdict]
PASSED = Verdict()


def units_of(kind: str, texts: Sequence[str]) -> Sequence[str]:
    """The parts that must differ between labels: each text, or all attributes or names together."""
    return ("; ".join(texts),) if kind in SHORT_KINDS and texts else texts


def read_object(text: str) -> dict[str, Any] | None:
    """The JSON object in a reply, fenced or surrounded by prose; the last of several."""
    decoder = json.JSONDecoder(strict=False)  # allows line breaks in strings
    last, start = None, text.find("{")
    while start >= 0:
        try:
            value, end = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            end = start + 1
        else:
            last = value
        start = text.find("{", end)
    return _tidy(last) if isinstance(last, dict) else None


def _tidy(value: Any) -> Any:  # noqa: ANN401 - any JSON
    """Normalise strings to one line without surrounding blanks; replace unstorable characters."""
    if isinstance(value, str):
        return " ".join(storable(value).split())
    if isinstance(value, list):
        return [_tidy(item) for item in value]
    if isinstance(value, dict):
        return {storable(key): _tidy(item) for key, item in value.items()}
    return value


def texts_of(kind: str, parsed: Mapping[str, Any] | None) -> tuple[str, ...]:
    """The texts of an answer: a description, K sentences, captions or names, or all values."""
    if parsed is None:
        return ()
    values = list(parsed.values()) if kind == "attributes" else [parsed.get(kind)]
    flat = [item for value in values for item in (value if isinstance(value, list) else [value])]
    return tuple(item for item in flat if isinstance(item, str) and item)


def attributes_of(parsed: Mapping[str, Any] | None) -> dict[str, tuple[str, ...]]:
    """The attributes of an answer, each with its values."""
    return {
        name: texts_of(name, {name: value})
        for name, value in (parsed or {}).items()
        if texts_of(name, {name: value})
    }
