"""Connections without a complete request head are closed, so that they cannot pile up.

uvicorn waits for the first head without a limit: a client that opens connections and sends nothing,
or a byte now and then, would hold them for as long as it likes.
"""

import asyncio
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol


def http_protocol(head_timeout_s: float) -> type[asyncio.Protocol]:
    """uvicorn's protocol for HTTP, with `head_timeout_s` seconds for the head of a request."""

    class HeadTimeout(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
        _head_timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:  # noqa: ANN401 - as in uvicorn
            super().connection_made(transport)
            self._start_timer()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            in_request = self.cycle is not None and not self.cycle.response_complete
            if in_request:
                self._stop_timer()
            elif self._head_timer is None:  # the first bytes of another head
                self._start_timer()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_timer()
            super().connection_lost(exc)

        def _start_timer(self) -> None:
            self._head_timer = self.loop.call_later(head_timeout_s, self.transport.close)

        def _stop_timer(self) -> None:
            if self._head_timer is not None:
                self._head_timer.cancel()
                self._head_timer = None

    return HeadTimeout
