"""How long the device of a training waited for images."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class ImageWait:
    """Sums the time for which the device had nothing to do because images were still being read.

    On a CPU this is the time that reading takes between the steps. A GPU works on while the next
    images are read: there it is the time between the end of its last work and the arrival of the
    images, measured by the GPU itself without waiting for it.
    """

    def __init__(self, device: torch.device) -> None:
        self._is_cuda = device.type == "cuda"
        self._gaps: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._seconds = 0.0

    @contextmanager
    def measure(self) -> Iterator[None]:
        """Images are read inside of this context."""
        if self._is_cuda:
            last, ready = _event(), _event()
            last.record()
            yield
            ready.record()
            self._gaps.append((last, ready))
        else:
            began = time.monotonic()
            yield
            self._seconds += time.monotonic() - began

    def add(self, seconds: float) -> None:
        """Add what an interrupted run has measured."""
        self._seconds += seconds

    def seconds(self) -> float:
        """The sum in seconds. Waits for a GPU."""
        for last, ready in self._gaps:
            ready.synchronize()
            self._seconds += last.elapsed_time(ready) / 1000
        self._gaps.clear()
        return self._seconds


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
