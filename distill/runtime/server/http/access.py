"""Access control: API keys, local clients, no cross-site requests.

- With API keys, every request needs a key: programs send it as `Authorization: Bearer`, browsers
  ask the user for it after a 401 and send it as the password of HTTP Basic, with any user name.
- Without API keys, only clients on this machine are accepted, unless `allow_remote` is set.
- /healthz and /readyz need no key.

Cross-site requests are rejected and, without keys, foreign host names too (DNS rebinding).
"""

import hashlib
import hmac
from collections.abc import Sequence
from typing import Final

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from contract.local_access import is_cross_site, is_local, secret_of
from distill.runtime.server.http.problems import OPEN_PATHS, problem

CHALLENGE: Final = {"WWW-Authenticate": 'Bearer, Basic realm="distill", charset="UTF-8"'}


class Access:
    """Middleware that rejects unauthorised requests."""

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
        """Raise HTTPException (401 or 403) unless the request is authorised."""
        if is_cross_site(request.method, request.headers):
            raise HTTPException(403, "Cross-site requests are rejected: use the server's own page.")
        client = request.client and request.client.host
        if self._digests:
            given = _digest(secret_of(request.headers.get("authorization", "")) or "")
            matches = [hmac.compare_digest(given, digest) for digest in self._digests]
            if not any(matches):  # compares all keys, so that the time reveals nothing
                raise HTTPException(
                    401,
                    "This server needs an API key: send it as 'Authorization: Bearer KEY', or "
                    "enter it as the password in your browser.",
                    CHALLENGE,
                )
        elif not self.allow_remote and not is_local(client, request.headers.get("host", "")):
            raise HTTPException(
                403,
                "Without an API key, this server accepts only requests from its own machine to "
                "localhost or 127.0.0.1: set DISTILL_SERVE_KEY or --key-file.",
            )


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
