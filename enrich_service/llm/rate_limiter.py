"""How many calls to a language model are made at a time and in a minute, and whose are next."""

import asyncio
import time
from collections import Counter, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Protocol


class TokenBucket:
    """At most `per_minute` units in a minute, in even steps; None: no limit.

    A bucket that is overdrawn by one call at most and holds no more than a second's worth, since
    servers that allow 600 calls a minute refuse 600 calls in the first second.
    """

    def __init__(self, per_minute: int | None) -> None:
        self._seconds_each = 60 / per_minute if per_minute else 0.0
        self._free_at = 0.0  # monotonic time at which the next unit may be taken

    def wait(self) -> float:
        """Seconds until more may be taken."""
        return max(0.0, self._free_at - time.monotonic())

    def take(self, units: float) -> None:
        """Take units, or give back (a negative number) what was taken too much."""
        start = max(self._free_at, time.monotonic() - 1.0)
        self._free_at = start + units * self._seconds_each


class CallGroup(Protocol):
    """Calls that belong together, as those of a run do."""

    inside: int  # how many of them are let in, or about to be let in again

    def may_start_call(self) -> bool:
        """Whether one more of its calls may be made now."""

    def halt(self, reason: str) -> None:
        """Let none in any more."""


@dataclass(eq=False)
class Slot:
    """One call's slot, which its group may keep for the next call about the same label."""

    limiter: "PriorityRateLimiter"
    tokens: int  # expected
    key: str
    urgent: bool
    group: CallGroup | None
    kept: bool  # by the call before
    keep: bool = False  # for the call after
    held: bool = False
    given: asyncio.Future[None] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )

    async def step_out(self, seconds: float) -> None:
        """Let others call for so long, and wait for a slot again."""
        self.limiter._leave(self)
        await asyncio.sleep(seconds)
        await self.limiter._enter(self)

    def reconcile(self, *, calls: int, tokens: int | None) -> None:
        """Correct what was taken for a call by what it used; None: that is not known."""
        self.limiter._reconcile(calls - 1, 0 if tokens is None else tokens - self.tokens)


class PriorityRateLimiter:
    """At most `capacity` calls at a time, and so many calls and tokens a minute.

    Urgent calls go before all others, and do not wait for their group to let them in; nor does a
    call whose slot was kept. `prioritise` makes a key urgent that was not.
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
        self._inside: Counter[str] = Counter()
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
        """Hold one slot, for a call that is expected to use so many tokens.

        `kept`: the call before, about the same label, set `keep` on its slot.
        """
        slot = Slot(self, tokens, key, urgent, group, kept)
        await self._enter(slot)
        try:
            yield slot
        finally:
            if slot.held:
                self._leave(slot)

    def holds(self, key: str) -> bool:
        """Whether a call with this key has been let in and is not out again."""
        return self._inside[key] > 0

    def prioritise(self, key: str) -> None:
        """From now on, and where they wait already, calls with this key are urgent."""
        self._prioritised.add(key)
        for slot in [slot for slot in self._waiting if slot.key == key]:
            self._waiting.remove(slot)
            self._urgent.append(slot)
        self._admit()

    def forget(self, key: str) -> None:
        """No more calls with this key will come."""
        self._prioritised.discard(key)

    def _reconcile(self, calls: int, tokens: int) -> None:
        self._calls.take(calls)
        self._tokens.take(tokens)
        self._admit()

    async def _enter(self, slot: Slot) -> None:
        slot.given = asyncio.get_running_loop().create_future()
        at_once = slot.urgent or slot.kept or slot.key in self._prioritised
        (self._urgent if at_once else self._waiting).append(slot)
        self._admit()
        try:
            await slot.given
        except asyncio.CancelledError:
            if slot.given.cancelled():
                self._queue(slot).remove(slot)
                if slot.group is not None and slot.kept:
                    slot.group.inside -= 1
                    self._admit()
            else:
                self._leave(slot)  # it had just been given
            raise

    def _admit(self) -> None:
        while self._free and (slot := self._next()) is not None:
            if wait := max(self._calls.wait(), self._tokens.wait()):
                if self._timer is None:
                    self._timer = asyncio.get_running_loop().call_later(wait, self._ring)
                return
            self._queue(slot).remove(slot)
            self._free -= 1
            self._inside[slot.key] += 1
            if slot.group is not None and not slot.kept:
                slot.group.inside += 1
            self._calls.take(1)
            self._tokens.take(slot.tokens)
            slot.held = True
            slot.given.set_result(None)

    def _queue(self, slot: Slot) -> deque[Slot]:
        """Where it waits."""
        return self._urgent if slot in self._urgent else self._waiting

    def _next(self) -> Slot | None:
        """The slot to be given next, of those whose group lets them in."""
        # A call that was cancelled stays in its queue until its task runs again.
        for slot in self._urgent:
            if not slot.given.done():
                return slot
        full: CallGroup | None = None  # mostly one run waits, with all that it has
        for slot in self._waiting:
            if slot.given.done():
                continue
            if slot.group is None or (slot.group is not full and slot.group.may_start_call()):
                return slot
            full = slot.group
        return None

    def _ring(self) -> None:
        self._timer = None
        self._admit()

    def _leave(self, slot: Slot) -> None:
        slot.held, slot.kept = False, False
        self._free += 1
        if slot.group is not None and not slot.keep:
            slot.group.inside -= 1
        self._inside[slot.key] -= 1
        if not self._inside[slot.key]:
            del self._inside[slot.key]
        self._admit()
