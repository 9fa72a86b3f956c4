"""Detection of changes of the system clock.

Leases are stored as times of the system clock, on which all processes of one database agree. A
process corrects all leases when it starts and when the clock was set or the machine slept;
otherwise they would expire too early or too late.
"""

import time

TOLERANCE = 1.0  # seconds that the clock may be moved at a time; NTP moves it by less


class Clock:
    """Detects that the system clock was set."""

    def __init__(self) -> None:
        self._offset: float | None = None  # of the system's clock from the monotonic one, seconds

    def was_set(self) -> bool:
        """Whether the clock was set since `note`. True before the first `note`."""
        return self._offset is None or abs(_offset() - self._offset) > TOLERANCE

    def note(self) -> None:
        """Record the current clock as the reference."""
        self._offset = _offset()


def _offset() -> float:
    return time.time() - time.monotonic()
