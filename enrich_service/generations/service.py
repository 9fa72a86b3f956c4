"""Generations: queries, lists and views."""

from collections.abc import Mapping
from typing import Any

from sqlmodel import Session, col, func, or_, select

from enrich_service.core.errors import InvalidInput
from enrich_service.generations import reviews
from enrich_service.generations.models import Generation, GenerationSource
from enrich_service.generations.schemas import (
    GenerationDetail,
    GenerationFilter,
    GenerationPage,
    GenerationView,
    Opinion,
)
from enrich_service.labels.models import Label
from enrich_service.prompts import service as prompts
from enrich_service.prompts.models import Prompt, PromptVersion
from enrich_service.prompts.schemas import PromptKind
from enrich_service.validation.answer import attributes_of, texts_of

_States = Mapping[int | None, tuple[bool | None, bool]]  # see reviews.states
_OPINIONS = {
    Opinion.APPROVED: reviews.APPROVED,
    Opinion.REJECTED: reviews.REJECTED,
    Opinion.LOCKED: reviews.LOCKED,
    Opinion.OPEN: ~reviews.APPROVED & ~reviews.REJECTED,
}


def answers_by_version(session: Session) -> dict[int, int]:
    """The number of generations by prompt version id."""
    counted = (
        select(Generation.prompt_version_id, func.count())
        .where(col(Generation.prompt_version_id).is_not(None))
        .group_by(col(Generation.prompt_version_id))
    )
    return {version: count for version, count in session.exec(counted) if version is not None}


def list_generations(session: Session, filters: GenerationFilter) -> GenerationPage:
    """Generations that match all filters, newest first."""
    query = select(Generation).order_by(col(Generation.id).desc()).limit(filters.limit + 1)
    for column, value in (
        (Generation.label_name, filters.label),
        (Generation.label_id, filters.label_id),
        (Generation.run_id, filters.run_id),
        (Generation.status, filters.status),
        (Generation.source, filters.source),
    ):
        if value is not None:
            query = query.where(column == value)
    if filters.prompt is not None:
        versions = [
            version.id
            for version in prompts.versions(session, prompts.get(session, filters.prompt))
            if filters.version is None or version.number == filters.version
        ]
        query = query.where(col(Generation.prompt_version_id).in_(versions))
    elif filters.version is not None:
        raise InvalidInput("version: give prompt too")
    if filters.flagged is not None:
        empty = func.json_array_length(Generation.flags) == 0
        query = query.where(~empty if filters.flagged else empty)
    if filters.opinion is not None:
        query = query.where(_OPINIONS[filters.opinion])
    if filters.before is not None:
        query = query.where(col(Generation.id) < filters.before)
    rows = session.exec(query).all()
    shown = rows[: filters.limit]
    states = reviews.states(session, [row.id for row in shown])
    return GenerationPage(
        items=[_in_list(session, row, states) for row in shown],
        next_before=shown[-1].id if len(rows) > filters.limit else None,
    )


def texts_of_label(session: Session, label: Label, *, limit: int) -> list[GenerationView]:
    """All generations of a label, newest first.

    Includes those of a label with the same name and context in another label set.
    """
    rows = session.exec(
        select(Generation)
        .where(
            Generation.label_name == label.name,
            col(Generation.label_context).is_not_distinct_from(label.context),
            or_(
                col(Generation.source) != GenerationSource.PERSON,
                Generation.label_id == label.id,
                col(Generation.label_id).is_(None),
            ),
        )
        .order_by(col(Generation.id).desc())
        .limit(limit)
    )
    return [generation_view(session, row) for row in rows]


def line_of(kind: str, parsed: Mapping[str, Any] | None) -> str | None:
    """The text of an answer on one line: the first text, or all attributes."""
    if kind == PromptKind.ATTRIBUTES:
        attributes = attributes_of(parsed)
        listed = (f"{name}: {', '.join(values)}" for name, values in attributes.items())
        return "; ".join(listed) or None
    return next(iter(texts_of(kind, parsed)), None)


def _view(session: Session, row: Generation, states: _States) -> dict[str, Any]:
    approved, locked = states[row.id]
    version = (
        session.get_one(PromptVersion, row.prompt_version_id) if row.prompt_version_id else None
    )
    return {
        "id": row.id,
        "label": row.label_name,
        "context": row.label_context,
        "text": line_of(row.kind, row.parsed),
        "prompt": session.get_one(Prompt, version.prompt_id).name if version else None,
        "prompt_version": version.number if version else None,
        "prompt_hash": version.content_hash if version else None,
        "model": row.requested_model,
        "approved": approved,
        "locked": locked,
    }


def _in_list(session: Session, row: Generation, states: _States) -> GenerationView:
    return GenerationView.model_validate(row.model_dump() | _view(session, row, states))


def generation_view(session: Session, row: Generation) -> GenerationView:
    """A generation without its messages and raw reply."""
    return _in_list(session, row, reviews.states(session, [row.id]))


def generation_detail(session: Session, row: Generation) -> GenerationDetail:
    """A generation with its full provenance."""
    attributes = attributes_of(row.parsed) if row.kind == PromptKind.ATTRIBUTES else {}
    more = {"texts": texts_of(row.kind, row.parsed), "attributes": attributes}
    view = _view(session, row, reviews.states(session, [row.id]))
    return GenerationDetail.model_validate(row.model_dump() | view | more)
