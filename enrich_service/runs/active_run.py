"""The in-memory state of a run that this process is working on."""

import asyncio
import time
from collections import deque
from dataclasses import dataclass, field

from enrich_service.generations.models import GenerationFields, GenerationStatus, Run, RunState
from enrich_service.runs.answering.waiting_items import WaitingItems
from enrich_service.runs.plan import Item


@dataclass
class ActiveRun:
    """One run in this process."""

    run: Run
    waiting: WaitingItems  # that others are requesting
    state: RunState | None = RunState.RUNNING  # as last read; None: lease lost
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    reason: str | None = None  # why it stopped before its end
    pause: bool = False  # stopped until a user resumes it
    parked: list[tuple[float, int, Item]] = field(default_factory=list)  # heap by due time
    spent_usd: float = 0.0
    spent_tokens: int = 0
    consecutive_failures: int = 0
    finished: deque[float] = field(default_factory=lambda: deque(maxlen=200))  # times, monotonic
    task: asyncio.Task[None] | None = None
    calls_in_flight: int = 0
    claimed: set[str] = field(default_factory=set)  # keys of items in the queue
    current_items: dict[asyncio.Task[None], Item] = field(default_factory=dict)  # of each worker

    def rate(self) -> float | None:
        """Finished labels per second over the last 200; None with fewer than two."""
        if len(self.finished) < 2:
            return None
        return (len(self.finished) - 1) / max(1e-9, time.monotonic() - self.finished[0])

    def halt(self, reason: str, *, pause: bool = False) -> None:
        """Stop sending requests; the first reason given is kept."""
        if not self.stop.is_set():
            self.reason, self.pause = reason, pause
            self.stop.set()

    @property
    def is_running(self) -> bool:
        """Whether the run is in the state `running` and has not been halted."""
        return self.state is RunState.RUNNING and not self.stop.is_set()

    def may_start_call(self) -> bool:
        """Whether another call may start; an exhausted budget halts the run."""
        if self.stop.is_set() or self.calls_in_flight >= self.run.concurrency:
            return False
        if not self.within_budget():
            self.halt(
                f"the budget of the run is spent ({self.spent_tokens} tokens, "
                f"${self.spent_usd:.4f}): raise it and resume",
                pause=True,
            )
        return not self.stop.is_set()

    def on_generation(self, generation: GenerationFields) -> None:
        """Add the cost of a generation, and count consecutive failures."""
        self.spent_usd += generation.cost_usd or 0.0
        self.spent_tokens += (generation.prompt_tokens or 0) + (generation.completion_tokens or 0)
        if generation.status is not GenerationStatus.FAILED:
            self.consecutive_failures = 0
        elif generation.calls:  # an unreadable image is not a failure of the server
            self.consecutive_failures += 1

    def within_budget(self, *, usd: float = 0.0, tokens: int = 0) -> bool:
        """Whether the run's budgets allow spending the given amounts."""
        run = self.run
        return not (
            (run.budget_usd is not None and self.spent_usd + usd >= run.budget_usd)
            or (run.budget_tokens is not None and self.spent_tokens + tokens >= run.budget_tokens)
        )


def internal_error(error: Exception) -> str:
    """The message shown to users for an internal error."""
    return f"internal error ({type(error).__name__}), see the server log"
