"""The worker: takes training jobs from the service over HTTP, one after the other.

Notable:
- Training runs as a child in a process group of its own, so that a cancel is a kill.
- A thread renews the lease; when the service says that the lease is lost, the child is killed and
  nothing more is written.
- The child's events are numbered here. While the service is away they wait, and are sent in order
  when it is back; an event sent twice is stored once.
- The work folder is named after the job, so that a later attempt goes on from the checkpoint.
"""

import contextlib
import hashlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any, Final, Literal

import httpx
from rich.console import Console

from contract import Lease
from distill.errors import LeaseLost, ServiceError

INTERRUPTED: Final = 75  # exit status of `distill train` that left a checkpoint
ARTIFACTS: Final = {
    "report.json": "application/json",
    "report.html": "text/html",
    "student.safetensors": "application/octet-stream",
    "text_bank.safetensors": "application/octet-stream",
}
IDLE_SECONDS: Final = 2.0  # between two questions for work
GRACE_SECONDS: Final = 20.0  # between SIGTERM and SIGKILL
BATCH: Final = 200  # events a request
FIRST_BACKOFF, LONGEST_BACKOFF = 0.5, 15.0  # seconds
PATIENCE: Final = 600.0  # seconds without the service before a job is given up

notes = Console(stderr=True)


class Service:
    """The service as a worker sees it: repeats what is safe to repeat while it is away."""

    def __init__(self, url: str, api_key: str | None) -> None:
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self.url = url
        self._http = httpx.Client(base_url=url, headers=headers, timeout=30.0)

    def close(self) -> None:
        """Let go of the connection."""
        self._http.close()

    def once(self, method: str, path: str, **content: Any) -> httpx.Response:  # noqa: ANN401
        """Send one request.

        Raises:
            LeaseLost: the service answers 409.
            ServiceError: it refuses otherwise, or does not answer.
        """
        try:
            response = self._http.request(method, path, **content)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise _Away(
                f"the service at {self.url} does not answer ({error}): check --service and that "
                "`enrich serve` is running"
            ) from None
        if response.status_code == 409:
            raise LeaseLost(_detail(response))
        if response.status_code >= 500:
            raise _Away(f"the service at {self.url} fails: {_detail(response)}")
        if response.is_error:
            raise ServiceError(f"the service at {self.url} refuses {path}: {_detail(response)}")
        return response

    def patiently(self, method: str, path: str, **content: Any) -> httpx.Response:  # noqa: ANN401
        """Send a request again and again until the service is back, up to PATIENCE."""
        until, wait = time.monotonic() + PATIENCE, FIRST_BACKOFF
        while True:
            try:
                return self.once(method, path, **content)
            except _Away:
                if time.monotonic() + wait > until:
                    raise
            time.sleep(wait)
            wait = min(2 * wait, LONGEST_BACKOFF)

    def upload(self, job: int, fence: int, path: Path, media_type: str) -> None:
        """Store the file at `path` as an artifact of the job."""
        content = path.read_bytes()
        self.patiently(
            "PUT",
            f"/v1/jobs/{job}/artifacts/{path.name}",
            params={"fence": fence},
            content=content,
            headers={
                "Content-Type": media_type,
                "X-Content-SHA256": hashlib.sha256(content).hexdigest(),
            },
        )


class _Away(ServiceError):
    """The service does not answer now; it may later."""


def _detail(response: httpx.Response) -> str:
    try:
        return str(response.json()["detail"])
    except (ValueError, KeyError, TypeError):
        return f"status {response.status_code}"


def work(
    service_url: str, *, work_dir: Path, name: str, once: bool = False, api_key: str | None = None
) -> None:
    """Take jobs until stopped; with `once`, until there is nothing left to do.

    Raises:
        ServiceError: the service does not answer at the start, or refuses the worker.
    """
    service = Service(service_url, api_key)
    stop = threading.Event()

    def ask_to_stop(_signal: int, _frame: FrameType | None) -> None:
        stop.set()

    handlers = {
        number: signal.signal(number, ask_to_stop) for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        answer = service.once("POST", "/v1/jobs/claim", json={"worker": name})
        notes.print(f"worker {name} at {service_url}", soft_wrap=True)
        while True:
            if answer.status_code == 200:
                lease = Lease.model_validate_json(answer.content)
                _Attempt(service, lease, work_dir / f"job-{lease.job.id}", stop).run()
            elif once:
                return
            else:
                stop.wait(IDLE_SECONDS)
            if stop.is_set():
                return
            answer = service.patiently("POST", "/v1/jobs/claim", json={"worker": name})
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        service.close()


class _Attempt:
    """One job under one lease."""

    def __init__(self, service: Service, lease: Lease, folder: Path, stop: threading.Event) -> None:
        self.service, self.lease, self.folder, self.stop = service, lease, folder, stop
        self.job, self.fence = lease.job.id, lease.fence
        self.events: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self.trained = threading.Event()  # the child has ended
        self.ended = threading.Event()  # nothing more will be sent
        self.lost = threading.Event()
        self.cancelled = threading.Event()

    def run(self) -> None:
        """Train, report, finish; whatever happens, the child is gone at the end."""
        notes.print(f"job {self.job}, attempt {self.lease.job.attempts}", soft_wrap=True)
        renewing = threading.Thread(target=self._renew)
        sending = threading.Thread(target=self._send)
        renewing.start()
        sending.start()
        try:
            try:
                with self._training() as child:
                    status, said = self._read(child)
            except OSError as error:
                status, said = (
                    1,
                    f"cannot work in {self.folder} ({error.strerror}): free some space",
                )
            finally:
                self.events.put(None)
                sending.join()
            self._conclude(status, said)
        except LeaseLost as error:
            notes.print(f"job {self.job}: {error}", soft_wrap=True)
        finally:
            self.ended.set()
            renewing.join()

    def _conclude(self, status: int, said: str) -> None:
        if self.lost.is_set():
            notes.print(f"job {self.job}: the lease is lost; another worker has it", soft_wrap=True)
        elif self.cancelled.is_set():
            self._finish("cancelled", None)
        elif status == 0:
            for name, media_type in ARTIFACTS.items():
                self.service.upload(self.job, self.fence, self.folder / name, media_type)
            self._finish("succeeded", None)
        elif self.stop.is_set():
            notes.print(
                f"job {self.job}: stopped; it goes on from its checkpoint when the lease has ended",
                soft_wrap=True,
            )
        else:
            self._finish("failed", said or f"training ended with status {status}")

    def _finish(
        self, state: Literal["succeeded", "failed", "cancelled"], error: str | None
    ) -> None:
        body = {"fence": self.fence, "state": state, "error": error}
        self.service.patiently("POST", f"/v1/jobs/{self.job}/finish", json=body)
        notes.print(f"job {self.job}: {state}{f' ({error})' if error else ''}", soft_wrap=True)

    @contextlib.contextmanager
    def _training(self) -> Iterator[subprocess.Popen[str]]:
        """`distill train` in a process group of its own; nothing of it is left afterwards."""
        self.folder.mkdir(parents=True, exist_ok=True)
        config, release = self.folder / "config.json", self.folder / "given-release.json"
        config.write_text(self.lease.job.config.model_dump_json())
        release.write_text(self.lease.release.model_dump_json())
        command = [sys.executable, "-m", "distill", "train", "--resume", "--events"]
        command += ["--config", str(config), "--release", str(release), "--out", str(self.folder)]
        command += ["--cache", str(self.folder.parent / "cache")]
        environment = {k: v for k, v in os.environ.items() if k != "ENRICH_API_KEY"}
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=(self.folder / "stderr.log").open("w"),
            text=True,
            env=environment,
            start_new_session=True,
        )
        try:
            yield child
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()

    def _read(self, child: subprocess.Popen[str]) -> tuple[int, str]:
        """Number the child's events until it ends; its exit status and last words."""
        watch = threading.Thread(target=self._stop_child, args=(child,))
        watch.start()
        assert child.stdout is not None
        for number, line in enumerate(child.stdout, start=1):
            try:
                event = json.loads(line)
                event["worker_seq"] = number
            except (ValueError, TypeError):  # a library printed something
                now = datetime.now(UTC).isoformat()
                data = {"message": line.rstrip()}
                event = {"kind": "log", "data": data, "at": now, "worker_seq": number}
            self.events.put(event)
        status = child.wait()
        self.trained.set()
        watch.join()
        words = (self.folder / "stderr.log").read_text(errors="replace").strip().splitlines()
        return status, words[-1].removeprefix("distill: ") if words else ""

    def _stop_child(self, child: subprocess.Popen[str]) -> None:
        """Pass a stop, a cancel or a lost lease on to the child: gently, then not."""
        while not self.trained.wait(0.2):
            if not (self.stop.is_set() or self.cancelled.is_set() or self.lost.is_set()):
                continue
            hard = self.lost.is_set()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL if hard else signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(GRACE_SECONDS)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            return

    def _renew(self) -> None:
        """Renew the lease at a third of its time; learn of a cancel or of its loss."""
        length = (self.lease.expires_at - datetime.now(UTC)).total_seconds()
        while not self.ended.wait(max(0.2, length / 3)):
            try:
                answer = self.service.once(
                    "POST", f"/v1/jobs/{self.job}/heartbeat", json={"fence": self.fence}
                )
            except LeaseLost:
                self.lost.set()
                return
            except ServiceError:
                continue  # away: the next heartbeat may get through
            if answer.json()["cancel_requested"]:
                self.cancelled.set()

    def _send(self) -> None:
        """Post events in order, in batches, until a None ends them."""
        done = False
        while not done:
            batch = [self.events.get()]
            with contextlib.suppress(queue.Empty):
                while len(batch) < BATCH:
                    batch.append(self.events.get_nowait())
            done = batch[-1] is None
            events = [event for event in batch if event is not None]
            if not events or self.lost.is_set():
                continue
            try:
                self.service.patiently(
                    "POST",
                    f"/v1/jobs/{self.job}/events",
                    json={"fence": self.fence, "events": events},
                )
            except LeaseLost:
                self.lost.set()
            except ServiceError as error:
                notes.print(f"job {self.job}: events are lost: {error}", soft_wrap=True)
