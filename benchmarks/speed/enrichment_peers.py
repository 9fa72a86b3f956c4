"""A run over many labels, compared with the same requests by curator and distilabel.

All call the same local server, which replies to every call after 200 ms, with 64 concurrent calls,
in alternation. Their processing differs: this project validates a reply by schema and rules and
stores it with its provenance in SQLite, the peers store it in a data set.

The peers have many dependencies, so they need a separate environment:

    python -m venv peers && peers/bin/pip install bespokelabs-curator 'distilabel[openai]'
    python -m benchmarks.speed.enrichment_peers --peers peers/bin/python
                                                [--labels 2000] [--rounds 3]
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

from benchmarks.speed.enrichment_rate import CONCURRENCY, run_over, service_asking
from demo.stack import stop_tidily

SCRIPTS = Path(__file__).parent / "_peers"
PEERS = {"curator": "with_curator.py", "distilabel": "with_distilabel.py"}


def ask_with(peer: str, python: Path, url: str, labels: list[str], folder: Path) -> float:
    """Labels per second of one peer, from the first request to its results."""
    done = subprocess.run(
        [python, SCRIPTS / PEERS[peer], url, str(CONCURRENCY)],
        input=json.dumps(labels),
        cwd=folder,
        env={
            "PATH": f"{python.parent}:/usr/bin:/bin",
            "HOME": str(folder),
            "CURATOR_DISABLE_CACHE": "true",
            "TELEMETRY_ENABLED": "false",
            "HF_HUB_OFFLINE": "1",
            "OPENAI_API_KEY": "none",
            "OPENAI_BASE_URL": url,
            "OPENAI_API_BASE": url,
        },
        capture_output=True,
        text=True,
    )
    if done.returncode:
        sys.exit(f"enrichment_peers: {peer} failed: {done.stderr.strip()[-2000:]}")
    measured = json.loads(done.stdout.strip().splitlines()[-1])
    if measured["answers"] != len(labels):
        sys.exit(f"enrichment_peers: {peer} gave {measured['answers']} of {len(labels)} answers")
    return float(len(labels) / measured["seconds"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", type=Path, help="Python that has the peers")
    parser.add_argument("--labels", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--latency", type=float, default=0.2, help="seconds a call")
    options = parser.parse_args()
    if options.peers is None:
        print("enrichment_peers: skipped, since --peers names no Python that has them")
        return
    stop_tidily()
    rates: dict[str, list[float]] = {"ours": [], **{peer: [] for peer in PEERS}}
    with (
        tempfile.TemporaryDirectory() as folder,
        service_asking(options.latency) as (service, url),
    ):
        for n in range(options.rounds):
            labels = [f"kind {n} {k} of teal" for k in range(options.labels)]
            asked = {"name": f"round {n}", "labels": [{"name": label} for label in labels]}
            service.post("/v1/label-sets", asked)
            run, seconds = run_over(service, f"round {n}")
            if run["accepted"] != options.labels:
                sys.exit(f"enrichment_peers: {run['accepted']} labels accepted: {run['error']}")
            rates["ours"].append(options.labels / seconds)
            for peer in PEERS:
                python = options.peers.absolute()
                rates[peer].append(ask_with(peer, python, url, labels, Path(folder)))
    ideal = CONCURRENCY / options.latency
    table = Table(
        "", "labels/s (median)", "least", "most", "of the ideal", "ours is",
        title=f"{options.labels} labels, {options.latency * 1000:.0f} ms a call, {CONCURRENCY} at "
        f"a time: the ideal is {ideal:.0f} labels/s",
    )  # fmt: skip
    ours = median(rates["ours"])
    for name, values in rates.items():
        middle = median(values)
        cells = (f"{middle:.0f}", f"{min(values):.0f}", f"{max(values):.0f}")
        table.add_row(name, *cells, f"{100 * middle / ideal:.0f} %", f"{ours / middle:.2f} ×")
    Console().print(table)


if __name__ == "__main__":
    main()
