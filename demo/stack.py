"""The demo's processes, and a REST client of the service."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import httpx

BIN = Path(sys.executable).parent  # the commands `enrich` and `distill` are here
STOP_SECONDS = 10
STALL_SECONDS = 300  # without progress before the demo gives up


class DemoError(Exception):
    """The demo failed. The message says why; `log` is the log file to show."""

    def __init__(self, message: str, log: Path | None = None) -> None:
        super().__init__(message)
        self.log = log


def child_environment() -> dict[str, str]:
    """The environment without the user's settings and keys of other services."""
    inherited = {
        variable: value
        for variable, value in os.environ.items()
        if not variable.startswith(("ENRICH_", "OPENAI_")) and variable != "DATABASE_URL"
    }
    return inherited | {"HF_HUB_OFFLINE": "1", "NO_PROXY": "127.0.0.1"}


class Process:
    """A child process in its own session, so that it is stopped together with its children."""

    def __init__(self, name: str, command: list[str], folder: Path, **settings: str) -> None:
        """Start it in `folder`; its output goes to `folder`/NAME.log."""
        self.name, self.log = name, folder / f"{name}.log"
        with self.log.open("wb") as log:
            self.popen = subprocess.Popen(
                command,
                cwd=folder,
                env=child_environment() | settings,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def ended(self) -> bool:
        """Whether it has ended."""
        return self.popen.poll() is not None

    def check(self) -> None:
        """Raise DemoError if it has ended."""
        if self.ended:
            raise DemoError(f"the {self.name} ended early ({self.popen.returncode})", self.log)

    def stop(self) -> None:
        """Terminate it, then kill it and its children."""
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
    """Handle SIGTERM and SIGHUP like Ctrl-C, which stops child processes first."""

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)


class StallTimer:
    """Detects a wait without progress."""

    def __init__(self, title: str, log: Path, seconds: float = STALL_SECONDS) -> None:
        self._title, self._log, self._seconds = title, log, seconds
        self._state: object = None
        self._since = time.monotonic()

    def check(self, state: object) -> None:
        """Record the current state; raises DemoError if it has not changed for `seconds`."""
        now = time.monotonic()
        if state != self._state:
            self._state, self._since = state, now
        elif now - self._since > self._seconds:
            raise DemoError(f"{self._title}: no progress for {self._seconds:g} s", self._log)


def wait_for_address(service: Process) -> str:
    """The address that the service says it listens on, once it does."""
    timer = StallTimer("start of the service", service.log)
    while True:
        service.check()
        output = service.log.read_text(encoding="utf-8", errors="replace")
        if match := re.search(r"running on (http://127\.0\.0\.1:\d+)", output):
            return match.group(1)
        timer.check(output)
        time.sleep(0.1)


class Service:
    """REST client of the service. An error response raises DemoError with its detail."""

    def __init__(self, process: Process, address: str) -> None:
        self.process, self.address = process, address
        self._http = httpx.Client(base_url=address, timeout=STALL_SECONDS, trust_env=False)

    @property
    def log(self) -> Path:
        """The log file of the service."""
        return self.process.log

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def send(self, method: str, path: str, **content: Any) -> httpx.Response:  # noqa: ANN401
        """Send a request; raises DemoError for an error response or no response."""
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
        """GET `path`, and return the JSON of the response."""
        return self.send("GET", path, params=parameters).json()

    def post(self, path: str, body: dict[str, Any]) -> Any:  # noqa: ANN401 - any JSON
        """POST a JSON body, and return the JSON of the response."""
        return self.send("POST", path, json=body).json()
