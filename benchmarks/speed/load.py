"""Load test with many concurrent clients on one database: 90 % reads, 10 % writes.

    python -m benchmarks.speed.load [--clients 200] [--requests 20000] [--seconds 60]
                                    [--processes 1 2 4]

The database is SQLite, served by 1, then 2, then 4 processes (`enrich serve` on separate ports), to
which the clients are distributed. Confirmed writes are recorded; at the end each must be in the
database exactly once. Prints one JSON document per line; the exit status is 1 if anything failed or
was lost. Uses only its own services on 127.0.0.1. The clients run in this process and share the
cores with the services, so the latencies are an upper bound.
"""

import argparse
import asyncio
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from typing import Any

import httpx

from demo.stack import started, wait_for_address

READS = (
    "/v1/label-sets",
    "/v1/label-sets/first",
    "/v1/prompts",
    "/v1/runs",
    "/v1/jobs",
    "/v1/generations",
    "/readyz",
)
READ_SHARE = 0.9


class Load:
    """Shared state of the clients: remaining requests, and their results."""

    def __init__(self, requests: int, seconds: float) -> None:
        self.left = requests
        self.until = time.monotonic() + seconds
        self.milliseconds: dict[str, list[float]] = {"read": [], "write": []}
        self.wrong: Counter[str] = Counter()
        self.confirmed: list[str] = []

    async def client(self, http: httpx.AsyncClient, number: int) -> None:
        """A client that sends requests sequentially."""
        choose = random.Random(number)
        turn = 0
        while self.left > 0 and time.monotonic() < self.until:
            self.left -= 1
            turn += 1
            kind = "read" if choose.random() < READ_SHARE else "write"
            name = f"set {number} {turn}"
            began = time.perf_counter()
            try:
                if kind == "read":
                    answer = await http.get(choose.choice(READS))
                else:
                    body = {"name": name, "labels": [{"name": "mallard"}]}
                    answer = await http.post("/v1/label-sets", json=body)
            except httpx.HTTPError as error:
                self.wrong[type(error).__name__] += 1
                continue
            self.milliseconds[kind].append(1000 * (time.perf_counter() - began))
            if not answer.is_success:
                self.wrong[f"{answer.status_code} {answer.text[:120]}"] += 1
            elif kind == "write":
                self.confirmed.append(name)


def quantiles(times: list[float]) -> dict[str, float]:
    ordered = sorted(times)
    return {
        name: round(ordered[min(len(ordered) - 1, int(share * len(ordered)))], 1)
        for name, share in (("p50", 0.5), ("p99", 0.99))
        if ordered
    }


async def press(addresses: Sequence[str], key: str, clients: int, load: Load) -> float:
    """Run all clients, each with its own connection. Returns the seconds."""
    async with AsyncExitStack() as stack:
        services = [
            await stack.enter_async_context(
                httpx.AsyncClient(
                    base_url=address,
                    headers={"Authorization": f"Bearer {key}"},
                    timeout=60,
                    limits=httpx.Limits(max_connections=clients, max_keepalive_connections=clients),
                )
            )
            for address in addresses
        ]
        began = time.monotonic()
        turns = (load.client(services[n % len(services)], n) for n in range(clients))
        await asyncio.gather(*turns)
        return time.monotonic() - began


def names_of(address: str, key: str) -> Counter[str]:
    """The names of all label sets, page by page."""
    names: Counter[str] = Counter()
    headers = {"Authorization": f"Bearer {key}"}
    with httpx.Client(base_url=address, headers=headers, timeout=60) as http:
        while page := http.get(f"/v1/label-sets?limit=1000&offset={names.total()}").json():
            names.update(item["name"] for item in page)
    return names


def measure(
    folder: Path, processes: int, clients: int, requests: int, seconds: float
) -> dict[str, Any]:
    settings = {"ENRICH_DATA_DIR": str(folder / "data"), "ENRICH_RATE_LIMIT": "1000000"}
    enrich = [sys.executable, "-m", "enrich_service.cli"]
    made = subprocess.run(
        [*enrich, "keys", "create", "load", "--json"],
        env=os.environ | settings,
        capture_output=True,
        check=True,
    )
    key = json.loads(made.stdout)["key"]
    serve = [*enrich, "serve", "--port", "0"]
    with ExitStack() as stack:
        services = [
            stack.enter_context(started(f"service-{number}", serve, folder, **settings))
            for number in range(processes)
        ]
        addresses = [wait_for_address(service) for service in services]
        body = {"name": "first", "labels": [{"name": "teal"}]}
        headers = {"Authorization": f"Bearer {key}"}
        httpx.post(f"{addresses[0]}/v1/label-sets", json=body, headers=headers).raise_for_status()
        load = Load(requests, seconds)
        took = asyncio.run(press(addresses, key, clients, load))
        there = names_of(addresses[0], key)
    lost = sum(there[name] != 1 for name in load.confirmed)
    done = sum(map(len, load.milliseconds.values()))
    logs = [service.log.read_text(errors="replace") for service in services]
    return {
        "processes": processes,
        "clients": clients,
        "requests": done,
        "seconds": round(took, 1),
        "requests_per_second": round(done / took, 1),
        "milliseconds": {kind: quantiles(times) for kind, times in load.milliseconds.items()},
        "confirmed_writes": len(load.confirmed),
        "lost_writes": lost,
        "errors": dict(load.wrong.most_common(5)),
        "locked": any("database is locked" in log for log in logs),
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed.load", description=__doc__)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    options = parser.parse_args()
    wrong = False
    for processes in options.processes:
        with tempfile.TemporaryDirectory() as folder:
            result = measure(
                Path(folder), processes, options.clients, options.requests, options.seconds
            )
        print(json.dumps(result), flush=True)
        wrong = wrong or bool(result["errors"] or result["lost_writes"] or result["locked"])
    if wrong:
        sys.exit(1)


if __name__ == "__main__":
    main()
