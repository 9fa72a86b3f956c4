"""Texts by people: edits of generations, and new texts."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlmodel import Session

from enrich_service.core.errors import Conflict, InvalidInput
from enrich_service.core.text import check_line, check_text, shortened
from enrich_service.generations import reviews
from enrich_service.generations.models import (
    Generation,
    GenerationSource,
    GenerationStatus,
    language_of,
)
from enrich_service.generations.schemas import LabelTextIn, TextIn
from enrich_service.generations.store import get_generation
from enrich_service.labels import service as labels
from enrich_service.prompts import service as prompts
from enrich_service.prompts.models import Prompt
from enrich_service.prompts.schemas import PromptKind
from enrich_service.validation.answer import ENGLISH, Answer, texts_of
from enrich_service.validation.rules import check


@dataclass(frozen=True)
class _Subject:
    """The label or image of a text, and the generation it replaces, if any."""

    version_id: int
    kind: str
    label_id: int | None
    name: str
    context: str | None
    language: str
    parent: Generation | None = None


def edit_generation(session: Session, generation_id: int, body: TextIn) -> Generation:
    """Store a person's edit of a generation, with that generation as its parent."""
    parent = get_generation(session, generation_id)
    if parent.prompt_version_id is None:
        raise Conflict(
            f"Generation {generation_id} belongs to no prompt, so it cannot be edited: write a "
            "text of its label instead (`enrich texts write`, POST /v1/labels/…/texts)."
        )
    subject = _Subject(
        version_id=parent.prompt_version_id,
        kind=parent.kind,
        label_id=parent.label_id,
        name=parent.label_name,
        context=parent.label_context,
        language=language_of(parent),
        parent=parent,
    )
    return _write(session, subject, body)


def write_text(session: Session, label_id: int, body: LabelTextIn) -> Generation:
    """Store a person's text for a label of a label set."""
    label, _ = labels.label(session, label_id)
    version = prompts.resolve_default(session, body.prompt)
    kind = session.get_one(Prompt, version.prompt_id).kind
    if kind == PromptKind.IMAGE_CAPTION:
        raise InvalidInput(
            f"prompt {body.prompt!r} is for images: edit the caption of an image instead"
        )
    assert version.id is not None
    language = check_line("language", body.language, limit=50)
    subject = _Subject(version.id, kind, label_id, label.name, label.context, language)
    return _write(session, subject, body)


def _write(session: Session, subject: _Subject, body: TextIn) -> Generation:
    kind, language, parent = subject.kind, subject.language, subject.parent
    reviews.check_unlocked(
        session,
        kind=kind,
        name=subject.name,
        context=subject.context,
        label_id=subject.label_id,
        language=language,
        image_hash=parent.image_hash if parent else None,
    )
    content = _content(kind, body.text, body.parsed)
    answer = _checked(subject, content)
    edit = Generation(
        source=GenerationSource.PERSON,
        status=GenerationStatus.ACCEPTED,
        kind=kind,
        label_id=subject.label_id,
        label_name=subject.name,
        label_context=subject.context,
        prompt_version_id=subject.version_id,
        image=parent.image if parent else None,
        image_hash=parent.image_hash if parent else None,
        parent_id=parent.id if parent else None,
        variables={} if language == ENGLISH else {"language": language},
        parsed=content,
        flags=list(check([{"rule": "length"}], answer).flags),
        calls=0,
        author=body.author,
    )
    session.add(edit)
    session.flush()
    return edit


def _checked(subject: _Subject, content: dict[str, Any]) -> Answer:
    """A person's text as an answer. Raises InvalidInput if its format is invalid.

    The length limits of the prompt do not apply.
    """
    texts = texts_of(subject.kind, content)
    for text in texts:
        check_text("The text", text, limit=20_000)
    answer = Answer(
        subject.name,
        subject.context,
        subject.kind,
        raw="",
        parsed=content,
        texts=texts,
        others={},
        language=subject.language,
    )
    form = check([{"rule": "empty"}, {"rule": "control"}], answer)
    if form.problems:
        raise InvalidInput(form.problems[0])
    return answer


def _content(kind: str, text: str | None, parsed: Mapping[str, Any] | None) -> dict[str, Any]:
    if (text is None) == (parsed is None):
        raise InvalidInput("give either text or parsed")
    if parsed is not None:
        allowed = {name for name in parsed if kind in (PromptKind.ATTRIBUTES, name)}
        if allowed != set(parsed) or not texts_of(kind, parsed):
            raise InvalidInput(f"parsed: give an object with texts in the format of {kind!r}")
        return dict(parsed)
    assert text is not None
    if kind == PromptKind.ATTRIBUTES:
        raise InvalidInput(
            'attributes: give them in parsed, e.g. {"parsed": {"shape": "round"}}, not in text'
        )
    if kind in (PromptKind.DESCRIPTION, PromptKind.IMAGE_CAPTION):
        return {kind: " ".join(text.split())}
    lines = [" ".join(line.split()) for line in text.splitlines() if line.strip()]
    if not lines:
        raise InvalidInput(f"text: {shortened(text)} has no line with text")
    return {kind: lines}
