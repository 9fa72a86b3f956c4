"""The batches of a run in the database, written before anything is sent."""

import asyncio
import secrets
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Final

from sqlalchemy import Engine
from sqlmodel import Session, col, delete, or_, select, update

from enrich_service.core.storage.database import reading, utcnow, writing
from enrich_service.generations.models import (
    Batch,
    BatchRequest,
    Generation,
    GenerationStatus,
    Run,
)
from enrich_service.generations.store import GenerationStore
from enrich_service.labels.models import Label
from enrich_service.runs.answering.attempt import Attempt
from enrich_service.runs.batch.file import BatchFile
from enrich_service.runs.plan import Item, Plan

PAGE_SIZE: Final = 100  # answers that are checked at a time


class BatchStore:
    """The rows of one run in the tables `batch` and `batch_request`.

    A request is deleted in the transaction that stores its answer. If the process is killed at any
    time, no request is sent twice and no answer is counted twice.
    """

    def __init__(
        self, engine: Engine, generations: GenerationStore, run_id: int, plan: Plan, provider: str
    ) -> None:
        self._engine, self._generations = engine, generations
        self._run_id, self._plan, self._provider = run_id, plan, provider

    def prepare(self, file: BatchFile) -> Batch | None:
        """Store a batch before it is sent; None if no request remains.

        Items that others have requested in the meantime are removed from the file.
        """
        with writing(self._engine) as session:
            keys = {item.key for item in file.items}
            free = self._generations.free_for_batch(session, keys)
            items = [item for item in file.items if item.key in free]
            batch = self._add(session, file, items) if items else None
        file.remove(keys - free)
        return batch

    def _add(self, session: Session, file: BatchFile, items: Sequence[Item]) -> Batch:
        batch = Batch(
            run_id=self._run_id,
            name=f"enrich-run-{self._run_id}-{secrets.token_hex(8)}.jsonl",
            provider=self._provider,
            response_format=file.response_format,
            length_parameter=file.length_parameter,
            requests=len(items),
        )
        session.add(batch)
        session.flush()
        session.execute(
            BatchRequest.__table__.insert(),  # type: ignore[attr-defined]
            [
                {
                    "batch_id": batch.id,
                    "dedupe_key": item.key,
                    "label_id": item.label_id,
                    "sample_index": item.sample_index,
                    "confusable": list(item.confusable),
                    "texts": list(item.texts),
                    "parent_id": item.parent_id,
                }
                for item in items
            ],
        )
        return batch

    def pending(self) -> list[Batch]:
        """The batches that have not ended."""
        with reading(self._engine) as session:
            return list(
                session.exec(
                    select(Batch)
                    .where(Batch.run_id == self._run_id, col(Batch.ended_at).is_(None))
                    .order_by(col(Batch.id))
                )
            )

    def earlier(self) -> Batch | None:
        """The newest batch of the same kind of request that is pending or was answered."""
        with reading(self._engine) as session:
            return session.exec(
                select(Batch)
                .join(Run, col(Run.id) == col(Batch.run_id))
                .where(
                    Batch.provider == self._provider,
                    Run.model == self._plan.model,
                    Run.prompt_version_id == self._plan.version.id,
                    or_(col(Batch.completed) > 0, col(Batch.ended_at).is_(None)),
                )
                .order_by(col(Batch.id).desc())
                .limit(1)
            ).first()

    def requests(
        self, batch: Batch, keys: list[str] | None, *, limit: int = PAGE_SIZE
    ) -> list[Item]:
        """Unanswered requests of a batch: those with the given keys, or the next page."""
        query = (
            select(BatchRequest, Label)
            .join(Label, col(Label.id) == col(BatchRequest.label_id))
            .where(BatchRequest.batch_id == batch.id)
            .limit(limit)
        )
        if keys is not None:
            query = query.where(col(BatchRequest.dedupe_key).in_(keys))
        with reading(self._engine) as session:
            return [
                Item(
                    label.name,
                    label.context,
                    request.sample_index,
                    label.id,
                    request.dedupe_key,
                    tuple(request.confusable),
                    texts=tuple(request.texts),
                    parent_id=request.parent_id,
                )
                for request, label in session.exec(query)
            ]

    def attempts(self, keys: list[str]) -> dict[str, Attempt]:
        """The next attempt for each key, after the run's earlier attempts."""
        attempts: defaultdict[str, Attempt] = defaultdict(lambda: Attempt(1, self._plan.parameters))
        with reading(self._engine) as session:
            for rejected in session.exec(
                select(Generation)
                .where(
                    col(Generation.dedupe_key).in_(keys),
                    Generation.run_id == self._run_id,
                    Generation.status == GenerationStatus.RETRIED,
                )
                .order_by(col(Generation.id))
            ):
                attempts[rejected.dedupe_key or ""] = attempts[rejected.dedupe_key or ""].after(
                    rejected
                )
        return attempts

    async def change(self, batch: Batch, **values: str | int | None) -> None:
        """Update the stored state of a batch."""
        if any(getattr(batch, name) != value for name, value in values.items()):
            await asyncio.to_thread(self._write, batch, values)

    def _write(self, batch: Batch, values: Mapping[str, Any]) -> None:
        with writing(self._engine) as session:
            session.exec(update(Batch).where(col(Batch.id) == batch.id).values(values))
        for name, value in values.items():
            setattr(batch, name, value)

    def close(self, batch: Batch, error: str | None) -> None:
        """Mark a batch as ended: its unanswered requests are no longer pending."""
        with writing(self._engine) as session:
            session.exec(delete(BatchRequest).where(col(BatchRequest.batch_id) == batch.id))
            session.exec(
                update(Batch)
                .where(col(Batch.id) == batch.id)
                .values(ended_at=utcnow(), error=error)
            )

    def give_up(self, batch: Batch) -> None:
        """Delete a batch that was never sent."""
        with writing(self._engine) as session:
            session.exec(delete(BatchRequest).where(col(BatchRequest.batch_id) == batch.id))
            session.exec(delete(Batch).where(col(Batch.id) == batch.id))
