"""Real photos and a real teacher for benchmarks, if they are available."""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("ENRICH_SHARED", ROOT.parent / "shared"))
DATA = SHARED / "bench" / "tiny-imagenet-ood"
TEACHER = "hf-hub:bench/lite0-minilm"


def skip_without_photos(name: str) -> None:
    """Exit the benchmark `name` with a message if there are no photos."""
    if not DATA.is_dir():
        print(f"{name}: skipped, no test data at {DATA} (set ENRICH_SHARED)")
        sys.exit(0)
