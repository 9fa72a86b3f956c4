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

{call}
before = mebibytes()
blocks = [torch.ones(8 * 2**18) for _ in range(20)]
del blocks
print(mebibytes() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's memory, seen through /proc")
@pytest.mark.parametrize(
    ("call", "least", "most"), [("keep_freed_memory()", 150, 200), ("", -1, 50)]
)
def test_what_is_freed_is_kept_if_that_was_asked_for(call, least, most):
    code = HELD.format(call=call)
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert least < float(said.stdout) < most
