"""Authentication and cross-site request protection.

- While there are no API keys: clients on this machine (with ENRICH_ALLOW_REMOTE: all) have full
  access.
- Once a key exists: every request needs a valid key. Programs send it as `Authorization: Bearer`.
  Browsers prompt for it after a 401 and send it as the password of HTTP Basic, with any user name.
- GET requires the scope read, other methods write; some routers require admin.
- /healthz, /readyz and /static need no key.
- Callers are cached for a second, so a key revoked by another process remains valid for up to that
  long.

Cross-site requests of browsers are recognised by the headers Sec-Fetch-Site, Origin and Host. They
may not change anything, and without API keys they are rejected.
"""

import logging
import time
from collections.abc import Awaitable, Callable

from anyio import CapacityLimiter, to_thread
from fastapi import Request
from fastapi.concurrency import run_in_threadpool
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from contract.local_access import SAFE_METHODS, is_cross_site, is_local, secret_of
from enrich_service.core.errors import Forbidden, Unauthorized, UserError
from enrich_service.core.rest import audit, caller, problems
from enrich_service.core.rest.caller import NOBODY, Caller
from enrich_service.core.settings import Settings
from enrich_service.core.storage.database import reading, storage_error, writing
from enrich_service.keys import service
from enrich_service.keys.rate_limit import RateLimit

CACHE_TTL_S = 1.0  # of the callers

log = logging.getLogger(__name__)


class Authentication:
    """Middleware that authenticates requests and records changes in the audit log.

    `reject` builds the response to a rejected request.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        engine: Engine,
        settings: Settings,
        reject: Callable[[Request, UserError], Awaitable[Response]],
    ) -> None:
        self.app, self.engine, self.settings, self.reject = app, engine, settings, reject
        self.limit = RateLimit(settings.rate_limit)
        self.threads = CapacityLimiter(4)  # separate from the threads of routes
        self.use_recorded: dict[int, float] = {}  # key id → monotonic time of the last record
        # Secret → its caller and the monotonic time of the lookup. None: there are no keys.
        self.callers: dict[str | None, tuple[Caller, float]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on with its caller in `request.state.caller`, or reject it."""
        if scope["type"] == "websocket":  # not supported
            await send({"type": "websocket.close", "code": 1008})
            return
        path = scope.get("path", "")
        if scope["type"] != "http" or path in problems.OPEN_PATHS or path.startswith("/static/"):
            await self.app(scope, receive, send)
            return
        request = Request(scope)
        try:
            check_site(request, self.settings.cors_origins)
            request.state.caller = await self._admit(request)
        except UserError as error:
            await (await self.reject(request, error))(scope, receive, send)
            return
        if request.method in SAFE_METHODS:
            await self.app(scope, receive, send)
            return

        async def audited(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.callers.clear()  # the request may have created or revoked a key
                if message["status"] < 400 and not audit.is_audited(request):
                    await run_in_threadpool(self._record, request)
            await send(message)

        await self.app(scope, receive, audited)

    async def _admit(self, request: Request) -> Caller:
        """The caller of `request`. Raises Unauthorized, Forbidden or TooManyRequests."""
        found = await self._find_caller(secret_of(request.headers.get("authorization", "")))
        if found.key_id is None:
            if not self.settings.allow_remote:
                check_is_local(request)
            return found
        self.limit.take(found.key_id)
        required = caller.Scope.READ if request.method in SAFE_METHODS else caller.Scope.WRITE
        if not found.scope.includes(required):
            raise Forbidden(
                f"The key {found.name!r} has the scope {found.scope}; this requires {required}."
            )
        now = time.monotonic()
        last = self.use_recorded.get(found.key_id, float("-inf"))
        if now - last >= service.LAST_USE_PRECISION.total_seconds():
            self.use_recorded[found.key_id] = now
            await to_thread.run_sync(self._record_use, found.key_id, limiter=self.threads)
        return found

    async def _find_caller(self, secret: str | None) -> Caller:
        """The caller of `secret`, cached. Raises Unauthorized."""
        now = time.monotonic()
        # While there are no keys, a request with a key is anonymous too.
        for cached in (secret, None):
            found, then = self.callers.get(cached, (NOBODY, float("-inf")))
            if now - then < CACHE_TTL_S:
                return found
        found = await to_thread.run_sync(self._look_up, secret, limiter=self.threads)
        self.callers[secret if found.key_id is not None else None] = (found, now)
        return found

    def _look_up(self, secret: str | None) -> Caller:
        """The caller of `secret`; NOBODY while there are no keys. Raises Unauthorized."""
        try:
            with reading(self.engine) as session:
                if not service.exist(session):
                    return NOBODY
                if secret is None:
                    raise Unauthorized(
                        "This service needs an API key: send it as 'Authorization: Bearer KEY', "
                        "or as the password in your browser."
                    )
                key = service.find(session, secret)
        except DBAPIError as error:
            known = storage_error(error)
            if known is None:
                raise
            raise known from error
        return Caller(key.id, key.name, key.scope)

    def _record_use(self, key_id: int) -> None:
        try:
            with writing(self.engine) as session:
                service.record_use(session, key_id)
        except DBAPIError:  # a full disk must not block readers
            log.warning("cannot record the use of key %s", key_id, exc_info=True)

    def _record(self, request: Request) -> None:
        """Audit a change made outside a route's session, such as an upload."""
        with writing(self.engine) as session:
            audit.record(session, request)


def check_is_local(request: Request) -> None:
    """Raise Forbidden unless the client and the Host header of a request are this machine."""
    client = request.client and request.client.host
    if not is_local(client, request.headers.get("host", "")):
        raise Forbidden(
            "While it has no API key, this service accepts only requests from its own machine, as "
            "localhost or 127.0.0.1: create a key with `enrich keys create NAME`."
        )


def check_site(request: Request, allowed: tuple[str, ...]) -> None:
    """Raise Forbidden for a cross-site request that changes something. `allowed`: safe origins."""
    if request.headers.get("origin") in allowed:
        return
    if is_cross_site(request.method, request.headers):
        raise Forbidden(
            "Cross-site requests may not change anything: allow trusted sites with "
            "ENRICH_CORS_ORIGINS."
        )
