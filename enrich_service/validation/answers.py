"""From the raw text of a reply to texts that training can use, or to the reasons why not."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from enrich_service.llm.chat_model import Reply
from enrich_service.validation.rules import (
    ENGLISH,
    Answer,
    Check,
    Verdict,
    accepted_keys,
    normalise,
    prepare,
    text_keys,
)


@dataclass(frozen=True)
class Judgement:
    """One reply, read and checked; it is accepted if there are no problems."""

    parsed: dict[str, Any] | None
    texts: tuple[str, ...]
    problems: tuple[str, ...]
    flags: tuple[str, ...]
    cut_off: bool = False  # more room may mend it

    @property
    def accepted(self) -> bool:
        """Whether the answer can be used."""
        return not self.problems


class Taken:
    """What other labels have been given, so that no two labels share a text.

    Grows with the accepted answers of one prompt version; never walked through. An answer that
    this process has accepted is `reserved` until it is stored, and `added` when it is: of two
    processes that accept one text at once, the database says whose it is.
    """

    def __init__(self) -> None:
        self._stored: dict[str, str] = {}  # label by key
        self._reserved: dict[str, str] = {}

    def reserve(self, label: str, kind: str, texts: Sequence[str]) -> None:
        """Remember an accepted answer that is not stored yet."""
        for key in accepted_keys(label, kind, texts):
            self._reserved.setdefault(key, label)

    def add(self, label: str, kind: str, texts: Sequence[str]) -> None:
        """Remember a stored answer."""
        for key in accepted_keys(label, kind, texts):
            self._stored.setdefault(key, label)
            self._reserved.pop(key, None)

    def stored_for_another(self, label: str, kind: str, texts: Sequence[str]) -> bool:
        """Whether one of the texts is stored as the text of another label."""
        others = _Others((self._stored,), label)
        return any(key in others for key in text_keys(kind, texts))

    def by_others_than(self, label: str) -> Mapping[str, str]:
        """The keys that belong to other labels (see `rules.accepted_keys`)."""
        return _Others((self._stored, self._reserved), label)


class _Others(Mapping[str, str]):
    """A view without the label's own texts: "grey_fox" and "grey fox" are one label."""

    def __init__(self, owners: Sequence[Mapping[str, str]], label: str) -> None:
        self._owners, self._own = owners, normalise(label)

    def __getitem__(self, key: str) -> str:
        owner = next((labels[key] for labels in self._owners if key in labels), None)
        if owner is None or normalise(owner) == self._own:
            raise KeyError(key)
        return owner

    def __iter__(self) -> Iterator[str]:
        return (key for key in {key for labels in self._owners for key in labels} if key in self)

    def __len__(self) -> int:
        return sum(1 for _ in self)


def read_object(text: str) -> dict[str, Any] | None:
    """The JSON object in a reply, fenced or surrounded by prose; the last one if there are more."""
    decoder = json.JSONDecoder(strict=False)  # raw line breaks in strings are forgiven
    found, start = None, text.find("{")
    while start >= 0:
        try:
            value, end = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            end = start + 1
        else:
            found = value
        start = text.find("{", end)
    return _tidy(found) if isinstance(found, dict) else None


def _tidy(value: Any) -> Any:  # noqa: ANN401 - any JSON
    """Strings on one line, without blanks around them."""
    if isinstance(value, str):
        return " ".join(value.split())
    if isinstance(value, list):
        return [_tidy(item) for item in value]
    if isinstance(value, dict):
        return {key: _tidy(item) for key, item in value.items()}
    return value


def texts_of(kind: str, parsed: Mapping[str, Any] | None) -> tuple[str, ...]:
    """The texts of an answer: a description, K sentences or captions, or all attribute values."""
    if parsed is None:
        return ()
    found = list(parsed.values()) if kind == "attributes" else [parsed.get(kind)]
    flat = [item for value in found for item in (value if isinstance(value, list) else [value])]
    return tuple(item for item in flat if isinstance(item, str) and item)


def attributes_of(parsed: Mapping[str, Any] | None) -> dict[str, tuple[str, ...]]:
    """The attributes of an answer, each with its values."""
    return {
        name: texts_of(name, {name: value})
        for name, value in (parsed or {}).items()
        if texts_of(name, {name: value})
    }


@dataclass(frozen=True)
class Checks:
    """What the answers to one prompt version have to pass: first their form, then their content."""

    form: Check
    content: Check

    @classmethod
    def of(cls, schema: Mapping[str, Any], rules: Sequence[Mapping[str, Any]]) -> "Checks":
        """Those of a prompt version. Raises InvalidInput for an unknown rule or a bad option."""
        # As many texts as were asked for belong to the form.
        form: list[Mapping[str, Any]] = [{"rule": "schema", "schema": schema}, {"rule": "count"}]
        named = {rule["rule"] for rule in form}
        return cls(
            prepare(form), prepare([rule for rule in rules if rule.get("rule") not in named])
        )


def judge(
    reply: Reply,
    checks: Checks,
    *,
    label: str,
    context: str | None,
    kind: str,
    taken: Taken,
    n: int | None = None,
    language: str = ENGLISH,
) -> Judgement:
    """Read the reply and apply the prompt's rules; what breaks the form goes no further."""
    if reply.refusal or reply.finish_reason == "content_filter":
        said = reply.refusal or "the server's content filter stopped the answer"
        return Judgement(None, (), (f"refusal: {said[:200]}",), ())
    parsed = read_object(reply.text)
    cut_off = reply.finish_reason == "length"
    texts = texts_of(kind, parsed)
    answer = Answer(
        label=label,
        context=context,
        kind=kind,
        raw=reply.text,
        parsed=parsed,
        texts=texts,
        others=taken.by_others_than(label),
        n=n,
        language=language,
    )
    verdict = checks.form(answer)
    if cut_off and verdict.problems:
        verdict = Verdict((f"cut_off: the answer ended after {reply.completion_tokens} tokens",))
    if not verdict.problems:
        verdict = checks.content(answer)
    return Judgement(parsed, texts, verdict.problems, verdict.flags, cut_off)


def correction(problems: Sequence[str]) -> str:
    """What the model is told before it answers again."""
    listed = "\n".join(f"- {problem}" for problem in problems)
    return (
        f"That answer cannot be used:\n{listed}\n"
        "Answer the question again and mend this. Give the JSON object alone."
    )
