"""The outbox: sends the events in files of a job's folder to the service, in order."""

import contextlib
import itertools
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

from rich.console import Console

from contract import EventKind
from distill.errors import LeaseLost, ServiceError, ServiceUnavailable
from distill.worker.event_lines import parse_event

FLUSH_INTERVAL_S: Final = 0.5  # events wait so long for others, to be sent in one request
MAX_EVENTS_PER_REQUEST: Final = 500

notes = Console(stderr=True, markup=False, highlight=False, soft_wrap=True)


@dataclass(frozen=True)
class EventFile:
    """A file of events that one attempt wrote.

    `number` orders the attempts in a folder; `fence` is the token of the attempt's lease.
    """

    path: Path
    number: int
    fence: str

    @classmethod
    def new(cls, folder: Path, number: int, fence: str) -> "EventFile":
        """The file that the attempt with this number writes."""
        return cls(folder / f"events-{number}-{fence}.jsonl", number, fence)

    @classmethod
    def unsent(cls, folder: Path) -> "list[EventFile]":
        """The files of earlier attempts whose events were not all sent, the oldest first."""
        found = []
        for path in folder.glob("events-*-*.jsonl"):
            _, number, fence = path.stem.split("-", 2)
            found.append(cls(path, int(number), fence))
        return sorted(found, key=lambda file: file.number)


class Outbox:
    """Sends the events in files to the service, in a thread of its own.

    `unsent`: files of attempts that were killed; they go first. `current`: the file that a training
    writes now. A file is deleted once all its events are sent.
    """

    def __init__(
        self,
        unsent: Sequence[EventFile],
        current: EventFile,
        post: Callable[[list[dict[str, Any]]], None],
    ) -> None:
        self._unsent, self._current, self._post = unsent, current, post
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="events")
        self._thread.start()

    def close(self) -> None:
        """Send what is left after the training has ended; returns when all is sent or given up."""
        self._closed.set()
        self._thread.join()

    def _run(self) -> None:
        with contextlib.suppress(LeaseLost, ServiceUnavailable):
            for file in self._unsent:
                self._send(file, lambda: True)
            self._send(self._current, self._closed.is_set)

    def _send(self, file: EventFile, is_complete: Callable[[], bool]) -> None:
        """Send the events in `file` as they are written, until it is complete and all are sent."""
        sent = 0
        with file.path.open("rb") as content:
            while True:
                complete = is_complete()
                lines = _read_lines(content, complete)
                events = [
                    parse_event(line) | {"fence": file.fence, "worker_seq": number}
                    for number, line in enumerate(lines, start=sent + 1)
                ]
                sent += len(lines)
                self._deliver(_without_old_progress(events, is_over=file is not self._current))
                if complete and not lines:
                    break
                if not complete and len(lines) < MAX_EVENTS_PER_REQUEST:
                    self._closed.wait(FLUSH_INTERVAL_S)
        file.path.unlink()

    def _deliver(self, batch: list[dict[str, Any]]) -> None:
        try:
            if batch:
                self._post(batch)
        except (LeaseLost, ServiceUnavailable):
            raise
        except ServiceError as error:  # the same request would be refused again
            notes.print(f"{len(batch)} events were not stored: {error}")


def _read_lines(content: IO[bytes], complete: bool) -> list[bytes]:
    """The next lines of a file, as many as fit a request; of a growing file only whole lines."""
    lines = list(itertools.islice(content, MAX_EVENTS_PER_REQUEST))
    if lines and not complete and not lines[-1].endswith(b"\n"):
        content.seek(-len(lines.pop()), os.SEEK_CUR)
    return lines


def _without_old_progress(events: list[dict[str, Any]], is_over: bool) -> list[dict[str, Any]]:
    """`events` without progress that newer progress of its phase follows, or that `is_over`."""
    kept: list[dict[str, Any]] = []
    for new in events:
        progress = new["kind"] is EventKind.PROGRESS
        if progress and kept and _are_of_one_phase(kept[-1], new):
            kept.pop()
        if not (progress and is_over):
            kept.append(new)
    return kept


def _are_of_one_phase(old: dict[str, Any], new: dict[str, Any]) -> bool:
    """Whether progress in a phase is followed by newer progress in it."""
    kinds = {old["kind"], new["kind"]}
    return kinds == {EventKind.PROGRESS} and old["data"].get("phase") == new["data"].get("phase")
