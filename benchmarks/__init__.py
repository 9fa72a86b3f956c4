"""Long runs: quality on real input and speed against named alternatives."""

import os

from benchmarks._photos import SHARED

# The teacher of the photos lies beside them. Its package reads these when it is imported.
os.environ.setdefault("HF_HOME", str(SHARED / "hf-home"))
os.environ.setdefault("HF_HUB_OFFLINE", "1")
