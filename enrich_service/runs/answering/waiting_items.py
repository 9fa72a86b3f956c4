"""Items that others are requesting: the run waits for their results instead of paying twice."""

from collections.abc import Sequence

from enrich_service.generations.models import Run, RunMode
from enrich_service.generations.store import GenerationStore
from enrich_service.runs.plan import Item


class WaitingItems:
    """The items of a run that another run or request is requesting.

    A live run shares requests within its own process (see `Enricher.answer`); a batch run waits for
    those too.
    """

    def __init__(self, store: GenerationStore, run: Run) -> None:
        self._store, self._run_id = store, run.id
        self._shares_own = run.mode is RunMode.LIVE
        self._in_batches: dict[int, list[Item]] = {}
        self._claimed: dict[str, Item] = {}  # by key

    def __len__(self) -> int:
        return sum(map(len, self._in_batches.values())) + len(self._claimed)

    async def keep(self, items: Sequence[Item]) -> list[Item]:
        """Keep the items that others are requesting, and return the remaining ones."""
        keys = [item.key for item in items]
        in_batches = await self._store.in_batches(keys)
        claimed = await self._store.claimed(keys, by_others=self._shares_own)
        for item in items:
            if item.key in in_batches:
                batch_id, run_id = in_batches[item.key]
                if run_id != self._run_id:
                    self._in_batches.setdefault(batch_id, []).append(item)
            elif item.key in claimed:
                self.add_claimed(item)
        return [item for item in items if item.key not in in_batches and item.key not in claimed]

    def add_claimed(self, item: Item) -> None:
        """Keep an item that another process, or a batch that has just begun, is requesting."""
        self._claimed[item.key] = item

    async def take_available(self) -> list[Item]:
        """Remove and return the items that are no longer requested; they may have a result."""
        items: list[Item] = []
        if self._in_batches:
            ended = self._in_batches.keys() - await self._store.open_batches(self._in_batches)
            items += [item for id_ in sorted(ended) for item in self._in_batches.pop(id_)]
        if self._claimed:
            keys = set(self._claimed)
            claimed = await self._store.claimed(keys, by_others=self._shares_own)
            items += [self._claimed.pop(key) for key in sorted(keys - claimed)]
        return items
