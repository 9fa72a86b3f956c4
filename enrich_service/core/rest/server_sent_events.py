"""Server-sent events about a row of the database, which is polled for changes."""

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from anyio import sleep
from fastapi import Request
from fastapi.concurrency import run_in_threadpool
from fastapi.sse import ServerSentEvent

Cursor = TypeVar("Cursor")

# The last event of a page's stream: the browser closes the connection and does not reconnect.
END: Final = ServerSentEvent(raw_data="end", event="end")


@dataclass(frozen=True)
class Update(Generic[Cursor]):
    """The events since a cursor, and the cursor after them.

    `final`: there will be no further events. `more`: read again at once, there may be more events.
    """

    cursor: Cursor
    events: Sequence[ServerSentEvent]
    final: bool
    more: bool = False


async def poll(
    request: Request,
    read: Callable[[Cursor], Update[Cursor]],
    cursor: Cursor,
    *,
    interval_s: float,
) -> AsyncIterator[ServerSentEvent]:
    """Yield the events that `read` returns, until an update is final or the client disconnects.

    `read` runs in a thread, every `interval_s` seconds.
    """
    while not await request.is_disconnected():
        update = await run_in_threadpool(read, cursor)
        cursor = update.cursor
        for event in update.events:
            yield event
        if update.final:
            return
        if not update.more:
            await sleep(interval_s)
