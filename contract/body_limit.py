"""A limit for request bodies, as ASGI middleware of the service and of the classifier's server.

FastAPI's own limit responds in plain text. Most clients send their whole body before they read the
response. If the server closes the connection before that, the client gets a reset instead of the
413. So the response is sent at once, and the rest of the body is read and discarded, up to a number
of bytes and seconds.
"""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from typing import Any, Final

DISCARDED_BYTES: Final = 1024**3
DISCARD_TIMEOUT_S: Final = 30.0
MIN_BYTES_PER_S: Final = 1024  # on average, after the first `timeout_s`

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]


class BodyLimit:
    """Middleware that rejects bodies above `max_bytes`, and bodies that stall for `timeout_s`.

    A body that arrives slower than MIN_BYTES_PER_S is rejected as stalled too. `too_large` and
    `stalled` create the exceptions that the application answers with 413 and 408.
    """

    def __init__(
        self,
        app: App,
        *,
        max_bytes: int,
        too_large: Callable[[], Exception],
        timeout_s: float | None = None,
        stalled: Callable[[], Exception] = TimeoutError,
    ) -> None:
        self.app, self.max_bytes, self.timeout_s = app, max_bytes, timeout_s
        self.too_large, self.stalled = too_large, stalled

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Pass a request on with a limited body."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        announced = headers.get(b"content-length", b"0")
        size = 0
        complete = is_rejected = False
        began = asyncio.get_running_loop().time()

        async def limited() -> Message:
            nonlocal size, complete
            if announced.isdigit() and int(announced) > self.max_bytes:
                raise self.too_large()
            if complete:  # the application waits for the client to disconnect
                return await receive()
            try:
                async with asyncio.timeout(self._timeout(began, size)):
                    message = await receive()
            except TimeoutError:
                raise self.stalled() from None
            complete = not message.get("more_body", False)
            size += len(message.get("body", b""))
            if size > self.max_bytes:
                raise self.too_large()
            return message

        async def answer(message: Message) -> None:
            nonlocal is_rejected
            early = message.get("status") in (408, 413) and not complete
            if message["type"] == "http.response.start" and early:
                is_rejected = message["status"] == 413
                others = [
                    header
                    for header in message.get("headers", ())
                    if header[0].lower() != b"connection"
                ]
                message["headers"] = [*others, (b"connection", b"close")]
            elif is_rejected and not message.get("more_body", False):
                await send({**message, "more_body": True})
                # A client that expects 100-continue sends no body after a rejection.
                if headers.get(b"expect", b"").lower() != b"100-continue":
                    await _discard(receive)
                message = {"type": "http.response.body"}
            await send(message)

        await self.app(scope, limited, answer)

    def _timeout(self, began: float, size: int) -> float | None:
        """Seconds to wait for more of a body of which `size` bytes arrived since `began`."""
        if self.timeout_s is None:
            return None
        deadline = began + self.timeout_s + size / MIN_BYTES_PER_S
        return min(self.timeout_s, deadline - asyncio.get_running_loop().time())


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
