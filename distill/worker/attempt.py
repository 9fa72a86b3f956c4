"""One attempt at a job: the training process, its lease, its events and its results."""

import contextlib
import fcntl
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Final, Literal

from pydantic import AwareDatetime, BaseModel, ValidationError

from contract import CLASSIFIER_ARTIFACT, Job, Lease
from distill.data.files.atomic_file import write_atomically
from distill.data.files.classifier_zip import FOLDER, MANIFEST, zip_folder
from distill.data.releases import write_release
from distill.errors import DataError, LeaseLost, RequestRefused, ServiceError, ServiceUnavailable
from distill.training.outcome import INTERRUPTED, OUT_OF_MEMORY
from distill.worker.client import ServiceClient
from distill.worker.outbox import EventFile, Outbox, notes
from distill.worker.upload import upload

ARTIFACTS: Final = {
    "report.json": "application/json",
    "report.html": "text/html; charset=utf-8",
    "student.safetensors": "application/octet-stream",
    "text_bank.safetensors": "application/octet-stream",
    "score_norm.safetensors": "application/octet-stream",
}
# Image files of the report; some are missing for a job on plain names, or without pairs.
PICTURES: Final = {
    "similarity-before.png": "image/png",
    "similarity-after.png": "image/png",
    "thumbnails.jpg": "image/jpeg",
}
TERMINATION_GRACE_S: Final = 30.0  # between SIGTERM and SIGKILL: time to write a checkpoint
STDERR_TAIL: Final = 65_536  # bytes of stderr that are searched for the last line
MAX_ERROR: Final = 2000  # characters


class RenewedLease(BaseModel):
    """The service's response to a heartbeat."""

    expires_at: AwareDatetime
    cancel_requested: bool


class Attempt:
    """One job under one lease."""

    def __init__(
        self,
        service: ServiceClient,
        lease: Lease,
        work_dir: Path,
        command: tuple[str, ...],
        stop: threading.Event,
    ) -> None:
        self.service, self.lease, self.command = service, lease, command
        self.path = f"/v1/jobs/{lease.job.id}"
        self.work_dir, self.folder = work_dir, work_dir / f"job-{lease.job.id}"
        self.stop = stop  # the worker should end
        self.cancelled = threading.Event()  # the user cancelled the job
        self.lost = threading.Event()  # the lease is lost
        self.unreachable = threading.Event()  # the service has not answered for too long
        self.ended = threading.Event()  # the lease need not be renewed any more

    def run(self) -> None:
        """Train, upload the results and finish the job. Never leaves a child process.

        Raises:
            RequestRefused: the service rejects a request about this job.
            ServiceError: the service is unreachable for too long, or rejects the API key.
            DataError: the work folder cannot be written to.
        """
        self.log(f"attempt {self.lease.job.attempts} of {self.lease.job.max_attempts}")
        renewing = threading.Thread(target=self._renew_lease, name="heartbeat")
        renewing.start()
        try:
            self._prepare_folder()
            with self._locked_folder() as lock:
                if lock is None:
                    status, reason = INTERRUPTED, ""
                else:
                    status, reason = self._train(lock)
                self._report_outcome(status, reason)
        except LeaseLost as error:
            self.log(f"given up: {error}")
        except OSError as error:
            raise DataError(
                f"cannot write to {self.folder} ({error.strerror}): free some space or choose "
                "another --work-dir; the job is queued again after its lease has expired"
            ) from None
        finally:
            self.ended.set()
            renewing.join()

    def log(self, message: str) -> None:
        """Print a line about this job on standard error."""
        notes.print(f"job {self.lease.job.id}: {message}")

    # --------------------------------------------------------------------------- outcome

    def _report_outcome(self, status: int, reason: str) -> None:
        """Report to the service how the training ended, unless the lease should expire."""
        if self.lost.is_set():
            self.log("given up: the lease is lost")
        elif self.cancelled.is_set():
            self._finish("cancelled")
        elif status == 0:
            self._upload_results()
        elif self.unreachable.is_set():
            raise ServiceUnavailable(
                f"the service at {self.service.shown_url} has not answered for "
                f"{self.service.retry_deadline:.0f} s: job {self.lease.job.id} is stopped; it "
                f"resumes from the checkpoint in {self.folder} when a worker claims it again"
            )
        elif status == INTERRUPTED or self.stop.is_set():
            self.log("stopped; it resumes from its checkpoint after its lease has expired")
        else:
            # The worker sends SIGKILL only after a reason to stop: this one is from the kernel.
            self._finish("failed", reason, status in (OUT_OF_MEMORY, -signal.SIGKILL))

    def _upload_results(self) -> None:
        files = {name: kind for name, kind in PICTURES.items() if (self.folder / name).exists()}
        if (self.folder / FOLDER / MANIFEST).is_file():
            zip_folder(self.folder / FOLDER, self.folder / CLASSIFIER_ARTIFACT)
            files[CLASSIFIER_ARTIFACT] = "application/zip"
        try:
            for name, media_type in (files | ARTIFACTS).items():
                path = f"{self.path}/artifacts/{name}?fence={self.lease.fence}"
                upload(self.service, path, self.folder / name, media_type)
        except RequestRefused as error:  # a retry would be rejected again
            self._finish("failed", f"{error}; the results are in {self.folder} on the worker")
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
        self.service.send_with_retries("POST", f"{self.path}/finish", body=body)
        self.log(f"{state}: {error}" if error else state)

    # -------------------------------------------------------------- events and heartbeats

    def _post_events(self, events: list[dict[str, Any]]) -> None:
        body = {"fence": self.lease.fence, "events": events}
        while not self.lost.is_set():
            try:
                self.service.send_with_retries("POST", f"{self.path}/events", body=body)
                return
            except LeaseLost:
                self.lost.set()
            except ServiceUnavailable:
                if self.stop.is_set() or self.unreachable.is_set():
                    raise
        raise LeaseLost("the lease is lost")

    def _renew_lease(self) -> None:
        """Renew the lease after each third of its duration; set the events of this attempt."""
        body, answered_at = {"fence": self.lease.fence}, time.monotonic()
        wait = 0.0  # the first heartbeat marks the job as running
        while not self.ended.wait(wait):
            wait = self.lease.seconds / 3
            try:
                answer = self.service.send("POST", f"{self.path}/heartbeat", body=body)
                renewed = RenewedLease.model_validate_json(answer.content)
            except LeaseLost:
                self.lost.set()
                return
            except (ServiceError, ValidationError):
                wait = min(wait, 2.0)
                if time.monotonic() - answered_at > self.service.retry_deadline:
                    self.unreachable.set()
                    return
                continue
            answered_at = time.monotonic()
            if renewed.cancel_requested:
                self.cancelled.set()

    # ------------------------------------------------------------------------ work folder

    def _prepare_folder(self) -> None:
        """Create the job's folder with the job, its config and its release.

        A folder of a different job with this id (of another service or database) is renamed.
        """
        job_file = self.folder / "job.json"
        job = self.lease.job
        if self.folder.is_dir():
            try:
                old = Job.model_validate_json(job_file.read_bytes())
                is_same_job = (old.created_at, old.config) == (job.created_at, job.config)
            except (OSError, ValidationError):
                is_same_job = False
            if not is_same_job:
                self.folder.replace(_free_name(self.folder))
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(job_file, job.model_dump_json())
        write_atomically(self.folder / "config.json", job.config.model_dump_json())
        write_release(self.lease.release, self.folder / "release.json")

    @contextlib.contextmanager
    def _locked_folder(self) -> Iterator[IO[str] | None]:
        """Lock the folder, waiting for another training in it; None if the attempt should end."""
        with (self.folder / "lock").open("w") as lock:
            logged = False
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if not logged:
                        self.log(f"waiting for another training in {self.folder} to end")
                    logged = True
                if self._should_end(0.5):
                    yield None
                    return
            yield lock

    # ------------------------------------------------------------------- training process

    def _should_end(self, seconds: float = 0.0) -> bool:
        """Whether the training should end, after at most `seconds`."""
        reasons = (self.lost, self.cancelled, self.stop, self.unreachable)
        deadline = time.monotonic() + seconds
        while not any(reason.is_set() for reason in reasons):
            if time.monotonic() >= deadline:
                return False
            self.stop.wait(0.1)
        return True

    def _train(self, lock: IO[str]) -> tuple[int, str]:
        """Run the training to its end. Returns its exit status and the reason of a failure."""
        unsent = EventFile.unsent(self.folder)
        number = unsent[-1].number + 1 if unsent else 1
        events = EventFile.new(self.folder, number, self.lease.fence)
        errors = self.folder / "stderr.log"
        child = self._start_training(events.path, errors, lock)
        outbox = Outbox(unsent, events, self._post_events)
        try:
            while child.poll() is None and not self._should_end(0.2):
                pass
            if child.poll() is None and not self.lost.is_set():
                _signal_group(child, signal.SIGTERM)
                self._wait_for_checkpoint(child)
        finally:
            _signal_group(child, signal.SIGKILL)  # remaining processes of the group
            status = child.wait()
            outbox.close()
        return status, _failure_reason(status, errors)

    def _start_training(self, events: Path, errors: Path, lock: IO[str]) -> subprocess.Popen[bytes]:
        command = [*self.command, "--resume", "--events"]
        command += ["--config", str(self.folder / "config.json")]
        command += ["--release", str(self.folder / "release.json")]
        command += ["--out", str(self.folder), "--cache", str(self.work_dir / "cache")]
        # The training sends no requests, so it does not get the key.
        environment = {name: v for name, v in os.environ.items() if name != "ENRICH_API_KEY"}
        with errors.open("wb") as stderr, events.open("ab") as stdout:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                env=environment,
                pass_fds=[lock.fileno()],
                start_new_session=True,
            )

    def _wait_for_checkpoint(self, child: subprocess.Popen[bytes]) -> None:
        """Wait for the child during its grace period, or until the lease is lost."""
        deadline = time.monotonic() + TERMINATION_GRACE_S
        while time.monotonic() < deadline and not self.lost.is_set():
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(0.2)
                return


def _free_name(folder: Path) -> Path:
    names = (folder.with_name(f"{folder.name}-before-{n}") for n in range(1, 10_000))
    return next(name for name in names if not name.exists())


def _signal_group(child: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Send a signal to the whole process group of the child."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, number)


def _failure_reason(status: int, errors: Path) -> str:
    """One line about why a training failed: the last line on its standard error."""
    if status == -signal.SIGKILL:
        return (
            "the training was killed, probably out of memory: use a smaller batch_size, or a "
            "worker with more memory"
        )
    if status < 0:
        return f"the training was terminated by {signal.Signals(-status).name}"
    with errors.open("rb") as stderr:
        stderr.seek(max(0, errors.stat().st_size - STDERR_TAIL))
        lines = stderr.read().decode(errors="replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return last.removeprefix("distill: ")[:MAX_ERROR] or f"the training ended with status {status}"
