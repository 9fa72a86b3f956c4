"""Throughput of `distill serve` with 32 clients, compared with ONNX Runtime on the same batches.

Clients keep their connections open and send one photo per request, sequentially. Both rates are
measured in alternation. ONNX Runtime encodes decoded pixels in batches of the mean size of the
server's batches; the difference is the other work of the server (HTTP, decoding, resizing,
ranking). The memory of the server is measured at the start, under load, and after a class was
added. On a busy machine, compare the CPU time per photo instead of the rate.

    python -m benchmarks.speed.serve [--folder CLASSIFIER] [--student resnet18] [--seconds 10]
"""

import argparse
import asyncio
import io
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

import httpx
import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from demo.stack import BIN, started, stop_tidily, wait_for_address
from distill.runtime import Classifier

ROOT = Path(__file__).resolve().parents[2]
GOAL, MEMORY_GOAL_MB = 0.9, 300
CLASSES = 100


def make_classifier(folder: Path, student_name: str, image_size: int) -> Path:
    """A classifier folder of an untrained student, with the demo's teacher."""
    import torch
    from safetensors.torch import save

    from contract import Calibration
    from distill.export.onnx import image_encoder, text_encoder
    from distill.export.tokenizer import tokenizer_json
    from distill.models.student import build_student
    from distill.models.teacher import load_teacher
    from distill.runtime import ClassEntry, Manifest
    from distill.runtime.manifest import (
        Preprocessing,
        ReleaseInfo,
        StudentInfo,
        TeacherInfo,
        TextInfo,
        file_entry,
    )
    from distill.runtime.write_folder import write_folder

    teacher = load_teacher(f"local-dir:{ROOT / 'demo' / 'teacher'}")
    torch.manual_seed(0)
    student = build_student(student_name, teacher.dim, image_size=image_size)
    tokenizer, cleaning = tokenizer_json(teacher)
    bank = torch.nn.functional.normalize(torch.randn(CLASSES, teacher.dim))
    files = {
        "image_encoder.onnx": image_encoder(student, image_size),
        "text_encoder.onnx": text_encoder(teacher),
        "tokenizer.json": tokenizer,
        "text_bank.safetensors": save({"tensor": bank}),
    }
    manifest = Manifest(
        created_at=datetime.now(UTC),
        teacher=TeacherInfo(name=teacher.name, fingerprint=teacher.fingerprint, dim=teacher.dim),
        student=StudentInfo(name=student_name, parameters=0, test_views="whole"),
        release=ReleaseInfo(name="benchmark", label_set="benchmark", hash="0" * 64),
        preprocessing=Preprocessing(image_size=image_size),
        text=TextInfo(
            strategy="name+description", context_length=teacher.context_length, cleaning=cleaning
        ),
        calibration=Calibration(temperature=0.07),
        classes=tuple(
            ClassEntry(key=f"{n}", name=f"class {n}", texts=("-",), seen=True, origin="benchmark")
            for n in range(CLASSES)
        ),
        files={name: file_entry(content) for name, content in files.items()},
    )
    write_folder(folder, manifest, files)
    return folder


def photos(count: int, width: int, height: int) -> list[bytes]:
    """JPEGs with the detail of photos: blurred noise."""
    rng = np.random.default_rng(0)
    made = []
    for _ in range(count):
        coarse = rng.integers(0, 255, (height // 16, width // 16, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        file = io.BytesIO()
        image.save(file, "JPEG", quality=85)
        made.append(file.getvalue())
    return made


async def _client(host: str, port: int, requests: list[bytes], until: float) -> int:
    """A client on one connection. Returns its number of responses. Plain sockets cost the least."""
    reader, writer = await asyncio.open_connection(host, port)
    answers = 0
    while time.monotonic() < until:
        writer.write(requests[answers % len(requests)])
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head)
        if not head.startswith(b"HTTP/1.1 200") or length is None:
            raise SystemExit(f"the server answers {head[:60]!r}")
        await reader.readexactly(int(length[1]))
        answers += 1
    writer.close()
    return answers


async def _load(url: str, clients: int, seconds: float, size: tuple[int, int]) -> float:
    """Responses per second."""
    address = httpx.URL(url)
    assert address.port is not None
    requests = [
        b"POST /v1/classify HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: image/jpeg\r\n"
        + f"Content-Length: {len(body)}\r\n\r\n".encode()
        + body
        for body in photos(32, *size)
    ]
    until = time.monotonic() + seconds
    tasks = [
        _client(address.host, address.port, requests[n:] + requests[:n], until)
        for n in range(clients)
    ]
    began = time.monotonic()
    answers = sum(await asyncio.gather(*tasks))
    return answers / (time.monotonic() - began)


def load(url: str, options: argparse.Namespace) -> float:
    """Photos per second of clients in a separate process."""
    size = f"{options.width}x{options.height}"
    command = [sys.executable, "-m", "benchmarks.speed.serve", "--load", url, "--size", size]
    command += ["--clients", str(options.clients), "--seconds", str(options.seconds)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    return float(done.stdout)


def own_rate(classifier: Classifier, batch: int, seconds: float) -> tuple[float, float]:
    """Photos per second of the image encoder alone, and CPU seconds per photo."""
    size = classifier.manifest.preprocessing.image_size
    pixels = np.random.default_rng(0).integers(0, 255, (batch, 3, size, size), dtype=np.uint8)
    classifier.image_encoder.encode(pixels)
    began, cpu, count = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - began < seconds:
        classifier.image_encoder.encode(pixels)
        count += batch
    rate = count / (time.perf_counter() - began)
    return rate, (time.process_time() - cpu) / count


def batches(client: httpx.Client) -> tuple[float, float]:
    """Photos encoded so far, and in how many batches."""
    text = client.get("/metrics").text
    sums = (re.search(rf"^distill_batch_photos_{x} (\S+)", text, re.M) for x in ("sum", "count"))
    photos_, count = (float(match[1]) if match else 0.0 for match in sums)
    return photos_, count


def cpu_seconds(process: int) -> float:
    """CPU time of a process so far."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory_mb(process: int) -> float:
    """Resident memory of a process."""
    status = Path(f"/proc/{process}/status").read_text()
    match = re.search(r"^VmRSS:\s+(\d+) kB", status, re.MULTILINE)
    assert match is not None
    return int(match[1]) * 1024 / 1e6


@contextmanager
def server(folder: Path, logs: Path) -> Iterator[tuple[str, int]]:
    """The address and the process of a server."""
    command = [str(BIN / "distill"), "serve", str(folder), "--port", "0"]
    with started("server", command, logs) as process:
        address = wait_for_address(process)
        (pid,) = re.findall(r"server process \[(\d+)\]", process.log.read_text())
        yield address, int(pid)
        process.check()


def measure(folder: Path, options: argparse.Namespace, logs: Path) -> bool:
    """Print the rates and the memory. Returns whether they reach the goals."""
    classifier = Classifier.load(folder)
    table = Table(
        "round", "photos a batch", "server, photos/s", "ONNX Runtime", "ratio",
        "server, CPU ms a photo", "ONNX Runtime", "ratio",
    )  # fmt: skip
    ratios = []
    with server(folder, logs) as (address, pid), httpx.Client(base_url=address) as client:
        at_start = memory_mb(pid)
        for number in range(1, options.rounds + 1):
            before, cpu = batches(client), cpu_seconds(pid)
            rate = load(address, options)
            encoded, count = (now - then for now, then in zip(batches(client), before, strict=True))
            cpu = (cpu_seconds(pid) - cpu) / encoded
            own, own_cpu = own_rate(classifier, max(1, round(encoded / count)), options.seconds)
            ratios.append(rate / own)
            table.add_row(
                *(str(number), f"{encoded / count:.1f}", f"{rate:.1f}", f"{own:.1f}"),
                *(f"{rate / own:.2f}", f"{1000 * cpu:.0f}", f"{1000 * own_cpu:.0f}"),
                f"{own_cpu / cpu:.2f}",
            )
        loaded = memory_mb(pid)
        text = "a horse-like animal with striped legs"
        client.post("/v1/classes", json={"name": "warm-up", "text": text}, timeout=60)
        began = time.perf_counter()
        body = {"name": "okapi", "text": f"{text} and a long tongue", "allow_near": True}
        client.post("/v1/classes", json=body, timeout=60).raise_for_status()
        added_ms = 1000 * (time.perf_counter() - began)
        after = memory_mb(pid)
        for name in ("warm-up", "okapi"):
            client.delete(f"/v1/classes/{name}")
    Console().print(table)
    share = median(ratios)
    print(f"median ratio {share:.2f} (goal {GOAL}), {options.clients} clients")
    print(
        f"memory {at_start:.0f} MB at the start, {loaded:.0f} MB under load (goal below "
        f"{MEMORY_GOAL_MB} MB), {after:.0f} MB after a class was added; adding one took "
        f"{added_ms:.0f} ms"
    )
    return share >= GOAL and loaded < MEMORY_GOAL_MB


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="classifier folder; default: an untrained one")
    parser.add_argument("--student", default="resnet18")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--size", default="320x240", help="of the photos that are sent")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--load", help=argparse.SUPPRESS
    )  # the address; this process is the clients
    options = parser.parse_args()
    options.width, options.height = map(int, options.size.split("x"))
    if options.load:
        size = (options.width, options.height)
        print(asyncio.run(_load(options.load, options.clients, options.seconds, size)))
        return
    stop_tidily()
    with tempfile.TemporaryDirectory() as name:
        folder = options.folder
        if folder is None:  # in a process of its own: torch would keep its memory and threads
            folder = Path(name) / "classifier"
            code = (
                "import sys; from pathlib import Path; from benchmarks.speed.serve import *; "
                "make_classifier(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))"
            )
            arguments = [str(folder), options.student, str(options.image_size)]
            subprocess.run([sys.executable, "-c", code, *arguments], check=True)
        if not measure(folder, options, Path(name)):
            sys.exit(1)


if __name__ == "__main__":
    main()
