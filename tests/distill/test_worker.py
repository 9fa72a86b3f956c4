"""The worker against the real service, with real training in its child processes."""

import hashlib
import json
import os
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import httpx
import pytest

pytest.importorskip("torch")
pytest.importorskip("fastapi")


import torch

from contract import Report
from distill import worker
from distill.errors import LeaseLost, ServiceError
from distill.on_ray import submit
from distill.training.malloc_tuning import is_out_of_memory
from tests.distill.conftest import COLOURS

LEASE_SECONDS = 4.0
KEY = "planted-key-4711"


@pytest.fixture(scope="module")
def address(start_service, tmp_path_factory) -> str:
    from enrich_service.core.settings import Settings

    folder = tmp_path_factory.mktemp("service")
    return start_service(Settings(data_dir=folder, lease_seconds=LEASE_SECONDS))


@pytest.fixture(scope="module")
def service(address) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=address, timeout=30) as client:
        release_colours(client)
        yield client


@pytest.fixture(scope="module")
def work_dir(tmp_path_factory) -> Path:
    """One for all tests: teacher features are computed once."""
    return tmp_path_factory.mktemp("work")


def release_colours(client: httpx.Client) -> None:
    labels = "".join(f"{name} {n} {name}\n" for n, name in enumerate(COLOURS, start=1))
    texts = "".join(f"Things that are {name} look {name} all over.\n" for name in COLOURS)
    files = {"label2text": labels, "descriptions": texts}
    form = {"name": "colours", "check_texts": "false"}
    assert client.post("/v1/import/pairs", data=form, files=files).status_code == 201
    body = {"label_set": "colours", "name": "colours-1"}
    assert client.post("/v1/releases", json=body).json()["id"] == 1


@pytest.fixture(scope="module")
def queue_job(colour_images, colour_teacher) -> Callable[..., int]:
    """A function that queues a job; gives its id. One epoch takes about a tenth of a second."""

    def queue(
        client: httpx.Client, epochs: int, job: dict[str, object] | None = None, **config: object
    ) -> int:
        config = {
            "data": str(colour_images),
            "teacher": colour_teacher,
            "student": "test_resnet",
            "image_size": 32,
            "batch_size": 16,
            "text_strategy": "name",
            "epochs": epochs,
        } | config
        answer = client.post("/v1/jobs", json={"release_id": 1, "config": config} | (job or {}))
        assert answer.status_code == 201, answer.text
        return answer.json()["id"]

    return queue


@contextmanager
def running_worker(address: str, work_dir: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """`distill worker` as users start it; killed at the end if it still runs."""
    command = [sys.executable, "-m", "distill", "worker", "--service", address, *options]
    with running([*command, "--work-dir", str(work_dir), "--name", "w"]) as process:
        yield process


@contextmanager
def running(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "ENRICH_API_KEY": KEY},
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGCONT)
        process.kill()
        process.communicate()


def wait_for(condition: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def state(client: httpx.Client, job: int) -> str:
    return client.get(f"/v1/jobs/{job}").json()["state"]


def events(client: httpx.Client, job: int, kind: str) -> list[dict]:
    found = client.get(f"/v1/jobs/{job}/events", params={"limit": 10_000}).json()
    assert [event["seq"] for event in found] == list(range(1, len(found) + 1))
    return [event["data"] for event in found if event["kind"] == kind]


def epochs(client: httpx.Client, job: int) -> list[int]:
    return [data["epoch"] for data in events(client, job, "epoch")]


def trainings(work_dir: Path, job: int) -> list[int]:
    """Process ids of living trainings that work in the job's folder."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            words = (folder / "cmdline").read_bytes().split(b"\0")
            if str(work_dir / f"job-{job}").encode() in words:
                found.append(int(folder.name))
    return found


def test_a_job_ends_with_report_and_student_at_the_service(service, address, work_dir, queue_job):
    job = queue_job(service, 3)
    with running_worker(address, work_dir, "--once") as process:
        _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert f"job {job}: succeeded" in said
    assert epochs(service, job) == [1, 2, 3]
    told = [data["state"] for data in events(service, job, "state")]
    assert told == ["queued", "leased", "running", "succeeded"]
    report = Report.model_validate_json(service.get(f"/v1/jobs/{job}/report").content)
    assert report.release_hash == service.get("/v1/releases/1").json()["hash"]
    assert len(report.epochs) == 3
    page = service.get(f"/v1/jobs/{job}/report.html")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "the student recognises" in page.text
    listed = {each["name"]: each for each in service.get(f"/v1/jobs/{job}/artifacts").json()}
    drawn = {"similarity-before.png", "thumbnails.jpg"}  # of bare names, there is no after
    assert set(listed) == {*worker.ARTIFACTS, *drawn} and drawn < set(worker.PICTURES)
    for name, artifact in listed.items():
        mine = (work_dir / f"job-{job}" / name).read_bytes()
        assert artifact["sha256"] == hashlib.sha256(mine).hexdigest()
        assert service.get(f"/v1/jobs/{job}/artifacts/{name}").content == mine
    written = (path for path in work_dir.rglob("*") if path.is_file())
    assert KEY not in said and not any(KEY.encode() in path.read_bytes() for path in written)


@pytest.mark.parametrize("ending", ["SIGTERM", "SIGKILL"])
def test_another_worker_goes_on_where_one_was_ended(service, address, work_dir, queue_job, ending):
    job = queue_job(service, 40)
    with running_worker(address, work_dir) as first:
        wait_for(lambda: epochs(service, job))
        first.send_signal(signal.Signals[ending])
        _, said = first.communicate(timeout=30)
    if ending == "SIGTERM":
        assert first.returncode == 0
        assert "goes on from its checkpoint" in said
        assert not trainings(work_dir, job)
    assert state(service, job) == "running"  # left to its lease
    with running_worker(address, work_dir) as second:
        wait_for(lambda: state(service, job) == "succeeded")
        second.send_signal(signal.SIGTERM)
        second.communicate(timeout=30)
    assert service.get(f"/v1/jobs/{job}").json()["attempts"] == 2
    told = epochs(service, job)
    assert told == list(range(1, 41))  # none is missing, none told twice
    report = Report.model_validate_json(service.get(f"/v1/jobs/{job}/report").content)
    assert [epoch.epoch for epoch in report.epochs] == list(range(1, 41))


def test_without_ray_its_extra_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray.job_submission", None)  # as if it were not there
    options = ["--address", "http://127.0.0.1:8265", "--processes", "2", "--out", str(tmp_path)]
    assert submit.main(options) == 1
    said = "distill: --ray needs the extra `ray`: pip install 'enrich-distill[ray]'\n"
    assert capsys.readouterr().err == said


def test_a_worker_that_slept_through_its_lease_stops_writing(service, address, work_dir, queue_job):
    job = queue_job(service, 3)
    endless = (
        "import json, time\n"
        "for n in range(10_000):\n"
        "    at = '2026-01-02T03:04:05Z'\n"
        "    data = dict.fromkeys(('learning_rate', 'loss', 'seen_top1', 'seconds'), 1)\n"
        "    data |= {'epoch': n, 'losses': {}, 'images_per_second': 1}\n"
        "    line = {'kind': 'epoch', 'data': data, 'at': at}\n"
        "    print(json.dumps(line), flush=True)\n"
        "    time.sleep(0.05)\n"
    )
    program = (
        "import sys; from pathlib import Path; from distill.worker import work\n"
        "address, folder, script = sys.argv[1:]\n"
        "command = (sys.executable, '-c', script)\n"
        "work(address, work_dir=Path(folder), name='w', command=command)\n"
    )
    arguments = [address, str(work_dir), endless]
    with running([sys.executable, "-c", program, *arguments]) as process:
        wait_for(lambda: epochs(service, job))
        process.send_signal(signal.SIGSTOP)
        time.sleep(LEASE_SECONDS + 0.2)
        taken = service.post("/v1/jobs/claim", json={"worker": "another"}).json()
        assert (taken["job"]["id"], taken["job"]["attempts"]) == (job, 2)
        known = len(events(service, job, "epoch"))
        process.send_signal(signal.SIGCONT)
        wait_for(lambda: not trainings(work_dir, job), 15)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=30)
    assert "given up" in said
    assert len(events(service, job, "epoch")) == known
    body = {"fence": taken["fence"], "state": "cancelled"}
    assert service.post(f"/v1/jobs/{job}/finish", json=body).status_code == 200


@pytest.fixture
def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


@contextmanager
def serving(port: int, folder: Path, lease_seconds: int = 60) -> Iterator[httpx.Client]:
    """The service as a process of its own (the client's `pid`); killed at the end."""
    process = subprocess.Popen(
        [sys.executable, "-m", "enrich_service.cli", "serve", "--port", str(port)],
        env=os.environ
        | {"ENRICH_DATA_DIR": str(folder), "ENRICH_LEASE_SECONDS": str(lease_seconds)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:

            def answers() -> bool:
                with suppress(httpx.TransportError):
                    return client.get("/healthz").is_success
                return False

            wait_for(answers)
            client.pid = process.pid
            yield client
    finally:
        process.kill()
        process.wait()


def test_nothing_is_lost_while_the_service_is_away(free_port, tmp_path, queue_job):
    with ExitStack() as stack:
        with serving(free_port, tmp_path / "data") as client:
            release_colours(client)
            job = queue_job(client, 60)
            address = f"http://127.0.0.1:{free_port}"
            stack.enter_context(running_worker(address, tmp_path / "work"))
            wait_for(lambda: epochs(client, job))
        time.sleep(2)  # killed; the training goes on
        with serving(free_port, tmp_path / "data") as client:
            wait_for(lambda: state(client, job) == "succeeded")
            assert epochs(client, job) == list(range(1, 61))
            assert client.get(f"/v1/jobs/{job}").json()["attempts"] == 1


def test_events_that_a_killed_worker_had_not_sent_are_told_by_the_next(
    free_port, tmp_path, queue_job
):
    address, data, work_dir = f"http://127.0.0.1:{free_port}", tmp_path / "data", tmp_path / "work"
    with ExitStack() as stack:
        with serving(free_port, data, lease_seconds=2) as client:
            release_colours(client)
            job = queue_job(client, 100)
            first = stack.enter_context(running_worker(address, work_dir))
            wait_for(lambda: epochs(client, job))
        # The service is killed and the training goes on; then the worker is killed too.
        file = next((work_dir / f"job-{job}").glob("events-1-*.jsonl"))
        wait_for(lambda: file.read_text().count('"epoch"') >= 10)
        first.kill()
        wait_for(lambda: not trainings(work_dir, job), 20)  # it wrote a checkpoint and ended
        told = file.read_text().count('{"kind": "epoch"')
        with serving(free_port, data, lease_seconds=2) as client:
            assert len(epochs(client, job)) < told < 100
            stack.enter_context(running_worker(address, work_dir))
            wait_for(lambda: state(client, job) == "succeeded")
            assert epochs(client, job) == list(range(1, 101))
            assert client.get(f"/v1/jobs/{job}").json()["attempts"] == 2
            assert not list(file.parent.glob("events-*"))


@contextmanager
def cutting(port: int, after: int) -> Iterator[tuple[int, list[int]]]:
    """A proxy that cuts each connection after so many bytes on their way to `port`.

    Yields its own port and how many bytes went through each connection.
    """
    sent: list[int] = []

    class Cut(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            place = len(sent)
            sent.append(0)
            with socket.create_connection(("127.0.0.1", port)) as service:
                back = threading.Thread(target=self.bring_back, args=(service,))
                back.start()
                while sent[place] < after and (some := self.request.recv(65536)):
                    service.sendall(some[: after - sent[place]])
                    sent[place] = min(after, sent[place] + len(some))
                for end in (service, self.request):
                    with suppress(OSError):
                        end.shutdown(socket.SHUT_RDWR)
                back.join()

        def bring_back(self, service: socket.socket) -> None:
            with suppress(OSError):
                while some := service.recv(65536):
                    self.request.sendall(some)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Cut) as proxy:
        thread = threading.Thread(target=proxy.serve_forever)
        thread.start()
        try:
            yield proxy.server_address[1], sent
        finally:
            proxy.shutdown()
            thread.join()


def test_an_upload_that_is_cut_goes_on_where_it_was_in_little_memory(
    free_port, tmp_path, queue_job
):
    size, after = 70_000_000, 30_000_000
    file = tmp_path / "student.safetensors"
    file.write_bytes(b"".join(hashlib.sha256(str(n).encode()).digest() * 1000 for n in range(2188)))
    os.truncate(file, size)

    def peak() -> int:
        status = Path(f"/proc/{client.pid}/status").read_text()
        return 1024 * int(status.partition("VmHWM:")[2].split()[0])

    with (
        serving(free_port, tmp_path / "data") as client,
        cutting(free_port, after) as (port, sent),
    ):
        release_colours(client)
        job = queue_job(client, 1)
        fence = client.post("/v1/jobs/claim", json={"worker": "w"}).json()["fence"]
        before = peak()
        service = worker.Service(f"http://127.0.0.1:{port}", None, threading.Event())
        path = f"/v1/jobs/{job}/artifacts/{file.name}"
        service.upload(f"{path}?fence={fence}", file, "application/octet-stream")
        assert peak() - before < size / 2
        service.close()
        assert len(sent) >= 3 and size <= sum(sent) < size + 2 * 4 * 2**20
        found = client.get(path).content
    assert hashlib.sha256(found).digest() == hashlib.sha256(file.read_bytes()).digest()


def test_a_service_that_does_not_answer_at_the_start_is_named(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with running_worker(f"http://user:secret@127.0.0.1:{port}", tmp_path) as process:
        _, said = process.communicate(timeout=30)
    assert process.returncode == 1
    assert said.count("\n") == 1 and f"http://127.0.0.1:{port} does not answer" in said
    assert "secret" not in said


def test_something_else_than_the_service_is_named(tmp_path):
    with running_worker("ftp://127.0.0.1", tmp_path) as process:
        _, said = process.communicate(timeout=30)
    assert process.returncode == 1
    assert said == "distill: the service's address must be like http://127.0.0.1:8000\n"


def test_a_key_that_cannot_be_sent_is_not_shown(tmp_path):
    with pytest.raises(ServiceError, match="ENRICH_API_KEY") as caught:
        worker.work("http://127.0.0.1:1", work_dir=tmp_path, name="w", api_key=f"{KEY}\n")
    assert KEY not in str(caught.value)


def test_a_training_that_ignores_its_end_is_killed_with_its_children(
    service, address, tmp_path, queue_job, monkeypatch
):
    monkeypatch.setattr(worker, "GRACE_SECONDS", 1.0)
    monkeypatch.setenv("ENRICH_API_KEY", KEY)
    stubborn = (
        "import os, signal, subprocess, sys\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "print('a word of some library', sorted(os.environ), flush=True)\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "print(child.pid, flush=True)\n"
        "child.wait()\n"
    )
    job = queue_job(service, 3)
    working = threading.Thread(
        target=worker.work,
        args=(address,),
        kwargs={
            "work_dir": tmp_path,
            "name": "w",
            "once": True,
            "command": (sys.executable, "-c", stubborn),
        },
    )
    working.start()
    wait_for(lambda: len(events(service, job, "log")) == 2)
    words, child = (data["message"] for data in events(service, job, "log"))
    assert words.startswith("a word of some library") and "ENRICH_API_KEY" not in words
    service.post(f"/v1/jobs/{job}/cancel")
    working.join(timeout=20)
    assert not working.is_alive()
    assert state(service, job) == "cancelled"
    assert not is_alive(int(child))


def is_alive(process: int) -> bool:
    """Whether the process runs: a zombie that nobody has buried does not."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text()
    except FileNotFoundError:
        return False
    return fields.rpartition(")")[2].split()[0] != "Z"


def test_a_failed_training_says_why_and_leaves_the_folder_of_another_job_aside(
    service, address, tmp_path, queue_job
):
    job = queue_job(service, 1)
    old = tmp_path / f"job-{job}"
    old.mkdir()
    (old / "checkpoint").write_text("of another service")
    failing = "raise SystemExit('a warning\\n\\ndistill: there is no folder x: make it')"
    worker.work(
        address,
        work_dir=tmp_path,
        name="w",
        once=True,
        command=(sys.executable, "-c", failing),
    )
    found = service.get(f"/v1/jobs/{job}").json()
    assert (found["state"], found["error"]) == ("failed", "there is no folder x: make it")
    assert not (old / "checkpoint").exists()
    assert (tmp_path / f"job-{job}-before-1" / "checkpoint").read_text() == "of another service"


def write_events(file: Path, *given: tuple[str, int]) -> None:
    with file.open("a") as output:
        for kind, step in given:
            line = {"kind": kind, "data": {"phase": "Training", "step": step}, "at": "now"}
            output.write(json.dumps(line) + "\n")


def test_events_that_wait_keep_their_order_and_only_the_newest_progress(tmp_path):
    posted: list[dict] = []
    old, file = tmp_path / "events-1.jsonl", tmp_path / "events-3.jsonl"
    write_events(old, ("log", 1), ("progress", 2), ("log", 3))
    write_events(file, ("log", 0), ("progress", 1), ("progress", 2), ("log", 3))
    outbox = worker.Outbox([(1, old)], (3, file), posted.extend)
    wait_for(lambda: len(posted) == 5)
    write_events(file, ("progress", 4))
    with file.open("a") as output:
        output.write('{"kind": "log", "da')
    outbox.close()
    sent = [
        (event["fence"], event["worker_seq"], event["data"].get("step", event["data"]))
        for event in posted
    ]
    assert sent[:2] == [(1, 1, 1), (1, 3, 3)]  # how far it was is over
    assert sent[2:6] == [(3, 1, 0), (3, 3, 2), (3, 4, 3), (3, 5, 4)]
    assert sent[6:] == [(3, 6, {"message": '{"kind": "log", "da'})]
    assert not old.exists() and not file.exists()


def test_nothing_is_sent_once_the_lease_is_lost_and_events_stay(tmp_path):
    calls = []

    def post(batch: list[dict]) -> None:
        calls.append(batch)
        raise LeaseLost("gone")

    file = tmp_path / "events-1.jsonl"
    write_events(file, ("log", 1))
    outbox = worker.Outbox([], (1, file), post)
    wait_for(lambda: calls)
    write_events(file, ("log", 2))
    outbox.close()
    assert len(calls) == 1
    assert len(file.read_text().splitlines()) == 2


def test_a_loss_that_is_no_number_can_still_be_sent():
    line = b'{"kind": "epoch", "data": {"loss": NaN}, "at": "2026-01-02T03:04:05Z"}'
    assert worker.event(line)["data"] == {"loss": None}


def test_a_job_that_reads_outside_of_the_data_roots_fails(
    service, address, work_dir, queue_job, colour_images
):
    job = queue_job(service, 1)
    root = str(colour_images / "train")
    with running_worker(address, work_dir, "--once", "--data-root", root) as process:
        _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    found = service.get(f"/v1/jobs/{job}").json()
    assert found["state"] == "failed"
    assert f"is not below {root}" in found["error"] and "--data-root" in found["error"]


def test_a_training_that_the_kernel_kills_is_tried_again_with_a_smaller_batch(
    service, address, work_dir, queue_job
):
    job = queue_job(service, 40, job={"shrink_batch": True})
    with running_worker(address, work_dir, "--once") as process:
        wait_for(lambda: epochs(service, job))
        os.kill(trainings(work_dir, job)[0], signal.SIGKILL)  # as it does for lack of memory
        wait_for(lambda: service.get(f"/v1/jobs/{job}").json()["config"]["batch_size"] == 8)
        service.post(f"/v1/jobs/{job}/cancel")
        process.communicate(timeout=60)
    reasons = [data.get("reason") for data in events(service, job, "state")]
    assert "out of memory with a batch_size of 16: trying 8" in reasons


def test_lack_of_memory_is_known_from_other_errors():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(torch.OutOfMemoryError()) and is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("shapes do not fit"))
