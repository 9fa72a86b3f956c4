"""Closes connections that do not send a complete request head in time (slowloris attack).

uvicorn has no such limit: a client that sends nothing, or a byte now and then, could hold any
number of connections open.
"""

import asyncio
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol


def http_protocol(head_timeout_s: float) -> type[asyncio.Protocol]:
    """uvicorn's HTTP protocol with a timeout of `head_timeout_s` seconds for the request head."""

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
