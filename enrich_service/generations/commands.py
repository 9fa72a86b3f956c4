"""`enrich texts`: list, edit and review texts."""

from typing import Annotated

import typer

from enrich_service.core.terminal.console import (
    Author,
    Json,
    read_session,
    request,
    show,
    write_session,
)
from enrich_service.generations import reviews
from enrich_service.generations.edits import edit_generation, write_text
from enrich_service.generations.models import GenerationStatus, ReviewAction
from enrich_service.generations.schemas import GenerationFilter, LabelTextIn, Opinion, TextIn
from enrich_service.generations.service import generation_detail, generation_view, list_generations
from enrich_service.generations.store import get_generation
from enrich_service.prompts.schemas import DEFAULT_PROMPT
from enrich_service.validation.answer import ENGLISH

app = typer.Typer(no_args_is_help=True, help="Texts: list, edit, write, approve, reject, lock.")

Ids = Annotated[list[int], typer.Argument(help="Ids of generations.")]
Reason = Annotated[str, typer.Option(help="Reason, recorded in the log.")]


@app.command("list")
def list_(
    label: Annotated[str | None, typer.Option(help="Filter by exact label name.")] = None,
    run: Annotated[int | None, typer.Option(help="Filter by run.")] = None,
    prompt: Annotated[str | None, typer.Option(help="Filter by prompt.")] = None,
    version: Annotated[int | None, typer.Option(help="Filter by version of the prompt.")] = None,
    status: Annotated[GenerationStatus, typer.Option(help="Filter by status.")] = (
        GenerationStatus.ACCEPTED
    ),
    opinion: Annotated[Opinion | None, typer.Option(help="Filter by review state.")] = None,
    before: Annotated[
        int | None, typer.Option(help="Only ids below this one, for the next page.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 100,
    json: Json = False,
) -> None:
    """List texts, newest first."""
    filters = GenerationFilter(
        label=label,
        run_id=run,
        prompt=prompt,
        version=version,
        status=status,
        opinion=opinion,
        before=before,
        limit=limit,
    )
    with read_session() as session:
        page = list_generations(session, filters)
    columns = ("id", "label", "kind", "text", "source", "approved", "locked", "flags")
    show(page if json else page.items, json=json, columns=columns)
    if not json and page.next_before is not None:
        typer.echo(f"… more with --before {page.next_before}")


@app.command("show")
def show_(generation_id: int, json: Json = False) -> None:
    """Show a text with its full provenance."""
    with read_session() as session:
        detail = generation_detail(session, get_generation(session, generation_id))
    show(detail, json=json)


@app.command()
def edit(generation_id: int, text: str, author: Author = "", json: Json = False) -> None:
    """Store an edit of a text; both are kept, and the edit takes precedence."""
    body = request(TextIn, text=text, author=author)
    with write_session() as session:
        view = generation_view(session, edit_generation(session, generation_id, body))
    show(view, json=json, columns=("id", "label", "text", "parent_id", "author"))


@app.command()
def write(
    label_id: Annotated[int, typer.Argument(help="Label id, see `enrich labels show`.")],
    text: str,
    prompt: Annotated[str, typer.Option(help="Prompt the text replaces.")] = DEFAULT_PROMPT,
    language: Annotated[str, typer.Option(help="Language of the text.")] = ENGLISH,
    author: Author = "",
    json: Json = False,
) -> None:
    """Write a text for a label."""
    body = request(LabelTextIn, prompt=prompt, text=text, author=author, language=language)
    with write_session() as session:
        view = generation_view(session, write_text(session, label_id, body))
    show(view, json=json, columns=("id", "label", "text", "prompt", "author"))


def _review(action: ReviewAction, ids: list[int], reason: str, author: str, json: bool) -> None:
    with write_session() as session:
        written = reviews.review(session, ids, action, reason=reason, author=author)
        views = [reviews.view(review) for review in written]
    show(views, json=json)


@app.command()
def approve(ids: Ids, reason: Reason = "", author: Author = "", json: Json = False) -> None:
    """Approve texts; a release can be limited to approved texts."""
    _review(ReviewAction.APPROVE, ids, reason, author, json)


@app.command()
def reject(ids: Ids, reason: Reason = "", author: Author = "", json: Json = False) -> None:
    """Reject texts: no release contains them."""
    _review(ReviewAction.REJECT, ids, reason, author, json)


@app.command()
def lock(ids: Ids, reason: Reason = "", author: Author = "", json: Json = False) -> None:
    """Lock texts: every release contains them, and they cannot be edited."""
    _review(ReviewAction.LOCK, ids, reason, author, json)


@app.command()
def unlock(ids: Ids, reason: Reason = "", author: Author = "", json: Json = False) -> None:
    """Unlock texts."""
    _review(ReviewAction.UNLOCK, ids, reason, author, json)


@app.command()
def log(generation_id: int, json: Json = False) -> None:
    """Show the reviews of a text, newest first."""
    with read_session() as session:
        show(reviews.log_of(session, generation_id), json=json)
