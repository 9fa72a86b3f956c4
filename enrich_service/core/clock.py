"""The system's clock can be set, and stands in nobody's way when it is.

Leases are stored as times of the system's clock, so that all processes on one database agree. A
process that finds that this clock was set (or that the machine slept), and one that has just
started and cannot know, puts all leases right: else they would end too early, or an hour late.
"""

import time

TOLERANCE = 1.0  # seconds that the clock may be moved at a time; NTP moves it by less


class Clock:
    """Notices that the system's clock was set."""

    def __init__(self) -> None:
        self._offset: float | None = None  # of the system's clock from the monotonic one, seconds

    def was_set(self) -> bool:
        """Whether it was set since `note`. True before the first `note`."""
        return self._offset is None or abs(_offset() - self._offset) > TOLERANCE

    def note(self) -> None:
        """What followed from the clock's being set is done."""
        self._offset = _offset()


def _offset() -> float:
    return time.time() - time.monotonic()
