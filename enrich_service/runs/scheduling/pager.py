"""The items of a run without a result, read in pages."""

import asyncio
from collections.abc import AsyncIterator, Sequence

from sqlalchemy import Engine
from sqlmodel import col, select

from enrich_service.core.storage.database import reading
from enrich_service.generations.models import Run
from enrich_service.generations.store import GenerationStore
from enrich_service.labels.models import Label
from enrich_service.llm.images import Roots, checked_folder
from enrich_service.runs.items import image_items, items_of, source_texts
from enrich_service.runs.plan import Item, Plan

PAGE_SIZE = 500  # labels read at a time


class RunPager:
    """Reads the items of one run in pages, so that memory does not grow with the label set.

    `roots`: folders that may contain images (see `llm.images`).
    """

    def __init__(
        self, engine: Engine, store: GenerationStore, run: Run, plan: Plan, roots: Roots
    ) -> None:
        self._engine, self._store, self._run, self._plan = engine, store, run, plan
        self._roots = roots

    async def missing(self) -> AsyncIterator[list[Item]]:
        """The run's items without a result, in pages."""
        seen: set[bytes] = set()  # a label or image may occur twice in a run
        async for items in self._pages():
            unseen = []
            for item in items:
                digest = bytes.fromhex(item.key)[:16]
                if digest not in seen:
                    unseen.append(item)
                seen.add(digest)
            yield await self.without_result(unseen, repeated=len(items) - len(unseen))

    async def without_result(self, items: Sequence[Item], *, repeated: int = 0) -> list[Item]:
        """The items without a result. Results of other runs and repeated items count as cached."""
        run = self._run
        assert run.id is not None
        owners = await self._store.owners([item.key for item in items])
        cached = repeated + sum(owner != run.id for owner in owners.values())
        if cached:
            await self._store.count(run.id, cached=cached)
        return [item for item in items if item.key not in owners]

    async def _pages(self) -> AsyncIterator[list[Item]]:
        """All items of the run, in pages of labels or images."""
        position = -1
        run, plan, roots = self._run, self._plan, self._roots
        folder = None if run.images is None else checked_folder(run.images, roots)
        while page := await asyncio.to_thread(self._page, position):
            position, keys, items = page
            if folder is None:
                yield items
                continue
            for key, item in zip(keys, items, strict=True):
                pages = image_items(plan, item, key, folder, roots, run.samples)
                while image_page := await asyncio.to_thread(next, pages, None):
                    yield image_page

    def _page(self, after: int) -> tuple[int, list[str], list[Item]] | None:
        """The next labels: the last position, their keys and their items; None after the end.

        For images: one item per label, which `image_items` completes.
        """
        run, plan = self._run, self._plan
        # The first page is small, so that the first requests start early.
        size = PAGE_SIZE if after >= 0 else min(PAGE_SIZE, run.concurrency)
        with reading(self._engine) as session:
            labels = session.exec(
                select(Label)
                .where(Label.label_set_id == run.label_set_id, Label.position > after)
                .order_by(col(Label.position))
                .limit(size)
            ).all()
            if not labels:
                return None
            samples = run.samples if run.images is None else 1
            texts = source_texts(session, run, labels) if plan.rewrites else None
            items = items_of(session, plan, labels, samples, texts)
            return labels[-1].position, [label.key for label in labels], items
