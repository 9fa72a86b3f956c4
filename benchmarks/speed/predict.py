"""How long `distill predict` takes for one photo from a cold start, beside ONNX Runtime alone.

The other side is a script of a few lines that opens the same image encoder, reads the same photo
with Pillow and runs it once: what nobody can do without. The third side imports what the command
imports and ends: Python's share. The sides take turns, each in a process of its own; medians.

    python -m benchmarks.speed.predict [--students NAME …] [--rounds 7]
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

from benchmarks.speed.serve import make_classifier, photos
from demo.stack import BIN

SIZE = 224
GOAL_S, PYTHON_GOAL_S = 1.5, 0.5
ALONE = """
import sys
import numpy, onnxruntime
from PIL import Image
pixels = numpy.asarray(Image.open(sys.argv[2]).convert("RGB").resize((224, 224)))
session = onnxruntime.InferenceSession(sys.argv[1])
session.run(None, {"pixels": pixels.transpose(2, 0, 1)[None]})
"""
IMPORTS = "import distill.cli.main, distill.cli.predict, distill.runtime"


def seconds(command: list[str]) -> float:
    """Wall time of one process."""
    began = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--students", nargs="+", default=["resnet18", "tf_efficientnet_lite1"])
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    title = (
        f"seconds from a cold start, {SIZE} px; goals: {GOAL_S}, of which {PYTHON_GOAL_S} Python"
    )
    table = Table("student", "distill predict", "ONNX Runtime alone", "imports alone", title=title)
    for student in options.students:
        with tempfile.TemporaryDirectory() as folder:
            classifier = make_classifier(Path(folder, "classifier"), student, SIZE)
            photo = Path(folder, "photo.jpg")
            photo.write_bytes(photos(1, 640, 480)[0])
            encoder = str(classifier / "image_encoder.onnx")
            sides = [
                [str(BIN / "distill"), "predict", str(classifier), str(photo)],
                [sys.executable, "-c", ALONE, encoder, str(photo)],
                [sys.executable, "-c", IMPORTS],
            ]
            rounds = [[seconds(side) for side in sides] for _ in range(options.rounds + 1)]
        # The first round compiles the modules and fills the disk cache.
        table.add_row(student, *(f"{median(side):.2f}" for side in zip(*rounds[1:], strict=True)))
    Console().print(table)


if __name__ == "__main__":
    main()
