"""Choosing the text of each label for a release.

For each label and requested field, the first existing text is chosen from:
1. the text that a person locked;
2. the newest text that a person wrote for it, or that was imported as an edit of another;
3. the newest accepted text of the requested prompt version (for sentences, captions and
   look-alikes: the union of the samples, in order);
4. the newest imported text.
Texts rejected by a person are never used; with `approved_only`, only approved texts are.
Texts of different languages are not mixed: a label gets the text of the first requested language
in which it has one. If no language is requested, texts in several languages are an error.
A generation matches a label by id, or, if it belongs to no label set or another one, by the label's
name and context, so that texts are reused across label sets.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy import ColumnElement, Row, and_, or_
from sqlmodel import Session, col

from contract import TextSource
from enrich_service.core.errors import Conflict, InvalidInput
from enrich_service.core.text import shortened
from enrich_service.generations import reviews
from enrich_service.generations.models import (
    LANGUAGE,
    Generation,
    GenerationSource,
    GenerationStatus,
)
from enrich_service.generations.queries import HUMAN_SOURCES, SAME_LABEL
from enrich_service.labels.models import Label, LabelSet
from enrich_service.prompts import service as prompt_service
from enrich_service.prompts.models import Prompt, PromptVersion
from enrich_service.prompts.schemas import RELEASED_KINDS, UNION_KINDS, PromptKind
from enrich_service.releases.schemas import (
    ReleaseSource,
)


@dataclass(frozen=True)
class ResolvedSource:
    """A source of a release; without a `version`, only texts of people and imported texts."""

    kind: str
    prompt: Prompt | None = None
    version: PromptVersion | None = None
    model: str | None = None


def resolve_sources(session: Session, sources: Sequence[ReleaseSource]) -> list[ResolvedSource]:
    """Look up the prompt versions of `sources`. Default: texts of people and imports, of all kinds.

    Raises NotFound for an unknown prompt or version, InvalidInput for a prompt for image captions.
    """
    if not sources:
        return [ResolvedSource(kind) for kind in RELEASED_KINDS]
    resolved = [_resolve(session, source) for source in sources]
    for source in resolved:
        if source.prompt and source.kind not in RELEASED_KINDS:
            raise InvalidInput(
                f"sources: {source.prompt.name!r} writes captions of images, which releases do "
                "not contain: write them to a file with `enrich export captions`"
            )
    return resolved


@dataclass
class Choice:
    """The chosen texts: label id → field → value, and (label id, field) → their sources."""

    texts: dict[int, dict[str, Any]]
    sources: dict[tuple[int, str], list[TextSource]]


def choose_texts(
    session: Session,
    label_set: LabelSet,
    sources: Sequence[ResolvedSource],
    languages: Sequence[str],
    approved_only: bool,
) -> Choice:
    """Choose a text per label and field, from the first source and language that has one.

    Raises Conflict if no language is requested and the texts are in several.
    """
    choice = Choice(defaultdict(dict), {})
    all_languages: dict[str, str] = {}  # case-folded → as written
    for source in sources:
        candidates = _candidates(session, label_set, source, approved_only=approved_only)
        all_languages |= {row.language.casefold(): row.language for row in candidates}
        for chosen in _by_language(source.kind, candidates, languages):
            for label_id, (value, text_sources) in chosen.items():
                if source.kind not in choice.texts[label_id]:
                    choice.texts[label_id][source.kind] = value
                    choice.sources[label_id, source.kind] = text_sources
    if not languages and len(all_languages) > 1:
        names = sorted(all_languages.values())
        raise Conflict(
            f"The texts are in several languages ({', '.join(names)}): choose "
            f'one, e.g. "languages": ["{names[0]}"], or --language.'
        )
    return choice


def parse_source(text: str, model: str | None = None) -> ReleaseSource:
    """Parse `PROMPT@VERSION` or `PROMPT@ALIAS`. Raises InvalidInput."""
    prompt, at, version = text.rpartition("@")
    if not (prompt and at and version):
        raise InvalidInput(
            f"{shortened(text)} is not a source: write PROMPT@VERSION or PROMPT@ALIAS"
        )
    if version.isdecimal() and len(version) < 10 and int(version) > 0:
        return ReleaseSource(prompt=prompt, version=int(version), model=model)
    return ReleaseSource(prompt=prompt, alias=version, model=model)


def _resolve(session: Session, source: ReleaseSource) -> ResolvedSource:
    version = prompt_service.resolve(
        session, source.prompt, version=source.version, alias=source.alias
    )
    prompt = session.get_one(Prompt, version.prompt_id)
    return ResolvedSource(prompt.kind, prompt, version, source.model)


# The columns of a generation that a release needs; the raw reply would be slow to load.
_COLUMNS: tuple[ColumnElement[Any], ...] = (
    col(Label.id).label("label_id"),
    col(Label.key).label("key"),
    col(Generation.label_id).label("generation_label_id"),
    col(Generation.id).label("id"),
    col(Generation.source).label("source"),
    col(Generation.parsed).label("parsed"),
    col(Generation.parent_id).label("parent_id"),
    col(Generation.sample_index).label("sample_index"),
    col(Generation.requested_model).label("requested_model"),
    col(Generation.resolved_model).label("resolved_model"),
    col(Generation.author).label("author"),
    col(Generation.created_at).label("created_at"),
    col(Generation.cost_usd).label("cost_usd"),
    col(Prompt.name).label("prompt"),
    col(PromptVersion.number).label("prompt_version"),
    col(PromptVersion.content_hash).label("prompt_hash"),
    reviews.LOCKED.label("locked"),
    LANGUAGE.label("language"),
)


def _candidates(
    session: Session,
    label_set: LabelSet,
    source: ResolvedSource,
    *,
    approved_only: bool,
    only: Sequence[int] | None = None,
) -> Sequence[Row[Any]]:
    """Accepted generations for labels of `label_set`, if given with ids in `only`, oldest first."""
    human = and_(
        or_(col(Generation.source).in_(HUMAN_SOURCES), reviews.LOCKED),
        col(Generation.kind) == source.kind,
        # Texts of people for a label of another set are not used.
        or_(col(Generation.label_id) == col(Label.id), col(Generation.label_id).is_(None)),
    )
    from_version = and_(
        col(Generation.source).not_in(HUMAN_SOURCES),
        col(Generation.prompt_version_id) == (source.version.id if source.version else None),
    )
    if source.model is not None:
        from_version = and_(from_version, col(Generation.requested_model) == source.model)
    query = (
        sa.select(*_COLUMNS)
        .select_from(Label)
        .join(Generation, SAME_LABEL)
        .outerjoin(PromptVersion, col(PromptVersion.id) == col(Generation.prompt_version_id))
        .outerjoin(Prompt, col(Prompt.id) == col(PromptVersion.prompt_id))
        .where(
            col(Label.label_set_id) == label_set.id,
            col(Generation.status) == GenerationStatus.ACCEPTED,
            or_(human, from_version) if source.version else human,
            ~reviews.REJECTED,
        )
        .order_by(col(Generation.id))
    )
    if approved_only:
        query = query.where(reviews.APPROVED)
    if only is not None:
        query = query.where(col(Label.id).in_(only))
    return session.execute(query).all()


def current(
    session: Session, label_set: LabelSet, source: ReleaseSource, only: Sequence[int]
) -> dict[int, tuple[Any, list[TextSource]]]:
    """The texts that a release from `source` would contain now, with their sources, by label id.

    Languages are ignored: the newest text is returned.
    """
    resolved = _resolve(session, source)
    candidates = _candidates(session, label_set, resolved, approved_only=False, only=only)
    return _choose(resolved.kind, candidates)


def _by_language(
    kind: str, candidates: Sequence[Row[Any]], languages: Sequence[str]
) -> Iterable[dict[int, tuple[Any, list[TextSource]]]]:
    """The chosen texts in each of `languages` in turn; without languages, of all candidates."""
    if not languages:
        yield _choose(kind, candidates)
    for language in map(str.casefold, languages):
        yield _choose(kind, [row for row in candidates if row.language.casefold() == language])


def _choose(kind: str, candidates: Iterable[Row[Any]]) -> dict[int, tuple[Any, list[TextSource]]]:
    """The chosen text of `kind` and its sources, by label id."""
    locked: dict[int, Row[Any]] = {}
    edits: dict[int, Row[Any]] = {}
    imports: dict[int, Row[Any]] = {}
    samples: dict[int, dict[int, Row[Any]]] = defaultdict(dict)
    for row in candidates:
        if row.locked and row.generation_label_id in (None, row.label_id):
            locked[row.label_id] = row
        elif row.source == GenerationSource.PERSON or (
            row.source == GenerationSource.IMPORT and row.parent_id is not None
        ):
            edits[row.label_id] = row
        elif row.source == GenerationSource.IMPORT:
            imports[row.label_id] = row
        else:
            # Removed first, so that the newest sample is the last item.
            samples[row.label_id].pop(row.sample_index, None)
            samples[row.label_id][row.sample_index] = row
    chosen: dict[int, tuple[Any, list[TextSource]]] = {}
    for label_id in locked.keys() | edits.keys() | samples.keys() | imports.keys():
        if label_id in locked:
            rows = [locked[label_id]]
        elif label_id in edits:
            rows = [edits[label_id]]
        elif label_id not in samples:
            rows = [imports[label_id]]
        elif kind in UNION_KINDS:
            rows = [row for _, row in sorted(samples[label_id].items())]
        else:
            rows = [list(samples[label_id].values())[-1]]
        value = _field_value(kind, [row.parsed or {} for row in rows])
        if value:
            chosen[label_id] = (value, [_text_source(kind, row) for row in rows])
    return chosen


def _field_value(kind: str, parsed: Sequence[dict[str, Any]]) -> Any:  # noqa: ANN401 - by kind
    """The value of the release field `kind` from parsed answers; empty without texts."""
    if kind == PromptKind.DESCRIPTION:
        return str(parsed[0].get("description") or "").strip()
    if kind == PromptKind.ATTRIBUTES:
        attributes = {name: _texts(value) for name, value in parsed[0].items()}
        return {name: values for name, values in attributes.items() if values}
    texts = [text for answer in parsed for text in _texts(answer.get(kind))]
    return tuple(dict.fromkeys(texts))


def _texts(value: Any) -> tuple[str, ...]:  # noqa: ANN401 - any JSON
    values = value if isinstance(value, list) else [value]
    return tuple(text.strip() for text in values if isinstance(text, str) and text.strip())


def _text_source(field: str, row: Row[Any]) -> TextSource:
    return TextSource(
        key=row.key,
        field=field,
        source=row.source,
        generation_id=row.id,
        prompt=row.prompt,
        prompt_version=row.prompt_version,
        prompt_hash=row.prompt_hash,
        requested_model=row.requested_model,
        resolved_model=row.resolved_model,
        author=row.author or None,
        created_at=row.created_at,
        language=row.language,
        cost_usd=row.cost_usd,
    )
