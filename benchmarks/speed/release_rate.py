"""Reads of a release per second, compared with a minimal route that returns the same bytes.

Both are uvicorn processes with one worker, measured in alternation. A reader with a few connections
requests the release of 1,000 labels, then with its ETag (304).

    python -m benchmarks.speed.release_rate [--labels 1000] [--seconds 3] [--rounds 3]
"""

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import httpx
from rich.console import Console
from rich.table import Table

from benchmarks.speed.enrichment_rate import wait
from demo.stack import BIN, Service, started, stop_tidily, wait_for_address

CONNECTIONS = 4
BARE = """
import sys
from pathlib import Path

import uvicorn
from fastapi import FastAPI, Response

body = Path(sys.argv[1]).read_bytes()
app = FastAPI()


@app.get("/bare")
def bare() -> Response:
    return Response(body, media_type="application/json")


uvicorn.run(app, port=int(sys.argv[2]), log_level="error", access_log=False)
"""


async def ask(url: httpx.URL, seconds: float, status: int, *headers: str) -> float:
    """Requests per second over CONNECTIONS connections, each with sequential requests."""
    lines = (f"GET {url.raw_path.decode()} HTTP/1.1", f"Host: {url.host}:{url.port}", *headers)
    request = ("\r\n".join(lines) + "\r\n\r\n").encode()
    until = time.perf_counter() + seconds

    async def one() -> int:
        reader, writer = await asyncio.open_connection(url.host, url.port, limit=2**24)
        asked = 0
        while time.perf_counter() < until:
            writer.write(request)
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            if int(head.split()[1]) != status:
                sys.exit(f"release_rate: {url} answered {head.split()[1]!r}, not {status}")
            if b"content-length: " in head:
                await reader.readexactly(int(head.split(b"content-length: ")[1].split()[0]))
            asked += 1
        writer.close()
        return asked

    began = time.perf_counter()
    asked = await asyncio.gather(*(one() for _ in range(CONNECTIONS)))
    return sum(asked) / (time.perf_counter() - began)


@contextmanager
def bare_route(folder: Path, body: bytes, port: int) -> Iterator[httpx.URL]:
    """The address of a minimal route that returns `body`, in its own process."""
    (folder / "bare.py").write_text(BARE)
    (folder / "body.json").write_bytes(body)
    command = [sys.executable, "bare.py", "body.json", str(port)]
    with subprocess.Popen(command, cwd=folder) as process:
        url = httpx.URL(f"http://127.0.0.1:{port}/bare")
        try:
            for _ in range(300):
                try:
                    httpx.get(url)
                    break
                except httpx.TransportError:
                    time.sleep(0.1)
            yield url
        finally:
            process.terminate()


def write_replies(path: Path, labels: int) -> None:
    """Write the recorded replies of the language model."""
    with path.open("w") as file:
        for n in range(labels):
            reply = {"description": f"A kind {n} of teal has {n} spots on a long grey back."}
            line = {"label": f"kind {n} of teal", "reply": json.dumps(reply)}
            print(json.dumps({"prompt": "visual-description", **line}), file=file)


def release_of(service: Service, labels: int) -> int:
    """Describe and release `count` labels. Returns the release's id."""
    lines = [{"name": f"kind {n} of teal"} for n in range(labels)]
    service.post("/v1/label-sets", {"name": "many", "labels": lines})
    wait(service.get, service.post("/v1/runs", {"label_set": "many"}))
    sources = [{"prompt": "visual-description", "alias": "production"}]
    named = {"name": "many-1", "label_set": "many", "sources": sources, "allow_missing": True}
    made = service.post("/v1/releases", named)
    return int(made["id"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--labels", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    stop_tidily()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        replies = folder / "replies.jsonl"
        write_replies(replies, options.labels)
        with started(
            "service",
            [str(BIN / "enrich"), "serve", "--port", "0"],
            folder,
            ENRICH_DATA_DIR=str(folder / "data"),
            OPENAI_BASE_URL=f"replay:{replies}",
        ) as process:
            address = wait_for_address(process)
            service = Service(process, address)
            release = release_of(service, options.labels)
            url = httpx.URL(f"{address}/v1/releases/{release}")
            response = httpx.get(url)
            port = (url.port or 8000) + 1
            with bare_route(folder, response.content, port) as bare:
                rates = {"the release": [], "a bare route": [], "the release, 304": []}
                for _ in range(options.rounds):
                    rates["the release"].append(asyncio.run(ask(url, options.seconds, 200)))
                    rates["a bare route"].append(asyncio.run(ask(bare, options.seconds, 200)))
                    tag = f"If-None-Match: {response.headers['etag']}"
                    rates["the release, 304"].append(
                        asyncio.run(ask(url, options.seconds, 304, tag))
                    )
            service.close()
    table = Table(
        "", "requests/s (median)", "least", "most", "of the bare route",
        title=f"{options.labels} labels, {len(response.content) / 1000:.0f} kB, "
        f"{CONNECTIONS} connections",
    )  # fmt: skip
    base = median(rates["a bare route"])
    for name, values in rates.items():
        cells = (f"{median(values):.0f}", f"{min(values):.0f}", f"{max(values):.0f}")
        table.add_row(name, *cells, f"{100 * median(values) / base:.0f} %")
    Console().print(table)


if __name__ == "__main__":
    main()
