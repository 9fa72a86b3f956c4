"""Token buckets: so many requests a second for each key, and some more in a burst."""

import math
import threading
import time
from collections.abc import Callable

from enrich_service.core.errors import TooManyRequests

BURST_SECONDS = 2.0  # of the rate, that a key may use at once after it was quiet


class RateLimit:
    """`rate` requests a second for each key; what one process has seen, it alone knows."""

    def __init__(self, rate: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._room = rate, max(1.0, rate * BURST_SECONDS)
        self._clock = clock
        self._lock = threading.Lock()
        self._buckets: dict[int, tuple[float, float]] = {}  # key → tokens, when they were counted

    def take(self, key_id: int) -> None:
        """Let one request of a key through; else TooManyRequests."""
        with self._lock:
            now = self._clock()
            tokens, then = self._buckets.get(key_id, (self._room, now))
            tokens = min(self._room, tokens + (now - then) * self._rate)
            allowed = tokens >= 1
            self._buckets[key_id] = (tokens - allowed, now)
        if not allowed:
            wait = math.ceil((1 - tokens) / self._rate)
            raise TooManyRequests(
                f"This API key may ask {self._rate:g} times a second (ENRICH_RATE_LIMIT): "
                f"try again in {wait} s.",
                retry_after=wait,
            )
