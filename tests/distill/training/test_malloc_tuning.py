"""What becomes of memory that is freed."""

import subprocess
import sys

import pytest

HELD = """
import torch
from pathlib import Path
from distill.training.malloc_tuning import keep_freed_memory

def mebibytes():
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1024

def growth():
    before = mebibytes()
    blocks = [torch.ones(8 * 2**18) for _ in range(20)]
    del blocks
    return mebibytes() - before

print(growth())
keep_freed_memory()
print(growth())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's memory, seen through /proc")
def test_what_is_freed_is_kept_once_that_was_asked_for():
    done = subprocess.run([sys.executable, "-c", HELD], capture_output=True, text=True, check=True)
    before, after = map(float, done.stdout.split())
    assert before < 50
    assert 150 < after < 200
