"""Authentication and cross-site request protection.

- Without API keys: clients on this machine (with ENRICH_ALLOW_REMOTE: all clients) have full
  access.
- Once a key exists: every request needs a valid key. Programs send it as `Authorization: Bearer`.
  Browsers ask for it after a 401 and send it as the password of HTTP Basic, with any user name.
- GET requires the scope read, other methods write; some routers require admin.
- /healthz, /readyz and /static are open.
- Callers are cached for a second, so a key revoked by another process may work for that long.

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

KNOWN_FOR = 1.0  # seconds for which callers are cached

log = logging.getLogger(__name__)


class Authentication:
    """Middleware that authenticates requests and records changes in the audit log.

    `refusal` makes the response to a rejected request.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        engine: Engine,
        settings: Settings,
        refusal: Callable[[Request, UserError], Awaitable[Response]],
    ) -> None:
        self.app, self.engine, self.settings, self.refusal = app, engine, settings, refusal
        self.limit = RateLimit(settings.rate_limit)
        self.admitting = CapacityLimiter(4)  # separate from the threads of routes
        self.noted: dict[int, float] = {}  # key → when its use was recorded, monotonic
        # Secret → its caller and the time of the lookup, monotonic. None: there are no keys.
        self.known: dict[str | None, tuple[Caller, float]] = {}

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
            await (await self.refusal(request, error))(scope, receive, send)
            return
        if request.method in SAFE_METHODS:
            await self.app(scope, receive, send)
            return

        async def audited(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.known.clear()  # the request may have created or revoked a key
                if message["status"] < 400 and not audit.is_settled(request):
                    await run_in_threadpool(self._record, request)
            await send(message)

        await self.app(scope, receive, audited)

    async def _admit(self, request: Request) -> Caller:
        """The caller of `request`. Raises Unauthorized, Forbidden or TooManyRequests."""
        known = await self._known(secret_of(request.headers.get("authorization", "")))
        if known.key_id is None:
            if not self.settings.allow_remote:
                check_is_local(request)
            return known
        self.limit.take(known.key_id)
        needed = caller.Scope.READ if request.method in SAFE_METHODS else caller.Scope.WRITE
        if not known.scope.includes(needed):
            raise Forbidden(
                f"The key {known.name!r} has the scope {known.scope}; this requires {needed}."
            )
        now = time.monotonic()
        if now - self.noted.get(known.key_id, float("-inf")) >= service.LAST_USE.total_seconds():
            self.noted[known.key_id] = now
            await to_thread.run_sync(self._note_use, known.key_id, limiter=self.admitting)
        return known

    async def _known(self, secret: str | None) -> Caller:
        """The cached caller of `secret`. Raises as `_look_up`."""
        now = time.monotonic()
        # While there are no keys, a request with a key is anonymous too.
        for shown in (secret, None):
            known, then = self.known.get(shown, (NOBODY, float("-inf")))
            if now - then < KNOWN_FOR:
                return known
        found = await to_thread.run_sync(self._look_up, secret, limiter=self.admitting)
        self.known[secret if found.key_id is not None else None] = (found, now)
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

    def _note_use(self, key_id: int) -> None:
        try:
            with writing(self.engine) as session:
                service.note_use(session, key_id)
        except DBAPIError:  # a full disk must not block readers
            log.warning("cannot record the use of key %s", key_id, exc_info=True)

    def _record(self, request: Request) -> None:
        """Audit a change that was made outside a route's session, such as an upload."""
        with writing(self.engine) as session:
            audit.record(session, request)


def check_is_local(request: Request) -> None:
    """Raise Forbidden unless client and host of a request are this machine."""
    client = request.client and request.client.host
    if not is_local(client, request.headers.get("host", "")):
        raise Forbidden(
            "Without an API key, this service answers only requests from its own machine, as "
            "localhost or 127.0.0.1: create a key with `enrich keys create NAME`."
        )


def check_site(request: Request, allowed: tuple[str, ...]) -> None:
    """Raise Forbidden for a cross-site request that changes something."""
    if request.headers.get("origin") in allowed:
        return
    if is_cross_site(request.method, request.headers):
        raise Forbidden(
            "Cross-site requests may not change anything: allow trusted sites with "
            "ENRICH_CORS_ORIGINS."
        )
