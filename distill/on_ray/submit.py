"""The command that a worker runs instead of `distill train` for a Ray cluster (`--ray`).

It takes the options of `distill train`, submits distill.on_ray.train as a Ray job, and passes on
its events (stdout), its last message (stderr) and its exit status.

Notable:
- The two communicate through the folder of the job, which every node mounts at the same path.
- SIGTERM reaches the training through that folder, so that it writes its checkpoint. A training
  whose submitter was killed notices the missing heartbeat and does the same.
- A Ray job of an earlier attempt in the folder is stopped before another one is submitted.
"""

import argparse
import contextlib
import os
import shlex
import signal
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Final

from distill.errors import UserError
from distill.on_ray.messages import Order, RayFolder
from distill.training.openmp import CHOICES, let_idle_threads_sleep
from distill.training.outcome import FAILED, Outcome

POLL_INTERVAL_S: Final = 0.5  # between reads of events and state
CLUSTER_TIMEOUT_S: Final = 30.0  # without an answer before the attempt fails
STOP_TIMEOUT_S: Final = 25.0  # for a checkpoint, before the job is stopped; less than the worker's


class RayUnavailable(UserError):
    """The cluster does not answer, or refuses the request."""


class Cluster:
    """The job server of a Ray cluster. Every method raises RayUnavailable if it does not answer."""

    def __init__(self, address: str) -> None:
        try:
            from ray.job_submission import JobSubmissionClient
        except ImportError:
            raise RayUnavailable(
                "--ray needs the extra `ray`: pip install 'enrich-distill[ray]'"
            ) from None
        self._address = address
        with self._errors():
            self._client = JobSubmissionClient(address)

    def submit(self, submission: str, command: Sequence[str]) -> None:
        """Start a Ray job."""
        variables = {name: os.environ[name] for name in CHOICES if name in os.environ}
        let_idle_threads_sleep(variables)  # the processes of Ray Train load torch before our code
        with self._errors():
            self._client.submit_job(
                entrypoint=shlex.join(command),
                submission_id=submission,
                runtime_env={"env_vars": variables},
            )

    def state(self, submission: str) -> Any:  # noqa: ANN401 - a ray.job_submission.JobStatus
        """The state of a Ray job. Retries while the cluster does not answer, for a limited time."""
        until = time.monotonic() + CLUSTER_TIMEOUT_S
        while True:
            try:
                with self._errors():
                    return self._client.get_job_status(submission)
            except RayUnavailable:
                if time.monotonic() > until:
                    raise
            time.sleep(POLL_INTERVAL_S)

    def stop(self, submission: str) -> None:
        """Stop a Ray job and wait until it has ended."""
        with self._errors():
            if submission in {job.submission_id for job in self._client.list_jobs()}:
                self._client.stop_job(submission)
                while not self._client.get_job_status(submission).is_terminal():
                    time.sleep(POLL_INTERVAL_S)

    def last_line(self, submission: str) -> str:
        """The last line that a Ray job wrote."""
        with self._errors():
            return _last_line(self._client.get_job_logs(submission))

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (OSError, RuntimeError) as error:  # requests' errors are OSErrors
            raise RayUnavailable(
                f"the Ray cluster at {self._address} does not answer ({_last_line(str(error))}): "
                "check the address (like http://head:8265) and `ray status` there"
            ) from None


def main(arguments: Sequence[str] | None = None) -> int:
    """Train on the cluster and return the exit status."""
    parser = argparse.ArgumentParser(prog="distill-ray", description=__doc__.split("\n")[0])
    parser.add_argument("--address", required=True, help="Of the cluster's job server")
    parser.add_argument("--processes", type=int, required=True)
    options, training = parser.parse_known_args(arguments)
    folder = RayFolder(Path(training[training.index("--out") + 1]).resolve())
    try:
        outcome = run(Cluster(options.address), options.processes, folder, training)
    except UserError as error:
        outcome = Outcome(FAILED, f"distill: {error}")
    if outcome.message:
        print(outcome.message, file=sys.stderr)  # noqa: T201
    return outcome.status


def run(cluster: Cluster, processes: int, folder: RayFolder, training: Sequence[str]) -> Outcome:
    """Submit the training to the cluster and follow it to its end.

    Raises:
        RayUnavailable: the cluster does not answer.
    """
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    if (earlier := folder.submission()) is not None:
        cluster.stop(earlier)
    submission = f"distill-{uuid.uuid4().hex[:12]}"
    folder.begin(submission)
    command = ("python", "-m", "distill.on_ray.train", "--processes", str(processes))
    cluster.submit(submission, (*command, *training))
    stopping_since = None
    with folder.events.open("rb") as events:
        while not (state := cluster.state(submission)).is_terminal():
            folder.send_order(Order.STOP if stop.is_set() else Order.GO)
            if stop.is_set():
                stopping_since = stopping_since or time.monotonic()
                if time.monotonic() - stopping_since > STOP_TIMEOUT_S:
                    cluster.stop(submission)
            _copy_events(events)
            time.sleep(POLL_INTERVAL_S)
        _copy_events(events)
    if (outcome := folder.outcome()) is not None:
        return outcome
    end = f"the Ray job {submission} has {state.value.lower()}"
    return Outcome(FAILED, f"distill: {end}: {cluster.last_line(submission)}")


def _copy_events(events: IO[bytes]) -> None:
    """Print the complete new lines."""
    for line in events:
        if not line.endswith(b"\n"):
            events.seek(-len(line), 1)
            return
        sys.stdout.buffer.write(line)
    sys.stdout.buffer.flush()


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:500] if lines else "no output"


if __name__ == "__main__":
    sys.exit(main())
