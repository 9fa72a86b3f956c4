"""A real local server that speaks the OpenAI chat-completions protocol, with faults on demand.

    with LlmServer() as server:
        server.script("harlequin duck", Answer(status=429, headers={"Retry-After": "0.1"}))
        ...                       # the first call for that label is refused, the next answered
        assert server.calls["harlequin duck"] == 2

`python -m tests.llm_server --latency 0.2 --fault 429=0.1 --fault reset=0.02` runs it alone, for
benchmarks; GET /counts then tells the calls per label.
"""

import argparse
import asyncio
import base64
import hashlib
import json
import random
import selectors
import socket
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import Any, Self

from tests.llm_batches import Batches


@dataclass(frozen=True)
class Answer:
    """What the server does with one call; the default is a good answer."""

    status: int = 200
    content: str | None = None  # the assistant's text; None: a fitting one is made up
    body: str | bytes | None = None  # the whole body, in place of a completion
    headers: dict[str, str] = field(default_factory=dict)
    content_type: str = "application/json"
    finish_reason: str = "stop"
    refusal: str | None = None
    delay: float = 0.0  # seconds, on top of the server's latency
    reset: bool = False  # the connection is dropped without a word
    hang: bool = False  # the connection stays open and silent
    drip: float = 0.0  # seconds between two blanks, of which nothing but more comes


@dataclass(frozen=True)
class Call:
    """One request, as it came."""

    label: str
    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    number: int  # of this label, from 1
    at: float = field(default_factory=time.monotonic, compare=False)

    @property
    def response_format(self) -> str:
        return self.body.get("response_format", {"type": "text"})["type"]

    @property
    def text(self) -> str:
        return "\n".join(map(text_of, self.body["messages"]))

    @property
    def images(self) -> list[bytes]:
        """The images that it shows, decoded from their data URLs."""
        contents = [one["content"] for one in self.body["messages"]]
        parts = [part for content in contents if isinstance(content, list) for part in content]
        urls = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
        return [base64.b64decode(url.removeprefix("data:image/jpeg;base64,")) for url in urls]


class LlmServer:
    """Serves on 127.0.0.1 in a thread of its own.

    `behave` may be replaced by any function from a call to an answer (None: a good one).
    """

    def __init__(
        self,
        *,
        latency: float = 0.0,
        host: str = "127.0.0.1",
        port: int = 0,
        key: str | None = None,
        model: str | None = None,
        formats: tuple[str, ...] = ("json_schema", "json_object", "text"),
        format_refusal: tuple[int, str] = (400, "response_format is not supported"),
        vision_refusal: tuple[int, str] | None = None,
        answers: dict[str, str] | None = None,
        behave: Callable[[Call], Answer | None] | None = None,
    ) -> None:
        self.latency, self.key, self.model, self.formats = latency, key, model, formats
        self.format_refusal = format_refusal
        self.vision_refusal = vision_refusal  # what a model without eyes says of an image
        self.answers = answers or {}
        self.behave = behave or (lambda call: None)
        self.requests: list[Call] = []
        self.calls: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()  # good answers sent, by label
        self.in_flight = self.most_in_flight = 0
        self.batching: Batches | None = Batches(self._answer_line)  # None: knows no batches
        self._scripts: defaultdict[str, deque[Answer]] = defaultdict(deque)
        self._socket = socket.create_server((host, port))
        self.port = self._socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"

    def script(self, label: str, *answers: Answer) -> None:
        """Answer the next calls for `label` (or for any, if '*') with these, in order."""
        self._scripts[label].extend(answers)

    # --- life ---------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self.serve()), daemon=True)
        self._thread.start()
        self._ready.wait(10)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)
        self._socket.close()

    async def serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            self._tasks.add(task)
            try:
                while await self._exchange(reader, writer):
                    pass
            except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
                pass
            finally:
                self._tasks.discard(task)
                writer.transport.abort()

        server = await asyncio.start_server(connected, sock=self._socket, limit=2**22)
        if hasattr(self, "_ready"):
            self._ready.set()
        await self._stop.wait()
        server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # --- protocol -----------------------------------------------------------------------------

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request and its response; False once the connection is over."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        method, path, _version = head[0].split(" ")
        headers = {
            name.lower(): value.strip()
            for name, _, value in (line.partition(":") for line in head[1:] if line)
        }
        raw = await reader.readexactly(int(headers.get("content-length", 0)))
        if path.endswith("/models"):
            allowed = not self.key or headers.get("authorization") == f"Bearer {self.key}"
            models = json.dumps({"object": "list", "data": [{"id": self.model or "small"}]})
            await self._write(writer, *((200, models) if allowed else (401, _error("wrong key"))))
            return True
        if path.endswith("/counts"):
            await self._write(
                writer, 200, json.dumps({"calls": self.calls, "answered": self.answered})
            )
            return True
        if self.batching and path.startswith(("/v1/files", "/v1/batches")):
            if (answered := self.batching.handle(method, path, headers, raw)) is None:
                return False
            await self._write(writer, *answered)
            return True
        if not path.endswith("/chat/completions"):
            await self._write(writer, 404, '{"detail": "Not Found"}')
            return True
        arrived = time.monotonic()
        call = self._called(path, headers, json.loads(raw))
        label = call.label
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            answer = self._decide(call)
            if answer.hang:
                await reader.read()  # until the client gives up
                return False
            if answer.drip:
                writer.write(b"HTTP/1.1 200 .\r\nContent-Length: 1000000\r\n\r\n")
                while True:
                    writer.write(b" ")
                    await writer.drain()  # raises once the client has given up
                    await asyncio.sleep(answer.drip)
            body = self._body(call, answer)
            if wait := self.latency + answer.delay:  # what it takes to answer is within it
                await asyncio.sleep(arrived + wait - time.monotonic())
        finally:
            self.in_flight -= 1
        if answer.reset:
            return False
        await self._write(writer, answer.status, body, answer.content_type, answer.headers)
        if answer == Answer():
            self.answered[label] += 1
        return True

    def _called(self, path: str, headers: dict[str, str], body: dict[str, Any]) -> Call:
        label = label_of(body)
        self.calls[label] += 1
        call = Call(label, path, headers, body, self.calls[label])
        self.requests.append(call)
        return call

    def _answer_line(self, body: dict[str, Any]) -> tuple[int, str | bytes]:
        """Status and body for a question of a batch."""
        call = self._called("/v1/batches", {"authorization": f"Bearer {self.key}"}, body)
        answer = self._decide(call)
        if answer == Answer():
            self.answered[call.label] += 1
        return answer.status, self._body(call, answer)

    async def _write(
        self,
        writer: asyncio.StreamWriter,
        status: int,
        text: str | bytes,
        content_type: str = "application/json",
        headers: dict[str, str] | None = None,
    ) -> None:
        payload = text.encode() if isinstance(text, str) else text
        lines = [f"HTTP/1.1 {status} .", f"Content-Type: {content_type}"]
        lines += [f"Content-Length: {len(payload)}"]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + payload)
        await writer.drain()

    def _decide(self, call: Call) -> Answer:
        if self.key and call.headers.get("authorization") != f"Bearer {self.key}":
            return Answer(401, body=_error("Incorrect API key provided", "invalid_api_key"))
        if self.model and call.body["model"] != self.model:
            said = f"The model `{call.body['model']}` does not exist"
            return Answer(404, body=_error(said, "model_not_found"))
        if self.vision_refusal and call.images:
            return Answer(self.vision_refusal[0], body=_error(self.vision_refusal[1]))
        if call.response_format not in self.formats:
            status, said = self.format_refusal
            return Answer(status, body=_error(said))
        for name in (call.label, "*"):
            if self._scripts[name]:
                return self._scripts[name].popleft()
        return self.behave(call) or Answer()

    def _body(self, call: Call, answer: Answer) -> str | bytes:
        if answer.body is not None:
            return answer.body
        if answer.status != 200:
            return _error("out of order")
        content = answer.content
        if content is None:
            content = self.answers.get(call.label) or good_content(call)
        if answer.finish_reason == "length":
            content = content[: len(content) // 2]
        return json.dumps(
            {
                "id": f"chatcmpl-{len(self.requests)}",
                "object": "chat.completion",
                "created": int(time.time()),
                "model": f"{call.body['model']}-2026-01-01",
                "system_fingerprint": "fp_test",
                "choices": [
                    {
                        "index": 0,
                        "message": {
                            "role": "assistant",
                            "content": None if answer.refusal else content,
                            "refusal": answer.refusal,
                        },
                        "finish_reason": answer.finish_reason,
                    }
                ],
                "usage": {"prompt_tokens": 50, "completion_tokens": 20, "total_tokens": 70},
            }
        )


def _error(message: str, code: str | None = None) -> str:
    return json.dumps({"error": {"message": message, "type": "error", "param": None, "code": code}})


def text_of(message: dict[str, Any]) -> str:
    """The text of a message, without its images."""
    content = message["content"]
    if isinstance(content, str):
        return content
    return "\n".join(part["text"] for part in content if part["type"] == "text")


def label_of(body: dict[str, Any]) -> str:
    """The label's name: the first JSON object with a "name" in the first user message."""
    text = next(text_of(m) for m in body["messages"] if m["role"] == "user")
    decoder = json.JSONDecoder()
    start = text.find("{")
    while start >= 0:
        try:
            value, _ = decoder.raw_decode(text, start)
        except ValueError:
            value = None
        if isinstance(value, dict) and "name" in value:
            return str(value["name"])
        start = text.find("{", start + 1)
    return "?"


def good_content(call: Call) -> str:
    """A valid answer for any of the kinds, different for each label."""
    name, dice = call.label, random.Random(call.label)
    colours = dice.sample(["red", "blue", "green", "ochre", "white", "black", "violet"], 2)
    schema = call.body.get("response_format", {}).get("json_schema", {}).get("schema", {})
    asked = json.dumps(schema) + call.text

    def sentence(i: int) -> str:
        return (
            f"The {name} has a {colours[0]} body with {dice.randint(2, 99)} {colours[1]} "
            f"spots, and a tail of shape {i}."
        )

    if '"colours"' in asked:
        return json.dumps(
            {
                "shape": f"long, as a {name} is",
                "colours": colours,
                "parts": ["tail", "two wings"],
                "texture": "smooth",
                "size": f"{dice.randint(2, 99)} cm",
                "habitat": "lakes",
                "marks": [f"{dice.randint(2, 99)} spots"],
            }
        )
    if '"features"' in asked:
        return json.dumps({"features": [f"{one} wings" for one in colours] + ["tail", name]})
    if '"image_caption"' in asked:
        mark = hashlib.sha256(call.images[0]).hexdigest()[:8]
        return json.dumps(
            {"image_caption": f"A {name} stands on grass in the sun, seen as {mark}."}
        )
    if '"look_alikes"' in asked:
        return json.dumps({"look_alikes": [f"{colour} {name} decoy" for colour in colours]})
    for many in ("sentences", "captions"):
        if f'"{many}"' in asked:
            return json.dumps({many: [sentence(i) for i in range(8)]})
    return json.dumps({"description": sentence(call.body.get("seed") or 1)})


def faulty(rates: dict[str, float], seed: int = 0) -> Callable[[Call], Answer | None]:
    """Faults at random: keys are statuses, 'reset', 'hang' and 'cut'; values probabilities."""
    dice = random.Random(seed)

    def behave(call: Call) -> Answer | None:
        throw = dice.random()
        for kind, rate in rates.items():
            throw -= rate
            if throw < 0:
                match kind:
                    case "reset":
                        return Answer(reset=True)
                    case "hang":
                        return Answer(hang=True)
                    case "cut":
                        return Answer(finish_reason="length")
                    case "429":
                        return Answer(429, headers={"retry-after-ms": "200"})
                    case _:
                        return Answer(int(kind))
        return None

    return behave


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--latency", type=float, default=0.0)
    parser.add_argument("--fault", action="append", default=[], metavar="KIND=RATE")
    options = parser.parse_args()
    rates = {kind: float(rate) for kind, rate in (f.split("=") for f in options.fault)}
    server = LlmServer(
        latency=options.latency, host=options.host, port=options.port, behave=faulty(rates)
    )
    print(server.url, flush=True)
    # epoll wakes up to a millisecond late, which a latency that others are timed by must not be.
    loop = partial(asyncio.SelectorEventLoop, selectors.SelectSelector())
    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(server.serve())


if __name__ == "__main__":
    main()
