"""Reasons why labels or images of a run have no text."""

from collections import defaultdict
from dataclasses import dataclass

from sqlalchemy.orm import aliased
from sqlmodel import Session, and_, col, exists, func, or_, select

from enrich_service.generations.models import Generation, GenerationStatus
from enrich_service.generations.queries import RESULTS


@dataclass(frozen=True)
class Failures:
    """The labels or images of a run that have no text for one reason."""

    reason: str  # the broken rule, or the error of the server
    labels: int  # number of labels or images
    names: tuple[str, ...]  # of the first ones
    example: str  # the complete problem of the first one
    generation_id: int


def failures(session: Session, run_id: int, *, max_names: int = 5) -> list[Failures]:
    """Reasons why labels or images of a run have no text, most frequent first.

    A failed call counts until the same request is answered or the image is replaced.
    """
    answered = aliased(Generation)
    open_ = and_(
        col(Generation.status) == GenerationStatus.FAILED,
        ~exists().where(
            or_(
                col(answered.dedupe_key) == col(Generation.dedupe_key),
                and_(col(answered.run_id) == run_id, col(answered.image) == col(Generation.image)),
            ),
            col(answered.status).in_(RESULTS),
        ),
    )
    rows = session.exec(
        select(
            func.coalesce(Generation.image, Generation.label_name),
            Generation.problems,
            Generation.id,
        )
        .where(
            Generation.run_id == run_id,
            or_(col(Generation.status) == GenerationStatus.REJECTED, open_),
        )
        .order_by(col(Generation.id))
    )
    groups: dict[str, dict[str, tuple[str, int]]] = defaultdict(dict)
    for label, problems, generation_id in rows:
        problem = problems[0] if problems else "unknown reason"
        reason = problem.partition(":")[0] if ": " in problem else problem
        groups[reason][label] = (problem, generation_id or 0)
    result = [
        Failures(reason, len(labels), tuple(labels)[:max_names], *next(iter(labels.values())))
        for reason, labels in groups.items()
    ]
    return sorted(result, key=lambda group: -group.labels)
