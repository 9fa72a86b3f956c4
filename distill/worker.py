"""The worker: takes training jobs from the service over HTTP, one after the other.

Notable:
- Training runs as a child in a process group of its own, so that a cancel is a kill.
- A thread of its own renews the lease. When the service says that the lease is lost, the child is
  killed and nothing more is sent.
- The training writes its events into a file of the work folder, and they are sent from there, in
  order, each numbered by its line: one that is sent twice is stored once. While the service is away
  they wait, and when the worker was killed, the next attempt in that folder sends them.
- A training whose worker was killed writes its checkpoint and ends.
- Results go up in chunks, each where the service says that the last one ended.
- The work folder is named after the job: another attempt goes on from the checkpoint in it. A lock,
  which the child inherits, keeps two trainings out of one folder even when a worker was killed and
  its child still runs.
"""

import contextlib
import fcntl
import hashlib
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import IO, Any, Final, Literal, TypeVar

import httpx
from pydantic import AwareDatetime, BaseModel, NonNegativeInt, PositiveInt, ValidationError
from rich.console import Console

from contract import EventKind, Job, Lease
from distill.errors import DataError, LeaseLost, ServiceError

TRAIN: Final = (sys.executable, "-m", "distill", "train")
INTERRUPTED: Final = 75  # exit status of `distill train` that left a checkpoint
OUT_OF_MEMORY: Final = 71  # and of one that could not get the memory it needs
ARTIFACTS: Final = {
    "report.json": "application/json",
    "report.html": "text/html; charset=utf-8",
    "student.safetensors": "application/octet-stream",
    "text_bank.safetensors": "application/octet-stream",
    "score_norm.safetensors": "application/octet-stream",
}
# What a report may name besides; a job on bare names, or without pairs, leaves some out.
PICTURES: Final = {
    "similarity-before.png": "image/png",
    "similarity-after.png": "image/png",
    "thumbnails.jpg": "image/jpeg",
}
IDLE_SECONDS: Final = 2.0  # between two questions for work
GATHER_SECONDS: Final = 0.5  # that events wait for company before they are sent
GRACE_SECONDS: Final = 30.0  # between SIGTERM and SIGKILL: time to write a checkpoint
PATIENCE_SECONDS: Final = 600.0  # without the service before a worker gives up; at least 3 leases
LONGEST_BACKOFF: Final = 15.0  # seconds
BATCH: Final = 500  # events a request
LONGEST_MESSAGE: Final = 10_000  # characters of a log event

M = TypeVar("M", bound=BaseModel)
notes = Console(stderr=True, markup=False, highlight=False, soft_wrap=True)


class ServiceAway(ServiceError):
    """The service does not answer now; it may later."""


class Renewed(BaseModel):
    """The service's answer to a heartbeat."""

    expires_at: AwareDatetime
    cancel_requested: bool


class Upload(BaseModel):
    """How much of a file is at the service, and how much it wants to be sent next, in bytes."""

    offset: NonNegativeInt
    chunk: PositiveInt


class Service:
    """The service as a worker sees it."""

    def __init__(self, url: str, api_key: str | None, stop: threading.Event) -> None:
        try:
            # A password in the address is for the connection alone, not for messages.
            self.shown = str(httpx.URL(url).copy_with(userinfo=b""))
            is_http = httpx.URL(url).scheme in ("http", "https") and bool(httpx.URL(url).host)
        except (httpx.InvalidURL, ValueError):
            is_http = False
        if not is_http:
            raise ServiceError("the service's address must be like http://127.0.0.1:8000")
        if api_key and not (api_key.isascii() and api_key.isprintable() and " " not in api_key):
            raise ServiceError("the API key (ENRICH_API_KEY) has characters that no key has")
        self.patience = PATIENCE_SECONDS
        self._stop = stop
        self._http = httpx.Client(
            base_url=url,
            headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
            timeout=httpx.Timeout(30.0, connect=10.0),
        )

    def close(self) -> None:
        """Let go of the connections."""
        self._http.close()

    def once(
        self,
        method: str,
        path: str,
        *,
        body: object = None,
        content: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> httpx.Response:
        """Send one request: `body` as JSON, or `content` as it is.

        Raises:
            LeaseLost: the service answers 409, or knows the job no more.
            ServiceAway: it does not answer, or fails.
            ServiceError: it refuses.
        """
        try:
            response = self._http.request(method, path, json=body, content=content, headers=headers)
        except httpx.HTTPError as error:
            raise ServiceAway(
                f"the service at {self.shown} does not answer ({error or type(error).__name__}): "
                "check the address and that `enrich serve` is running"
            ) from None
        detail = _detail(response)
        match response.status_code:
            case 200 | 201 | 202 | 204:
                return response
            case 409:
                raise LeaseLost(detail)
            case 404 if path != CLAIM:
                raise LeaseLost(detail)
            case 401 | 403:
                raise ServiceError(
                    f"the service at {self.shown} lets this worker not in ({detail}): put an API "
                    "key for it into ENRICH_API_KEY"
                )
            case 408 | 429 | 500 | 502 | 503 | 504 | 507:
                raise ServiceAway(f"the service at {self.shown} fails: {detail}")
        raise ServiceError(f"the service at {self.shown} refuses {method} {path}: {detail}")

    def patiently(self, method: str, path: str, **content: Any) -> httpx.Response:  # noqa: ANN401
        """Send a request until the service answers, for as long as the worker's patience lasts.

        When the worker is asked to stop, one try more is all.

        Raises:
            LeaseLost, ServiceAway, ServiceError: as `once`.
        """
        until, wait = time.monotonic() + self.patience, 0.25
        while True:
            try:
                return self.once(method, path, **content)
            except ServiceAway:
                if self._stop.is_set() or time.monotonic() + wait > until:
                    raise
            self._stop.wait(wait)
            wait = min(2 * wait, LONGEST_BACKOFF)

    def upload(self, path: str, file: Path, media_type: str) -> None:
        """Store `file` under `path`, in chunks that go on where the service says.

        Patience begins anew with what has arrived. Raises as `patiently`.
        """
        with file.open("rb") as content:
            headers = {
                "Content-Type": media_type,
                "X-Content-SHA256": hashlib.file_digest(content, "sha256").hexdigest(),
            }
            size = content.seek(0, os.SEEK_END)
            question = headers | {"Content-Range": f"bytes */{size}"}
            answer = self.patiently("PUT", path, headers=question)
            stuck, until = -1, 0.0  # where a chunk did not get through, and for how long it may not
            while answer.status_code == httpx.codes.ACCEPTED:
                here = _read_as(Upload, answer, self)
                content.seek(here.offset)
                piece = content.read(here.chunk)
                span = f"bytes {here.offset}-{here.offset + len(piece) - 1}/{size}"
                try:
                    answer = self.once(
                        "PUT", path, content=piece, headers=headers | {"Content-Range": span}
                    )
                except ServiceAway:
                    if here.offset > stuck:
                        stuck, until = here.offset, time.monotonic() + self.patience
                    if self._stop.is_set() or time.monotonic() > until:
                        raise
                    self._stop.wait(GATHER_SECONDS)
                    answer = self.patiently("PUT", path, headers=question)


CLAIM: Final = "/v1/jobs/claim"


def _detail(response: httpx.Response) -> str:
    """What a problem document says, or at least its status."""
    with contextlib.suppress(ValueError, KeyError, TypeError):
        return " ".join(str(response.json()["detail"]).split())
    return f"status {response.status_code}"


def work(
    service_url: str,
    *,
    work_dir: Path,
    name: str,
    once: bool = False,
    api_key: str | None = None,
    command: Sequence[str] = TRAIN,
    offers: Mapping[str, Any] | None = None,
    data_roots: Sequence[Path] = (),
) -> None:
    """Take jobs until SIGTERM or SIGINT; with `once`, until there is nothing left to do.

    A worker that is asked to stop lets the training write its checkpoint and leaves the job to the
    end of its lease. `command` trains: it gets the options of `distill train`. `offers`: what it
    has for jobs that need it, by default what this machine has. With `data_roots`, jobs may read
    images and teachers in these folders alone.

    Raises:
        ServiceError: the service does not answer at the start, stays away too long, or refuses.
        DataError: `work_dir` cannot be written to.
    """
    command = [*command, *(part for root in data_roots for part in ("--data-root", str(root)))]
    stop = threading.Event()
    service = Service(service_url, api_key, stop)
    claim = {"worker": name, **(offers or {"gpu": has_gpu(), "memory_gb": memory_gb()})}
    with contextlib.closing(service), _asked_to_stop(stop):
        # A wrong address is said at once; only a service that was there is waited for.
        answer = service.once("POST", CLAIM, body=claim)
        notes.print(f"worker {name} at {service.shown}")
        while True:
            if answer.status_code == 200:
                lease = _lease(answer, service)
                service.patience = max(PATIENCE_SECONDS, 3 * lease.seconds)
                Attempt(service, lease, work_dir, tuple(command), stop).run()
            elif once:
                return
            else:
                stop.wait(IDLE_SECONDS)
            if stop.is_set():
                return
            try:
                answer = service.patiently("POST", CLAIM, body=claim)
            except ServiceAway:
                if stop.is_set():
                    return
                raise


def has_gpu() -> bool:
    """Whether this machine has an NVIDIA GPU. (Asking torch would load it into this process.)"""
    return Path("/dev/nvidia0").exists()


def memory_gb() -> float:
    """The memory in GiB that this process may use: the machine's, or less where it is limited."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    with contextlib.suppress(OSError, ValueError):  # "max": no limit
        limits.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return round(min(limits) / 2**30, 1)


def _lease(answer: httpx.Response, service: Service) -> Lease:
    return _read_as(Lease, answer, service)


def _read_as(model: type[M], answer: httpx.Response, service: Service) -> M:
    try:
        return model.model_validate_json(answer.content)
    except ValidationError:
        raise ServiceError(
            f"{service.shown} answers, but not as an enrichment service of this version: check "
            "the address, or update the older of the two"
        ) from None


@contextlib.contextmanager
def _asked_to_stop(stop: threading.Event) -> Iterator[None]:
    """SIGTERM and SIGINT set `stop`. Only a main thread can listen to signals."""

    def ask(_signal: int, _frame: FrameType | None) -> None:
        stop.set()

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Outbox:
    """The events in files of a job's folder, on their way to the service by a thread of its own.

    `unsent`: files of attempts that were killed, each with the fence of its lease; they go first.
    `current`: the file that the training writes now. A file is deleted when all of it was sent.
    """

    def __init__(
        self,
        unsent: Sequence[tuple[str, Path]],
        current: tuple[str, Path],
        post: Callable[[list[dict[str, Any]]], None],
    ) -> None:
        self._unsent, self._current, self._post = unsent, current, post
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="events")
        self._thread.start()

    def close(self) -> None:
        """Send what is left: the training has ended. Returns when there is nothing more to do."""
        self._closed.set()
        self._thread.join()

    def _run(self) -> None:
        with contextlib.suppress(LeaseLost, ServiceAway):
            for fence, file in self._unsent:
                self._send(fence, file, lambda: True)
            self._send(*self._current, self._closed.is_set)

    def _send(self, fence: str, file: Path, is_whole: Callable[[], bool]) -> None:
        """Send the events in `file` as they come, until it is whole and all are sent."""
        sent = 0
        with file.open("rb") as content:
            while True:
                whole = is_whole()
                lines = _lines(content, whole)
                events = [
                    event(line) | {"fence": fence, "worker_seq": number}
                    for number, line in enumerate(lines, start=sent + 1)
                ]
                sent += len(lines)
                self._deliver(_without_old_progress(events, is_over=fence != self._current[0]))
                if whole and not lines:
                    break
                if not whole and len(lines) < BATCH:
                    self._closed.wait(GATHER_SECONDS)
        file.unlink()

    def _deliver(self, batch: list[dict[str, Any]]) -> None:
        try:
            if batch:
                self._post(batch)
        except (LeaseLost, ServiceAway):
            raise
        except ServiceError as error:  # asking again would be in vain
            notes.print(f"{len(batch)} events were not stored: {error}")


def _lines(content: IO[bytes], whole: bool) -> list[bytes]:
    """The next lines of a file, at most `BATCH`; of one that grows, none that is cut off yet."""
    lines = list(itertools.islice(content, BATCH))
    if lines and not whole and not lines[-1].endswith(b"\n"):
        content.seek(-len(lines.pop()), os.SEEK_CUR)
    return lines


def _without_old_progress(events: list[dict[str, Any]], is_over: bool) -> list[dict[str, Any]]:
    """`events` without progress that newer progress in its phase follows, or that `is_over`."""
    kept: list[dict[str, Any]] = []
    for new in events:
        progress = new["kind"] is EventKind.PROGRESS
        if progress and kept and _are_of_one_phase(kept[-1], new):
            kept.pop()
        if not (progress and is_over):
            kept.append(new)
    return kept


def _are_of_one_phase(old: dict[str, Any], new: dict[str, Any]) -> bool:
    """Whether progress in a phase is followed by newer progress in it."""
    kinds = {old["kind"], new["kind"]}
    return kinds == {EventKind.PROGRESS} and old["data"].get("phase") == new["data"].get("phase")


class Attempt:
    """One job under one lease."""

    def __init__(
        self,
        service: Service,
        lease: Lease,
        work_dir: Path,
        command: tuple[str, ...],
        stop: threading.Event,
    ) -> None:
        self.service, self.lease, self.command = service, lease, command
        self.path = f"/v1/jobs/{lease.job.id}"
        self.work_dir, self.folder = work_dir, work_dir / f"job-{lease.job.id}"
        self.stop = stop  # the worker should end
        self.cancelled = threading.Event()  # the user wants no more of it
        self.lost = threading.Event()  # somebody else has the job
        self.away = threading.Event()  # the service has been silent for too long
        self.ended = threading.Event()  # there is no lease left to renew

    def run(self) -> None:
        """Train, report, finish; whatever happens, no child is left.

        Raises:
            ServiceError: the service stayed away too long, or refuses.
            DataError: the work folder cannot be written to.
        """
        self._say(f"attempt {self.lease.job.attempts} of {self.lease.job.max_attempts}")
        renewing = threading.Thread(target=self._renew, name="heartbeat")
        renewing.start()
        try:
            self._prepare()
            with self._locked() as lock:
                if lock is None:
                    status, words = INTERRUPTED, ""
                else:
                    status, words = self._train(lock)
                self._conclude(status, words)
        except LeaseLost as error:
            self._say(f"given up: {error}")
        except OSError as error:
            raise DataError(
                f"cannot work in {self.folder} ({error.strerror}): make room or choose another "
                "--work-dir; the job goes on where it is when its lease has ended"
            ) from None
        finally:
            self.ended.set()
            renewing.join()

    def _conclude(self, status: int, words: str) -> None:
        """Tell the service how it ended, unless the job is to be left to its lease."""
        if self.lost.is_set():
            self._say("given up: the lease is lost")
        elif self.cancelled.is_set():
            self._finish("cancelled")
        elif status == 0:
            self._hand_in()
        elif self.away.is_set():
            raise ServiceAway(
                f"the service at {self.service.shown} has not answered for "
                f"{self.service.patience:.0f} s: job {self.lease.job.id} is stopped and goes on "
                f"from the checkpoint in {self.folder} when a worker takes it again"
            )
        elif status == INTERRUPTED or self.stop.is_set():
            self._say("stopped; it goes on from its checkpoint when its lease has ended")
        else:
            # Nobody here sends SIGKILL before a reason to stop: it was the kernel.
            self._finish("failed", words, status in (OUT_OF_MEMORY, -signal.SIGKILL))

    def _hand_in(self) -> None:
        try:
            drawn = {name: kind for name, kind in PICTURES.items() if (self.folder / name).exists()}
            for name, media_type in (drawn | ARTIFACTS).items():
                path = f"{self.path}/artifacts/{name}?fence={self.lease.fence}"
                self.service.upload(path, self.folder / name, media_type)
        except (LeaseLost, ServiceAway):
            raise
        except ServiceError as error:  # asking again would be in vain
            self._finish("failed", f"{error}; the results are in {self.folder} of the worker")
        else:
            self._finish("succeeded")

    def _finish(
        self,
        state: Literal["succeeded", "failed", "cancelled"],
        error: str | None = None,
        out_of_memory: bool = False,
    ) -> None:
        body = {
            "fence": self.lease.fence,
            "state": state,
            "error": error,
            "out_of_memory": out_of_memory,
        }
        self.service.patiently("POST", f"{self.path}/finish", body=body)
        self._say(f"{state}: {error}" if error else state)

    def _say(self, words: str) -> None:
        notes.print(f"job {self.lease.job.id}: {words}")

    def _post(self, events: list[dict[str, Any]]) -> None:
        body = {"fence": self.lease.fence, "events": events}
        while not self.lost.is_set():
            try:
                self.service.patiently("POST", f"{self.path}/events", body=body)
                return
            except LeaseLost:
                self.lost.set()
            except ServiceAway:
                if self.stop.is_set() or self.away.is_set():
                    raise
        raise LeaseLost("the lease is lost")

    def _renew(self) -> None:
        """Renew the lease at a third of its time; learn that it is lost, or of a cancel."""
        body, heard = {"fence": self.lease.fence}, time.monotonic()
        wait = 0.0  # the first one says that the job runs
        while not self.ended.wait(wait):
            wait = self.lease.seconds / 3
            try:
                answer = self.service.once("POST", f"{self.path}/heartbeat", body=body)
                renewed = Renewed.model_validate_json(answer.content)
            except LeaseLost:
                self.lost.set()
                return
            except (ServiceError, ValidationError):
                wait = min(wait, 2.0)
                if time.monotonic() - heard > self.service.patience:
                    self.away.set()
                    return
                continue
            heard = time.monotonic()
            if renewed.cancel_requested:
                self.cancelled.set()

    def _prepare(self) -> None:
        """Make the job's folder and write what it is to do.

        A folder of another job of that number (of another service, or of one that began anew) is
        moved aside.
        """
        known = self.folder / "job.json"
        job = self.lease.job
        if self.folder.is_dir():
            try:
                old = Job.model_validate_json(known.read_bytes())
                is_ours = (old.created_at, old.config) == (job.created_at, job.config)
            except (OSError, ValidationError):
                is_ours = False
            if not is_ours:
                self.folder.replace(_free_name(self.folder))
        self.folder.mkdir(parents=True, exist_ok=True)
        known.write_text(job.model_dump_json())
        (self.folder / "config.json").write_text(job.config.model_dump_json())
        (self.folder / "release.json").write_text(self.lease.release.model_dump_json())

    @contextlib.contextmanager
    def _locked(self) -> Iterator[IO[str] | None]:
        """Wait until no other training works in the folder; None if there is no use in waiting."""
        with (self.folder / "lock").open("w") as lock:
            told = False
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if not told:
                        self._say(f"another training still works in {self.folder}: waiting for it")
                    told = True
                if self._reason_to_stop(0.5):
                    yield None
                    return
            yield lock

    def _reason_to_stop(self, seconds: float = 0.0) -> bool:
        """Whether the training should end, after at most `seconds`."""
        reasons = (self.lost, self.cancelled, self.stop, self.away)
        until = time.monotonic() + seconds
        while not any(reason.is_set() for reason in reasons):
            if time.monotonic() >= until:
                return False
            self.stop.wait(0.1)
        return True

    def _train(self, lock: IO[str]) -> tuple[int, str]:
        """Run the training to its end; its exit status and what it said last."""
        command = [*self.command, "--resume", "--events"]
        command += ["--config", str(self.folder / "config.json")]
        command += ["--release", str(self.folder / "release.json")]
        command += ["--out", str(self.folder), "--cache", str(self.work_dir / "cache")]
        # The training talks to nobody: it needs no key.
        environment = {name: v for name, v in os.environ.items() if name != "ENRICH_API_KEY"}
        errors = self.folder / "stderr.log"
        unsent = self._unsent()
        newest = _events_number(unsent[-1][1]) if unsent else 0
        events = self.folder / f"events-{newest + 1}-{self.lease.fence}.jsonl"
        with errors.open("wb") as stderr, events.open("ab") as stdout:
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                env=environment,
                pass_fds=[lock.fileno()],
                start_new_session=True,
            )
        outbox = Outbox(unsent, (self.lease.fence, events), self._post)
        try:
            while child.poll() is None and not self._reason_to_stop(0.2):
                pass
            if child.poll() is None and not self.lost.is_set():
                _signal(child, signal.SIGTERM)
                self._await(child)
        finally:
            _signal(child, signal.SIGKILL)  # whatever is left of the group
            status = child.wait()
            outbox.close()
        return status, _last_words(status, errors)

    def _unsent(self) -> list[tuple[str, Path]]:
        """What earlier attempts here have not told, the oldest first, each with its fence."""
        files = sorted(self.folder.glob("events-*-*.jsonl"), key=_events_number)
        return [(file.stem.split("-", 2)[2], file) for file in files]

    def _await(self, child: subprocess.Popen[bytes]) -> None:
        """Give the child its time of grace, unless the lease is lost meanwhile."""
        until = time.monotonic() + GRACE_SECONDS
        while time.monotonic() < until and not self.lost.is_set():
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(0.2)
                return


def _events_number(file: Path) -> int:
    return int(file.stem.split("-", 2)[1])


def _free_name(folder: Path) -> Path:
    names = (folder.with_name(f"{folder.name}-before-{n}") for n in range(1, 10_000))
    return next(name for name in names if not name.exists())


def _signal(child: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Send a signal to the whole process group of the child."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, number)


def event_line(kind: EventKind, data: Mapping[str, Any]) -> str:
    """What a training says of an event, for `event` to read."""
    return json.dumps({"kind": kind, "data": data, "at": datetime.now(UTC).isoformat()})


def event(line: bytes) -> dict[str, Any]:
    """The event in a line of the child; what is none, such as a library's words, is a log event."""
    text = line.decode(errors="replace").strip()
    try:
        event = json.loads(text, parse_constant=lambda _: None)  # NaN is no JSON
        kind, data, at = EventKind(event["kind"]), dict(event["data"]), str(event["at"])
    except (ValueError, KeyError, TypeError):
        kind, data, at = EventKind.LOG, {"message": text}, datetime.now(UTC).isoformat()
    if kind is EventKind.LOG:
        data["message"] = str(data.get("message"))[:LONGEST_MESSAGE]
    return {"kind": kind, "data": data, "at": at}


def _last_words(status: int, errors: Path) -> str:
    """One line on why a training failed."""
    if status == -signal.SIGKILL:
        return (
            "the training was killed, most often for lack of memory: use a smaller batch_size, or "
            "a worker with more memory"
        )
    if status < 0:
        return f"the training was ended by {signal.Signals(-status).name}"
    lines = errors.read_text(errors="replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return last.removeprefix("distill: ") or f"the training ended with status {status}"
