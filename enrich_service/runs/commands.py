"""`enrich describe` and `enrich run`: what the service does, in this process.

A run is stored in the database: Ctrl-C pauses it; a killed run can be resumed, or taken over by a
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
    bars,
    database,
    load_settings,
    read_session,
    request,
    show,
    working,
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
POLL_INTERVAL_S = 0.2  # between looks at a run whose progress is shown
PROGRESS_INTERVAL_S = 10.0  # between lines of progress where standard error is no terminal

app = typer.Typer(no_args_is_help=True, help="Enrichment of whole label sets.")
_RUN_COLUMNS = ("id", "state", "label_set", "prompt", "prompt_version", "model", "done", "total")

Prompt = Annotated[str, typer.Option(help="Name of the prompt.")]
Version = Annotated[int | None, typer.Option(help="Version number.")]
Alias = Annotated[str | None, typer.Option(help="Or an alias; default: production, if it has it.")]
Model = Annotated[str | None, typer.Option(help="Model to ask; default: ENRICH_LLM_MODEL.")]
Texts = Annotated[int, typer.Option("-n", "--texts", help="Sentences or captions an answer.")]
Language = Annotated[str, typer.Option(help="Language of the answer.")]


@asynccontextmanager
async def open_enricher(engine: Engine, settings: Settings) -> AsyncIterator[Enricher]:
    """An enricher with a configured language model."""
    enricher = Enricher(engine, settings)
    enricher.model  # noqa: B018 - nothing is begun without a language model
    try:
        yield enricher
    finally:
        await enricher.aclose()


def describe(
    names: Annotated[list[str], typer.Argument(help="One to 100 class names.")],
    context: Annotated[
        str | None, typer.Option(help="What kind of thing they are, e.g. 'a bird'.")
    ] = None,
    prompt: Prompt = DEFAULT_PROMPT,
    version: Version = None,
    alias: Alias = None,
    model: Model = None,
    n: Texts = 1,
    language: Language = ENGLISH,
    refresh: Annotated[
        bool, typer.Option("--refresh", help="Ask for a new sample of what is there already.")
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

    async def ask(engine: Engine) -> list[Described]:
        async with open_enricher(engine, settings) as enricher:
            return await describing.describe(enricher, body)

    with database(settings) as engine, working("Asking"):
        found = asyncio.run(ask(engine))
    show(found, json=json, columns=("label", "status", "text"))
    missing = [
        described for described in found if described.status is not GenerationStatus.ACCEPTED
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
            help="Folder of class folders named by the labels' keys: ask about each image.",
        ),
    ] = None,
    batch: Annotated[
        bool,
        typer.Option(
            "--batch", help="Ask by the provider's Batch API: within a day, for half the price."
        ),
    ] = False,
    samples: Annotated[int, typer.Option(help="Generations for each label or image.")] = 1,
    concurrency: Annotated[int, typer.Option(help="Concurrent calls.")] = 16,
    budget_usd: Annotated[float | None, typer.Option(help="Pause when this is spent.")] = None,
    budget_tokens: Annotated[int | None, typer.Option(help="Pause when these are used.")] = None,
    author: Author = "",
    estimate: Annotated[
        bool, typer.Option("--estimate", help="Ask nothing: tell what it would take.")
    ] = False,
    json: Json = False,
) -> None:
    """Enrich a label set, or caption images of it, and show progress. Ctrl-C pauses."""
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

    carry_out(settings, begin, estimate=estimate, json=json)


def carry_out(
    settings: Settings,
    begin: Callable[[Session, GenerationSource], Run | RunEstimate],
    *,
    estimate: bool,
    json: bool,
) -> None:
    """Print the estimate that `begin` returns, or work on its run and print the outcome."""

    async def go(engine: Engine) -> RunView | RunEstimate:
        async with open_enricher(engine, settings) as enricher:
            opened = reading if estimate else writing
            with working("Looking for what to ask"), opened(engine) as session:
                made = begin(session, enricher.source)
                if isinstance(made, RunEstimate):
                    return made
                view = service.run_view(session, made)
            return await _work(engine, enricher, view)

    with database(settings) as engine:
        found = asyncio.run(go(engine))
        if isinstance(found, RunEstimate):
            show(found, json=json)
            if found.cost_usd is None and found.to_ask:
                typer.echo("The price of the model is unknown: set ENRICH_PRICES.", err=True)
        else:
            _report(engine, found, json=json)


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

    _go_on(settings, run_id, queue, json=json)


@app.command()
def retry(run_id: int, json: Json = False) -> None:
    """Request the missing answers of a failed or cancelled run; stored answers are reused.

    A run that is paused or was interrupted is resumed.
    """

    def queue(session: Session) -> None:
        service.retry_run(session, run_id)

    _go_on(load_settings(), run_id, queue, json=json)


def _go_on(
    settings: Settings, run_id: int, queue: Callable[[Session], None], *, json: bool
) -> None:
    """Work on a stored run after `queue` has queued it again, and print the outcome."""

    async def go_on(engine: Engine) -> RunView:
        async with open_enricher(engine, settings) as enricher:
            with writing(engine) as session:
                queue(session)
                view = service.run_view(session, service.get_run(session, run_id))
            return await _work(engine, enricher, view)

    with database(settings) as engine:
        _report(engine, asyncio.run(go_on(engine)), json=json)


async def _work(engine: Engine, enricher: Enricher, run: RunView) -> RunView:
    """Work on `run` until it ends, or until SIGINT or SIGTERM pauses it; returns its state."""
    asked = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, asked.set)
    runs = RunScheduler(engine, enricher, only=run.id)
    runs.start()
    try:
        with bars() as shown:
            bar = shown.add_task(f"run {run.id}, {run.prompt}", total=run.total)
            told_at = time.monotonic()
            while run.state in OPEN_STATES:
                if asked.is_set():
                    await asyncio.to_thread(_pause, engine, run.id)
                    asked.clear()
                    runs.wake()
                try:
                    async with asyncio.timeout(POLL_INTERVAL_S):
                        await asked.wait()
                except TimeoutError:
                    pass
                run = await asyncio.to_thread(_view, engine, run.id, runs.active(run.id))
                shown.update(bar, completed=run.done, total=run.total)
                if shown.disable and time.monotonic() - told_at >= PROGRESS_INTERVAL_S:
                    typer.echo(_progress_line(run), err=True)
                    told_at = time.monotonic()
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
    """The progress of a run, for a log file."""
    parts = [f"run {run.id}: {run.done} of {run.total}"]
    if run.rate:
        parts.append(f"{run.rate:.1f} a second")
    if run.cost_usd is not None:
        parts.append(f"${run.cost_usd:.4f} so far")
    if run.rate:
        left = timedelta(seconds=round((run.total - run.done) / run.rate))
        parts.append(f"{left} left")
    return "enrich: " + ", ".join(parts)


def _report(engine: Engine, run: RunView, *, json: bool) -> None:
    """Print the outcome of a run; the exit status says whether it is complete."""
    show(run, json=json)
    with reading(engine) as session:
        groups = failures(session, run.id) if run.failed or run.rejected else []
    for group in groups:
        named = ", ".join(group.named) + (", …" if group.labels > len(group.named) else "")
        typer.echo(f"enrich: {group.reason}: {group.labels}: {named}", err=True)
    if run.state is RunState.PAUSED:
        why = f" ({run.error})" if run.error else ""
        typer.echo(
            f"enrich: run {run.id} is paused at {run.done} of {run.total}{why}: "
            f"`enrich run resume {run.id}` goes on",
            err=True,
        )
        raise typer.Exit(INTERRUPTED)
    if run.state is not RunState.SUCCEEDED:
        why = run.error or "cancelled"
        typer.echo(
            f"enrich: run {run.id} {run.state}: {why}; what was answered is kept, and "
            f"`enrich run retry {run.id}` asks for the rest",
            err=True,
        )
        raise typer.Exit(1)


@app.command("list")
def list_(
    label_set: Annotated[str | None, typer.Option(help="Only of this label set.")] = None,
    state: Annotated[RunState | None, typer.Option(help="Only in this state.")] = None,
    limit: Annotated[int, typer.Option(min=1)] = 100,
    json: Json = False,
) -> None:
    """List runs, the newest first."""
    with read_session() as session:
        runs = service.list_runs(session, label_set=label_set, state=state, limit=limit, offset=0)
        found = [service.run_view(session, run) for run in runs]
    show(found, json=json, columns=_RUN_COLUMNS)


@app.command("show")
def show_(run_id: int, json: Json = False) -> None:
    """Show a run."""
    with read_session() as session:
        show(service.run_view(session, service.get_run(session, run_id)), json=json)


@app.command()
def pause(run_id: int, json: Json = False) -> None:
    """Pause a run, even if another process is working on it."""
    with write_session() as session:
        found = service.run_view(session, service.pause_run(session, run_id))
    show(found, json=json, columns=_RUN_COLUMNS)


@app.command()
def cancel(run_id: int, json: Json = False) -> None:
    """Cancel a run, even if another process is working on it; stored answers are kept."""
    with write_session() as session:
        found = service.run_view(session, service.cancel_run(session, run_id))
    show(found, json=json, columns=_RUN_COLUMNS)
