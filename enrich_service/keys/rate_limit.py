"""A token bucket per API key."""

import math
import threading
import time
from collections.abc import Callable

from enrich_service.core.errors import TooManyRequests

BURST_S = 2.0  # burst size in seconds of the rate


class RateLimit:
    """`rate` requests per second and key, counted in each process separately."""

    def __init__(self, rate: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._capacity = rate, max(1.0, rate * BURST_S)
        self._clock = clock
        self._lock = threading.Lock()
        self._buckets: dict[int, tuple[float, float]] = {}  # key id → tokens, time of the count

    def take(self, key_id: int) -> None:
        """Count a request of a key. Raises TooManyRequests if it exceeds the rate."""
        with self._lock:
            now = self._clock()
            tokens, then = self._buckets.get(key_id, (self._capacity, now))
            tokens = min(self._capacity, tokens + (now - then) * self._rate)
            allowed = tokens >= 1
            self._buckets[key_id] = (tokens - allowed, now)
        if not allowed:
            wait = math.ceil((1 - tokens) / self._rate)
            raise TooManyRequests(
                f"This API key may send {self._rate:g} requests per second (ENRICH_RATE_LIMIT): "
                f"try again in {wait} s.",
                retry_after=wait,
            )
