"""The format of training events: one JSON line each, which the worker reads."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from contract import EventKind

MAX_LOG_LINE: Final = 10_000  # characters


def event_line(kind: EventKind, data: Mapping[str, Any]) -> str:
    """An event as a JSON line for `parse_event`."""
    return json.dumps({"kind": kind, "data": data, "at": datetime.now(UTC).isoformat()})


def parse_event(line: bytes) -> dict[str, Any]:
    """The event in a line that a training printed.

    Any other line, such as the output of a library, becomes a log event. NaN becomes null, since
    JSON does not have it.
    """
    text = line.decode(errors="replace").strip()
    try:
        event = json.loads(text, parse_constant=lambda _: None)
        kind, data, at = EventKind(event["kind"]), dict(event["data"]), str(event["at"])
    except (ValueError, KeyError, TypeError, RecursionError):
        kind, data, at = EventKind.LOG, {"message": text}, datetime.now(UTC).isoformat()
    if kind is EventKind.LOG:
        data["message"] = str(data.get("message"))[:MAX_LOG_LINE]
    return {"kind": kind, "data": data, "at": at}
