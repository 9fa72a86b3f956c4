"""`enrich describe` and `enrich run`, which call the language model in this process.

A run is stored in the database: Ctrl-C pauses it; a killed run can be resumed, or continued by a
service that uses the same database.
"""

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import typer
from sqlalchemy import Engine
from sqlmodel import Session

from enrich_service.core.settings import Settings
from enrich_service.core.storage.database import reading, writing
from enrich_service.core.terminal.console import (
    Author,
    Json,
    database,
    load_settings,
    progress_bars,
    read_session,
    request,
    show,
    spinner,
    write_session,
)
from enrich_service.generations.models import (
    GenerationSource,
    GenerationStatus,
    Run,
    RunMode,
    RunState,
)
from enrich_service.prompts.schemas import DEFAULT_PROMPT
from enrich_service.runs import describe as describing
from enrich_service.runs import estimate as estimates
from enrich_service.runs import service
from enrich_service.runs.active_run import ActiveRun
from enrich_service.runs.answering.enricher import Enricher
from enrich_service.runs.failures import failures
from enrich_service.runs.plan import choose
from enrich_service.runs.scheduling.leases import OPEN_STATES
from enrich_service.runs.scheduling.scheduler import RunScheduler
from enrich_service.runs.schemas import Described, DescribeRequest, RunCreate, RunEstimate, RunView
from enrich_service.validation.answer import ENGLISH

INTERRUPTED = 75  # EX_TEMPFAIL: stopped on request, can be resumed
POLL_INTERVAL_S = 0.2  # between reads of a run whose progress is shown
PROGRESS_INTERVAL_S = 10.0  # between progress lines if standard error is not a terminal

app = typer.Typer(no_args_is_help=True, help="Enrichment of whole label sets.")
_RUN_COLUMNS = ("id", "state", "label_set", "prompt", "prompt_version", "model", "done", "total")

Prompt = Annotated[str, typer.Option(help="Name of the prompt.")]
Version = Annotated[int | None, typer.Option(help="Version number.")]
Alias = Annotated[
    str | None, typer.Option(help="Version alias. Default: production, or the newest version.")
]
Model = Annotated[str | None, typer.Option(help="Language model. Default: ENRICH_LLM_MODEL.")]
Texts = Annotated[int, typer.Option("-n", "--texts", help="Sentences or captions per answer.")]
Language = Annotated[str, typer.Option(help="Language of the answer.")]


@asynccontextmanager
async def open_enricher(engine: Engine, settings: Settings) -> AsyncIterator[Enricher]:
    """An enricher with a configured language model."""
    enricher = Enricher(engine, settings)
    enricher.model  # noqa: B018 - raises early without a language model
    try:
        yield enricher
    finally:
        await enricher.aclose()


def describe(
    names: Annotated[list[str], typer.Argument(help="One to 100 class names.")],
    context: Annotated[
        str | None, typer.Option(help="Context of the classes, e.g. 'a bird'.")
    ] = None,
    prompt: Prompt = DEFAULT_PROMPT,
    version: Version = None,
    alias: Alias = None,
    model: Model = None,
    n: Texts = 1,
    language: Language = ENGLISH,
    refresh: Annotated[
        bool, typer.Option("--refresh", help="Request a new answer even if one is stored.")
    ] = False,
    json: Json = False,
) -> None:
    """Describe class names. Stored answers are reused at no cost."""
    settings = load_settings()
    body = request(
        DescribeRequest,
        labels=[{"name": name, "context": context} for name in names],
        prompt=prompt,
        version=version,
        alias=alias,
        model=model,
        n=n,
        language=language,
        refresh=refresh,
    )

    async def run(engine: Engine) -> list[Described]:
        async with open_enricher(engine, settings) as enricher:
            return await describing.describe(enricher, body)

    with database(settings) as engine, spinner("Waiting for the language model"):
        results = asyncio.run(run(engine))
    show(results, json=json, columns=("label", "status", "text"))
    missing = [
        described for described in results if described.status is not GenerationStatus.ACCEPTED
    ]
    for described in missing:
        problems = "; ".join(described.problems)
        typer.echo(f"enrich: {described.label!r} {described.status}: {problems}", err=True)
    if missing:
        raise typer.Exit(1)


@app.command()
def start(
    label_set: str,
    prompt: Prompt = DEFAULT_PROMPT,
    version: Version = None,
    alias: Alias = None,
    model: Model = None,
    n: Texts = 1,
    language: Language = ENGLISH,
    images: Annotated[
        Path | None,
        typer.Option(
            file_okay=False,
            help="Folder with a folder of images per label, named by its key: caption each image.",
        ),
    ] = None,
    batch: Annotated[
        bool,
        typer.Option(
            "--batch", help="Use the provider's Batch API: within a day, at half the price."
        ),
    ] = False,
    samples: Annotated[int, typer.Option(help="Generations per label or image.")] = 1,
    concurrency: Annotated[int, typer.Option(help="Concurrent calls.")] = 16,
    budget_usd: Annotated[float | None, typer.Option(help="Pause at this cost in USD.")] = None,
    budget_tokens: Annotated[
        int | None, typer.Option(help="Pause at this number of tokens.")
    ] = None,
    author: Author = "",
    estimate: Annotated[
        bool, typer.Option("--estimate", help="Print the estimated cost; make no calls.")
    ] = False,
    json: Json = False,
) -> None:
    """Enrich a label set, or caption its images, and show progress. Ctrl-C pauses the run."""
    settings = load_settings()
    body = request(
        RunCreate,
        label_set=label_set,
        prompt=prompt,
        version=version,
        alias=alias,
        model=model,
        n=n,
        language=language,
        images=images and str(images),
        mode=RunMode.BATCH if batch else RunMode.LIVE,
        samples=samples,
        concurrency=concurrency,
        budget_usd=budget_usd,
        budget_tokens=budget_tokens,
        author=author,
    )

    def begin(session: Session, source: GenerationSource) -> Run | RunEstimate:
        plan = choose(session, body, settings, source)
        if estimate:
            return estimates.estimate(session, body, plan, settings.prices, roots=None)
        return service.create_run(session, body, plan, settings.prices, roots=None)

    start_or_estimate(settings, begin, estimate=estimate, json=json)


def start_or_estimate(
    settings: Settings,
    begin: Callable[[Session, GenerationSource], Run | RunEstimate],
    *,
    estimate: bool,
    json: bool,
) -> None:
    """Print the estimate that `begin` returns, or work on its run and print the outcome."""

    async def execute(engine: Engine) -> RunView | RunEstimate:
        async with open_enricher(engine, settings) as enricher:
            open_session = reading if estimate else writing
            with spinner("Counting the requests"), open_session(engine) as session:
                begun = begin(session, enricher.source)
                if isinstance(begun, RunEstimate):
                    return begun
                view = service.run_view(session, begun)
            return await _work(engine, enricher, view)

    with database(settings) as engine:
        result = asyncio.run(execute(engine))
        if isinstance(result, RunEstimate):
            show(result, json=json)
            if result.cost_usd is None and result.new_requests:
                typer.echo("The price of the model is unknown: set ENRICH_PRICES.", err=True)
        else:
            _report(engine, result, json=json)


@app.command()
def resume(
    run_id: int,
    budget_usd: Annotated[float | None, typer.Option(help="New budget.")] = None,
    budget_tokens: Annotated[int | None, typer.Option(help="New budget.")] = None,
    json: Json = False,
) -> None:
    """Resume a paused, failed, cancelled or interrupted run; stored answers are reused."""
    settings = load_settings()

    def queue(session: Session) -> None:
        run = service.get_run(session, run_id)
        if run.state is RunState.PAUSED:
            service.resume_run(
                session,
                run_id,
                settings.prices,
                budget_usd=budget_usd,
                budget_tokens=budget_tokens,
            )
        elif run.state not in OPEN_STATES:
            service.retry_run(session, run_id)

    _continue(settings, run_id, queue, json=json)


@app.command()
def retry(run_id: int, json: Json = False) -> None:
    """Request the missing answers of a failed or cancelled run; stored answers are reused.

    A run that is paused or was interrupted is resumed.
    """

    def queue(session: Session) -> None:
        service.retry_run(session, run_id)

    _continue(load_settings(), run_id, queue, json=json)


def _continue(
    settings: Settings, run_id: int, queue: Callable[[Session], None], *, json: bool
) -> None:
    """Work on a stored run after `queue` has queued it again, and print the outcome."""

    async def execute(engine: Engine) -> RunView:
        async with open_enricher(engine, settings) as enricher:
            with writing(engine) as session:
                queue(session)
                view = service.run_view(session, service.get_run(session, run_id))
            return await _work(engine, enricher, view)

    with database(settings) as engine:
        _report(engine, asyncio.run(execute(engine)), json=json)


async def _work(engine: Engine, enricher: Enricher, run: RunView) -> RunView:
    """Work on `run` until it ends, or until SIGINT or SIGTERM pauses it; returns its state."""
    interrupted = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, interrupted.set)
    runs = RunScheduler(engine, enricher, only=run.id)
    runs.start()
    try:
        with progress_bars() as bars:
            bar = bars.add_task(f"run {run.id}, {run.prompt}", total=run.total)
            printed_at = time.monotonic()
            while run.state in OPEN_STATES:
                if interrupted.is_set():
                    await asyncio.to_thread(_pause, engine, run.id)
                    interrupted.clear()
                    runs.wake()
                try:
                    async with asyncio.timeout(POLL_INTERVAL_S):
                        await interrupted.wait()
                except TimeoutError:
                    pass
                run = await asyncio.to_thread(_view, engine, run.id, runs.active(run.id))
                bars.update(bar, completed=run.done, total=run.total)
                if bars.disable and time.monotonic() - printed_at >= PROGRESS_INTERVAL_S:
                    typer.echo(_progress_line(run), err=True)
                    printed_at = time.monotonic()
    finally:
        await runs.stop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
    return await asyncio.to_thread(_view, engine, run.id)


def _pause(engine: Engine, run_id: int) -> None:
    with writing(engine) as session:
        if service.get_run(session, run_id).state in OPEN_STATES:
            service.pause_run(session, run_id)


def _view(engine: Engine, run_id: int, active: ActiveRun | None = None) -> RunView:
    with reading(engine) as session:
        return service.run_view(session, service.get_run(session, run_id), active)


def _progress_line(run: RunView) -> str:
    """The progress of a run as a line for a log file."""
    parts = [f"run {run.id}: {run.done} of {run.total}"]
    if run.rate:
        parts.append(f"{run.rate:.1f} per second")
    if run.cost_usd is not None:
        parts.append(f"${run.cost_usd:.4f} so far")
    if run.rate:
        remaining = timedelta(seconds=round((run.total - run.done) / run.rate))
        parts.append(f"{remaining} left")
    return "enrich: " + ", ".join(parts)


def _report(engine: Engine, run: RunView, *, json: bool) -> None:
    """Print the outcome of a run. Raises Exit unless it is complete."""
    show(run, json=json)
    with reading(engine) as session:
        groups = failures(session, run.id) if run.failed or run.rejected else []
    for group in groups:
        names = ", ".join(group.names) + (", …" if group.labels > len(group.names) else "")
        typer.echo(f"enrich: {group.reason}: {group.labels}: {names}", err=True)
    if run.state is RunState.PAUSED:
        reason = f" ({run.error})" if run.error else ""
        typer.echo(
            f"enrich: run {run.id} is paused at {run.done} of {run.total}{reason}: "
            f"continue with `enrich run resume {run.id}`",
            err=True,
        )
        raise typer.Exit(INTERRUPTED)
    if run.state is not RunState.SUCCEEDED:
        reason = run.error or "cancelled"
        typer.echo(
            f"enrich: run {run.id} {run.state}: {reason}; stored answers are kept, get the others "
            f"with `enrich run retry {run.id}`",
            err=True,
        )
        raise typer.Exit(1)


@app.command("list")
def list_(
    label_set: Annotated[str | None, typer.Option(help="Filter by label set.")] = None,
    state: Annotated[RunState | None, typer.Option(help="Filter by state.")] = None,
    limit: Annotated[int, typer.Option(min=1)] = 100,
    json: Json = False,
) -> None:
    """List runs, newest first."""
    with read_session() as session:
        runs = service.list_runs(session, label_set=label_set, state=state, limit=limit, offset=0)
        views = [service.run_view(session, run) for run in runs]
    show(views, json=json, columns=_RUN_COLUMNS)


@app.command("show")
def show_(run_id: int, json: Json = False) -> None:
    """Show a run."""
    with read_session() as session:
        show(service.run_view(session, service.get_run(session, run_id)), json=json)


@app.command()
def pause(run_id: int, json: Json = False) -> None:
    """Pause a run, even if another process is working on it."""
    with write_session() as session:
        view = service.run_view(session, service.pause_run(session, run_id))
    show(view, json=json, columns=_RUN_COLUMNS)


@app.command()
def cancel(run_id: int, json: Json = False) -> None:
    """Cancel a run, even if another process is working on it; stored answers are kept."""
    with write_session() as session:
        view = service.run_view(session, service.cancel_run(session, run_id))
    show(view, json=json, columns=_RUN_COLUMNS)
