"""What a Ray job and its submitter tell each other, through a folder that all nodes see."""

import json
import time
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from distill.data.atomic_file import write_atomically

SILENCE_SECONDS: Final = 60.0  # of the submitter, after which nobody asks for the training any more
LOOK_SECONDS: Final = 1.0  # between looks at its orders


class Order(StrEnum):
    """What the submitter wants."""

    GO = "go"
    STOP = "stop"


@dataclass(frozen=True)
class Outcome:
    """How a training ended: the exit status of `distill train`, and its last words."""

    status: int
    said: str = ""


class RayFolder:
    """The files of one Ray job in the folder of the training."""

    def __init__(self, out: Path) -> None:
        self.path = out / "ray"
        self.events = self.path / "events.jsonl"
        self._submission = self.path / "submission"
        self._order = self.path / "order"
        self._outcome = self.path / "outcome.json"

    def begin(self, submission: str) -> None:
        """Make it ready for a new Ray job, whose id is kept for who comes after a kill."""
        self.path.mkdir(parents=True, exist_ok=True)
        self._outcome.unlink(missing_ok=True)
        self.events.write_bytes(b"")
        self.order(Order.GO)
        write_atomically(self._submission, submission)

    def submission(self) -> str | None:
        """The id of the last Ray job here."""
        return self._submission.read_text() if self._submission.is_file() else None

    def order(self, order: Order) -> None:
        """Say what is wanted; said again and again, so that silence means something too."""
        write_atomically(self._order, f"{order} {time.time()}")

    def orders(self) -> str:
        """What was last said, and when by the submitter's clock; a word of its own each time."""
        return self._order.read_text()

    def end(self, outcome: Outcome) -> None:
        """Say how the training ended."""
        write_atomically(self._outcome, json.dumps(asdict(outcome)))

    def outcome(self) -> Outcome | None:
        """How the training ended, if it has said so."""
        if not self._outcome.is_file():
            return None
        return Outcome(**json.loads(self._outcome.read_text()))


class Listener:
    """Whether the training should stop: it is told to, or nobody has said anything for long."""

    def __init__(self, folder: RayFolder) -> None:
        self._folder = folder
        self._last, self._heard = "", time.monotonic()
        self._looked = float("-inf")
        self._stop = False

    def __call__(self) -> bool:
        """Look, at most once a second."""
        now = time.monotonic()
        if self._stop or now - self._looked < LOOK_SECONDS:
            return self._stop
        self._looked = now
        # The clocks of two machines may differ: what counts is that the words change.
        if (said := self._folder.orders()) != self._last:
            self._last, self._heard = said, now
        self._stop = said.startswith(Order.STOP) or now - self._heard > SILENCE_SECONDS
        return self._stop
