"""The labels of a label set with their current text and state.

The current text is the text that a release from one prompt version would contain (see
`choose_texts`).
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import sqlalchemy as sa
from sqlalchemy import ColumnElement, and_, or_
from sqlmodel import Session, col, func, select

from enrich_service.generations import reviews
from enrich_service.generations.models import (
    Generation,
    GenerationSource,
    GenerationStatus,
    TextReview,
)
from enrich_service.generations.queries import HUMAN_SOURCES, SAME_LABEL
from enrich_service.generations.service import line_of
from enrich_service.labels.models import Label, LabelSet
from enrich_service.prompts.models import Prompt, PromptVersion
from enrich_service.releases.choose_texts import current
from enrich_service.releases.schemas import ReleaseSource


class TextState(StrEnum):
    """State of a label's text. The last three are only filters; rows have a field for each."""

    MISSING = "missing"  # no answer yet
    ACCEPTED = "accepted"
    EDITED = "edited"  # written by a person
    REJECTED = "rejected"  # all answers were rejected
    FLAGGED = "flagged"  # accepted with a warning
    APPROVED = "approved"  # by a person
    LOCKED = "locked"


@dataclass(frozen=True)
class LabelText:
    """A label with its current text."""

    label: Label
    state: TextState
    text: str | None  # on one line
    generation_id: int | None  # source of the text; without a text, the last rejected generation
    flags: tuple[str, ...]
    problems: tuple[str, ...]  # why there is no text
    edits: int  # number of texts written by people
    approved: bool | None = None  # None: not reviewed
    locked: bool = False


def _named_in(*conditions: ColumnElement[bool]) -> ColumnElement[bool]:
    """Labels whose name occurs in the matching generations; makes the query fast."""
    return col(Label.name).in_(sa.select(col(Generation.label_name)).where(*conditions))


def _exists(*conditions: ColumnElement[bool]) -> ColumnElement[bool]:
    return sa.exists().where(SAME_LABEL, *conditions)


def _accepted(version: PromptVersion) -> ColumnElement[bool]:
    return and_(
        col(Generation.prompt_version_id) == version.id,
        col(Generation.source).not_in(HUMAN_SOURCES),
        col(Generation.status) == GenerationStatus.ACCEPTED,
        ~reviews.REJECTED,
    )


def _human(kind: str) -> ColumnElement[bool]:
    return and_(
        col(Generation.kind) == kind,
        col(Generation.source).in_(HUMAN_SOURCES),
        or_(col(Generation.label_id) == col(Label.id), col(Generation.label_id).is_(None)),
        ~reviews.REJECTED,
    )


_EDIT = or_(
    col(Generation.source) == GenerationSource.PERSON, col(Generation.parent_id).is_not(None)
)


def _has_human(kind: str, *conditions: ColumnElement[bool]) -> ColumnElement[bool]:
    # Texts of people and imports have no run, so the index on run_id finds them.
    of_no_run = _named_in(
        col(Generation.run_id).is_(None), col(Generation.source).in_(HUMAN_SOURCES)
    )
    return and_(of_no_run, _exists(_human(kind), *conditions))


def _in_state(state: TextState, version: PromptVersion, kind: str) -> ColumnElement[bool]:
    """Labels in `state` for one prompt version."""
    rejected = _exists(
        col(Generation.prompt_version_id) == version.id,
        or_(col(Generation.status) == GenerationStatus.REJECTED, reviews.REJECTED),
    )
    match state:
        case TextState.EDITED:
            return _has_human(kind, _EDIT)
        case TextState.FLAGGED:
            return _exists(_accepted(version), func.json_array_length(Generation.flags) > 0)
        case TextState.APPROVED | TextState.LOCKED:
            reviewed_as = reviews.LOCKED if state is TextState.LOCKED else reviews.APPROVED
            reviewed = _named_in(col(Generation.id).in_(sa.select(col(TextReview.generation_id))))
            return and_(reviewed, _exists(or_(_accepted(version), _human(kind)), reviewed_as))
        case TextState.ACCEPTED:
            return and_(_exists(_accepted(version)), ~_has_human(kind, _EDIT))
        case TextState.REJECTED:
            return and_(rejected, ~_exists(_accepted(version)), ~_has_human(kind))
        case TextState.MISSING:
            return and_(~rejected, ~_exists(_accepted(version)), ~_has_human(kind))


def page(
    session: Session,
    label_set: LabelSet,
    version: PromptVersion,
    *,
    search: str = "",
    state: TextState | None = None,
    limit: int | None = 50,
    offset: int = 0,
) -> tuple[list[LabelText], int]:
    """One page of the matching labels, in order, and the total number of matches.

    `search`: part of the name or key.
    """
    prompt = session.get_one(Prompt, version.prompt_id)
    conditions = [col(Label.label_set_id) == label_set.id]
    if search:
        conditions.append(
            col(Label.name).icontains(search, autoescape=True)
            | col(Label.key).icontains(search, autoescape=True)
        )
    if state is not None:
        conditions.append(_in_state(state, version, prompt.kind))
    total = session.exec(select(func.count()).select_from(Label).where(*conditions)).one()
    labels = session.exec(
        select(Label).where(*conditions).order_by(col(Label.position)).limit(limit).offset(offset)
    ).all()
    return _with_texts(session, label_set, labels, prompt, version), total


def row(session: Session, label_set: LabelSet, label: Label, version: PromptVersion) -> LabelText:
    """One label with its current text."""
    prompt = session.get_one(Prompt, version.prompt_id)
    return _with_texts(session, label_set, [label], prompt, version)[0]


def _with_texts(
    session: Session,
    label_set: LabelSet,
    labels: Sequence[Label],
    prompt: Prompt,
    version: PromptVersion,
) -> list[LabelText]:
    ids = [label.id or 0 for label in labels]
    source = ReleaseSource(prompt=prompt.name, version=version.number)
    chosen: dict[int, tuple[Any, list[Any]]] = {}
    generations: dict[int, list[sa.Row[Any]]] = defaultdict(list)
    for start in range(0, len(ids), 500):
        chunk = ids[start : start + 500]
        chosen |= current(session, label_set, source, chunk)
        for row in _generations(session, chunk, version, prompt.kind):
            generations[row.label].append(row)
    used = [source.generation_id for _, sources in chosen.values() for source in sources]
    states: dict[int | None, tuple[bool | None, bool]] = {}
    for start in range(0, len(used), 500):
        states |= reviews.states(session, used[start : start + 500])
    return [
        _row(
            label,
            prompt.kind,
            chosen.get(label.id or 0),
            generations.get(label.id or 0, ()),
            states,
        )
        for label in labels
    ]


def _generations(
    session: Session, ids: Sequence[int], version: PromptVersion, kind: str
) -> Sequence[sa.Row[Any]]:
    """The generations of the labels with these ids, without large columns, oldest first."""
    columns: tuple[Any, ...] = (
        col(Label.id).label("label"),
        col(Generation.id).label("id"),
        col(Generation.status).label("status"),
        col(Generation.source).label("source"),
        col(Generation.flags).label("flags"),
        col(Generation.problems).label("problems"),
    )
    query = (
        sa.select(*columns)
        .select_from(Label)
        .join(Generation, SAME_LABEL)
        .where(
            col(Label.id).in_(ids),
            or_(col(Generation.prompt_version_id) == version.id, _human(kind)),
        )
        .order_by(col(Generation.id))
    )
    return session.execute(query).all()


def _row(
    label: Label,
    kind: str,
    chosen: tuple[Any, list[Any]] | None,
    generations: Sequence[sa.Row[Any]],
    states: Mapping[int | None, tuple[bool | None, bool]],
) -> LabelText:
    edits = sum(row.source == GenerationSource.PERSON for row in generations)
    if chosen is None:
        last = generations[-1] if generations else None
        # An accepted generation that is not chosen was rejected by a person.
        answered = (GenerationStatus.REJECTED, GenerationStatus.ACCEPTED)
        rejected = any(row.status in answered for row in generations)
        return LabelText(
            label=label,
            state=TextState.REJECTED if rejected else TextState.MISSING,
            text=None,
            generation_id=last.id if last else None,
            flags=(),
            problems=tuple(last.problems) if last else (),
            edits=edits,
        )
    value, sources = chosen
    used = {source.generation_id for source in sources}
    return LabelText(
        label=label,
        state=TextState.EDITED
        if sources[0].source == GenerationSource.PERSON
        else TextState.ACCEPTED,
        text=_line(kind, value),
        generation_id=sources[0].generation_id,
        flags=tuple(flag for row in generations if row.id in used for flag in row.flags),
        problems=(),
        edits=edits,
        approved=states[sources[0].generation_id][0],
        locked=states[sources[0].generation_id][1],
    )


def _line(kind: str, value: Any) -> str | None:  # noqa: ANN401 - a release field
    parsed: Mapping[str, Any] = value if isinstance(value, dict) else {kind: value}
    parsed = {name: list(v) if isinstance(v, tuple) else v for name, v in parsed.items()}
    return line_of(kind, parsed)
