"""Sends requests generated from the service's OpenAPI description.

Schemathesis sends valid requests, almost valid requests, and requests based on earlier responses.
No response may be a 5xx, have an undocumented status, header or body, accept invalid input, or
succeed without a key. Rounds with different seeds repeat until the number of requests is reached.
The service uses a local language-model server, so runs are real.

    python -m benchmarks.faults.fuzz [--requests 20000] [--seed 0]
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from benchmarks.speed.enrichment_rate import language_model, wait
from demo.stack import BIN, started, stop_tidily, wait_for_address

HERE = Path(__file__).parent
# Streams do not end, and whoever revokes keys at random soon revokes its own.
LEFT_OUT = r"/keys/\{key_id\}/revoke$|/runs/\{run_id\}/events$|/events/stream$"


@contextmanager
def service(folder: Path) -> Iterator[tuple[str, str]]:
    """The address of a service with some data, and an API key for it."""
    data = folder / "data"
    environment = {"ENRICH_DATA_DIR": str(data), "ENRICH_RATE_LIMIT": "100000"}
    made = subprocess.run(
        [BIN / "enrich", "keys", "create", "fuzz", "--scope", "admin", "--json"],
        env={**os.environ, **environment},
        capture_output=True,
        check=True,
    )
    key = json.loads(made.stdout)["key"]
    with (
        language_model("--latency", "0") as model,
        started(
            "service",
            [str(BIN / "enrich"), "serve", "--port", "0"],
            folder,
            **environment,
            OPENAI_BASE_URL=model,
            ENRICH_LLM_MODEL="small",
        ) as process,
    ):
        address = wait_for_address(process)
        with httpx.Client(base_url=address, headers={"Authorization": f"Bearer {key}"}) as client:
            fill(client)
        yield address, key
        process.check()


def fill(client: httpx.Client) -> None:
    """Add the data that the examples refer to: a label set, a run, a release, a job."""

    def post(path: str, **body: object) -> dict[str, Any]:
        answer: dict[str, Any] = client.post(path, json=body).raise_for_status().json()
        return answer

    post("/v1/label-sets", name="ducks", labels=[{"name": "mallard"}, {"name": "surf scoter"}])
    wait(lambda path: client.get(path).json(), post("/v1/runs", label_set="ducks"))
    sources = [{"prompt": "visual-description", "alias": "production"}]
    release = post("/v1/releases", name="ducks-1", label_set="ducks", sources=sources)
    config = {"data": "/data/ducks", "teacher": "hf-hub:bench/lite0-minilm"}
    post("/v1/jobs", release_id=release["id"], config=config)


def attack(address: str, key: str, seed: int, *options: str, report: Path) -> int:
    """Run one round. Returns the number of requests. Raises CalledProcessError on errors."""
    subprocess.run(
        [
            *(BIN / "schemathesis", "--config-file", HERE / "_fuzz.toml"),
            *("run", f"{address}/openapi.json", "--header", f"Authorization: Bearer {key}"),
            *("--continue-on-failure", "--warnings", "off"),
            *("--exclude-path-regex", LEFT_OUT, "--seed", str(seed)),
            *("--report", "json", "--report-json-path", report),
            *options,
        ],
        cwd=report.parent,
        env={**os.environ, "SCHEMATHESIS_HOOKS": "benchmarks.faults._fuzz_hooks"}
        | {"PYTHONPATH": str(HERE.parents[1])},
        check=True,
    )
    return int(json.loads(report.read_text())["test_cases"]["generated"])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    stop_tidily()
    sent, wrong, seed = 0, 0, options.seed
    with tempfile.TemporaryDirectory() as name, service(Path(name)) as (address, key):
        while sent < options.requests:
            report = Path(name) / "report.json"
            try:
                sent += attack(address, key, seed, "--max-examples", "50", report=report)
            except subprocess.CalledProcessError:
                cases = json.loads(report.read_text())["test_cases"]
                sent, wrong = sent + cases["generated"], wrong + cases["unique_failures"]
            seed += 1
            print(f"{sent} requests, {wrong} kinds of wrong answers", flush=True)
    if wrong:
        sys.exit(1)


if __name__ == "__main__":
    main()
