"""Export of all records as JSONL, with their provenance."""

from collections.abc import Iterator

import sqlalchemy as sa
from pydantic import BaseModel
from sqlmodel import Session, col, select

from contract import Release
from enrich_service.exchange.schemas import (
    GENERATION_FIELDS,
    AliasRecord,
    ArchivedRecord,
    GenerationRecord,
    Header,
    LabelSetRecord,
    MoveRecord,
    ReleaseRecord,
    ReviewRecord,
    VersionRecord,
)
from enrich_service.generations.models import (
    Generation,
    TextReview,
)
from enrich_service.labels import service as label_service
from enrich_service.labels.models import Label, LabelSet
from enrich_service.labels.schemas import LabelIn
from enrich_service.prompts import service as prompt_service
from enrich_service.prompts.models import Alias, AliasMove, Prompt, PromptVersion
from enrich_service.prompts.schemas import (
    PromptKind,
)
from enrich_service.releases.models import ReleaseRow


def export_jsonl(session: Session, label_set: str | None = None) -> Iterator[str]:
    """All label sets, prompts, generations and releases (of one label set) as lines of JSON."""
    yield _line(Header())
    query = select(LabelSet).order_by(col(LabelSet.id))
    if label_set is not None:
        query = query.where(LabelSet.id == label_service.get(session, label_set).id)
    label_sets = session.exec(query).all()
    for exported in label_sets:
        rows = label_service.labels_of(session, exported)
        labels = [LabelIn(key=row.key, name=row.name, context=row.context) for row in rows]
        pairs = zip(rows, label_service.confusable_of(session, rows), strict=True)
        confusable = {row.key: [other.key for other in others] for row, others in pairs if others}
        yield _line(LabelSetRecord(name=exported.name, labels=labels, confusable=confusable))
    yield from _export_prompts(session)
    for record in generation_records(session, label_set):
        yield _line(record)
    for review, _, _ in reviews(session, label_set):
        yield _line(
            ReviewRecord(
                generation=review.generation_id,
                **review.model_dump(include={"action", "reason", "author", "at"}),
            )
        )
    ids = [exported.id for exported in label_sets]
    for body in session.exec(
        select(ReleaseRow.body)
        .where(col(ReleaseRow.label_set_id).in_(ids))
        .order_by(col(ReleaseRow.id))
    ):
        yield _line(ReleaseRecord(release=Release.model_validate_json(body)))


def generation_records(session: Session, label_set: str | None = None) -> Iterator[BaseModel]:
    """All generations (of one label set) with provenance, oldest first."""
    query = (
        sa.select(Generation, col(Label.key), col(LabelSet.name), col(PromptVersion.content_hash))
        .outerjoin(Label, col(Label.id) == col(Generation.label_id))
        .outerjoin(LabelSet, col(LabelSet.id) == col(Label.label_set_id))
        .outerjoin(PromptVersion, col(PromptVersion.id) == col(Generation.prompt_version_id))
        .order_by(col(Generation.id))
        .execution_options(yield_per=500)
    )
    if label_set is not None:
        query = query.where(_belongs_to(label_service.get(session, label_set)))
    for row, key, set_name, prompt_hash in session.execute(query):
        yield GenerationRecord(
            id=row.id,
            parent_id=row.parent_id,
            label_set=set_name,
            label_key=key,
            prompt_hash=prompt_hash,
            **{name: getattr(row, name) for name in GENERATION_FIELDS},
        )
        session.expunge(row)


def reviews(
    session: Session, label_set: str | None = None
) -> Iterator[tuple[TextReview, str, str]]:
    """All reviews (of one label set), each with the text's kind and label."""
    query = (
        sa.select(TextReview, col(Generation.kind), col(Generation.label_name))
        .join(Generation, col(Generation.id) == col(TextReview.generation_id))
        .order_by(col(TextReview.id))
    )
    if label_set is not None:
        query = query.where(_belongs_to(label_service.get(session, label_set)))
    for review, kind, name in session.execute(query):
        yield review, str(kind), name


def _belongs_to(label_set: LabelSet) -> sa.ColumnElement[bool]:
    """Generations that belong to a label of `label_set`, by id or by name and context."""
    return (
        sa.exists()
        .where(
            col(Label.label_set_id) == label_set.id,
            col(Label.name) == col(Generation.label_name),
            col(Label.context).is_not_distinct_from(col(Generation.label_context)),
        )
        .correlate(Generation)
    )


def _export_prompts(session: Session) -> Iterator[str]:
    for prompt in session.exec(select(Prompt).order_by(col(Prompt.id))).all():
        for version in reversed(prompt_service.versions(session, prompt)):
            yield _line(version_record(session, prompt, version))
        # After the versions, because an archived prompt accepts none.
        if prompt.archived_at is not None:
            yield _line(ArchivedRecord(prompt=prompt.name, at=prompt.archived_at))
        moves = select(AliasMove).where(AliasMove.prompt_id == prompt.id)
        for move in session.exec(moves.order_by(col(AliasMove.id))):
            yield _line(
                MoveRecord(
                    prompt=prompt.name,
                    version=move.to_number,
                    **move.model_dump(include={"name", "reason", "author", "at"}),
                )
            )
        aliases = session.exec(
            select(Alias, PromptVersion.content_hash)
            .join(PromptVersion, col(PromptVersion.id) == col(Alias.version_id))
            .where(Alias.prompt_id == prompt.id)
            .order_by(Alias.name)
        )
        for alias, digest in aliases:
            yield _line(
                AliasRecord(
                    prompt=prompt.name,
                    name=alias.name,
                    content_hash=digest,
                    protected=alias.protected,
                )
            )


def version_record(session: Session, prompt: Prompt, version: PromptVersion) -> VersionRecord:
    """The export record of a prompt version."""
    return VersionRecord(
        prompt=prompt.name,
        kind=PromptKind(prompt.kind),
        summary=prompt.summary,
        tags=prompt_service.tags_of(session, prompt),
        **version.model_dump(exclude={"id", "prompt_id"}),
    )


def _line(record: BaseModel) -> str:
    return record.model_dump_json() + "\n"
