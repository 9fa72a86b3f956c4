"""Parses and checks a reply: texts for training, or the reasons for rejection."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from enrich_service.validation.accepted_texts import AcceptedTextIndex
from enrich_service.validation.answer import ENGLISH, Answer, Check, Verdict, read_object, texts_of
from enrich_service.validation.rules import prepare


@dataclass(frozen=True)
class Judgement:
    """One reply, read and checked; it is accepted if there are no problems."""

    parsed: dict[str, Any] | None
    texts: tuple[str, ...]
    problems: tuple[str, ...]
    flags: tuple[str, ...]
    cut_off: bool = False  # a higher max_tokens may fix it

    @property
    def accepted(self) -> bool:
        """Whether the answer can be used."""
        return not self.problems


class ModelReply(Protocol):
    """The parts of a model's reply that are checked."""

    @property
    def text(self) -> str:
        """The text of the answer."""
        ...

    @property
    def refusal(self) -> str | None:
        """The model's reason for a refusal, if the server has a field for it."""
        ...

    @property
    def finish_reason(self) -> str | None:
        """stop, length (truncated), content_filter, …"""
        ...

    @property
    def completion_tokens(self) -> int | None:
        """The length of the answer, if known."""
        ...


@dataclass(frozen=True)
class Checks:
    """The rules of one prompt version: first those of format, then those of content."""

    form: Check
    content: Check

    @classmethod
    def of(cls, schema: Mapping[str, Any], rules: Sequence[Mapping[str, Any]]) -> "Checks":
        """The checks of a prompt version. Raises InvalidInput for an invalid rule or option."""
        # The requested number of texts is a matter of format.
        form: list[Mapping[str, Any]] = [{"rule": "schema", "schema": schema}, {"rule": "count"}]
        named = {rule["rule"] for rule in form}
        return cls(
            prepare(form), prepare([rule for rule in rules if rule.get("rule") not in named])
        )


@dataclass(frozen=True)
class Subject:
    """The label of a reply, and what was requested."""

    label: str
    context: str | None
    kind: str  # as Prompt.kind
    n: int | None = None  # number of texts; None: as the schema says
    language: str = ENGLISH


def judge(
    reply: ModelReply, checks: Checks, subject: Subject, accepted_texts: AcceptedTextIndex
) -> Judgement:
    """Parse the reply and apply the rules of format and, if it passes, those of content."""
    if reply.refusal or reply.finish_reason == "content_filter":
        reason = reply.refusal or "the server's content filter stopped the answer"
        return Judgement(None, (), (f"refusal: {reason[:200]}",), ())
    parsed = read_object(reply.text)
    cut_off = reply.finish_reason == "length"
    texts = texts_of(subject.kind, parsed)
    answer = Answer(
        label=subject.label,
        context=subject.context,
        kind=subject.kind,
        raw=reply.text,
        parsed=parsed,
        texts=texts,
        others=accepted_texts.by_others_than(subject.label),
        n=subject.n,
        language=subject.language,
    )
    verdict = checks.form(answer)
    if cut_off and verdict.problems:
        verdict = Verdict((f"cut_off: the answer ended after {reply.completion_tokens} tokens",))
    if not verdict.problems:
        verdict = checks.content(answer)
    return Judgement(parsed, texts, verdict.problems, verdict.flags, cut_off)


def correction(problems: Sequence[str]) -> str:
    """The message to the model before its next attempt."""
    listed = "\n".join(f"- {problem}" for problem in problems)
    return (
        f"That answer cannot be used:\n{listed}\n"
        "Answer the question again and correct this. Give the JSON object alone."
    )
