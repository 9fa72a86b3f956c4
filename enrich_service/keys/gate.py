"""Who gets in.

- Before the first API key: whoever is on this machine (or, with ENRICH_ALLOW_REMOTE, whoever
  reaches the service), with every right.
- From the first key on: whoever shows a living one. Programs send it as `Authorization: Bearer`.
  Pages need no more than that either: a browser that is answered 401 asks the person by itself,
  and sends the key as the password of HTTP Basic (the user name can be anything).
- GET needs the scope read, everything else write; some routers ask for admin.
- /healthz, /readyz and /static are open.
- Who was let in is known for a second: so long may a key live on that another process revoked.

A page of another site can make a browser send requests here. Such requests change nothing, and
before the first key they are not answered at all: the browser tells on the page with the headers
Sec-Fetch-Site, Origin and Host.
"""

import base64
import binascii
import ipaddress
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from urllib.parse import urlsplit

from anyio import CapacityLimiter, to_thread
from fastapi import Request
from fastapi.concurrency import run_in_threadpool
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from enrich_service.core import audit, caller, problems
from enrich_service.core.caller import NOBODY, Caller
from enrich_service.core.database import reading, storage_error, writing
from enrich_service.core.errors import Forbidden, Unauthorized, UserError
from enrich_service.core.settings import Settings
from enrich_service.keys import service
from enrich_service.keys.rate_limit import RateLimit

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
KNOWN_FOR = 1.0  # seconds for which a caller is let in without another look at the table

log = logging.getLogger(__name__)


class Gate:
    """Middleware that lets in who may, and sees to it that every change is in the audit log.

    `refusal` makes the answer to who may not.
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
        self.admitting = CapacityLimiter(4)  # threads of its own: routes never wait for them
        self.noted: dict[int, float] = {}  # key → when its use was noted, monotonic
        # Secret → who showed it, and when that was looked up, monotonic. None: there are no keys.
        self.known: dict[str | None, tuple[Caller, float]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on with its caller in `request.state.caller`, or refuse it."""
        if scope["type"] == "websocket":  # nothing here speaks it, and the gate cannot judge it
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
                self.known.clear()  # it may have made or revoked a key
                if message["status"] < 400 and not audit.is_settled(request):
                    await run_in_threadpool(self._record, request)
            await send(message)

        await self.app(scope, receive, audited)

    async def _admit(self, request: Request) -> Caller:
        """The caller of `request`. Raises Unauthorized, Forbidden or TooManyRequests."""
        known = await self._known(secret_of(request.headers))
        if known.key_id is None:
            if not self.settings.allow_remote:
                check_is_local(request)
            return known
        self.limit.take(known.key_id)
        needed = caller.Scope.READ if request.method in SAFE_METHODS else caller.Scope.WRITE
        if not known.scope.includes(needed):
            raise Forbidden(
                f"The key {known.name!r} has the scope {known.scope}; this needs {needed}."
            )
        now = time.monotonic()
        if now - self.noted.get(known.key_id, float("-inf")) >= service.LAST_USE.total_seconds():
            self.noted[known.key_id] = now
            await to_thread.run_sync(self._note_use, known.key_id, limiter=self.admitting)
        return known

    async def _known(self, secret: str | None) -> Caller:
        """Whose key `secret` is, as it was a moment ago. Raises as `_look_up`."""
        now = time.monotonic()
        # Until a key exists nobody needs one, so whoever shows one then is nobody too.
        for shown in (secret, None):
            known, then = self.known.get(shown, (NOBODY, float("-inf")))
            if now - then < KNOWN_FOR:
                return known
        found = await to_thread.run_sync(self._look_up, secret, limiter=self.admitting)
        self.known[secret if found.key_id is not None else None] = (found, now)
        return found

    def _look_up(self, secret: str | None) -> Caller:
        """Whose key `secret` is; NOBODY while there are no keys. Raises Unauthorized."""
        try:
            with reading(self.engine) as session:
                if not service.exist(session):
                    return NOBODY
                if secret is None:
                    raise Unauthorized(
                        "This service needs an API key: send it as 'Authorization: Bearer KEY', "
                        "or as the password that your browser asks for."
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
        except DBAPIError:  # a full disk must not keep readers out
            log.warning("cannot note the use of key %s", key_id, exc_info=True)

    def _record(self, request: Request) -> None:
        """The row of a change that was not made in a route's own session, such as an upload."""
        with writing(self.engine) as session:
            audit.record(session, request)


def secret_of(headers: Headers) -> str | None:
    """The key that a request shows: a bearer token, or the password of HTTP Basic."""
    scheme, _, value = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return value.strip() or None
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value, validate=True).decode().partition(":")[2] or None
        except (binascii.Error, UnicodeDecodeError):
            return None
    return None


def is_loopback(host: str) -> bool:
    """Whether `host`, a name or an address, can only mean this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_is_local(request: Request) -> None:
    """Raise Forbidden where a request does not come from this machine to this machine.

    The second half keeps out a site whose name was made to resolve to 127.0.0.1.
    """
    here = request.client is not None and is_loopback(request.client.host)
    named = urlsplit(f"//{request.headers.get('host', '')}").hostname or ""
    if not (here and is_loopback(named)):
        raise Forbidden(
            "Before its first API key this service answers its own machine alone, as localhost or "
            "127.0.0.1: make a key with `enrich keys create NAME`."
        )


def check_site(request: Request, allowed: tuple[str, ...]) -> None:
    """Raise Forbidden where a page of another site asks for a change."""
    headers: Mapping[str, str] = request.headers
    origin = headers.get("origin")
    if request.method in SAFE_METHODS or origin in allowed:
        return
    # Browsers say which it is; where they do not (plain http), the origin is compared.
    if (site := headers.get("sec-fetch-site")) is not None:
        foreign = site not in ("same-origin", "none")
    else:
        foreign = origin is not None and urlsplit(origin).netloc != headers.get("host")
    if foreign:
        raise Forbidden(
            "A page of another site may not change anything here; ENRICH_CORS_ORIGINS names "
            "those that may."
        )
