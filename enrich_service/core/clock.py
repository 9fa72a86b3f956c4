"""Detection of changes of the system clock.

Leases are stored as times of the system clock, on which all processes of one database agree. A
process corrects all leases when it starts and when the clock was set or the machine slept;
otherwise they would expire too early or too late.
"""

import time

TOLERANCE = 1.0  # seconds; NTP adjusts the clock by less at a time


class Clock:
    """Detects that the system clock was set."""

    def __init__(self) -> None:
        self._offset: float | None = None  # system clock minus monotonic clock, seconds

    def was_set(self) -> bool:
        """Whether the clock was set since the last `remember`. True before the first `remember`."""
        return self._offset is None or abs(_offset() - self._offset) > TOLERANCE

    def remember(self) -> None:
        """Record the current clock as the reference."""
        self._offset = _offset()


def _offset() -> float:
    return time.time() - time.monotonic()
