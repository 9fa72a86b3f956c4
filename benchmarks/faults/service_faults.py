"""Injects faults into service and workers, then compares the database with confirmed results.

- kills: SIGKILL of the service, of a worker, or of a worker with its training, at random times
- disk: a full disk of the service, then of the worker (small tmpfs; needs the right to mount)
- clock: jumps of an hour, forward and back, while the service runs and while it is down (Debian's
  libfaketime)
- network: no connection between worker and service for longer than a lease, refused and silent

Meanwhile clients enrich label sets, train students and describe single names. At the end no
confirmed result may be missing, changed or duplicated, no label may have been requested after its
reply was stored, and each run and job must have ended in the right state.

    python -m benchmarks.faults.service_faults [kills] [disk] [clock] [network]
                                               [--kills 100] [--seed 0]
"""

import argparse
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from urllib.request import urlopen

from benchmarks.faults._clients import CONCURRENCY, EPOCHS, Clients, check
from benchmarks.faults._proxy import Wire
from benchmarks.speed.enrichment_rate import language_model
from demo.stack import BIN, DemoError, Process, stop_tidily, wait_for_address
from demo.world import write_world

TEACHER = Path(__file__).resolve().parents[2] / "demo" / "teacher"
LEASE, RUN_LEASE = 12.0, 3.0  # seconds
ENRICHERS = 2
FAULTS = ("--latency", "0.2", "--fault", "429=0.05", "--fault", "500=0.05", "--fault", "reset=0.02")
FAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1")


class Skipped(Exception):
    """A scenario is skipped: the message says what this machine lacks."""


class Stack:
    """A service and workers as processes that can be killed and started again."""

    def __init__(self, folder: Path, model: str, images: Path) -> None:
        self.folder, self.images, self.model = folder, images, model
        self.data, self.work = folder / "data", folder / "work"
        self.work.mkdir(exist_ok=True)
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}"
        self.settings = {
            "ENRICH_DATA_DIR": str(self.data),
            "OPENAI_BASE_URL": model,
            "ENRICH_LLM_TIMEOUT_SECONDS": "10",
            "ENRICH_LEASE_SECONDS": str(LEASE),
            "ENRICH_RUN_LEASE_SECONDS": str(RUN_LEASE),
            "OMP_NUM_THREADS": "1",
        }
        self.living: dict[str, Process] = {}
        self._starts = 0

    def start(self, name: str, address: str = "", **settings: str) -> None:
        """Start `service`, or a worker at `address` (the service's own)."""
        self._starts += 1  # each start has a log of its own
        command = [str(BIN / "enrich"), "serve", "--port", str(self.port)]
        if name != "service":
            command = [str(BIN / "distill"), "worker", "--service", address or self.address]
            command += ["--work-dir", str(self.work), "--name", name]
        self.living[name] = Process(
            f"{self._starts:03}-{name}", command, self.folder, **self.settings, **settings
        )
        if name == "service":
            wait_for_address(self.living[name])

    def kill(self, name: str, *, with_children: bool = False) -> None:
        """Kill with SIGKILL; the children of a worker survive unless they are killed too."""
        process = self.living.pop(name)
        children = _children(process.popen.pid) if with_children else []
        process.popen.kill()
        process.popen.wait()
        for child in children:
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)

    def stop(self) -> None:
        """Stop all processes, the workers first, so that they can report to the service."""
        for name in sorted(self.living, key=lambda name: name == "service"):
            self.living.pop(name).stop()

    def prepare(self, clients: Clients) -> int:
        """Create a release of the images' classes by a run. Returns its id."""
        labels = json.loads((self.images / "labels.json").read_text())
        path = clients.add_run("charms", labels)
        while path and not clients.poll(path):
            time.sleep(0.2)
        sources = [{"prompt": "visual-description", "alias": "production"}]
        body = {"label_set": "charms", "name": "charms-1", "sources": sources}
        release = clients.request("POST", "/v1/releases", json=body)
        if release is None:
            raise DemoError(f"there is no release to train on: {clients.confirmed.wrong}")
        return int(release.json()["id"])


def _children(parent: int) -> list[int]:
    return [
        int(child)
        for task in Path(f"/proc/{parent}/task").glob("*/children")
        for child in task.read_text().split()
    ]


@contextmanager
def stack(images: Path, folder: Path) -> Iterator[tuple[Stack, Clients]]:
    """A running service with a release, without jobs and workers."""
    with language_model(*FAULTS) as model:
        built = Stack(folder, model, images)
        body = {
            "release_id": 1,
            "config": {
                "data": str(images),
                "teacher": f"local-dir:{TEACHER}",
                "student": "test_resnet",
                "image_size": 32,
                "batch_size": 32,
                "epochs": EPOCHS,
                "text_strategy": "name",
                "export": False,
            },
            "max_attempts": 10,
        }
        clients = Clients(built.address, body, no_answer_statuses=(507,))
        try:
            built.start("service")
            assert built.prepare(clients) == 1
            yield built, clients
        finally:
            clients.close()
            built.stop()


def conclude(built: Stack, clients: Clients, **allowed: int) -> list[str]:
    """Wait for all runs and jobs, stop all processes, print counts, and return the errors."""
    clients.wait_until_finished(600)
    clients.retry_failed()
    clients.wait_until_finished(600)
    clients.rerun_all()
    with urlopen(f"{built.model.removesuffix('/v1')}/counts") as answer:
        counts = json.load(answer)
    built.stop()
    counted, wrong = check(clients.confirmed, built.data, built.work, counts, **allowed)
    for name, number in counted.items():
        print(f"  {name}: {number}")
    return wrong


def kills(images: Path, folder: Path, number: int, dice: random.Random) -> list[str]:
    """SIGKILL at `number` random times; killed processes are restarted after a moment.

    A first job runs without kills. Then there are two kills per duration of that job, so that jobs
    can also finish on slow machines.
    """
    done: Counter[str] = Counter()
    with stack(images, folder) as (built, clients):
        for worker in ("first", "second"):
            built.start(worker)
        began = time.monotonic()
        path = clients.add_job()
        _wait(lambda: path is not None and clients.poll(path))
        pause = (time.monotonic() - began) / 2
        print(f"  a job takes {2 * pause:.0f} s undisturbed", flush=True)
        with clients.busy(enrichers=ENRICHERS):
            for _ in range(number):
                time.sleep(dice.uniform(0.0, 2 * pause))
                name = dice.choice(["service", "service", "first", "second"])
                together = name != "service" and dice.random() < 0.5
                built.kill(name, with_children=together)
                done[f"{name} with its training" if together else name] += 1
                time.sleep(dice.uniform(0.0, 1.0))
                built.start(name)
        print(f"  kills: {dict(done)}")
        services = done.pop("service", 0)
        return conclude(
            built,
            clients,
            lost_calls=services * (ENRICHERS * CONCURRENCY + 1),
            attempts=done.total(),
        )


def disk(images: Path, folder: Path, _number: int, _dice: random.Random) -> list[str]:
    """Fill the service's disk for two leases, then the worker's, while runs and jobs continue."""
    small = [folder / "data", folder / "work"]
    with ExitStack() as last:
        for place in small:
            place.mkdir()
            mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(place)]
            if subprocess.run(mount, capture_output=True).returncode:
                raise Skipped("this user may not mount a small file system")
            last.callback(subprocess.run, ["umount", "--lazy", str(place)], check=True)
        with stack(images, folder) as (built, clients):
            built.start("worker")
            with clients.busy(enrichers=ENRICHERS):
                for place in small:
                    _wait(lambda: _holds(clients, "worker"))
                    filler = place / "filler"
                    with suppress(OSError), filler.open("wb", buffering=0) as file:
                        while True:
                            file.write(bytes(4096))
                    time.sleep(2 * LEASE)
                    filler.unlink()
                if built.living["worker"].ended:  # as it should, saying why
                    print(f"  {built.living['worker'].log.read_text().splitlines()[-1]}")
                    built.start("worker")
                time.sleep(LEASE)
            # A good answer that could not be stored is requested again.
            return conclude(built, clients, lost_calls=ENRICHERS * CONCURRENCY + 100, attempts=5)


def clock(images: Path, folder: Path, _number: int, _dice: random.Random) -> list[str]:
    """Let the service's clock jump, while it runs and while it is down; no attempt may be lost."""
    if not FAKETIME.is_file():
        raise Skipped("there is no libfaketime (apt install libfaketime)")
    offset = folder / "offset"
    offset.write_text("+0s")
    with stack(images, folder) as (built, clients):
        built.settings |= {
            "LD_PRELOAD": str(FAKETIME),
            "FAKETIME_TIMESTAMP_FILE": str(offset),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }
        built.kill("service")
        built.start("service")
        built.start("worker")
        with clients.busy(enrichers=ENRICHERS):
            for jump in ("+1h", "+0s", "-1h", "+0s"):
                time.sleep(LEASE)
                offset.write_text(jump)
            for jump in ("+1h", "+0s", "-1h", "+0s"):
                time.sleep(LEASE)
                built.kill("service")
                offset.write_text(jump)
                built.start("service")
            time.sleep(LEASE)
        return conclude(built, clients, lost_calls=5 * (ENRICHERS * CONCURRENCY + 1), attempts=0)


def network(images: Path, folder: Path, _number: int, _dice: random.Random) -> list[str]:
    """Disconnect one of two workers for two leases during a job, refused and silent."""
    with ExitStack() as last, stack(images, folder) as (built, clients):
        wire = Wire(built.port)
        built.start("far", f"http://127.0.0.1:{wire.port}")
        with clients.busy(enrichers=1, trainers=2):
            for mode in ("refused", "silent"):
                _wait(lambda: _holds(clients, "far"))
                if mode == "silent" and "near" not in built.living:
                    built.start("near")
                with wire.cut(mode):
                    time.sleep(2 * LEASE)
            time.sleep(LEASE)
        last.callback(wire.close)
        return conclude(built, clients, lost_calls=0, attempts=4)


def _holds(clients: Clients, worker: str) -> bool:
    running = clients.read("/v1/jobs", state="running")
    return any(job["worker"] == worker for job in running)


def _wait(condition: Callable[[], bool], seconds: float = 300) -> None:
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            raise DemoError(f"the condition was not met within {seconds:g} s")
        time.sleep(0.2)


SCENARIOS: dict[str, Callable[[Path, Path, int, random.Random], list[str]]] = {
    "kills": kills,
    "disk": disk,
    "clock": clock,
    "network": network,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.faults.service_faults", description=__doc__
    )
    parser.add_argument(
        "scenario", nargs="*", choices=[*SCENARIOS, []], metavar="SCENARIO", help="default: all"
    )
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    stop_tidily()
    wrong = False
    with ExitStack() as last:
        root = Path(tempfile.mkdtemp(prefix="faults-"))
        last.push(lambda kind, *_: None if wrong or kind else shutil.rmtree(root))
        images = root / "world"
        write_world(images, train=4, val_on_train=2, val=2)
        for scenario in options.scenario or SCENARIOS:
            folder = root / scenario
            folder.mkdir()
            print(f"{scenario}:", flush=True)
            began = time.monotonic()
            try:
                errors = SCENARIOS[scenario](
                    images, folder, options.kills, random.Random(options.seed)
                )
            except Skipped as lacking:
                print(f"  skipped: {lacking}", flush=True)
                continue
            wrong = wrong or bool(errors)
            for error in errors:
                print(f"  WRONG: {error}")
            print(f"  {len(errors)} errors; {time.monotonic() - began:.0f} s", flush=True)
        if wrong:
            sys.exit(f"faults: databases and logs are kept in {root}")


if __name__ == "__main__":
    main()
