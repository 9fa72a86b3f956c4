"""Recorded replies in place of a language model: `replay:FILE.jsonl`.

One JSON object a line: {"label": NAME, "prompt": PROMPT_NAME, "reply": RAW_TEXT} and optionally
"model" and "usage". Several lines for one label and prompt answer successive attempts of sample 0
in order, and each further sample begins one line later; the last line repeats.
"""

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from contract import first_error_line
from enrich_service.core.errors import InvalidInput, RequestRejected
from enrich_service.core.text import storable
from enrich_service.llm.protocol import ChatRequest, Reply


class RecordedReply(BaseModel):
    """One line of a replay file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    label: str
    prompt: str
    reply: str
    model: str | None = None
    usage: dict[str, Any] = {}


class ReplayModel:
    """A language model that answers from a file; its generations have the source `replay`."""

    source: Literal["model", "replay"] = "replay"

    def __init__(self, path: Path) -> None:
        """Read the whole file.

        Raises:
            InvalidInput: the file is missing, or a line is invalid.
        """
        self.provider = f"replay:{path.name}"
        self._path = path
        self._replies: dict[tuple[str, str], list[RecordedReply]] = {}
        self._last_turn: dict[tuple[str, str, int], int] = {}
        try:
            with path.open(encoding="utf-8") as lines:
                for number, line in enumerate(lines, start=1):
                    if line.strip():
                        recorded = self._read(number, line)
                        key = (recorded.label, recorded.prompt)
                        self._replies.setdefault(key, []).append(recorded)
        except OSError as error:
            raise InvalidInput(
                f"cannot read the replay file {path} ({error.strerror}): "
                "check OPENAI_BASE_URL=replay:FILE.jsonl"
            ) from None
        except UnicodeDecodeError:
            raise InvalidInput(f"the replay file {path} is not UTF-8 text") from None

    def _read(self, number: int, line: str) -> RecordedReply:
        try:
            return RecordedReply.model_validate_json(line)
        except ValidationError as error:
            reason = first_error_line(error, "")
            raise InvalidInput(f"{self._path}, line {number}: {reason}") from None

    async def send(self, request: ChatRequest) -> Reply:
        """The next recorded reply for the label and prompt.

        Raises:
            RequestRejected: there is no recorded reply.
        """
        recorded = self._replies.get((request.label, request.prompt))
        if recorded is None:
            raise RequestRejected(
                f"{self.provider} has no reply for label {request.label!r} and prompt "
                f"{request.prompt!r}: record one, or set OPENAI_BASE_URL to a language model"
            )
        key = (request.label, request.prompt, request.sample_index)
        turn = self._last_turn[key] = self._last_turn.get(key, -1) + 1
        reply = recorded[min(request.sample_index + turn, len(recorded) - 1)]
        return Reply(
            text=storable(reply.reply),
            messages=request.messages,
            response_format="json_schema",
            latency_ms=0.0,
            finish_reason="stop",
            resolved_model=reply.model,
            prompt_tokens=reply.usage.get("prompt_tokens"),
            completion_tokens=reply.usage.get("completion_tokens"),
        )

    async def aclose(self) -> None:
        """Do nothing: the file is already closed."""
