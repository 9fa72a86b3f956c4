"""`enrich release`."""

from typing import Annotated

import typer
from sqlmodel import Session

from enrich_service.core.terminal.console import (
    Author,
    Json,
    load_settings,
    read_session,
    request,
    show,
    write_session,
)
from enrich_service.generations.models import GenerationSource, Run
from enrich_service.releases import service, translations
from enrich_service.releases.choose_texts import parse_source
from enrich_service.releases.schemas import ReleaseCreate, TranslationCreate
from enrich_service.runs import estimate as estimates
from enrich_service.runs import service as run_service
from enrich_service.runs.commands import Alias, Model, Version, start_or_estimate
from enrich_service.runs.schemas import RunEstimate

app = typer.Typer(no_args_is_help=True, help="Releases: immutable texts for every label.")


@app.command()
def create(
    label_set: str,
    name: str,
    source: Annotated[
        list[str] | None,
        typer.Option(help="PROMPT@VERSION or PROMPT@ALIAS; repeat for several fields."),
    ] = None,
    language: Annotated[
        list[str] | None,
        typer.Option(help="Language of the texts; repeat in order of preference."),
    ] = None,
    message: Annotated[str, typer.Option(help="Purpose of the release.")] = "",
    author: Author = "",
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Allow labels without text.")
    ] = False,
    approved_only: Annotated[
        bool, typer.Option("--approved-only", help="Use only approved or locked texts.")
    ] = False,
    json: Json = False,
) -> None:
    """Create a release. Default sources: texts written by people, and imported texts."""
    body = request(
        ReleaseCreate,
        label_set=label_set,
        name=name,
        sources=[parse_source(text) for text in source or ()],
        languages=language or [],
        message=message,
        author=author,
        allow_missing=allow_missing,
        approved_only=approved_only,
    )
    with write_session() as session:
        row, _ = service.create(session, body)
        view = service.view(session, row)
    show(view, json=json)


@app.command()
def translate(
    release: Annotated[str, typer.Argument(help="Release name or id.")],
    language: Annotated[str, typer.Option(help="Language of the new texts.")],
    prompt: Annotated[str, typer.Option(help="Prompt that uses {{ texts }}.")] = "translation",
    version: Version = None,
    alias: Alias = None,
    model: Model = None,
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
    """Translate the texts of a release in a new run. Ctrl-C pauses the run.

    Then create a release: `enrich release create … --source translation@production --language …`.
    """
    settings = load_settings()
    body = request(
        TranslationCreate,
        prompt=prompt,
        version=version,
        alias=alias,
        model=model,
        language=language,
        concurrency=concurrency,
        budget_usd=budget_usd,
        budget_tokens=budget_tokens,
        author=author,
    )

    def begin(session: Session, source: GenerationSource) -> Run | RunEstimate:
        release_id = service.id_of(session, release)
        plan = translations.prepare(session, release_id, body, settings, source)
        create = estimates.estimate if estimate else run_service.create_run
        return create(session, plan.body, plan.plan, settings.prices, texts=plan.texts)

    start_or_estimate(settings, begin, estimate=estimate, json=json)


@app.command("list")
def list_(
    label_set: Annotated[str | None, typer.Option(help="Filter by label set.")] = None,
    json: Json = False,
) -> None:
    """List releases, newest first."""
    with read_session() as session:
        show(service.listing(session, label_set=label_set, limit=None), json=json)


@app.command()
def diff(before: str, after: str, json: Json = False) -> None:
    """Show labels whose texts differ between two releases (names or ids)."""
    with read_session() as session:
        old, new = service.id_of(session, before), service.id_of(session, after)
        changes = service.diff(session, old, new)
    show(changes if json else changes.changed, json=json)
