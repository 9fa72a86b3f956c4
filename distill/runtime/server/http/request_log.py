"""A log line and metrics for each request, and the security headers of each response."""

import logging
import time
from typing import Final

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from distill.runtime.server.http.problems import OPEN_PATHS
from distill.runtime.server.metrics import Metrics

SECURITY_HEADERS: Final = {
    # The page shows thumbnails as blob: URLs.
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; img-src 'self' blob:; script-src 'self'; "
        "connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "private, no-cache",
}

log = logging.getLogger("distill.request")


class RequestLog:
    """The outermost middleware."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and record it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status, began = 500, time.perf_counter()  # 500: an unhandled error

        async def with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            await self.app(scope, receive, with_headers)
        finally:
            self._record(scope, status, time.perf_counter() - began)

    def _record(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "")
        self.metrics.count_request(scope["method"], route, status, seconds)
        if scope["path"] in OPEN_PATHS and status < 400:
            return  # frequent probes are not logged
        log.info("%s %s %s %.1f ms", scope["method"], scope["path"], status, 1000 * seconds)
