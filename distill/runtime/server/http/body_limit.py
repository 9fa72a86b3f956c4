"""Limits for request bodies: their bytes, and how long a client may pause while it sends one.

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
DISCARDING_SECONDS: Final = 30.0


class BodyLimit:
    """Middleware that rejects bodies above `max_bytes` with 413, and stalled ones with 408."""

    def __init__(self, app: ASGIApp, *, max_bytes: int, timeout_s: float) -> None:
        self.app, self.max_bytes, self.timeout_s = app, max_bytes, timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on with a limited body."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        announced = headers.get("content-length", "0")
        size = 0
        complete = refused = False

        async def limited() -> Message:
            nonlocal size, complete
            if announced.isdigit() and int(announced) > self.max_bytes:
                raise self._too_large()
            if complete:  # now it waits for the client to disconnect
                return await receive()
            try:
                async with asyncio.timeout(self.timeout_s):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(
                    408, f"No more of the body came for {self.timeout_s:g} seconds: send it again."
                ) from None
            complete = not message.get("more_body", False)
            size += len(message.get("body", b""))
            if size > self.max_bytes:
                raise self._too_large()
            return message

        async def answer(message: Message) -> None:
            nonlocal refused
            early = message.get("status") in (408, 413) and not complete
            if message["type"] == "http.response.start" and early:
                refused = message["status"] == 413
                MutableHeaders(scope=message)["Connection"] = "close"
            elif refused and not message.get("more_body", False):
                await send({**message, "more_body": True})
                if headers.get("expect", "").lower() != "100-continue":  # otherwise no body follows
                    await _discard(receive)
                message = {"type": "http.response.body"}
            await send(message)

        await self.app(scope, limited, answer)

    def _too_large(self) -> HTTPException:
        return HTTPException(
            413,
            f"The request body exceeds {self.max_bytes} bytes: send fewer or smaller photos, or "
            "raise --max-bytes.",
        )


async def _discard(receive: Receive) -> None:
    """Read and discard the rest of a body, within the limits above."""
    left = DISCARDED_BYTES
    with suppress(TimeoutError):
        async with asyncio.timeout(DISCARDING_SECONDS):
            while left > 0:
                message = await receive()
                left -= len(message.get("body", b""))
                if message["type"] == "http.disconnect" or not message.get("more_body", False):
                    return
