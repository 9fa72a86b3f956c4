"""An in-memory LRU cache of release bodies, which are immutable."""

from collections import OrderedDict
from typing import Final

from fastapi.concurrency import run_in_threadpool
from sqlalchemy import Engine

from enrich_service.core.storage.database import reading
from enrich_service.releases import service

MAX_BYTES: Final = 32 * 2**20


class BodyCache:
    """Caches the hash and the bytes of recently read releases."""

    def __init__(self, engine: Engine, *, max_bytes: int = MAX_BYTES) -> None:
        self._engine, self._max_bytes = engine, max_bytes
        self._bodies: OrderedDict[int, tuple[str, bytes]] = OrderedDict()
        self._size = 0

    async def read(self, release_id: int) -> tuple[str, bytes]:
        """Hash and bytes of a release. Raises NotFound."""
        if (body := self._bodies.get(release_id)) is not None:
            self._bodies.move_to_end(release_id)
            return body
        body = await run_in_threadpool(self._load, release_id)
        if release_id not in self._bodies and len(body[1]) <= self._max_bytes:
            self._bodies[release_id] = body
            self._size += len(body[1])
        while self._size > self._max_bytes:
            _, (_, oldest) = self._bodies.popitem(last=False)
            self._size -= len(oldest)
        return body

    def _load(self, release_id: int) -> tuple[str, bytes]:
        with reading(self._engine) as session:
            return service.body(session, release_id)
