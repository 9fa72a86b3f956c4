"""Dynamic batching: photos of several requests share a run of the image encoder.

A photo waits for others only while the encoder is busy, or while other photos are still being
decoded, and then at most `max_wait_s`. So a single client never waits, and batches fill up as the
load grows.
"""

import asyncio
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import numpy as np
from starlette.exceptions import HTTPException

from distill.runtime.image_encoder import ImageEncoder, Pixels
from distill.runtime.server.metrics import Metrics
from distill.runtime.text_encoder import Features

RETRY_AFTER_S: Final = 1


@dataclass(frozen=True)
class _Waiting:
    """A decoded photo in the queue, its encoder, and the future of its features."""

    encoder: ImageEncoder
    pixels: Pixels
    features: asyncio.Future[Features]
    since: float  # of the event loop's clock


class Batcher:
    """Collects decoded photos and encodes them in batches while `run` is running.

    `admitted` is the number of photos of all requests that are being decoded, queued or encoded.
    """

    def __init__(
        self, *, max_batch: int, max_wait_s: float, max_queue: int, metrics: Metrics
    ) -> None:
        self._max_batch, self._max_wait_s, self._max_queue = max_batch, max_wait_s, max_queue
        self._metrics = metrics
        self._waiting: deque[_Waiting] = deque()
        self._changed = asyncio.Event()  # a photo arrived, or an admitted one will not arrive
        self._thread = ThreadPoolExecutor(1, "encode")
        self.admitted = 0
        self._outstanding = 0  # admitted photos that are still being decoded

    @contextmanager
    def admit(self, photos: int) -> Iterator["Admission"]:
        """Reserve queue space for `photos` photos of one request for the duration of the block.

        Raises:
            HTTPException: 503, the queue is full.
        """
        if self.admitted + photos > self._max_queue:
            raise HTTPException(
                503,
                f"The queue has {self.admitted} photos, at most {self._max_queue} fit: try again.",
                {"Retry-After": str(RETRY_AFTER_S)},
            )
        admission = Admission(self, photos)
        self.admitted += photos
        self._outstanding += photos
        try:
            yield admission
        finally:
            self.admitted -= photos
            self._expect_fewer(admission.outstanding)

    def _expect_fewer(self, photos: int) -> None:
        """Count `photos` admitted photos as no longer outstanding."""
        self._outstanding -= photos
        self._changed.set()

    def _submit(self, encoder: ImageEncoder, pixels: Pixels) -> asyncio.Future[Features]:
        loop = asyncio.get_running_loop()
        features: asyncio.Future[Features] = loop.create_future()
        self._waiting.append(_Waiting(encoder, pixels, features, loop.time()))
        return features

    async def run(self) -> None:
        """Encode batches from the queue until cancelled."""
        while True:
            await self._fill()
            if batch := self._take():
                await self._encode(batch)

    async def _fill(self) -> None:
        """Return when a batch is full, no photo is outstanding, or the oldest has timed out."""
        loop = asyncio.get_running_loop()
        while len(self._waiting) < self._max_batch:
            left = None
            if self._waiting:
                left = self._waiting[0].since + self._max_wait_s - loop.time()
                if left <= 0 or not self._outstanding:
                    return
            self._changed.clear()
            try:
                async with asyncio.timeout(left):
                    await self._changed.wait()
            except TimeoutError:
                return

    def _take(self) -> list[_Waiting]:
        """The next batch: photos for the same encoder whose requests were not cancelled."""
        batch: list[_Waiting] = []
        others: list[_Waiting] = []
        while self._waiting and len(batch) < self._max_batch:
            photo = self._waiting.popleft()
            if photo.features.done():  # cancelled
                continue
            same = not batch or photo.encoder is batch[0].encoder
            (batch if same else others).append(photo)
        self._waiting.extendleft(reversed(others))
        return batch

    async def _encode(self, batch: list[_Waiting]) -> None:
        began = time.perf_counter()

        def encode() -> Features:
            return batch[0].encoder.encode(np.stack([photo.pixels for photo in batch]))

        try:
            features = await asyncio.get_running_loop().run_in_executor(self._thread, encode)
        except Exception as error:  # passed to each request; the next batch is still encoded
            for photo in batch:
                if not photo.features.done():
                    photo.features.set_exception(error)
            return
        self._metrics.batch_photos.observe(len(batch))
        self._metrics.batch_seconds.observe(time.perf_counter() - began)
        for photo, row in zip(batch, features, strict=True):
            if not photo.features.done():
                photo.features.set_result(row)

    def close(self) -> None:
        """Stop the encoder's thread."""
        self._thread.shutdown(wait=False, cancel_futures=True)


class Admission:
    """The photos of one request; `outstanding` counts those that are still being decoded."""

    def __init__(self, batcher: Batcher, photos: int) -> None:
        self._batcher, self.outstanding = batcher, photos

    async def encode(self, encoder: ImageEncoder, pixels: Pixels) -> Features:
        """Unit features [dim] of one decoded photo of the request, uint8 [3, size, size]."""
        features = self._batcher._submit(encoder, pixels)
        self.drop()
        return await features

    def drop(self) -> None:
        """Count one photo of the request as no longer being decoded."""
        self.outstanding -= 1
        self._batcher._expect_fewer(1)
