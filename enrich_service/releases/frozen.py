"""The bytes of releases, kept in memory: a release never changes once it is there."""

from collections import OrderedDict
from typing import Final

from fastapi.concurrency import run_in_threadpool
from sqlalchemy import Engine

from enrich_service.core.database import reading
from enrich_service.releases import service

KEPT_BYTES: Final = 32 * 2**20


class Frozen:
    """Hash and bytes of the releases that were read last."""

    def __init__(self, engine: Engine, *, kept_bytes: int = KEPT_BYTES) -> None:
        self._engine, self._kept_bytes = engine, kept_bytes
        self._found: OrderedDict[int, tuple[str, bytes]] = OrderedDict()
        self._size = 0

    async def read(self, release_id: int) -> tuple[str, bytes]:
        """Hash and bytes of a release. Raises NotFound."""
        if (found := self._found.get(release_id)) is not None:
            self._found.move_to_end(release_id)
            return found
        found = await run_in_threadpool(self._load, release_id)
        if release_id not in self._found and len(found[1]) <= self._kept_bytes:
            self._found[release_id] = found
            self._size += len(found[1])
        while self._size > self._kept_bytes:
            _, (_, oldest) = self._found.popitem(last=False)
            self._size -= len(oldest)
        return found

    def _load(self, release_id: int) -> tuple[str, bytes]:
        with reading(self._engine) as session:
            return service.body(session, release_id)
