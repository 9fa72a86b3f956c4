"""A limit for request bodies. (FastAPI's own limit responds in plain text.)

Most clients send their whole body before they read the response. If the server closes the
connection before that, the client gets a reset instead of the 413. So the response is sent at once,
and the rest of the body is read and discarded, up to a number of bytes and seconds.
"""

import asyncio
from contextlib import suppress
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

DISCARDED_BYTES: Final = 1024**3
DISCARD_TIMEOUT_S: Final = 30.0


class BodyLimit:
    """Middleware that rejects bodies above `limit` bytes with 413."""

    def __init__(self, app: ASGIApp, *, limit: int) -> None:
        self.app = app
        self.limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on with a limited body."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        announced = headers.get("content-length", "0")
        size = 0
        read = refused = False

        async def limited() -> Message:
            nonlocal size, read
            if announced.isdigit() and int(announced) > self.limit:
                raise self._refusal()
            message = await receive()
            read = not message.get("more_body", False)
            size += len(message.get("body", b""))
            if size > self.limit:
                raise self._refusal()
            return message

        async def answer(message: Message) -> None:
            nonlocal refused
            if message["type"] == "http.response.start" and message["status"] == 413 and not read:
                refused = True
                MutableHeaders(scope=message)["Connection"] = "close"
            elif refused and not message.get("more_body", False):
                await send({**message, "more_body": True})
                if headers.get("expect", "").lower() != "100-continue":  # otherwise no body follows
                    await _discard(receive)
                message = {"type": "http.response.body"}
            await send(message)

        await self.app(scope, limited, answer)

    def _refusal(self) -> HTTPException:
        return HTTPException(
            413, f"The request body exceeds {self.limit} bytes (ENRICH_MAX_BODY_BYTES)."
        )


async def _discard(receive: Receive) -> None:
    """Read and discard the rest of a body, within the limits above."""
    left = DISCARDED_BYTES
    with suppress(TimeoutError):
        async with asyncio.timeout(DISCARD_TIMEOUT_S):
            while left > 0:
                message = await receive()
                left -= len(message.get("body", b""))
                if message["type"] == "http.disconnect" or not message.get("more_body", False):
                    return
