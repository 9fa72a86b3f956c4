"""Limits concurrent calls, calls per minute and tokens per minute, and orders waiting calls."""

import asyncio
import time
from collections import Counter, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Protocol


class TokenBucket:
    """At most `per_minute` units in a minute, in even steps; None: no limit.

    One call at most overdraws the bucket, which holds one second's units, since servers that allow
    600 calls per minute reject 600 calls in the first second.
    """

    def __init__(self, per_minute: int | None) -> None:
        self._seconds_per_unit = 60 / per_minute if per_minute else 0.0
        self._free_at = 0.0  # monotonic time of the next free unit

    def wait(self) -> float:
        """Seconds until more may be taken."""
        return max(0.0, self._free_at - time.monotonic())

    def take(self, units: float) -> None:
        """Take units, or return them (a negative number)."""
        start = max(self._free_at, time.monotonic() - 1.0)
        self._free_at = start + units * self._seconds_per_unit


class CallGroup(Protocol):
    """Calls that belong together, for example those of a run."""

    calls_in_flight: int  # calls with a slot, or waiting with a kept slot

    def may_start_call(self) -> bool:
        """Whether one more call of the group may start now."""

    def halt(self, reason: str) -> None:
        """Start no more calls."""


@dataclass(eq=False)
class Slot:
    """The slot of one call; its group can keep it for the next call for the same label."""

    limiter: "PriorityRateLimiter"
    tokens: int  # expected
    key: str
    urgent: bool
    group: CallGroup | None
    kept: bool  # from the previous call
    keep: bool = False  # for the next call
    held: bool = False
    granted: asyncio.Future[None] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )

    async def step_out(self, seconds: float) -> None:
        """Release the slot for `seconds`, then wait for a slot again."""
        self.limiter._release(self)
        await asyncio.sleep(seconds)
        await self.limiter._acquire(self)

    def reconcile(self, *, calls: int, tokens: int | None) -> None:
        """Correct the limits by the actual usage of a call; `tokens` None: unknown."""
        self.limiter._reconcile(calls - 1, 0 if tokens is None else tokens - self.tokens)


class PriorityRateLimiter:
    """At most `capacity` calls at a time, and limits on calls and tokens per minute.

    Urgent calls, and calls with a kept slot, go first and ignore the limit of their group.
    `prioritise` makes the calls of a key urgent.
    """

    def __init__(
        self,
        capacity: int,
        *,
        calls_per_minute: int | None = None,
        tokens_per_minute: int | None = None,
    ) -> None:
        self._free = capacity
        self._calls, self._tokens = TokenBucket(calls_per_minute), TokenBucket(tokens_per_minute)
        self._urgent: deque[Slot] = deque()
        self._waiting: deque[Slot] = deque()
        self._held: Counter[str] = Counter()
        self._prioritised: set[str] = set()
        self._timer: asyncio.TimerHandle | None = None

    @asynccontextmanager
    async def slot(
        self,
        *,
        urgent: bool,
        tokens: int = 0,
        key: str = "",
        group: CallGroup | None = None,
        kept: bool = False,
    ) -> AsyncIterator[Slot]:
        """Hold one slot for a call that is expected to use `tokens` tokens.

        `kept`: the previous call, for the same label, set `keep` on its slot.
        """
        slot = Slot(self, tokens, key, urgent, group, kept)
        await self._acquire(slot)
        try:
            yield slot
        finally:
            if slot.held:
                self._release(slot)

    def holds(self, key: str) -> bool:
        """Whether a call with this key has a slot."""
        return self._held[key] > 0

    def prioritise(self, key: str) -> None:
        """Make waiting and future calls with this key urgent."""
        self._prioritised.add(key)
        for slot in [slot for slot in self._waiting if slot.key == key]:
            self._waiting.remove(slot)
            self._urgent.append(slot)
        self._admit()

    def forget(self, key: str) -> None:
        """Undo `prioritise`, once no more calls with this key will come."""
        self._prioritised.discard(key)

    def _reconcile(self, calls: int, tokens: int) -> None:
        self._calls.take(calls)
        self._tokens.take(tokens)
        self._admit()

    async def _acquire(self, slot: Slot) -> None:
        slot.granted = asyncio.get_running_loop().create_future()
        first = slot.urgent or slot.kept or slot.key in self._prioritised
        (self._urgent if first else self._waiting).append(slot)
        self._admit()
        try:
            await slot.granted
        except asyncio.CancelledError:
            if slot.granted.cancelled():
                self._queue(slot).remove(slot)
                if slot.group is not None and slot.kept:
                    slot.group.calls_in_flight -= 1
                    self._admit()
            else:
                self._release(slot)  # granted at the same moment
            raise

    def _admit(self) -> None:
        while self._free and (slot := self._next()) is not None:
            if wait := max(self._calls.wait(), self._tokens.wait()):
                if self._timer is None:
                    self._timer = asyncio.get_running_loop().call_later(wait, self._timer_fired)
                return
            self._queue(slot).remove(slot)
            self._free -= 1
            self._held[slot.key] += 1
            if slot.group is not None and not slot.kept:
                slot.group.calls_in_flight += 1
            self._calls.take(1)
            self._tokens.take(slot.tokens)
            slot.held = True
            slot.granted.set_result(None)

    def _queue(self, slot: Slot) -> deque[Slot]:
        """The queue that contains `slot`."""
        return self._urgent if slot in self._urgent else self._waiting

    def _next(self) -> Slot | None:
        """The next slot to grant among those whose group may start a call."""
        # A call that was cancelled stays in its queue until its task runs again.
        for slot in self._urgent:
            if not slot.granted.done():
                return slot
        full: CallGroup | None = None  # mostly one run has many waiting calls; ask it once
        for slot in self._waiting:
            if slot.granted.done():
                continue
            if slot.group is None or (slot.group is not full and slot.group.may_start_call()):
                return slot
            full = slot.group
        return None

    def _timer_fired(self) -> None:
        self._timer = None
        self._admit()

    def _release(self, slot: Slot) -> None:
        slot.held, slot.kept = False, False
        self._free += 1
        if slot.group is not None and not slot.keep:
            slot.group.calls_in_flight -= 1
        self._held[slot.key] -= 1
        if not self._held[slot.key]:
            del self._held[slot.key]
        self._admit()
