"""A TCP proxy on loopback that can simulate network failures."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress


class Wire:
    """Forwards bytes between clients of `port` and the server behind it."""

    def __init__(self, port: int) -> None:
        self._behind = port
        self._open: set[asyncio.StreamWriter] = set()
        self._state = "whole"
        self._loop = asyncio.new_event_loop()
        started = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(started,), daemon=True)
        self._thread.start()
        started.wait()

    def _run(self, started: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._carry, "127.0.0.1", 0))
        self.port: int = server.sockets[0].getsockname()[1]
        started.set()
        self._loop.run_forever()

    @contextmanager
    def cut(self, mode: str) -> Iterator[None]:
        """Block traffic: `refused` closes connections immediately, `silent` discards bytes."""
        self._state = mode
        if mode == "refused":
            self._loop.call_soon_threadsafe(self._hang_up)
        try:
            yield
        finally:
            self._state = "whole"
            # A connection that lost bytes cannot go on: discarded bytes are not sent again.
            self._loop.call_soon_threadsafe(self._hang_up)

    def _hang_up(self) -> None:
        for writer in self._open:
            writer.transport.abort()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._state == "refused":
            writer.transport.abort()
            return
        self._open.add(writer)
        with suppress(OSError):
            back, forth = await asyncio.open_connection("127.0.0.1", self._behind)
            self._open.add(forth)
            await asyncio.gather(self._pass(reader, forth), self._pass(back, writer))
            self._open.discard(forth)
        self._open.discard(writer)
        writer.transport.abort()

    async def _pass(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while content := await source.read(65536):
                if self._state == "whole":
                    target.write(content)
                    await target.drain()
        if self._state != "silent":
            target.transport.abort()

    def close(self) -> None:
        """Close all connections and the port."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
