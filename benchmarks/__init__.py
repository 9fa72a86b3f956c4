"""Long runs: quality on real input and speed against named alternatives."""

import os

from benchmarks._photos import SHARED

# The teacher of the photos lies beside them, and nowhere else: the hub's package reads this when it
# is imported.
os.environ["HF_HOME"] = str(SHARED / "hf-home")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
