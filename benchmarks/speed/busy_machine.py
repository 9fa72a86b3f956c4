"""Training throughput on a quiet machine, and while two busy loops run.

Waiting threads spin by default and occupy cores that other threads need. Trainings of this project
let them sleep (`distill.training.openmp`); the last row shows the default. The three measurements
alternate, each in its own process. Prints medians, and the ratio to the quiet rate of the same
round. If other processes run on the machine, the load is in the title: the quiet rate is then too
low, and the ratio too high.

    python -m benchmarks.speed.busy_machine [--rounds 3] [--images 640] [--student resnet18]
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

from benchmarks._photos import ROOT, skip_without_photos
from distill.training.openmp import CHOICES, let_idle_threads_sleep

LOOPS = 2
GOAL = 0.4  # of the quiet rate
QUIET, BUSY, SPINNING = "quiet", "beside busy loops", "beside busy loops, threads that spin"


@contextmanager
def busy_loops(count: int) -> Iterator[None]:
    """Context in which `count` processes run busy loops."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def rate(side: str, options: argparse.Namespace) -> float:
    """Images per second of a training in its own process."""
    environment = {name: value for name, value in os.environ.items() if name not in CHOICES}
    if side != SPINNING:
        let_idle_threads_sleep(environment)
    command = [
        sys.executable, "-m", "benchmarks.speed.busy_machine", "--measure",
        "--student", options.student, "--images", str(options.images),
        "--cache", str(options.cache),
    ]  # fmt: skip
    with busy_loops(0 if side == QUIET else LOOPS):
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return float(done.stdout)


def measure(options: argparse.Namespace) -> float:
    """Images per second of a training in this process."""
    from benchmarks.speed.training_speed import epoch

    images_per_second, _ = epoch("distill, AdamW", options.student, options.images, options.cache)
    return images_per_second


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=640, help="of each measurement")
    parser.add_argument("--student", default="resnet18")
    parser.add_argument("--cache", type=Path, default=ROOT / "bench-out" / "cache")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    skip_without_photos("busy_machine")
    if options.measure:
        print(measure(options))
        return
    load = os.getloadavg()[0]
    rates: dict[str, list[float]] = {QUIET: [], BUSY: [], SPINNING: []}
    for _ in range(options.rounds):
        for side, values in rates.items():
            values.append(rate(side, options))
    table = Table(
        "", "images/s (median)", "least", "most", "of the quiet rate",
        title=f"{options.student}, AdamW, {os.environ.get('OMP_NUM_THREADS', os.cpu_count())} "
        f"threads, {os.cpu_count()} cores, {LOOPS} busy loops; load before: {load:.1f}",
    )  # fmt: skip
    for side, values in rates.items():
        ratios = [own / quiet for own, quiet in zip(values, rates[QUIET], strict=True)]
        table.add_row(
            side, f"{median(values):.1f}", f"{min(values):.1f}", f"{max(values):.1f}",
            f"{100 * median(ratios):.0f} %",
        )  # fmt: skip
    Console().print(table)
    print(f"goal: at least {100 * GOAL:.0f} % {BUSY}")


if __name__ == "__main__":
    main()
