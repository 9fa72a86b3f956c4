"""Messages between a Ray job and its submitter, through a folder that all nodes mount."""

import json
import time
from collections.abc import Mapping
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from contract import EventKind
from distill.data.files.atomic_file import write_atomically
from distill.training.outcome import Outcome
from distill.worker.event_lines import event_line

HEARTBEAT_TIMEOUT_S: Final = 60.0  # without a new order the submitter counts as dead
POLL_INTERVAL_S: Final = 1.0  # between reads of the order


class Order(StrEnum):
    """The submitter's order to the training."""

    GO = "go"
    STOP = "stop"


class RayFolder:
    """The files of one Ray job in the folder of the training."""

    def __init__(self, out: Path) -> None:
        self.path = out / "ray"
        self.events = self.path / "events.jsonl"
        self._submission = self.path / "submission"
        self._order = self.path / "order"
        self._outcome = self.path / "outcome.json"
        self._unreadable = self.path / "unreadable"

    def begin(self, submission: str) -> None:
        """Prepare for the new Ray job `submission`. Its id is kept for a later attempt."""
        self.path.mkdir(parents=True, exist_ok=True)
        self._outcome.unlink(missing_ok=True)
        self._unreadable.unlink(missing_ok=True)
        self.events.write_bytes(b"")
        self.send_order(Order.GO)
        write_atomically(self._submission, submission)

    def submission(self) -> str | None:
        """The id of the last Ray job here."""
        return self._submission.read_text() if self._submission.is_file() else None

    def send_order(self, order: Order) -> None:
        """Send an order. It is repeated as a heartbeat: a submitter that is silent has died."""
        write_atomically(self._order, f"{order} {time.time()}")

    def last_order(self) -> str:
        """The last order with its time on the submitter's clock; each one is a different text."""
        return self._order.read_text()

    def write_event(self, kind: EventKind, data: Mapping[str, Any]) -> None:
        """Add an event of the training."""
        with self.events.open("a") as events:
            print(event_line(kind, data), file=events)

    def report_unreadable(self) -> None:
        """Tell all processes that the job has unreadable images, so that it cannot train."""
        self._unreadable.touch()

    def has_unreadable(self) -> bool:
        """Whether a process reported unreadable images."""
        return self._unreadable.exists()

    def end(self, outcome: Outcome) -> None:
        """Record how the training ended."""
        write_atomically(self._outcome, json.dumps(asdict(outcome)))

    def outcome(self) -> Outcome | None:
        """How the training ended, or None."""
        if not self._outcome.is_file():
            return None
        return Outcome(**json.loads(self._outcome.read_text()))


class StopRequest:
    """Whether the training should stop: on order, or because the submitter is silent."""

    def __init__(self, folder: RayFolder) -> None:
        self._folder = folder
        self._last_order, self._changed = "", time.monotonic()
        self._polled = float("-inf")
        self._stop = False

    def __call__(self) -> bool:
        """Read the order, at most once per POLL_INTERVAL_S."""
        now = time.monotonic()
        if self._stop or now - self._polled < POLL_INTERVAL_S:
            return self._stop
        self._polled = now
        # The clocks of two machines may differ, so only a change of the text counts.
        if (order := self._folder.last_order()) != self._last_order:
            self._last_order, self._changed = order, now
        is_silent = now - self._changed > HEARTBEAT_TIMEOUT_S
        self._stop = order.startswith(Order.STOP) or is_silent
        return self._stop
