"""The log: one line per event on standard error, as JSON or text.

Every line written during a request carries its id. Bodies of requests and answers, and query
strings, are never logged.
"""

import json
import logging
import logging.config
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Final, Literal

REQUEST: ContextVar[str | None] = ContextVar("request_id", default=None)

# At INFO they log addresses and headers of language models, which may contain passwords.
_QUIETED: Final = ("httpx", "httpx2", "httpcore", "httpcore2", "openai", "alembic")


def fields(**named: object) -> dict[str, dict[str, object]]:
    """The `extra` of a log call: named values next to the message."""
    return {"fields": named}


class _JsonLines(logging.Formatter):
    """One JSON object per line: time, level, logger, message, request_id and extra values."""

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
    """Configure all loggers of this process to write to standard error in this format."""
    kind = _JsonLines if form == "json" else _Text
    quiet = {name: {"level": "WARNING"} for name in _QUIETED}
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
