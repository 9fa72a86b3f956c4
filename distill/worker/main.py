"""The worker's loop, which claims jobs and runs them one at a time."""

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, Final

from contract import Lease
from distill.data.memory import memory_bytes
from distill.errors import RequestRefused, ServiceUnavailable
from distill.worker.attempt import Attempt
from distill.worker.client import CLAIM, RETRY_DEADLINE_S, ServiceClient
from distill.worker.gpus import has_gpu
from distill.worker.offers import Announcer
from distill.worker.outbox import notes

TRAIN: Final = (sys.executable, "-m", "distill", "train")
POLL_INTERVAL_S: Final = 2.0  # between two claims while the queue is empty


def work(  # noqa: PLR0913 - the options of a worker
    service_url: str,
    *,
    work_dir: Path,
    name: str,
    once: bool = False,
    api_key: str | None = None,
    command: Sequence[str] = TRAIN,
    resources: Mapping[str, Any] | None = None,
    device: str | None = None,
    data_roots: Sequence[Path] = (),
) -> None:
    """Run jobs until SIGTERM or SIGINT; with `once`, until the queue is empty.

    When the worker is stopped, the training writes its checkpoint, and the job can be claimed again
    after its lease has expired. `command` is the training command, to which the options of `distill
    train` are appended. `resources` (GPU and memory) and `device` (a name) describe the machine, by
    default this one. With `data_roots`, jobs may read images and teachers only in these folders.

    Raises:
        ServiceError: the service does not answer at the start, is unreachable for too long, or
            rejects the API key.
        DataError: `work_dir` cannot be written to.
    """
    command = [*command, *(part for root in data_roots for part in ("--data-root", str(root)))]
    stop = threading.Event()
    service = ServiceClient(service_url, api_key, stop)
    resources = resources or {"gpu": has_gpu(), "memory_gb": memory_gb()}
    claim = {"worker": name, **resources}
    announcer = Announcer(
        service, name, resources, work_dir=work_dir, data_roots=data_roots, device=device
    )
    with contextlib.closing(service), _stop_on_signals(stop), contextlib.closing(announcer):
        # A wrong address is reported at once: retries start only after a first answer.
        answer = service.send("POST", CLAIM, body=claim)
        notes.print(f"worker {name} at {service.shown_url}")
        announcer.start()
        while True:
            if answer.status_code == 200:
                lease = service.parse(Lease, answer)
                service.retry_deadline = max(RETRY_DEADLINE_S, 3 * lease.seconds)
                _run_attempt(Attempt(service, lease, work_dir, tuple(command), stop))
            elif once:
                return
            else:
                stop.wait(POLL_INTERVAL_S)
            if stop.is_set():
                return
            try:
                answer = service.send_with_retries("POST", CLAIM, body=claim)
            except ServiceUnavailable:
                if stop.is_set():
                    return
                raise


def _run_attempt(attempt: Attempt) -> None:
    """Run one attempt; a request that the service rejects ends only this job."""
    try:
        attempt.run()
    except RequestRefused as error:
        attempt.log(f"given up: {error}; it is queued again after its lease has expired")


def memory_gb() -> float:
    """The memory in GiB that this process may use."""
    return round(memory_bytes() / 2**30, 1)


@contextlib.contextmanager
def _stop_on_signals(stop: threading.Event) -> Iterator[None]:
    """SIGTERM and SIGINT set `stop`, if this is the main thread."""

    def on_signal(_signal: int, _frame: FrameType | None) -> None:
        stop.set()

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.signal(number, on_signal) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
