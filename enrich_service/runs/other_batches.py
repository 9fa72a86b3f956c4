"""What batches of other runs are asking: it is waited for, and not asked and paid for again."""

from collections.abc import Sequence

from enrich_service.generations.store import Ledger
from enrich_service.runs.enricher import Item


class Elsewhere:
    """The questions of the run `run_id` that are under way for another run."""

    def __init__(self, ledger: Ledger, run_id: int) -> None:
        self._ledger, self._run_id = ledger, run_id
        self._items: dict[int, list[Item]] = {}  # by batch

    def __len__(self) -> int:
        return sum(map(len, self._items.values()))

    async def keep(self, items: Sequence[Item]) -> list[Item]:
        """Those of `items` that no batch is asking; what another run's asks is kept here."""
        asked = await self._ledger.in_batches([item.key for item in items])
        for item in items:
            if item.key in asked:
                batch_id, run_id = asked[item.key]
                if run_id != self._run_id:
                    self._items.setdefault(batch_id, []).append(item)
        return [item for item in items if item.key not in asked]

    async def give_back(self) -> list[Item]:
        """What was kept and is in a batch that has ended since; it may have a result by now."""
        if not self._items:
            return []
        ended = self._items.keys() - await self._ledger.open_batches(self._items)
        return [item for batch_id in sorted(ended) for item in self._items.pop(batch_id)]
