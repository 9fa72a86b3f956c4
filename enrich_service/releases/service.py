"""Releases: the texts of all labels, stored as immutable bytes with a hash."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import sqlalchemy as sa
from sqlmodel import Session, col, select

from contract import Release, ReleaseLabel, TextSource, release_hash
from enrich_service.core.errors import Conflict, InvalidInput, NoSuch
from enrich_service.core.text import check_line, check_name, check_text, shortened
from enrich_service.labels import service as label_service
from enrich_service.labels.models import Label, LabelSet
from enrich_service.labels.schemas import LabelIn
from enrich_service.releases.choose_texts import choose_texts, resolve_sources
from enrich_service.releases.models import ReleaseRow
from enrich_service.releases.schemas import (
    LabelChange,
    ReleaseCreate,
    ReleaseDiff,
    ReleaseView,
)

_TEXT_FIELDS = ("description", "attributes", "sentences", "captions", "look_alikes")
_MAX_LISTED = 5  # labels in an error message


def create(session: Session, body: ReleaseCreate) -> tuple[ReleaseRow, bool]:
    """Create a release, unless one with the same name and texts exists.

    Returns the release, and whether it is new.

    Raises:
        InvalidInput: the name, message, author, a language or a source is invalid.
        NotFound: the label set or a prompt version does not exist.
        Conflict: a label has no text, the texts are in several languages and none is requested, or
            a release with this name has other texts.
    """
    languages = [check_line("A language", language, limit=50) for language in body.languages]
    label_set = label_service.get(session, body.label_set)
    labels = label_service.labels_of(session, label_set)
    sources = resolve_sources(session, body.sources)
    choice = choose_texts(session, label_set, sources, languages, body.approved_only)
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


def _id(label: Label) -> int:
    assert label.id is not None
    return label.id


def _require_texts(
    labels: Sequence[Label],
    texts: dict[int, dict[str, Any]],
    kinds: Sequence[str],
    languages: Sequence[str],
    *,
    approved_only: bool,
) -> None:
    in_languages = f" in {' or '.join(languages)}" if languages else ""
    for kind in dict.fromkeys(kinds) or (None,):
        missing = [
            label.name
            for label in labels
            if not (texts.get(_id(label)) if kind is None else kind in texts.get(_id(label), {}))
        ]
        if missing:
            listed = ", ".join(map(repr, missing[:_MAX_LISTED]))
            more = ", …" if len(missing) > _MAX_LISTED else ""
            text_kind = f"approved {kind or 'text'}" if approved_only else kind or "text"
            remedy = "Approve" if approved_only else "Run the prompt, write or import"
            raise Conflict(
                f"{len(missing)} of {len(labels)} labels have no {text_kind}{in_languages}: "
                f"{listed}{more}. "
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
        raise Conflict(f"Release {name!r} already exists with other texts: choose another name.")
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
    session.flush()  # assigns the id, which the body contains
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
    """The release with this id. Raises NotFound."""
    row = session.get(ReleaseRow, release_id)
    if row is None:
        raise NoSuch(f"release {release_id}", "release list", "/v1/releases")
    return row


def id_of(session: Session, name_or_id: str) -> int:
    """The id of the release with this name or id. Raises NotFound."""
    query = select(ReleaseRow.id).where(ReleaseRow.name == name_or_id)
    release_id = session.exec(query).one_or_none()
    if release_id is None and name_or_id.isdecimal() and len(name_or_id) < 10:
        release_id = get(session, int(name_or_id)).id
    if release_id is None:
        raise NoSuch(f"release {shortened(name_or_id)}", "release list", "/v1/releases")
    return release_id


def body(session: Session, release_id: int) -> tuple[str, bytes]:
    """Hash and bytes of a release. Raises NotFound."""
    row = get(session, release_id)
    return row.hash, row.body


def view(session: Session, row: ReleaseRow) -> ReleaseView:
    """The API schema of `row`, without texts."""
    label_set = session.get_one(LabelSet, row.label_set_id)
    return ReleaseView(label_set=label_set.name, **row.model_dump(exclude={"label_set_id", "body"}))


def listing(
    session: Session, *, label_set: str | None = None, limit: int | None = 100, offset: int = 0
) -> list[ReleaseView]:
    """Releases, newest first."""
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
    """The labels whose texts differ between two releases; `limit` and `offset` page the changes."""
    old_row, new_row = get(session, before), get(session, after)
    old = {label.key: label for label in parsed(old_row).labels}
    new = {label.key: label for label in parsed(new_row).labels}
    keys = dict.fromkeys([*old, *new])
    differing = [key for key in keys if old.get(key) != new.get(key)]
    page = differing[offset:] if limit is None else differing[offset : offset + limit]
    return ReleaseDiff(
        before=view(session, old_row),
        after=view(session, new_row),
        unchanged=len(keys) - len(differing),
        differing=len(differing),
        changed=[_change(key, old.get(key), new.get(key)) for key in page],
    )


def _change(key: str, a: ReleaseLabel | None, b: ReleaseLabel | None) -> LabelChange:
    fields = {
        field
        for field in ("name", "context", *_TEXT_FIELDS)
        if a is None or b is None or getattr(a, field) != getattr(b, field)
    }
    label = b or a
    assert label is not None
    return LabelChange(
        key=key,
        name=label.name,
        before=a and a.model_dump(mode="json", include=fields),
        after=b and b.model_dump(mode="json", include=fields),
    )


def parsed(row: ReleaseRow) -> Release:
    """The parsed body of `row`."""
    return _parse(row.body)


@lru_cache(maxsize=4)  # parsing a large release takes half a second
def _parse(body: bytes) -> Release:
    return Release.model_validate_json(body)


def import_release(
    session: Session, release: Release, *, name: str | None = None, label_set: str | None = None
) -> tuple[ReleaseRow, bool]:
    """Import a release; it keeps its hash. Returns it, and whether it is new.

    Creates the label set if it does not exist. Raises InvalidInput if the texts do not match the
    hash, Conflict if the label set has other labels.
    """
    if release_hash(release.labels) != release.hash:
        raise InvalidInput(
            f"The texts of release {shortened(release.name)} do not match its hash: the file was "
            "changed or damaged, export it again."
        )
    labels = [
        LabelIn(key=label.key, name=label.name, context=label.context) for label in release.labels
    ]
    target, _ = label_set_of(session, label_set or release.label_set, labels)
    return _store(
        session,
        target,
        name=name or release.name,
        message=release.message,
        author=release.author,
        labels=release.labels,
        # The ids are those of another database.
        sources=tuple(
            source.model_copy(update={"generation_id": None}) for source in release.sources
        ),
    )


def label_set_of(session: Session, name: str, labels: Sequence[LabelIn]) -> tuple[LabelSet, bool]:
    """Get or create the label set `name` with these labels; returns it, and whether it is new.

    Raises Conflict if it exists with other labels.
    """
    label_set = session.exec(select(LabelSet).where(LabelSet.name == name)).one_or_none()
    if label_set is None:
        return label_service.create(session, name, labels), True
    known = label_service.lines_of(session, label_set)
    if [(label.key, label.name, label.context) for label in known] != [
        (label.key, label.name, label.context) for label in labels
    ]:
        raise Conflict(
            f"Label set {name!r} exists with other labels: choose another one to import into."
        )
    return label_set, False
