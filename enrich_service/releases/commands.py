"""`enrich release`."""

from typing import Annotated

import typer

from enrich_service.core.console import Json, read_session, show, write_session
from enrich_service.releases import service

app = typer.Typer(no_args_is_help=True, help="Releases: frozen texts for every label.")


@app.command()
def create(
    label_set: str,
    name: str,
    source: Annotated[
        list[str] | None,
        typer.Option(help="PROMPT@VERSION or PROMPT@ALIAS; several fill several fields."),
    ] = None,
    language: Annotated[
        list[str] | None,
        typer.Option(help="Language of the texts; of several, the first that has one wins."),
    ] = None,
    message: Annotated[str, typer.Option(help="Why this release exists.")] = "",
    author: Annotated[str, typer.Option(help="Who.", envvar="USER")] = "",
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Labels without text are no error.")
    ] = False,
    approved_only: Annotated[
        bool, typer.Option("--approved-only", help="Only texts that a person approved or locked.")
    ] = False,
    json: Json = False,
) -> None:
    """Freeze one text for every label. Without a source: people's and imported texts."""
    with write_session() as session:
        row, _ = service.create(
            session,
            label_set=label_set,
            name=name,
            sources=[service.parse_source(given) for given in source or ()],
            languages=language or (),
            message=message,
            author=author,
            allow_missing=allow_missing,
            approved_only=approved_only,
        )
        view = service.view(session, row)
    show(view, json=json)


@app.command("list")
def list_(
    label_set: Annotated[str | None, typer.Option(help="Only of this label set.")] = None,
    json: Json = False,
) -> None:
    """List releases, the newest first."""
    with read_session() as session:
        show(service.listing(session, label_set=label_set, limit=None), json=json)


@app.command()
def diff(before: str, after: str, json: Json = False) -> None:
    """Show the labels whose texts differ between two releases (names or ids)."""
    with read_session() as session:
        old, new = service.named(session, before), service.named(session, after)
        found = service.diff(session, old, new)
    show(found if json else found.changed, json=json)
