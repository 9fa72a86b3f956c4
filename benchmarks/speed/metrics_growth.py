"""Time and peak memory of the metrics at 12,500, 25,000 and 50,000 images, and their growth.

Each measurement runs in its own process, to measure the peak memory. 512 dimensions, student
features near teacher features, 1,000 texts.

    python -m benchmarks.speed.metrics_growth [--images 12500 25000 50000]
"""

import argparse
import resource
import subprocess
import sys
import time

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from distill.method import metrics

METRICS = ("m_rel", "m_neigh", "m_vlalign")
DIM, TEXTS, K = 512, 1000, 10


def features(images: int) -> tuple[Tensor, Tensor, Tensor]:
    """Student and teacher features [images, dim], texts [TEXTS, dim]."""
    generator = torch.Generator().manual_seed(0)
    teacher = torch.randn(images, DIM, generator=generator)
    student = teacher + torch.randn(images, DIM, generator=generator)
    return student, teacher, torch.randn(TEXTS, DIM, generator=generator)


def measure(metric: str, images: int) -> None:
    """Print value, seconds and the MiB that the metric took on top of its input."""
    student, teacher, text = features(images)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    match metric:
        case "m_rel":
            value = metrics.m_rel(student, teacher)
        case "m_neigh":
            value = metrics.m_neigh(student, teacher, K)
        case _:
            value = metrics.m_vlalign(student, teacher, text, K)
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(value, seconds, (peak - before) / 1024, peak / 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, nargs="+", default=[12_500, 25_000, 50_000])
    parser.add_argument("--one", nargs=2, metavar=("METRIC", "IMAGES"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        measure(options.one[0], int(options.one[1]))
        return
    table = Table("metric", "images", "value", "seconds", "MiB on top of the features", "peak MiB")
    for metric in METRICS:
        for images in options.images:
            command = [sys.executable, "-m", "benchmarks.speed.metrics_growth"]
            done = subprocess.run(
                [*command, "--one", metric, str(images)], check=True, capture_output=True, text=True
            )
            value, seconds, more, peak = map(float, done.stdout.split())
            table.add_row(
                metric, f"{images}", f"{value:.4f}", f"{seconds:.1f}", f"{more:.0f}", f"{peak:.0f}"
            )
    Console().print(table)


if __name__ == "__main__":
    main()
