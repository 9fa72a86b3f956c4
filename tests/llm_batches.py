"""The files and the batches of the local language-model server, as OpenAI's Batch API has them."""

import json
import re
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from email.parser import BytesParser
from typing import Any
from urllib.parse import parse_qs, urlsplit

LINE_KEYS = {"custom_id", "method", "url", "body"}
MOST_LINES = 50_000
Answered = tuple[int, str | bytes]  # status and body of a completion


@dataclass(frozen=True)
class Fate:
    """What becomes of a batch; the default is that all of it is answered at once."""

    seconds: float = 0.0  # that it is in progress
    expires_after: int | None = None  # questions that are answered before it expires
    cancelled_after: int = 0  # questions that are answered before it is cancelled, if it is
    fails: str | None = None  # what its validation says


@dataclass
class _File:
    id: str
    name: str
    content: bytes
    purpose: str = "batch"
    at: float = field(default_factory=time.time)

    def view(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "file",
            "bytes": len(self.content),
            "created_at": int(self.at),
            "filename": self.name,
            "purpose": self.purpose,
            "status": "processed",
        }


@dataclass
class _Batch:
    id: str
    input_file_id: str
    metadata: dict[str, str]
    fate: Fate
    at: float = field(default_factory=time.time)
    status: str = "validating"
    output_file_id: str | None = None
    error_file_id: str | None = None
    total: int = 0
    completed: int = 0
    failed: int = 0
    errors: list[dict[str, Any]] = field(default_factory=list)

    def view(self) -> dict[str, Any]:
        counts = {"total": self.total, "completed": self.completed, "failed": self.failed}
        return {
            "id": self.id,
            "object": "batch",
            "endpoint": "/v1/chat/completions",
            "errors": {"object": "list", "data": self.errors} if self.errors else None,
            "input_file_id": self.input_file_id,
            "completion_window": "24h",
            "status": self.status,
            "output_file_id": self.output_file_id,
            "error_file_id": self.error_file_id,
            "created_at": int(self.at),
            "request_counts": counts,
            "metadata": self.metadata,
        }


class Batches:
    """Everything under /v1/files and /v1/batches. `answer` gives what a live call would get."""

    def __init__(self, answer: Callable[[dict[str, Any]], Answered]) -> None:
        self.answer = answer
        self.files: dict[str, _File] = {}
        self.batches: dict[str, _Batch] = {}
        self.fates: deque[Fate] = deque()  # of the next batches, in order
        self.room: int | None = None  # questions that may be under way together
        self.lost_answers: deque[str] = deque()  # "upload", "create": done, and nobody is told

    def handle(
        self, method: str, target: str, headers: dict[str, str], raw: bytes
    ) -> tuple[int, bytes] | None:
        """Status and body, or None where the connection is to be dropped."""
        path, query = urlsplit(target).path, parse_qs(urlsplit(target).query)
        match method, path.removeprefix("/v1").strip("/").split("/"):
            case "POST", ["files"]:
                return self._done("upload", self._upload(headers, raw))
            case "GET", ["files"]:
                purpose = query.get("purpose", [""])[0]
                found = [one.view() for one in self.files.values()]
                return _page([one for one in found if purpose in ("", one["purpose"])], query)
            case "GET", ["files", file_id, "content"] if file_id in self.files:
                return 200, self.files[file_id].content
            case "POST", ["batches"]:
                return self._done("create", self._create(json.loads(raw)))
            case "GET", ["batches"]:
                return _page([one.view() for one in self.batches.values()], query)
            case "GET", ["batches", batch_id] if batch_id in self.batches:
                self._advance(self.batches[batch_id])
                return _json(self.batches[batch_id].view())
            case "POST", ["batches", batch_id, "cancel"] if batch_id in self.batches:
                return _json(self._cancel(self.batches[batch_id]))
        return _json({"error": {"message": f"No such thing: {path}", "type": "error"}}, 404)

    def _done(self, what: str, answer: tuple[int, bytes]) -> tuple[int, bytes] | None:
        if self.lost_answers and self.lost_answers[0] == what:
            self.lost_answers.popleft()
            return None
        return answer

    def _upload(self, headers: dict[str, str], raw: bytes) -> tuple[int, bytes]:
        head = f"Content-Type: {headers['content-type']}\r\n\r\n".encode()
        parts = {
            part.get_param("name", header="content-disposition"): part
            for part in BytesParser().parsebytes(head + raw).walk()
            if not part.is_multipart()
        }
        if parts["purpose"].get_payload() != "batch":
            return _json({"error": {"message": "the purpose is not batch"}}, 400)
        content = parts["file"].get_payload(decode=True)
        name = str(parts["file"].get_filename())
        file = self._put(name, content if isinstance(content, bytes) else b"")
        return _json(file.view())

    def _put(self, name: str, content: bytes, purpose: str = "batch") -> _File:
        file = _File(f"file-{len(self.files) + 1}", name, content, purpose)
        self.files[file.id] = file
        return file

    def _create(self, body: dict[str, Any]) -> tuple[int, bytes]:
        if body["endpoint"] != "/v1/chat/completions" or body["completion_window"] != "24h":
            return _json({"error": {"message": "unsupported endpoint or window"}}, 400)
        if body["input_file_id"] not in self.files:
            return _json({"error": {"message": "no such input file"}}, 400)
        batch = _Batch(
            f"batch_{len(self.batches) + 1}",
            body["input_file_id"],
            body.get("metadata") or {},
            self.fates.popleft() if self.fates else Fate(),
        )
        self.batches[batch.id] = batch
        return _json(batch.view())

    def lines(self, batch: _Batch) -> list[dict[str, Any]]:
        """The questions of a batch."""
        content = self.files[batch.input_file_id].content
        return [json.loads(line) for line in content.split(b"\n") if line]

    def uploads(self) -> list[str]:
        """The names of all files of questions, in the order in which they came."""
        return [file.name for file in self.files.values() if file.purpose == "batch"]

    def _wrong(self, batch: _Batch) -> str | None:
        lines = self.lines(batch)
        if not 0 < len(lines) <= MOST_LINES:
            return "no line, or too many"
        if any(line.keys() != LINE_KEYS for line in lines):
            return "a line has other keys"
        if {(line["method"], line["url"]) for line in lines} != {("POST", "/v1/chat/completions")}:
            return "a line is for another endpoint"
        if len({line["body"].get("model") for line in lines}) > 1:
            return "the lines name more than one model"
        if len({line["custom_id"] for line in lines}) < len(lines):
            return "a custom_id stands twice"
        if any(not re.fullmatch(r".{1,64}", line["custom_id"]) for line in lines):
            return "a custom_id is too long"
        return None

    def _too_many(self, batch: _Batch) -> bool:
        under_way = [one for one in self.batches.values() if one.status == "in_progress"]
        return self.room is not None and sum(one.total for one in [*under_way, batch]) > self.room

    def _advance(self, batch: _Batch) -> None:
        """Go on by as much as has happened until now."""
        if batch.status not in ("validating", "in_progress", "cancelling"):
            return
        lines = self.lines(batch)
        batch.total = len(lines)
        if problem := batch.fate.fails or self._wrong(batch):
            batch.status = "failed"
            batch.errors = [{"code": "invalid", "message": problem, "line": 1, "param": None}]
            return
        if batch.status == "validating" and self._too_many(batch):
            batch.status = "failed"
            said = f"Enqueued token limit reached. Limit: {self.room} questions."
            batch.errors = [{"code": "token_limit_exceeded", "message": said}]
            return
        if batch.status == "cancelling":
            self._end(batch, "cancelled", batch.fate.cancelled_after, lines)
            return
        batch.status = "in_progress"
        if time.time() - batch.at < batch.fate.seconds:
            return
        cut = batch.fate.expires_after
        self._end(batch, "completed" if cut is None else "expired", cut, lines)

    def _cancel(self, batch: _Batch) -> dict[str, Any]:
        if batch.status in ("validating", "in_progress"):
            batch.status = "cancelling"
        return batch.view()

    def _end(
        self, batch: _Batch, status: str, cut: int | None, lines: list[dict[str, Any]]
    ) -> None:
        good: list[dict[str, Any]] = []
        bad: list[dict[str, Any]] = []
        answered = lines if cut is None else lines[:cut]
        for line in answered:
            code, body = self.answer(line["body"])
            response = {"status_code": code, "request_id": "r", "body": json.loads(body)}
            one = {"id": "x", "custom_id": line["custom_id"], "response": response, "error": None}
            (good if code == 200 else bad).append(one)
        for line in lines[len(answered) :]:
            error = {"code": f"batch_{status}", "message": f"This batch {status}."}
            bad.append({"custom_id": line["custom_id"], "response": None, "error": error})
        batch.completed, batch.failed, batch.status = len(good), len(bad), status
        # The order of the answers is not that of the questions.
        if good:
            batch.output_file_id = self._put("output", _jsonl(good[::-1]), "batch_output").id
        if bad:
            batch.error_file_id = self._put("errors", _jsonl(bad), "batch_output").id


def _jsonl(lines: list[dict[str, Any]]) -> bytes:
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    return text.encode(errors="backslashreplace")  # lone surrogates stay JSON escapes


def _json(body: dict[str, Any], status: int = 200) -> tuple[int, bytes]:
    return status, json.dumps(body).encode()


def _page(found: list[dict[str, Any]], query: dict[str, list[str]]) -> tuple[int, bytes]:
    """A page of a list, the newest first unless `order` is asc, after the id `after`."""
    listed = found if query.get("order") == ["asc"] else found[::-1]
    if after := query.get("after"):
        listed = listed[[one["id"] for one in listed].index(after[0]) + 1 :]
    limit = int(query.get("limit", ["20"])[0])
    page = listed[:limit]
    more = len(listed) > limit
    ends = {"first_id": page[0]["id"], "last_id": page[-1]["id"]} if page else {}
    return _json({"object": "list", "data": page, "has_more": more} | ends)
