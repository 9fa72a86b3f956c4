"""Reviews of texts by people: approve, reject, lock. An append-only log; the last entry counts.

A rejected text is in no release. A locked one is in every release of its label and kind, and cannot
be edited before it is unlocked; locking also approves.
"""

from collections.abc import Sequence

from sqlalchemy import ColumnElement, and_, exists, or_
from sqlalchemy.orm import aliased
from sqlmodel import Session, col, select

from enrich_service.core.errors import Conflict, InvalidInput
from enrich_service.core.text import check_text
from enrich_service.generations.models import (
    LANGUAGE,
    Generation,
    GenerationStatus,
    ReviewAction,
    TextReview,
    language_of,
)
from enrich_service.generations.schemas import ReviewView
from enrich_service.generations.store import get_generation


def _in_effect(action: ReviewAction, undone_by: ReviewAction) -> ColumnElement[bool]:
    """Whether the log of a generation contains `action` with no later `undone_by`."""
    entry, later = aliased(TextReview), aliased(TextReview)
    undone = exists().where(
        col(later.generation_id) == col(entry.generation_id),
        col(later.action) == undone_by,
        col(later.id) > col(entry.id),
    )
    return exists().where(
        col(entry.generation_id) == col(Generation.id), col(entry.action) == action, ~undone
    )


# Conditions on a generation, for any query that reads it.
LOCKED = _in_effect(ReviewAction.LOCK, ReviewAction.UNLOCK)
REJECTED = _in_effect(ReviewAction.REJECT, ReviewAction.APPROVE)
APPROVED = or_(_in_effect(ReviewAction.APPROVE, ReviewAction.REJECT), LOCKED)


def review(
    session: Session,
    generation_ids: Sequence[int],
    action: ReviewAction,
    *,
    reason: str = "",
    author: str = "",
) -> list[TextReview]:
    """Add the same review to several texts; all are written, or none.

    Raises NotFound, or Conflict for a generation without a text, or one that is already (not)
    locked.
    """
    check_text("The reason", reason, limit=1000)
    check_text("The author", author, limit=200)
    if len(set(generation_ids)) < len(generation_ids):
        raise InvalidInput("generations: contains duplicates")
    written = []
    for generation_id in generation_ids:
        generation = get_generation(session, generation_id)
        _check(session, generation, action)
        row = TextReview(generation_id=generation_id, action=action, reason=reason, author=author)
        session.add(row)
        session.flush()
        written.append(row)
    return written


def _check(session: Session, generation: Generation, action: ReviewAction) -> None:
    subject = f"Generation {generation.id}"
    if generation.status is not GenerationStatus.ACCEPTED:
        raise Conflict(
            f"{subject} is {generation.status} and has no text for a release: edit it instead."
        )
    locked = _is(session, generation, LOCKED)
    if action is ReviewAction.UNLOCK and not locked:
        raise Conflict(f"{subject} is not locked.")
    if action is ReviewAction.REJECT and locked:
        raise Conflict(f"{subject} is locked: unlock it first.")
    if action is ReviewAction.LOCK:
        if _is(session, generation, REJECTED):
            raise Conflict(f"{subject} was rejected: approve it before you lock it.")
        check_unlocked(
            session,
            kind=generation.kind,
            name=generation.label_name,
            context=generation.label_context,
            label_id=generation.label_id,
            language=language_of(generation),
            image_hash=generation.image_hash,
        )


def _is(session: Session, generation: Generation, condition: ColumnElement[bool]) -> bool:
    matching = session.exec(select(Generation.id).where(Generation.id == generation.id, condition))
    return matching.first() is not None


def check_unlocked(
    session: Session,
    *,
    kind: str,
    name: str,
    context: str | None,
    label_id: int | None,
    language: str,
    image_hash: str | None,
) -> None:
    """Raise Conflict if the label or image has a locked text of this kind and language.

    Releases would keep using the locked text.
    """
    same_label = and_(
        col(Generation.kind) == kind,
        LANGUAGE.is_not_distinct_from(language),
        col(Generation.image_hash).is_not_distinct_from(image_hash),
        col(Generation.label_name) == name,
        col(Generation.label_context).is_not_distinct_from(context),
    )
    if label_id is not None:
        same_label = and_(
            same_label,
            or_(col(Generation.label_id) == label_id, col(Generation.label_id).is_(None)),
        )
    locked_id = session.exec(
        select(Generation.id).where(same_label, LOCKED).order_by(col(Generation.id)).limit(1)
    ).one_or_none()
    if locked_id is not None:
        raise Conflict(
            f"The {kind} of {name!r} is locked (generation {locked_id}): unlock that one first."
        )


def log_of(session: Session, generation_id: int) -> list[ReviewView]:
    """The reviews of a text, newest first."""
    get_generation(session, generation_id)
    rows = session.exec(
        select(TextReview)
        .where(TextReview.generation_id == generation_id)
        .order_by(col(TextReview.id).desc())
    )
    return [view(row) for row in rows]


def view(row: TextReview) -> ReviewView:
    """One entry of the log as the API schema."""
    return ReviewView(**row.model_dump())


def states(
    session: Session, generation_ids: Sequence[int | None]
) -> dict[int | None, tuple[bool | None, bool]]:
    """For each generation whether it is approved (None: not reviewed), and whether it is locked."""
    query = select(Generation.id, APPROVED, REJECTED, LOCKED).where(
        col(Generation.id).in_(generation_ids),
        col(Generation.id).in_(select(TextReview.generation_id)),
    )
    by_id: dict[int | None, tuple[bool | None, bool]] = dict.fromkeys(generation_ids, (None, False))
    for generation_id, approved, rejected, locked in session.execute(query):
        by_id[generation_id] = (True if approved else False if rejected else None, bool(locked))
    return by_id
