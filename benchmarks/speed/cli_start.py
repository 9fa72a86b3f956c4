"""Start time of commands, as multiples of `python -c "import typer, rich"`.

The commands alternate, so that a busy machine affects all equally; medians of wall and CPU time are
compared. `enrich labels list` reads a database that is already migrated.

    python -m benchmarks.speed.cli_start [--rounds 7]
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from statistics import median

from rich.console import Console
from rich.table import Table

from demo.stack import BIN

BASE = "python -c 'import typer, rich'"
COMMANDS = {
    BASE: [sys.executable, "-c", "import typer, rich"],
    "enrich --help": [str(BIN / "enrich"), "--help"],
    "distill --help": [str(BIN / "distill"), "--help"],
    "enrich labels list": [str(BIN / "enrich"), "labels", "list"],
}
AT_MOST = {"enrich --help": 5, "distill --help": 5, "enrich labels list": 10}  # times BASE


def measure(command: list[str], folder: str) -> tuple[float, float]:
    """Wall and CPU seconds of one run."""
    environment = os.environ | {"ENRICH_DATA_DIR": folder}
    began = time.perf_counter()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{command} ended with status {process.returncode}")
    return time.perf_counter() - began, used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in COMMANDS}
    with tempfile.TemporaryDirectory() as folder:
        for command in COMMANDS.values():
            measure(command, folder)  # compiles the modules, makes the database
        for _ in range(rounds):
            for name, command in COMMANDS.items():
                times[name].append(measure(command, folder))
    wall = {name: median(seconds for seconds, _ in runs) for name, runs in times.items()}
    cpu = {name: median(seconds for _, seconds in runs) for name, runs in times.items()}
    table = Table("command", "wall s", "times base", "CPU s", "times base", "goal")
    for name in COMMANDS:
        goal = f"{AT_MOST[name]}" if name in AT_MOST else ""
        ratios = (f"{values[name] / values[BASE]:.1f}" for values in (wall, cpu))
        table.add_row(name, f"{wall[name]:.2f}", next(ratios), f"{cpu[name]:.2f}", *ratios, goal)
    Console().print(table)


if __name__ == "__main__":
    main()
