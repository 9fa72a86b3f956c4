"""The service and the worker as processes, and the service as its users see it over REST."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import httpx
from rich.progress import Progress

from contract import JobState

BIN = Path(sys.executable).parent  # of the environment, where `enrich` and `distill` lie
START_SECONDS, STOP_SECONDS = 60, 10


class DemoError(Exception):
    """The demo cannot go on. The message says why; `log` is the file to look at."""

    def __init__(self, message: str, log: Path | None = None) -> None:
        super().__init__(message)
        self.log = log


class Process:
    """A child in a session of its own, so that it is stopped with all that it started."""

    def __init__(self, name: str, command: list[str], folder: Path, **settings: str) -> None:
        """Start it in `folder`; its output goes to `folder`/NAME.log."""
        self.name, self.log = name, folder / f"{name}.log"
        # What the user has set for other services must not reach this one, least of all a key.
        inherited = {
            variable: value
            for variable, value in os.environ.items()
            if not variable.startswith(("ENRICH_", "OPENAI_")) and variable != "DATABASE_URL"
        }
        with self.log.open("wb") as log:
            self.popen = subprocess.Popen(
                command,
                cwd=folder,
                env=inherited | settings | {"HF_HUB_OFFLINE": "1", "NO_PROXY": "127.0.0.1"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def ended(self) -> bool:
        """Whether it runs no more."""
        return self.popen.poll() is not None

    def check(self) -> None:
        """Raise DemoError if it has ended."""
        if self.ended:
            raise DemoError(f"the {self.name} ended early ({self.popen.returncode})", self.log)

    def stop(self) -> None:
        """Ask it to end, then end it and what it started."""
        if not self.ended:
            self.popen.terminate()
            with suppress(subprocess.TimeoutExpired):
                self.popen.wait(STOP_SECONDS)
        with suppress(ProcessLookupError):
            os.killpg(self.popen.pid, signal.SIGKILL)
        self.popen.wait()


@contextmanager
def started(name: str, command: list[str], folder: Path, **settings: str) -> Iterator[Process]:
    process = Process(name, command, folder, **settings)
    try:
        yield process
    finally:
        process.stop()


def stop_tidily() -> None:
    """Let SIGTERM and SIGHUP end this process as Ctrl-C does: after what it started."""

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)


def wait_for_address(service: Process) -> str:
    """The address that the service says it listens on, once it does."""
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until:
        service.check()
        said = service.log.read_text(encoding="utf-8", errors="replace")
        if found := re.search(r"running on (http://127\.0\.0\.1:\d+)", said):
            return found.group(1)
        time.sleep(0.1)
    raise DemoError(f"the service did not start within {START_SECONDS} s", service.log)


class Service:
    """The service as its users see it. Each refusal is a DemoError in the service's own words."""

    def __init__(self, process: Process, address: str) -> None:
        self.process, self.address = process, address
        self._http = httpx.Client(base_url=address, timeout=30, trust_env=False)

    @property
    def log(self) -> Path:
        """The file that the service writes to."""
        return self.process.log

    def close(self) -> None:
        """Let go of the connection."""
        self._http.close()

    def send(self, method: str, path: str, **content: Any) -> httpx.Response:  # noqa: ANN401
        """Send a request; raises DemoError if it is refused or gets no answer."""
        try:
            response = self._http.request(method, path, **content)
        except httpx.HTTPError as error:
            self.process.check()
            raise DemoError(f"{method} {path}: {error}", self.process.log) from None
        if response.is_error:
            with suppress(ValueError, KeyError):
                raise DemoError(f"{method} {path}: {response.json()['detail']}", self.process.log)
            raise DemoError(f"{method} {path}: {response.status_code}", self.process.log)
        return response

    def get(self, path: str, **parameters: Any) -> Any:  # noqa: ANN401 - any JSON
        """Read what lies at `path`."""
        return self.send("GET", path, params=parameters).json()

    def post(self, path: str, body: dict[str, Any]) -> Any:  # noqa: ANN401 - any JSON
        """Send a JSON body and read the JSON that comes back."""
        return self.send("POST", path, json=body).json()


def finish_run(
    service: Service, bars: Progress, run: dict[str, Any], *, seconds: float
) -> dict[str, Any]:
    """Wait until the enrichment `run` has ended; the finished run.

    Raises:
        DemoError: it has not succeeded, or not within `seconds`.
    """
    bar = bars.add_task(f"Texts: {run['prompt']}", total=run["total"])
    until = time.monotonic() + seconds
    while run["state"] in ("queued", "running") and time.monotonic() < until:
        time.sleep(0.2)
        run = service.get(f"/v1/runs/{run['id']}")
        bars.update(bar, completed=run["done"])
    if run["state"] != "succeeded":
        raise DemoError(
            f"the run of {run['prompt']} is {run['state']}: {run['error']}", service.log
        )
    return run


def follow(
    service: Service,
    worker: Process,
    bars: Progress,
    jobs: Mapping[str, int],
    *,
    epochs: int,
    seconds: float,
) -> None:
    """Wait until all `jobs` (title to id) have succeeded, showing their epochs.

    Raises:
        DemoError: one has not succeeded, the worker has ended, or `seconds` have passed.
    """
    shown = {title: bars.add_task(f"Student: {title}", total=epochs) for title in jobs}
    last = dict.fromkeys(jobs, 0)
    until = time.monotonic() + seconds
    waiting = list(jobs)
    while waiting and time.monotonic() < until:
        left = worker.ended  # looked up first: it may end rightly while the jobs are asked for
        for title in list(waiting):
            number = jobs[title]
            job = service.get(f"/v1/jobs/{number}")
            for event in service.get(f"/v1/jobs/{number}/events", after=last[title]):
                last[title] = event["seq"]
                if event["kind"] == "epoch":
                    bars.update(shown[title], completed=event["data"]["epoch"])
            if job["state"] == JobState.SUCCEEDED:
                waiting.remove(title)
            elif JobState(job["state"]).is_final:
                raise DemoError(f"job {number} {job['state']}: {job['error']}", worker.log)
        if waiting and left:
            worker.check()
        time.sleep(0.5)
    if waiting:
        raise DemoError(f"no end of {', '.join(waiting)} after {seconds:g} s", worker.log)
