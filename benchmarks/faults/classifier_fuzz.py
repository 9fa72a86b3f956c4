"""Attacks on `distill serve` while a client uses it and the server is killed from time to time.

Concurrently: requests generated from its OpenAPI description (Schemathesis), damaged photos,
decompression bombs, connections that send nothing or half of a request head, bodies that are slow
or end early. Meanwhile a client classifies one photo repeatedly, and adds and removes classes. No
response may be a 5xx, except the 503 of a full queue with `Retry-After`. The client must always get
the same prediction for its photo, and each confirmed change must be in the folder at the end, even
if the server was killed during others.

    python -m benchmarks.faults.classifier_fuzz [--seconds 120] [--kills 2] [--seed 0]
"""

import argparse
import io
import json
import os
import random
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx
from PIL import Image

from benchmarks.speed.serve import memory_mb, photos
from demo.stack import BIN, Process, stop_tidily, wait_for_address
from distill.runtime import Classifier

ROOT = Path(__file__).resolve().parents[2]
KINDS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
MOST_MEMORY_MB = 1000  # decoding a photo of 50 megapixels takes some hundred
ADDED = "animal"  # the classes that come and go are called so, and numbered
Attack = Callable[["Target", random.Random], None]


class Target:
    """The attacked server. Counts its responses, and collects the wrong ones."""

    def __init__(self, folder: Path, logs: Path) -> None:
        self.folder, self.logs = folder, logs
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.statuses: Counter[str] = Counter()
        self.wrong: Counter[str] = Counter()
        self.stopping = threading.Event()
        self.memory_mb = 0.0
        self._starts = 0
        self.start()

    def start(self) -> None:
        """Start or restart the server."""
        self._starts += 1
        command = [str(BIN / "distill"), "serve", str(self.folder), "--port", str(self.port)]
        self.process = Process(f"server-{self._starts}", command, self.logs)
        wait_for_address(self.process)

    def kill(self) -> None:
        """Kill the server with SIGKILL, and restart it."""
        self.measure_memory()
        self.process.popen.kill()
        self.process.popen.wait()
        self.start()

    def measure_memory(self) -> None:
        """Update the peak of the memory."""
        with suppress(OSError, AssertionError):
            self.memory_mb = max(self.memory_mb, memory_mb(self.process.popen.pid))

    def send(self, client: httpx.Client, method: str, path: str, **content: object) -> int | None:
        """Send a request. Returns the status, or None without a response (server killed)."""
        answer = self.answer(client, method, path, **content)
        return None if answer is None else answer.status_code

    def answer(
        self, client: httpx.Client, method: str, path: str, **content: object
    ) -> httpx.Response | None:
        """The answer; None without one."""
        try:
            answer = client.request(method, self.url + path, **content)  # type: ignore[arg-type]
        except httpx.TransportError:
            time.sleep(0.1)
            return None
        route = path.partition("?")[0].rstrip("0123456789")
        self.statuses[f"{method} {route} {answer.status_code}"] += 1
        busy = answer.status_code == 503 and "Retry-After" in answer.headers
        if answer.is_server_error and not busy:
            self.wrong[f"{method} {path}: {answer.status_code} {answer.text[:200]}"] += 1
        return answer


def damaged_photo(dice: random.Random) -> bytes:
    """A photo in a random format with some bytes changed, often truncated."""
    file = io.BytesIO()
    (photo,) = photos(1, 64, 48)
    Image.open(io.BytesIO(photo)).save(file, dice.choice(KINDS))
    content = bytearray(file.getvalue())
    for _ in range(dice.choice((0, 1, 3, 30))):
        place = dice.randrange(min(len(content), dice.choice((32, 200, len(content)))))
        content[place] = dice.choice((0, 0xFF, dice.randrange(256)))
    return bytes(content[: dice.choice((len(content), dice.randrange(len(content))))])


def send_damaged(target: Target, dice: random.Random) -> None:
    """Send damaged photos, alone and in forms, with unusual media types."""
    with httpx.Client(timeout=60) as client:
        while not target.stopping.is_set():
            content: dict[str, object]
            if dice.random() < 0.5:
                kind = dice.choice(("image/jpeg", "text/plain", "multipart/form-data", ""))
                content = {"content": damaged_photo(dice), "headers": {"Content-Type": kind}}
            else:
                files = [("photos", ("a.png", damaged_photo(dice))) for _ in range(3)]
                content = {"files": files}
            target.send(client, "POST", "/v1/classify", **content)


def bombs() -> list[bytes]:
    """Small files with very many pixels: some above Pillow's limit, some just below."""
    files = []
    for side, kind in ((20_000, "PNG"), (10_000, "GIF"), (7_000, "PNG"), (20_000, "TIFF")):
        file = io.BytesIO()
        options = {"compression": "tiff_lzw"} if kind == "TIFF" else {}
        Image.new("1", (side, side)).save(file, kind, **options)
        files.append(file.getvalue())
    header = bytearray(files[0])
    header[16:24] = struct.pack(">II", 2**31 - 1, 2**31 - 1)  # PNG's width and height
    return [*files, bytes(header)]


def send_bombs(target: Target, dice: random.Random) -> None:
    """Send decompression bombs, several at a time."""
    made = bombs()
    with httpx.Client(timeout=60) as client:
        while not target.stopping.is_set():
            files = [("photos", ("bomb", dice.choice(made))) for _ in range(3)]
            target.send(client, "POST", "/v1/classify", files=files)
            time.sleep(0.2)


def open_half(target: Target, dice: random.Random) -> None:
    """Open connections that idle, end or reset before a request is complete."""
    head = (
        b"POST /v1/classify HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: image/png\r\n"
        b"Content-Length: 50000\r\n\r\n"
    )
    opened: list[socket.socket] = []
    while not target.stopping.is_set():
        with suppress(OSError):
            connection = socket.create_connection(("127.0.0.1", target.port), timeout=5)
            connection.sendall((head + bytes(20_000))[: dice.randrange(2 * len(head) + 20_000)])
            fate = dice.choice(("leave", "leave", "end", "reset"))
            if fate == "end":
                connection.shutdown(socket.SHUT_WR)
            elif fate == "reset":  # RST instead of FIN
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                connection.close()
            opened.append(connection)
            target.statuses[f"half-open: {fate}"] += 1
        while len(opened) > 300:
            opened.pop(0).close()
        time.sleep(0.02)
    for connection in opened:
        connection.close()


def drip(target: Target, _dice: random.Random) -> None:
    """Send a body byte by byte; it must be rejected with a 408."""
    head = b"POST /v1/classify HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 50000\r\n\r\n"
    while not target.stopping.wait(0.1):
        with suppress(OSError), socket.create_connection(("127.0.0.1", target.port)) as slow:
            slow.sendall(head)
            slow.settimeout(0.5)
            for _ in range(120):
                try:
                    answer = slow.recv(100)
                    target.statuses[f"dripping: {answer[9:12].decode() or 'closed'}"] += 1
                    break
                except TimeoutError:
                    slow.sendall(b"x")
                if target.stopping.is_set():
                    return
            else:
                target.wrong["a body that drips was still read after 60 s"] += 1


def make_up(target: Target, dice: random.Random) -> None:
    """Send requests generated by Schemathesis, which checks the responses."""
    report = target.logs / "report.json"
    config = target.logs / "fuzz.toml"
    statuses = 'expected-statuses = ["2xx", "404", "409", "422", "503"]'
    config.write_text(f"[checks.positive_data_acceptance]\n{statuses}\n")
    while not target.stopping.is_set():
        report.unlink(missing_ok=True)
        command = [str(BIN / "schemathesis"), "--config-file", str(config), "run"]
        command += [f"{target.url}/openapi.json", "--seed", str(dice.randrange(10**6))]
        command += ["--continue-on-failure", "--max-examples", "10", "--warnings", "off"]
        # Changes are the client's, which knows what it was confirmed.
        command += ["--exclude-path-regex", "^/v1/classes", "--checks", "not_a_server_error"]
        command += ["--report", "json", "--report-json-path", str(report)]
        done = subprocess.Popen(
            command, cwd=target.logs, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        while True:
            try:
                output, _ = done.communicate(timeout=0.5)
                break
            except subprocess.TimeoutExpired:
                if target.stopping.is_set():
                    done.terminate()
        with suppress(OSError, ValueError, KeyError):
            cases = json.loads(report.read_text())["test_cases"]
            target.statuses["made-up requests"] += cases["generated"]
        if done.returncode and "Server error" in output:
            target.wrong[output[-2000:]] += 1


def change_classes(target: Target, dice: random.Random) -> set[str]:
    """Add and remove classes. Returns the classes that must exist at the end."""
    there: set[str] = set()
    number = 0
    with httpx.Client(timeout=60) as client:
        while not target.stopping.is_set():
            if there and dice.random() < 0.4:
                name = dice.choice(sorted(there))
                status = target.send(client, "DELETE", f"/v1/classes/{name}")
                gone = status in (204, 404)  # 404: the request before, without an answer
                there -= {name} if gone else set()
                if status is None:
                    there -= {name}  # removed or not
                    target.send(client, "DELETE", f"/v1/classes/{name}")
                continue
            number += 1
            text = " ".join(dice.choice(("red", "tall", "striped", "wet", "old")) for _ in range(9))
            name = f"{ADDED} {number}"
            body = {"name": name, "text": text, "allow_near": True}
            if target.send(client, "POST", "/v1/classes", json=body) == 201:
                there.add(name)
    return there


def classify(target: Target, _dice: random.Random) -> None:
    """Classify one photo repeatedly among the permanent classes; the result must not change."""
    (photo,) = photos(1, 320, 240)
    expected = None
    with httpx.Client(timeout=60) as client:
        while not target.stopping.is_set():
            answer = target.answer(client, "POST", "/v1/classify?top=1000", content=photo)
            if answer is None or answer.status_code == 503:
                continue
            if answer.status_code != 200:
                target.wrong[f"a good photo: {answer.status_code} {answer.text[:200]}"] += 1
                continue
            candidates = answer.json()["photos"][0]["candidates"]
            cosines = {x["key"]: x["cosine"] for x in candidates if ADDED not in x["key"]}
            expected = expected or cosines
            if max(abs(cosines[key] - value) for key, value in expected.items()) > 1e-3:
                target.wrong["a good photo was classified in another way"] += 1
            time.sleep(0.1)


ATTACKS: tuple[Attack, ...] = (send_damaged, send_bombs, open_half, drip, make_up, classify)


def attack(target: Target, seconds: float, kills: int, seed: int) -> set[str]:
    """Run all attacks concurrently. Returns the added classes that must exist at the end."""
    confirmed: set[str] = set()

    def run(work: Callable[[Target, random.Random], set[str] | None]) -> None:
        try:
            confirmed.update(work(target, random.Random(f"{seed} {work.__name__}")) or ())
        except Exception as error:  # a client that ends early would prove nothing
            target.wrong[f"{work.__name__} ended: {error!r}"] += 1

    works = (*ATTACKS, change_classes)
    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    try:
        for number in range(kills + 1):
            until = time.monotonic() + seconds / (kills + 1)
            while time.monotonic() < until:
                time.sleep(0.5)
                target.measure_memory()
                target.process.check()
            if number < kills:
                target.kill()
    finally:
        target.stopping.set()
        for thread in threads:
            thread.join()
    return confirmed


def conclude(target: Target, confirmed: set[str]) -> None:
    """Check the server, its logs and its folder after the attacks."""
    with httpx.Client(base_url=target.url, timeout=60) as client:
        until = time.monotonic() + 60
        while "distill_queue_photos 0.0" not in client.get("/metrics").text:
            if time.monotonic() > until:
                target.wrong["photos are still in the queue after a minute"] += 1
                break
            time.sleep(0.5)
        shown = {entry["name"] for entry in client.get("/v1/classes").json()["classes"]}
    target.process.stop()
    saved = {entry.name for entry in Classifier.load(target.folder).classes}
    for name in sorted(confirmed - saved):
        target.wrong[f"the class {name!r} was confirmed, and is not in the folder"] += 1
    if saved != shown:
        target.wrong[f"server and folder differ: {sorted(saved ^ shown)}"] += 1
    for log in target.logs.glob("server-*.log"):
        if "Traceback" in (text := log.read_text()):
            target.wrong["traceback in the log: " + text[text.index("Traceback") :][:3000]] += 1
    if target.memory_mb > MOST_MEMORY_MB:
        target.wrong[f"its peak memory was {target.memory_mb:.0f} MB"] += 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--kills", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    stop_tidily()
    with ExitStack() as last:
        folder = Path(last.enter_context(tempfile.TemporaryDirectory()))
        code = (
            "import sys; from pathlib import Path; from benchmarks.speed.serve import *; "
            "make_classifier(Path(sys.argv[1]), 'test_resnet', 32)"
        )
        command = [sys.executable, "-c", code, str(folder / "classifier")]
        subprocess.run(command, check=True, cwd=ROOT, env={**os.environ})
        target = Target(folder / "classifier", folder)
        last.callback(lambda: target.process.stop())
        confirmed = attack(target, options.seconds, options.kills, options.seed)
        conclude(target, confirmed)
    for status, count in sorted(target.statuses.items()):
        print(f"{count:7} {status}")
    print(f"{options.kills} kills; {len(confirmed)} classes confirmed to the client and there")
    print(f"peak memory: {target.memory_mb:.0f} MB")
    for error, count in target.wrong.items():
        print(f"WRONG ({count}): {error}")
    if target.wrong:
        sys.exit(1)


if __name__ == "__main__":
    main()
