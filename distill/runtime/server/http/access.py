"""Who may ask: API keys, this machine alone, no foreign pages.

- With keys: every request needs one. Programs send it as `Authorization: Bearer`. Browsers ask for
  it after a 401 and send it as the password of HTTP Basic, with any user name.
- Without: clients on this machine alone, unless `allow_remote` is set.
- /healthz and /readyz are open.

Pages of other sites may change nothing, and without keys a foreign host name is rejected: it may
have been made to point here (DNS rebinding).
"""

import base64
import binascii
import hashlib
import hmac
import ipaddress
from collections.abc import Sequence
from typing import Final
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from distill.runtime.server.http.problems import OPEN_PATHS, problem

SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
CHALLENGE: Final = {"WWW-Authenticate": 'Bearer, Basic realm="distill", charset="UTF-8"'}


class Access:
    """Middleware that rejects requests of those who may not ask."""

    def __init__(self, app: ASGIApp, *, keys: Sequence[str], allow_remote: bool) -> None:
        self.app, self.allow_remote = app, allow_remote
        self._digests = [_digest(key) for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it with a problem document."""
        if scope["type"] == "websocket":  # not supported
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] == "http" and scope["path"] not in OPEN_PATHS:
            try:
                self._check(Request(scope))
            except HTTPException as error:
                refusal = problem(error.status_code, error.detail, dict(error.headers or {}))
                await refusal(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def _check(self, request: Request) -> None:
        """Raise HTTPException (401 or 403) unless the client may ask."""
        _check_site(request)
        if self._digests:
            given = _digest(_key_of(request.headers) or "")
            matches = [hmac.compare_digest(given, digest) for digest in self._digests]
            if not any(matches):  # all were compared: the time tells nothing
                raise HTTPException(
                    401,
                    "This server needs an API key: send it as 'Authorization: Bearer KEY', or as "
                    "the password in your browser.",
                    CHALLENGE,
                )
        elif not self.allow_remote and not _is_local(request):
            raise HTTPException(
                403,
                "Without an API key, this server answers only requests from its own machine, as "
                "localhost or 127.0.0.1: set DISTILL_SERVE_KEY or --key-file.",
            )


def is_loopback(host: str) -> bool:
    """Whether `host`, a name or an address, is this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def _key_of(headers: Headers) -> str | None:
    """The key of a request: a bearer token, or the password of HTTP Basic."""
    scheme, _, value = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value, validate=True).decode().partition(":")[2]
        except (binascii.Error, UnicodeDecodeError):
            return None
    return None


def _is_local(request: Request) -> bool:
    here = request.client is not None and is_loopback(request.client.host)
    try:
        named = urlsplit(f"//{request.headers.get('host', '')}").hostname or ""
    except ValueError:  # no address at all
        return False
    return here and is_loopback(named)


def _check_site(request: Request) -> None:
    """Raise HTTPException for a request of another site's page that changes something."""
    if request.method in SAFE_METHODS:
        return
    # Browsers send Sec-Fetch-Site; without it (plain http), compare the origin.
    site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
    if site is not None:
        foreign = site not in ("same-origin", "none")
    else:
        foreign = origin is not None and origin.partition("//")[2] != request.headers.get("host")
    if foreign:
        raise HTTPException(403, "Pages of other sites may not send anything here.")
