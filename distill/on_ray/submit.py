"""In the place of `distill train`, a worker's command for a Ray cluster: `distill worker --ray …`.

It takes the options of `distill train`, submits distill.on_ray.train as a Ray job, and tells what
that tells: its events on stdout, its last words on stderr, its exit status.

Notable:
- Both meet in the folder of the job, which every node of the cluster sees under the same path.
- SIGTERM reaches the training as a word in that folder, so it can write its checkpoint. One whose
  submitter was killed finds that nobody asks for it any more, and does the same.
- A Ray job of an earlier attempt in that folder is ended before another one is submitted.
"""

import argparse
import contextlib
import shlex
import signal
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Final

from distill.errors import UserError
from distill.on_ray.folder import Order, Outcome, RayFolder

LOOK_SECONDS: Final = 0.5  # between looks at events and state
PATIENCE_SECONDS: Final = 30.0  # without the cluster before the attempt fails
GRACE_SECONDS: Final = 25.0  # for a checkpoint, before the Ray job is ended: less than the worker's
FAILED: Final = 1


class RayAway(UserError):
    """The cluster does not answer, or refuses."""


class Cluster:
    """The job server of a Ray cluster. Everything raises RayAway where it does not answer."""

    def __init__(self, address: str) -> None:
        try:
            from ray.job_submission import JobSubmissionClient
        except ImportError:
            raise RayAway(
                "--ray needs the extra `ray`: pip install 'enrich-distill[ray]'"
            ) from None
        self._address = address
        with self._telling():
            self._client = JobSubmissionClient(address)

    def submit(self, submission: str, command: Sequence[str]) -> None:
        """Start a Ray job."""
        with self._telling():
            self._client.submit_job(entrypoint=shlex.join(command), submission_id=submission)

    def state(self, submission: str) -> Any:  # noqa: ANN401 - a ray.job_submission.JobStatus
        """The state of a Ray job, also from a cluster that does not answer for a moment."""
        until = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                with self._telling():
                    return self._client.get_job_status(submission)
            except RayAway:
                if time.monotonic() > until:
                    raise
            time.sleep(LOOK_SECONDS)

    def end(self, submission: str) -> None:
        """End a Ray job, and wait until it has."""
        with self._telling():
            if submission in {job.submission_id for job in self._client.list_jobs()}:
                self._client.stop_job(submission)
                while not self._client.get_job_status(submission).is_terminal():
                    time.sleep(LOOK_SECONDS)

    def last_words(self, submission: str) -> str:
        """The last line that a Ray job wrote."""
        with self._telling():
            return _last_line(self._client.get_job_logs(submission))

    @contextlib.contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except (OSError, RuntimeError) as error:  # requests' errors are OSErrors
            raise RayAway(
                f"the Ray cluster at {self._address} does not answer ({_last_line(str(error))}): "
                "check the address (like http://head:8265) and `ray status` there"
            ) from None


def main(arguments: Sequence[str] | None = None) -> int:
    """Train on the cluster; the exit status."""
    parser = argparse.ArgumentParser(prog="distill-ray", description=__doc__.split("\n")[0])
    parser.add_argument("--address", required=True, help="Of the cluster's job server")
    parser.add_argument("--processes", type=int, required=True)
    options, training = parser.parse_known_args(arguments)
    folder = RayFolder(Path(training[training.index("--out") + 1]).resolve())
    try:
        outcome = run(Cluster(options.address), options.processes, folder, training)
    except UserError as error:
        outcome = Outcome(FAILED, f"distill: {error}")
    if outcome.said:
        print(outcome.said, file=sys.stderr)  # noqa: T201
    return outcome.status


def run(cluster: Cluster, processes: int, folder: RayFolder, training: Sequence[str]) -> Outcome:
    """Submit the training to the cluster and follow it to its end.

    Raises:
        RayAway: the cluster does not answer, or does so no more.
    """
    stop = {"asked": False}
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.update(asked=True))
    if (earlier := folder.submission()) is not None:
        cluster.end(earlier)
    submission = f"distill-{uuid.uuid4().hex[:12]}"
    folder.begin(submission)
    there = ("python", "-m", "distill.on_ray.train", "--processes", str(processes))
    cluster.submit(submission, (*there, *training))
    asked_at = None
    with folder.events.open("rb") as events:
        while not (state := cluster.state(submission)).is_terminal():
            folder.order(Order.STOP if stop["asked"] else Order.GO)
            if stop["asked"]:
                asked_at = asked_at or time.monotonic()
                if time.monotonic() - asked_at > GRACE_SECONDS:
                    cluster.end(submission)
            _pass_on(events)
            time.sleep(LOOK_SECONDS)
        _pass_on(events)
    if (outcome := folder.outcome()) is not None:
        return outcome
    how = f"the Ray job {submission} has {state.value.lower()}"
    return Outcome(FAILED, f"distill: {how}: {cluster.last_words(submission)}")


def _pass_on(events: IO[bytes]) -> None:
    """Print the whole lines that are new."""
    for line in events:
        if not line.endswith(b"\n"):
            events.seek(-len(line), 1)
            return
        sys.stdout.buffer.write(line)
    sys.stdout.buffer.flush()


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:500] if lines else "it said nothing"


if __name__ == "__main__":
    sys.exit(main())
