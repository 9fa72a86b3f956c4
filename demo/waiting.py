"""Waits for images, texts and students of the demo, with progress and without a deadline.

A wait fails only after STALL_SECONDS without progress.
"""

import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from contract import EventKind, JobState, TrainConfig
from demo.stack import DemoError, Process, Service, StallTimer
from distill.cli.console import ProgressDisplay

TRAINING = "Training"  # phase of a job whose progress is counted in steps


def progress_display(console: Console) -> ProgressDisplay:
    """Progress bars, or lines if `console` is not a terminal; each task has a field `status`."""
    columns = (
        TextColumn("{task.description:26}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[status]}"),
    )
    return ProgressDisplay(*columns, console=console)


def finish_images(renderer: Process, display: Progress, folder: Path, total: int) -> None:
    """Wait until `renderer` has written its `total` images below `folder`; raises DemoError."""
    bar = display.add_task("Images", total=total, status="")
    timer = StallTimer("rendering images", renderer.log)
    while not renderer.ended:
        done = sum(1 for _ in folder.rglob("*.png"))
        display.update(bar, completed=done)
        timer.check(done)
        time.sleep(0.3)
    if renderer.popen.returncode != 0:
        renderer.check()
    display.update(bar, completed=total)


def finish_run(service: Service, display: Progress, run: dict[str, Any]) -> dict[str, Any]:
    """Wait until the enrichment `run` has ended, and return the finished run.

    Raises:
        DemoError: it failed, or makes no progress.
    """
    title = f"Texts: {run['prompt']}"
    bar = display.add_task(title, total=run["total"], status="")
    timer = StallTimer(title, service.log)
    while run["state"] in ("queued", "running"):
        time.sleep(0.2)
        run = service.get(f"/v1/runs/{run['id']}")
        display.update(bar, completed=run["done"])
        timer.check((run["state"], run["done"]))
    if run["state"] != "succeeded":
        raise DemoError(
            f"the run of {run['prompt']} is {run['state']}: {run['error']}", service.log
        )
    return run


class FollowedJob:
    """A training job with a progress bar of its steps."""

    def __init__(
        self, service: Service, display: Progress, title: str, number: int, config: TrainConfig
    ) -> None:
        self.last_event = 0  # sequence number
        self.succeeded = False
        self._service, self._display = service, display
        self._number, self._config = number, config
        self._bar = display.add_task(f"Student: {title}", total=None, status="waiting")
        self._first_step: tuple[int, datetime] | None = None

    def update(self, log: Path) -> None:
        """Read new events and show them; raises DemoError if the job has failed."""
        job = self._service.get(f"/v1/jobs/{self._number}")
        events = self._service.get(f"/v1/jobs/{self._number}/events", after=self.last_event)
        for event in events:
            self.last_event = event["seq"]
            if event["kind"] == EventKind.PROGRESS:
                self._show(event["data"], datetime.fromisoformat(event["at"]))
        state = JobState(job["state"])
        self.succeeded = state is JobState.SUCCEEDED
        if self.succeeded:
            self._display.update(self._bar, status="done")
        elif state.is_final:
            raise DemoError(f"job {self._number} {state}: {job['error']}", log)

    def _show(self, progress: dict[str, Any], at: datetime) -> None:
        step, steps = progress["step"], progress["steps"]
        if progress["phase"] != TRAINING:
            status = f"{progress['phase']}, {step:,} of {steps:,}"
            self._display.update(self._bar, status=status)
            return
        self._first_step = self._first_step or (step, at)
        first, started_at = self._first_step
        epochs = self._config.epochs
        status = f"epoch {(step - 1) * epochs // steps + 1} of {epochs}"
        if (seconds := (at - started_at).total_seconds()) > 0:
            status += f", {(step - first) * self._config.batch_size / seconds:.0f} images/s"
        self._display.update(self._bar, completed=step, total=steps, status=status)


def follow(jobs: Sequence[FollowedJob], workers: Sequence[Process]) -> None:
    """Wait until all `jobs` have succeeded.

    Raises:
        DemoError: a job failed, no job makes progress, or all workers have ended.
    """
    log = workers[0].log
    timer = StallTimer("training", log)
    while waiting := [job for job in jobs if not job.succeeded]:
        # Checked first: workers may end normally while the jobs are requested.
        ended = all(worker.ended for worker in workers)
        for job in waiting:
            job.update(log)
        if ended and not all(job.succeeded for job in jobs):
            for worker in workers:
                worker.check()
        timer.check([job.last_event for job in jobs])
        time.sleep(0.5)
