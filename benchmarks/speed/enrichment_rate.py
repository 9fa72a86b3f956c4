"""Throughput of a run compared with the ideal, its memory, and the cost of a rerun.

A local server replies to every call after 200 ms; with 64 concurrent calls the ideal is 320 labels
per second. A minimal client that posts the same body repeatedly shows the rate that can be reached
on this machine. There are three runs, the first with a newly started service. Then there is a run
with ten times the labels (the time should grow by ten, the memory should not), and another run over
the same labels, whose replies are all stored.

    python -m benchmarks.speed.enrichment_rate [--labels 2000] [--times 10] [--latency 0.2]
"""

import argparse
import asyncio
import itertools
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import aiohttp
from rich.console import Console
from rich.table import Table

from demo.stack import BIN, Process, Service, started, stop_tidily, wait_for_address
from enrich_service.runs.scheduling.worker_pool import STAGGER_S

ROOT = Path(__file__).resolve().parents[2]
CONCURRENCY = 64
ROUNDS = 3


@contextmanager
def language_model(*options: str) -> Iterator[str]:
    """The address of a local language-model server in its own process."""
    command = [sys.executable, "-m", "tests.llm_server", *options]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            yield server.stdout.readline().strip()
        finally:
            server.terminate()


@contextmanager
def service_asking(latency: float) -> Iterator[tuple[Service, str]]:
    """A service with its own data folder, and the address of its language model."""
    with (
        tempfile.TemporaryDirectory() as folder,
        language_model("--latency", str(latency)) as url,
        started(
            "service",
            [str(BIN / "enrich"), "serve", "--port", "0"],
            Path(folder),
            ENRICH_DATA_DIR=str(Path(folder) / "data"),
            OPENAI_BASE_URL=url,
            ENRICH_LLM_CONCURRENCY=str(CONCURRENCY),
        ) as process,
    ):
        service = Service(process, wait_for_address(process))
        yield service, url
        service.close()


def peak_mib(process: Process) -> float:
    """Peak memory of the process in MiB (Linux)."""
    status = Path(f"/proc/{process.popen.pid}/status").read_text()
    peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(peak.split()[1]) / 1024


def wait(get: Callable[[str], Any], run: dict[str, Any]) -> dict[str, Any]:
    """Poll `run` until it has ended, and return it. `get` returns the JSON at a path."""
    while run["state"] in ("queued", "running"):
        time.sleep(0.5)
        run = get(f"/v1/runs/{run['id']}")
    return run


def run_over(service: Service, label_set: str) -> tuple[dict[str, Any], float]:
    """A run over a label set, and the seconds from its request to its recorded end."""
    began = time.time()
    asked = {"label_set": label_set, "concurrency": CONCURRENCY}
    run = wait(service.get, service.post("/v1/runs", asked))
    return run, datetime.fromisoformat(run["finished_at"]).timestamp() - began


async def bare_seconds(url: str, calls: int) -> float:
    """Seconds that a minimal client, which ignores the replies, needs for as many calls."""
    body = {"model": "any", "messages": [{"role": "user", "content": "Describe a duck. " * 60}]}
    left = itertools.count(calls, -1)
    began = time.perf_counter()
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def ask(after: float) -> None:
            await asyncio.sleep(after)
            while next(left) > 0:
                async with session.post(f"{url}/chat/completions", json=body) as answer:
                    await answer.read()

        await asyncio.gather(*(ask(number * STAGGER_S) for number in range(CONCURRENCY)))
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--labels", type=int, default=2000)
    parser.add_argument("--times", type=int, default=10)
    parser.add_argument("--latency", type=float, default=0.2, help="seconds a call")
    options = parser.parse_args()
    stop_tidily()
    ideal = CONCURRENCY / options.latency
    table = Table(
        "run", "labels", "seconds", "labels/s", "of the ideal", "calls", "peak MiB",
        title=f"{options.latency * 1000:.0f} ms a call, {CONCURRENCY} at a time: "
        f"the ideal is {ideal:.0f} labels/s",
    )  # fmt: skip

    def timed(count: int, seconds: float) -> tuple[str, str, str, str]:
        rate = count / seconds
        return str(count), f"{seconds:.1f}", f"{rate:.0f}", f"{100 * rate / ideal:.1f} %"

    with service_asking(options.latency) as (service, url):
        seconds = asyncio.run(bare_seconds(url, options.labels))
        table.add_row("a bare client", *timed(options.labels, seconds), str(options.labels), "")
        sizes = {f"few {n}": options.labels for n in range(1, ROUNDS + 1)}
        for name, count in (sizes | {"many": options.labels * options.times}).items():
            labels = [{"name": f"{name} kind {n} of teal"} for n in range(count)]
            service.post("/v1/label-sets", {"name": name, "labels": labels})
            run, seconds = run_over(service, name)
            if run["accepted"] != count:
                sys.exit(f"enrichment_rate: {run['accepted']} of {count} accepted: {run['error']}")
            peak = f"{peak_mib(service.process):.0f}"
            table.add_row(name, *timed(count, seconds), str(run["calls"]), peak)
        run, seconds = run_over(service, "many")
        cells = *timed(run["total"], seconds)[:3], "", str(run["calls"])
        table.add_row("many, again", *cells, f"{peak_mib(service.process):.0f}")
    Console().print(table)


if __name__ == "__main__":
    main()
