"""The log: one line an event on standard error, as JSON or (opted in) as text for people.

Every line that is written while a request is worked on carries that request's id. What a request
or an answer holds is never logged, nor is what stands behind the ? of its address.
"""

import json
import logging
import logging.config
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Final, Literal

REQUEST: ContextVar[str | None] = ContextVar("request_id", default=None)

# They tell addresses and headers of language models, where a password may stand.
_TOO_TALKATIVE: Final = ("httpx", "httpx2", "httpcore", "httpcore2", "openai", "alembic")


def fields(**named: object) -> dict[str, dict[str, object]]:
    """The `extra` of a log call: values that stand beside the message, under their own names."""
    return {"fields": named}


class _JsonLines(logging.Formatter):
    """One JSON object a line: time, level, logger, message, request_id, and what was given."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if (request_id := REQUEST.get()) is not None:
            line["request_id"] = request_id
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


class _Text(logging.Formatter):
    """Time, level and message, for people."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        more = "".join(f" {k}={v}" for k, v in getattr(record, "fields", {}).items())
        if (request_id := REQUEST.get()) is not None:
            more += f" request_id={request_id}"
        return super().formatMessage(record) + more


def configure(form: Literal["json", "text"]) -> None:
    """Send every logger of this process to standard error in the given form."""
    kind = _JsonLines if form == "json" else _Text
    quiet = {name: {"level": "WARNING"} for name in _TOO_TALKATIVE}
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {"lines": {"()": kind}},
            "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "lines"}},
            "root": {"level": "INFO", "handlers": ["stderr"]},
            "loggers": quiet,
        }
    )
