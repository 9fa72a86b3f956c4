"""Request ids, the access log and request metrics."""

import logging
import re
import secrets
import time
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from enrich_service.core.rest.problems import OPEN_PATHS
from enrich_service.operation.log import REQUEST, fields
from enrich_service.operation.metrics import Metrics

HEADER: Final = "X-Request-ID"
_VALID_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")

log = logging.getLogger("enrich.request")


class Requests:
    """The outermost middleware."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on. Its id is the X-Request-ID of the client, if it sent one."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        client_id = Headers(scope=scope).get(HEADER, "")
        request_id = client_id if _VALID_ID.fullmatch(client_id) else secrets.token_hex(8)
        scope.setdefault("state", {})["request_id"] = request_id
        token = REQUEST.set(request_id)
        status, began = 500, time.perf_counter()  # 500: an unhandled error

        async def send_and_record(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[HEADER] = request_id
            await send(message)

        try:
            await self.app(scope, receive, send_and_record)
        finally:
            self._record(scope, status, time.perf_counter() - began)
            REQUEST.reset(token)

    def _record(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "")
        self.metrics.count(scope["method"], route, status, seconds)
        if scope["path"] in OPEN_PATHS and status < 400:
            return  # frequent probes are not logged
        caller = scope["state"].get("caller")
        log.info(
            "%s %s %s",
            scope["method"],
            scope["path"],
            status,
            extra=fields(
                method=scope["method"],
                path=scope["path"],
                route=route,
                status=status,
                ms=round(seconds * 1000, 1),
                key=getattr(caller, "name", None),
            ),
        )
