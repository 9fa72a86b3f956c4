"""Import and export of the paper's text files label2text.txt and chatgpt.txt."""

from collections.abc import Iterable
from typing import Any

from sqlmodel import Session

from contract import Release
from enrich_service.core.errors import InvalidInput
from enrich_service.core.text import check_text
from enrich_service.exchange.schemas import (
    Imported,
)
from enrich_service.generations.models import (
    Generation,
    GenerationSource,
    GenerationStatus,
)
from enrich_service.labels import service as label_service
from enrich_service.labels.models import Label
from enrich_service.prompts.schemas import (
    PromptKind,
)
from enrich_service.validation.accepted_texts import AcceptedTextIndex
from enrich_service.validation.answer import Answer, texts_of
from enrich_service.validation.rules import DEFAULT_RULES, check

_MAX_PROBLEMS = 100  # in the result


def import_pairs(
    session: Session,
    name: str,
    label2text: str,
    descriptions: str | None = None,
    *,
    context: str | None = None,
    author: str = "",
    check_texts: bool = True,
) -> Imported:
    """Create a label set from the paper's label2text.txt, with one text per line of chatgpt.txt.

    With `check_texts`, texts that fail validation are stored as rejected: they are visible, but
    never part of a release.
    """
    check_text("The author", author, limit=200)
    labels = [
        label.model_copy(update={"context": context})
        for label in label_service.parse_label2text(label2text.splitlines())
    ]
    label_set = label_service.create(session, name, labels)
    result = Imported(label_sets=[name])
    if descriptions is None:
        return result
    lines = descriptions.split("\n")
    if lines and not lines[-1]:
        lines.pop()
    if len(lines) != len(labels):
        raise InvalidInput(
            f"There are {len(labels)} labels and {len(lines)} lines of text: "
            "the n-th line must describe the n-th label"
        )
    texts_by_label = [
        (label, {"description": " ".join(line.split())}, line)
        for label, line in zip(label_service.labels_of(session, label_set), lines, strict=True)
    ]
    store_imported_texts(
        session,
        result,
        PromptKind.DESCRIPTION,
        texts_by_label,
        author=author,
        check_texts=check_texts,
    )
    return result


def store_imported_texts(
    session: Session,
    result: Imported,
    kind: PromptKind,
    given: Iterable[tuple[Label, dict[str, Any], str]],
    *,
    author: str,
    check_texts: bool,
) -> None:
    """Store one imported text per label, parsed and raw, and count it in `result`.

    With `check_texts`, a text that fails validation is stored as rejected.
    """
    accepted_texts = AcceptedTextIndex()
    rows = []
    for label, parsed, raw in given:
        texts = texts_of(kind, parsed)
        answer = Answer(
            label.name,
            label.context,
            kind,
            raw=raw,
            parsed=parsed,
            texts=texts,
            others=accepted_texts.by_others_than(label.name),
        )
        verdict = check(DEFAULT_RULES if check_texts else [{"rule": "empty"}], answer)
        accepted = not verdict.problems
        if accepted:
            accepted_texts.add(label.name, kind, texts)
        rows.append(
            Generation(
                source=GenerationSource.IMPORT,
                status=GenerationStatus.ACCEPTED if accepted else GenerationStatus.REJECTED,
                kind=kind,
                label_id=label.id,
                label_name=label.name,
                label_context=label.context,
                raw_reply=raw,
                parsed=parsed,
                problems=list(verdict.problems),
                flags=list(verdict.flags),
                calls=0,
                author=author,
            )
        )
        result.problems += [f"{label.name!r}: {problem}" for problem in verdict.problems]
    session.add_all(rows)
    session.flush()
    accepted_rows = sum(row.status is GenerationStatus.ACCEPTED for row in rows)
    result.generations += accepted_rows
    result.rejected += len(rows) - accepted_rows
    result.problems = result.problems[:_MAX_PROBLEMS]


def label2text(release: Release) -> str:
    """The labels of a release as the paper's label2text.txt."""
    return "".join(
        f"{label.key.replace(' ', '_')} {number} {label.name.replace(' ', '_')}\n"
        for number, label in enumerate(release.labels, start=1)
    )


def descriptions(release: Release) -> str:
    """The descriptions of a release as the paper's chatgpt.txt; empty lines for missing ones."""
    return "".join(" ".join((label.description or "").split()) + "\n" for label in release.labels)
