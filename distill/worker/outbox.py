"""Sends the events in files of a job's folder to the service, in order."""

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

FLUSH_INTERVAL_S: Final = 0.5  # events of this interval are sent in one request
MAX_EVENTS_PER_REQUEST: Final = 500

notes = Console(stderr=True, markup=False, highlight=False, soft_wrap=True)


@dataclass(frozen=True)
class EventFile:
    """A file of events that one attempt wrote.

    `number` orders the attempts in a folder; `fence` is the fencing token of the attempt's lease.
    """

    path: Path
    number: int
    fence: str

    @classmethod
    def new(cls, folder: Path, number: int, fence: str) -> "EventFile":
        """The file for the events of the attempt `number`."""
        return cls(folder / f"events-{number}-{fence}.jsonl", number, fence)

    @classmethod
    def unsent(cls, folder: Path) -> "list[EventFile]":
        """The files of earlier attempts with unsent events, oldest first."""
        files = []
        for path in folder.glob("events-*-*.jsonl"):
            _, number, fence = path.stem.split("-", 2)
            files.append(cls(path, int(number), fence))
        return sorted(files, key=lambda file: file.number)


class Outbox:
    """Sends the events in files to the service, in a separate thread.

    `unsent` are files of killed attempts, which are sent first; `current` is the file of the
    running training. A file is deleted when all its events are sent.
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
        """Send the remaining events after the training has ended; wait until done or given up."""
        self._closed.set()
        self._thread.join()

    def _run(self) -> None:
        with contextlib.suppress(LeaseLost, ServiceUnavailable):
            for file in self._unsent:
                self._send(file, lambda: True)
            self._send(self._current, self._closed.is_set)

    def _send(self, file: EventFile, is_complete: Callable[[], bool]) -> None:
        """Send the events in `file` while it is written, until it is complete and all are sent."""
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
        except ServiceError as error:  # a retry would be rejected again
            notes.print(f"{len(batch)} events were not stored: {error}")


def _read_lines(content: IO[bytes], complete: bool) -> list[bytes]:
    """The next lines of a file for one request; only complete lines while it is written."""
    lines = list(itertools.islice(content, MAX_EVENTS_PER_REQUEST))
    if lines and not complete and not lines[-1].endswith(b"\n"):
        content.seek(-len(lines.pop()), os.SEEK_CUR)
    return lines


def _without_old_progress(events: list[dict[str, Any]], is_over: bool) -> list[dict[str, Any]]:
    """`events` without progress that is outdated by newer progress of its phase.

    Without any progress if `is_over`, which means that the attempt has ended.
    """
    kept: list[dict[str, Any]] = []
    for new in events:
        is_progress = new["kind"] is EventKind.PROGRESS
        if is_progress and kept and _are_of_one_phase(kept[-1], new):
            kept.pop()
        if not (is_progress and is_over):
            kept.append(new)
    return kept


def _are_of_one_phase(old: dict[str, Any], new: dict[str, Any]) -> bool:
    """Whether both events are progress of the same phase."""
    kinds = {old["kind"], new["kind"]}
    return kinds == {EventKind.PROGRESS} and old["data"].get("phase") == new["data"].get("phase")
