"""`python -m benchmarks`: the list of benchmarks, and a failure that does not stop the others."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import benchmarks
from benchmarks.__main__ import runnable

ROOT = Path(__file__).parents[2]


def run(*names, **environment):
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *names],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_the_list_of_benchmarks_has_each_that_can_be_run():
    listed = re.findall(r"^- ([a-z_]+\.[a-z_]+): \S", benchmarks.__doc__, re.MULTILINE)
    assert sorted(listed) == sorted(runnable())
    for name in listed:
        assert "def main(" in Path(find_spec(f"benchmarks.{name}").origin).read_text(), name


def test_a_benchmark_that_fails_does_not_stop_the_next(tmp_path):
    """The first imports a broken torch; the second has no test data and is skipped with a note."""
    (tmp_path / "torch.py").write_text("raise SystemExit('torch is broken')")
    nowhere = str(tmp_path / "nowhere")
    names = ("speed.metrics_growth", "quality.real_world")
    done = run(*names, PYTHONPATH=str(tmp_path), ENRICH_SHARED=nowhere)
    assert done.returncode == 1
    titles = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("──")]
    assert titles == list(names)
    assert f"real_world: skipped, no test data at {nowhere}" in done.stdout
    assert done.stderr == "torch is broken\nfailed: speed.metrics_growth\n"


def test_an_unknown_name_is_a_one_line_error():
    done = run("speed.nothing")
    assert done.returncode == 1
    assert done.stderr.startswith("there is no benchmark 'speed.nothing': choose faults.")
