"""Releases: choose one text for every label and store them as hashed, immutable bytes.

The text of a label, for each requested field, is the first of:
1. the text that a person locked;
2. the newest text that a person wrote for it, or that was imported as an edit of another;
3. the newest accepted text of the requested prompt version (for sentences and captions: the union
   of the samples, in order);
4. the newest imported text.
Texts rejected by a person are never used, and with `approved_only` only approved ones are.
Texts of different languages are not mixed: a label gets the text of the first requested language
that has one. If none is requested and the texts are in several languages, it is an error.
A generation matches a label by id, or, if it belongs to no or another label set, by the label's
name and context, so that texts are reused across label sets.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy import ColumnElement, Row, and_, or_
from sqlmodel import Session, col, select

from contract import Release, ReleaseLabel, TextSource, release_hash
from enrich_service.core.errors import Conflict, InvalidInput, NoSuch
from enrich_service.core.text import check_line, check_name, check_text, shortened
from enrich_service.generations import reviews
from enrich_service.generations.models import (
    LANGUAGE,
    Generation,
    GenerationSource,
    GenerationStatus,
)
from enrich_service.generations.sql import HUMAN_SOURCES, SAME_LABEL
from enrich_service.labels import service as label_service
from enrich_service.labels.models import Label, LabelSet
from enrich_service.labels.schemas import LabelIn
from enrich_service.prompts import service as prompt_service
from enrich_service.prompts.models import Prompt, PromptVersion
from enrich_service.prompts.schemas import RELEASED_KINDS, UNION_KINDS, PromptKind
from enrich_service.releases.models import ReleaseRow
from enrich_service.releases.schemas import (
    LabelChange,
    ReleaseCreate,
    ReleaseDiff,
    ReleaseSource,
    ReleaseView,
)

_TEXT_FIELDS = ("description", "attributes", "sentences", "captions")
_NAMED_IN_ERRORS = 5


@dataclass(frozen=True)
class _Source:
    """A resolved source of a release; without a `version`, only people's and imported texts."""

    kind: str
    prompt: Prompt | None = None
    version: PromptVersion | None = None
    model: str | None = None


def create(session: Session, body: ReleaseCreate) -> tuple[ReleaseRow, bool]:
    """Create a release. Returns it, and whether it is new: same name and texts give the old one.

    Raises Conflict where a label has no text, the texts are in several languages and none is
    named, or a release with that name has other texts.
    """
    languages = [check_line("A language", language, limit=50) for language in body.languages]
    label_set = label_service.get(session, body.label_set)
    labels = label_service.labels_of(session, label_set)
    sources = _resolve_sources(session, body.sources)
    choice = _choose_texts(session, label_set, sources, languages, body.approved_only)
    if not body.allow_missing:
        kinds = [source.kind for source in sources] if body.sources else []
        _require_texts(labels, choice.texts, kinds, languages, approved_only=body.approved_only)
    release_labels = tuple(
        ReleaseLabel(
            key=label.key,
            name=label.name,
            context=label.context,
            **choice.texts.get(_id(label), {}),
        )
        for label in labels
    )
    text_sources = tuple(
        source
        for label in labels
        for field in _TEXT_FIELDS
        for source in choice.sources.get((_id(label), field), ())
    )
    return _store(
        session,
        label_set,
        name=body.name,
        message=body.message,
        author=body.author,
        labels=release_labels,
        sources=text_sources,
    )


def _resolve_sources(session: Session, sources: Sequence[ReleaseSource]) -> list[_Source]:
    """Look up the prompt versions of `sources`; without any, people's and imported texts."""
    if not sources:
        return [_Source(kind) for kind in RELEASED_KINDS]
    resolved = [_resolve(session, source) for source in sources]
    for source in resolved:
        if source.prompt and source.kind not in RELEASED_KINDS:
            raise InvalidInput(
                f"sources: {source.prompt.name!r} writes captions of images, which no release "
                "holds: `enrich export captions` writes them to a file for training"
            )
    return resolved


@dataclass
class _Choice:
    """The chosen texts: label id → field → value, and (label id, field) → their sources."""

    texts: dict[int, dict[str, Any]]
    sources: dict[tuple[int, str], list[TextSource]]


def _choose_texts(
    session: Session,
    label_set: LabelSet,
    sources: Sequence[_Source],
    languages: Sequence[str],
    approved_only: bool,
) -> _Choice:
    """Choose a text per label and field: that of the first source and language that has one."""
    choice = _Choice(defaultdict(dict), {})
    found_languages: dict[str, str] = {}  # compared without case, shown as written
    for source in sources:
        candidates = _candidates(session, label_set, source, approved_only=approved_only)
        found_languages |= {row.language.casefold(): row.language for row in candidates}
        for chosen in _by_language(source.kind, candidates, languages):
            for label_id, (value, text_sources) in chosen.items():
                if source.kind not in choice.texts[label_id]:
                    choice.texts[label_id][source.kind] = value
                    choice.sources[label_id, source.kind] = text_sources
    if not languages and len(found_languages) > 1:
        names = sorted(found_languages.values())
        raise Conflict(
            f"The texts are in several languages ({', '.join(names)}): name "
            f'the one to take, e.g. "languages": ["{names[0]}"], or --language.'
        )
    return choice


def _id(label: Label) -> int:
    assert label.id is not None
    return label.id


def parse_source(given: str, model: str | None = None) -> ReleaseSource:
    """Parse `PROMPT@VERSION` or `PROMPT@ALIAS`. Raises InvalidInput."""
    prompt, at, which = given.rpartition("@")
    if not (prompt and at and which):
        raise InvalidInput(
            f"{shortened(given)} is not a source: write PROMPT@VERSION or PROMPT@ALIAS"
        )
    if which.isdecimal() and len(which) < 10 and int(which) > 0:
        return ReleaseSource(prompt=prompt, version=int(which), model=model)
    return ReleaseSource(prompt=prompt, alias=which, model=model)


def _resolve(session: Session, source: ReleaseSource) -> _Source:
    version = prompt_service.resolve(
        session, source.prompt, version=source.version, alias=source.alias
    )
    prompt = session.get_one(Prompt, version.prompt_id)
    return _Source(prompt.kind, prompt, version, source.model)


# The columns that a release needs of a generation, without the raw reply.
_COLUMNS: tuple[ColumnElement[Any], ...] = (
    col(Label.id).label("for_label"),
    col(Label.key).label("key"),
    col(Generation.label_id).label("of_label"),
    col(Generation.id).label("id"),
    col(Generation.source).label("source"),
    col(Generation.parsed).label("parsed"),
    col(Generation.parent_id).label("parent_id"),
    col(Generation.sample_index).label("sample_index"),
    col(Generation.requested_model).label("requested_model"),
    col(Generation.resolved_model).label("resolved_model"),
    col(Generation.author).label("author"),
    col(Generation.created_at).label("created_at"),
    col(Prompt.name).label("prompt"),
    col(PromptVersion.number).label("prompt_version"),
    col(PromptVersion.content_hash).label("prompt_hash"),
    reviews.LOCKED.label("locked"),
    LANGUAGE.label("language"),
)


def _candidates(
    session: Session,
    label_set: LabelSet,
    source: _Source,
    *,
    approved_only: bool,
    only: Sequence[int] | None = None,
) -> Sequence[Row[Any]]:
    """Accepted generations for the labels of `label_set` (or `only` those), the oldest first."""
    human = and_(
        or_(col(Generation.source).in_(HUMAN_SOURCES), reviews.LOCKED),
        col(Generation.kind) == source.kind,
        # A person's text for a label of another set is not used.
        or_(col(Generation.label_id) == col(Label.id), col(Generation.label_id).is_(None)),
    )
    of_version = and_(
        col(Generation.source).not_in(HUMAN_SOURCES),
        col(Generation.prompt_version_id) == (source.version.id if source.version else None),
    )
    if source.model is not None:
        of_version = and_(of_version, col(Generation.requested_model) == source.model)
    query = (
        sa.select(*_COLUMNS)
        .select_from(Label)
        .join(Generation, SAME_LABEL)
        .outerjoin(PromptVersion, col(PromptVersion.id) == col(Generation.prompt_version_id))
        .outerjoin(Prompt, col(Prompt.id) == col(PromptVersion.prompt_id))
        .where(
            col(Label.label_set_id) == label_set.id,
            col(Generation.status) == GenerationStatus.ACCEPTED,
            or_(human, of_version) if source.version else human,
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
    """The chosen texts in each of `languages` in turn; without any, of all candidates."""
    if not languages:
        yield _choose(kind, candidates)
    for wanted in languages:
        spoken = wanted.casefold()
        yield _choose(kind, [row for row in candidates if row.language.casefold() == spoken])


def _choose(kind: str, candidates: Iterable[Row[Any]]) -> dict[int, tuple[Any, list[TextSource]]]:
    """The chosen text of `kind` and its sources, by label id."""
    locked: dict[int, Row[Any]] = {}
    edits: dict[int, Row[Any]] = {}
    imports: dict[int, Row[Any]] = {}
    samples: dict[int, dict[int, Row[Any]]] = defaultdict(dict)
    for row in candidates:
        if row.locked and row.of_label in (None, row.for_label):
            locked[row.for_label] = row
        elif row.source == GenerationSource.PERSON or (
            row.source == GenerationSource.IMPORT and row.parent_id is not None
        ):
            edits[row.for_label] = row
        elif row.source == GenerationSource.IMPORT:
            imports[row.for_label] = row
        else:
            # Removed first, so that the newest one comes last.
            samples[row.for_label].pop(row.sample_index, None)
            samples[row.for_label][row.sample_index] = row
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
            chosen[label_id] = (value, [_cited(kind, row) for row in rows])
    return chosen


def _field_value(kind: str, parsed: Sequence[dict[str, Any]]) -> Any:  # noqa: ANN401 - by kind
    """The release field of `kind` from parsed answers; empty if they are empty."""
    if kind == PromptKind.DESCRIPTION:
        return str(parsed[0].get("description") or "").strip()
    if kind == PromptKind.ATTRIBUTES:
        found = {name: _texts(value) for name, value in parsed[0].items()}
        return {name: values for name, values in found.items() if values}
    texts = [text for answer in parsed for text in _texts(answer.get(kind))]
    return tuple(dict.fromkeys(texts))


def _texts(value: Any) -> tuple[str, ...]:  # noqa: ANN401 - any JSON
    values = value if isinstance(value, list) else [value]
    return tuple(text.strip() for text in values if isinstance(text, str) and text.strip())


def _cited(field: str, row: Row[Any]) -> TextSource:
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
    )


def _require_texts(
    labels: Sequence[Label],
    texts: dict[int, dict[str, Any]],
    kinds: Sequence[str],
    languages: Sequence[str],
    *,
    approved_only: bool,
) -> None:
    spoken = f" in {' or '.join(languages)}" if languages else ""
    for kind in dict.fromkeys(kinds) or (None,):
        missing = [
            label.name
            for label in labels
            if not (texts.get(_id(label)) if kind is None else kind in texts.get(_id(label), {}))
        ]
        if missing:
            named = ", ".join(map(repr, missing[:_NAMED_IN_ERRORS]))
            more = ", …" if len(missing) > _NAMED_IN_ERRORS else ""
            what = f"approved {kind or 'text'}" if approved_only else kind or "text"
            remedy = "Approve" if approved_only else "Run the prompt, write or import"
            raise Conflict(
                f"{len(missing)} of {len(labels)} labels have no {what}{spoken}: {named}{more}. "
                f'{remedy} texts, or use --allow-missing, in a request "allow_missing": true.'
            )


def _store(
    session: Session,
    label_set: LabelSet,
    *,
    name: str,
    message: str,
    author: str,
    labels: tuple[ReleaseLabel, ...],
    sources: tuple[TextSource, ...],
) -> tuple[ReleaseRow, bool]:
    check_name("The release's name", name)
    check_text("The message", message, limit=1000)
    check_text("The author", author, limit=200)
    digest = release_hash(labels)
    same_name = session.exec(select(ReleaseRow).where(ReleaseRow.name == name)).one_or_none()
    if same_name is not None:
        if same_name.hash == digest and same_name.label_set_id == label_set.id:
            return same_name, False
        raise Conflict(f"Release {name!r} exists with other texts: choose another name.")
    assert label_set.id is not None
    row = ReleaseRow(
        label_set_id=label_set.id,
        name=name,
        hash=digest,
        labels=len(labels),
        message=message,
        author=author,
        body=b"",
    )
    session.add(row)
    session.flush()  # the body names its own id
    assert row.id is not None
    row.body = (
        Release(
            id=row.id,
            name=name,
            label_set=label_set.name,
            hash=digest,
            message=message,
            author=author,
            created_at=row.created_at,
            labels=labels,
            sources=sources,
        )
        .model_dump_json()
        .encode()
    )
    session.add(row)
    session.flush()
    return row, True


def get(session: Session, release_id: int) -> ReleaseRow:
    """The release with this id; else NotFound."""
    row = session.get(ReleaseRow, release_id)
    if row is None:
        raise NoSuch(f"release {release_id}", "release list", "/v1/releases")
    return row


def named(session: Session, name_or_id: str) -> int:
    """The id of the release with this name, or with this id; else NotFound."""
    found = session.exec(select(ReleaseRow.id).where(ReleaseRow.name == name_or_id)).one_or_none()
    if found is None and name_or_id.isdecimal() and len(name_or_id) < 10:
        found = get(session, int(name_or_id)).id
    if found is None:
        raise NoSuch(f"release {shortened(name_or_id)}", "release list", "/v1/releases")
    return found


def body(session: Session, release_id: int) -> tuple[str, bytes]:
    """Hash and bytes of a release. Raises NotFound."""
    row = get(session, release_id)
    return row.hash, row.body


def view(session: Session, row: ReleaseRow) -> ReleaseView:
    """`row` as the API schema, without its texts."""
    label_set = session.get_one(LabelSet, row.label_set_id)
    return ReleaseView(label_set=label_set.name, **row.model_dump(exclude={"label_set_id", "body"}))


def listing(
    session: Session, *, label_set: str | None = None, limit: int | None = 100, offset: int = 0
) -> list[ReleaseView]:
    """Releases, the newest first."""
    columns: tuple[Any, ...] = (
        col(ReleaseRow.id),
        col(ReleaseRow.name),
        col(LabelSet.name).label("label_set"),
        col(ReleaseRow.hash),
        col(ReleaseRow.labels),
        col(ReleaseRow.message),
        col(ReleaseRow.author),
        col(ReleaseRow.created_at),
    )
    query = (
        sa.select(*columns)
        .join(LabelSet, col(LabelSet.id) == col(ReleaseRow.label_set_id))
        .order_by(col(ReleaseRow.id).desc())
        .limit(limit)
        .offset(offset)
    )
    if label_set is not None:
        query = query.where(col(LabelSet.name) == label_set)
    return [ReleaseView(**row) for row in session.execute(query).mappings()]


def diff(
    session: Session, before: int, after: int, *, limit: int | None = None, offset: int = 0
) -> ReleaseDiff:
    """The labels whose texts differ between two releases, or a stretch of them."""
    old_row, new_row = get(session, before), get(session, after)
    old = {label.key: label for label in parsed(old_row).labels}
    new = {label.key: label for label in parsed(new_row).labels}
    keys = dict.fromkeys([*old, *new])
    differing = [key for key in keys if old.get(key) != new.get(key)]
    shown = differing[offset:] if limit is None else differing[offset : offset + limit]
    return ReleaseDiff(
        before=view(session, old_row),
        after=view(session, new_row),
        unchanged=len(keys) - len(differing),
        differing=len(differing),
        changed=[_change(key, old.get(key), new.get(key)) for key in shown],
    )


def _change(key: str, a: ReleaseLabel | None, b: ReleaseLabel | None) -> LabelChange:
    fields = {
        field
        for field in ("name", "context", *_TEXT_FIELDS)
        if a is None or b is None or getattr(a, field) != getattr(b, field)
    }
    named = b or a
    assert named is not None
    return LabelChange(
        key=key,
        name=named.name,
        before=a and a.model_dump(mode="json", include=fields),
        after=b and b.model_dump(mode="json", include=fields),
    )


def parsed(row: ReleaseRow) -> Release:
    """The release that `row` holds."""
    return _read(row.body)


@lru_cache(maxsize=4)  # immutable, and a large one takes half a second to parse
def _read(body: bytes) -> Release:
    return Release.model_validate_json(body)


def import_release(
    session: Session, release: Release, *, name: str | None = None, label_set: str | None = None
) -> tuple[ReleaseRow, bool]:
    """Import a release under its own hash. Returns it, and whether it is new.

    Creates its label set if none has that name. Raises InvalidInput if the texts do not match the
    hash, Conflict if the label set has other labels.
    """
    if release_hash(release.labels) != release.hash:
        raise InvalidInput(
            f"The texts of release {shortened(release.name)} do not match its hash: the file was "
            "changed or damaged; export it again."
        )
    labels = [
        LabelIn(key=label.key, name=label.name, context=label.context) for label in release.labels
    ]
    chosen, _ = label_set_of(session, label_set or release.label_set, labels)
    return _store(
        session,
        chosen,
        name=name or release.name,
        message=release.message,
        author=release.author,
        labels=release.labels,
        # The ids belong to another database.
        sources=tuple(
            source.model_copy(update={"generation_id": None}) for source in release.sources
        ),
    )


def label_set_of(session: Session, name: str, labels: Sequence[LabelIn]) -> tuple[LabelSet, bool]:
    """The label set `name` with these labels, created if missing, and whether it is new."""
    found = session.exec(select(LabelSet).where(LabelSet.name == name)).one_or_none()
    if found is None:
        return label_service.create(session, name, labels), True
    have = [
        (label.key, label.name, label.context) for label in label_service.labels_of(session, found)
    ]
    if have != [(label.key, label.name, label.context) for label in labels]:
        raise Conflict(
            f"Label set {name!r} exists with other labels: choose another one to import into."
        )
    return found, False
