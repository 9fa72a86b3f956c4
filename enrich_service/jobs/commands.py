"""`enrich jobs`."""

from typing import Annotated

import typer

from contract import JobState
from enrich_service.core.terminal.console import (
    Json,
    database,
    load_settings,
    read_session,
    show,
    write_session,
)
from enrich_service.jobs import reports, retention, service
from enrich_service.workers import service as workers

app = typer.Typer(no_args_is_help=True, help="Training jobs.")


@app.command("list")
def list_(
    state: Annotated[JobState | None, typer.Option(help="Filter by state.")] = None,
    limit: Annotated[int, typer.Option(min=1)] = 100,
    json: Json = False,
) -> None:
    """List jobs, newest first."""
    with read_session() as session:
        jobs = service.listing(session, state=state, limit=limit)
    show(
        jobs,
        json=json,
        columns=("id", "state", "release_id", "worker", "attempts", "created_at", "error"),
    )


@app.command("show")
def show_(job_id: int, json: Json = False) -> None:
    """Show a job."""
    with read_session() as session:
        show(service.view(session, service.get(session, job_id)), json=json)


@app.command()
def events(job_id: int, after: int = 0, json: Json = False) -> None:
    """List the events of a job."""
    with read_session() as session:
        service.get(session, job_id)
        show(service.events(session, job_id, after=after, limit=None), json=json)


@app.command("workers")
def list_workers(json: Json = False) -> None:
    """List workers, running ones first; --json adds their data sets and models."""
    with read_session() as session:
        jobs = service.held_jobs(session)
        views = workers.listing(session, load_settings().lease_seconds, jobs=jobs)
    show(views, json=json, columns=("name", "running", "job", "gpu", "memory_gb", "last_seen"))


@app.command()
def cancel(job_id: int, json: Json = False) -> None:
    """Cancel a job: immediately if queued, else when its worker stops."""
    with write_session() as session:
        view = service.view(session, service.cancel(session, job_id))
    show(view, json=json, columns=("id", "state", "cancel_requested"))


@app.command()
def confusable(job_id: int, json: Json = False) -> None:
    """Store the confusable classes of a job's report in its label set."""
    with write_session() as session:
        confusable = reports.store_confusable(session, load_settings().artifact_dir, job_id)
    show(confusable, json=json)


@app.command()
def retry(job_id: int, json: Json = False) -> None:
    """Queue a failed or cancelled job again. It resumes from its last checkpoint."""
    with write_session() as session:
        view = service.view(session, service.retry(session, job_id))
    show(view, json=json, columns=("id", "state", "attempts"))


@app.command()
def prune(
    weights: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Delete students, text banks and unregistered classifiers of jobs that ended this "
            "many days ago.",
        ),
    ] = None,
    logs: Annotated[
        float | None,
        typer.Option(
            min=0, help="Delete log lines and progress of jobs that ended this many days ago."
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Delete. Default: only count.")] = False,
    json: Json = False,
) -> None:
    """Count the data of old jobs; with --yes, delete it. The service may be running.

    Reports, images, epochs, states and registered students are kept. Files that belong to no job
    are deleted too if they are older than a day.
    """
    settings = load_settings()
    with database(settings) as engine:
        result = retention.prune(
            engine, settings.artifact_dir, weights_days=weights, log_days=logs, remove=yes
        )
    show(result, json=json)
