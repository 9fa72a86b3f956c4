"""Time and memory to caption a folder of images, and the cost of a second run.

Different images of 64 px, 500 per class; a local server replies without delay. The second run finds
every caption by the hash of the image and sends no requests; the export reads the folder again.

    python -m benchmarks.speed.image_captions [--images 2000] [--times 10]
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image
from rich.console import Console
from rich.table import Table

from benchmarks.speed.enrichment_rate import CONCURRENCY, language_model, peak_mib, wait
from demo.stack import BIN, Service, started, stop_tidily, wait_for_address

A_CLASS = 500


def write_images(folder: Path, count: int) -> list[dict[str, str]]:
    """`count` images of noise below `folder`; their labels."""
    keys = [f"n{number}" for number in range(-(-count // A_CLASS))]
    for key in keys:
        (folder / key).mkdir(parents=True)
    for number in range(count):
        noise = Image.frombytes("RGB", (16, 16), os.urandom(16 * 16 * 3))
        noise.resize((64, 64)).save(folder / keys[number // A_CLASS] / f"{number}.jpg")
    return [{"key": key, "name": f"teal of kind {key}"} for key in keys]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--times", type=int, default=10)
    options = parser.parse_args()
    stop_tidily()
    table = Table("run", "images", "seconds", "images/s", "calls", "peak MiB")
    with tempfile.TemporaryDirectory() as folder, language_model() as url:
        environment = {
            "ENRICH_DATA_DIR": str(Path(folder) / "data"),
            "ENRICH_IMAGE_ROOTS": f'["{folder}"]',
            "OPENAI_BASE_URL": url,
        }
        serve = [str(BIN / "enrich"), "serve", "--port", "0"]
        for name, count in (("few", options.images), ("many", options.images * options.times)):
            labels = write_images(Path(folder) / name, count)
            # A process for each, so that the peaks can be told apart.
            with started("service", serve, Path(folder), **environment) as process:
                service = Service(process, wait_for_address(process))
                service.post("/v1/label-sets", {"name": name, "labels": labels})
                asked = {
                    "label_set": name,
                    "prompt": "image-caption",
                    "images": str(Path(folder) / name),
                    "concurrency": CONCURRENCY,
                }
                for which in (name, f"{name}, again"):
                    began = time.perf_counter()
                    run = wait(service, service.post("/v1/runs", asked))
                    seconds = time.perf_counter() - began
                    if run["state"] != "succeeded":
                        sys.exit(f"image_captions: {run['error']}")
                    cells = (f"{seconds:.1f}", f"{count / seconds:.0f}", str(run["calls"]))
                    table.add_row(which, str(count), *cells, f"{peak_mib(process):.0f}")
                service.close()
    Console().print(table)


if __name__ == "__main__":
    main()
