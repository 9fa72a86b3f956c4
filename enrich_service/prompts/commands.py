"""`enrich prompts`."""

import json as jsonlib
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

from contract import first_error_line
from enrich_service.core.errors import InvalidInput
from enrich_service.core.terminal.console import (
    Author,
    Json,
    read_session,
    reading_file,
    request,
    show,
    write_session,
)
from enrich_service.core.text import unique_keys
from enrich_service.prompts import service
from enrich_service.prompts.schemas import AliasPut, AliasRollback, PromptCreate

app = typer.Typer(no_args_is_help=True, help="Prompts, their versions and aliases.")

Version = Annotated[int | None, typer.Option(min=1, help="Version number.")]
Alias = Annotated[str | None, typer.Option(help="Version alias.")]
Reason = Annotated[str, typer.Option(help="Reason, recorded in the log.")]
Confirm = Annotated[
    bool, typer.Option("--confirm", help="Confirm the change of a protected alias.")
]
Body = Annotated[
    Path, typer.Argument(exists=True, dir_okay=False, help="JSON file, as for POST /v1/prompts.")
]


def read(file: Path) -> PromptCreate:
    """Read a prompt from a JSON file. Raises InvalidInput if it is invalid or has a field twice."""
    with reading_file(file):
        data = file.read_bytes()
    try:
        prompt = PromptCreate.model_validate_json(data)
    except ValidationError as error:
        raise InvalidInput(f"{file}: {first_error_line(error, '')}") from error
    jsonlib.loads(
        data, object_pairs_hook=unique_keys("values")
    )  # pydantic keeps the last duplicate
    return prompt


@app.command("list")
def list_(
    search: Annotated[str, typer.Option(help="Filter by name, summary or tag.")] = "",
    tag: Annotated[str | None, typer.Option(help="Filter by exact tag.")] = None,
    archived: Annotated[bool, typer.Option("--archived", help="Include archived prompts.")] = False,
    json: Json = False,
) -> None:
    """List prompts with their aliases."""
    with read_session() as session:
        prompts = service.listing(session, search=search, tag=tag, archived=archived, limit=None)
    show(prompts, json=json, columns=("name", "kind", "latest", "tags", "aliases", "summary"))


@app.command("show")
def show_(name: str, version: Version = None, alias: Alias = None, json: Json = False) -> None:
    """Show a version of a prompt. Default: the newest."""
    with read_session() as session:
        prompt = service.get(session, name)
        resolved = service.resolve(session, name, version=version, alias=alias)
        show(service.version_view(prompt, resolved), json=json)


@app.command()
def versions(name: str, json: Json = False) -> None:
    """List the versions of a prompt."""
    with read_session() as session:
        prompt = service.get(session, name)
        versions = [service.version_view(prompt, row) for row in service.versions(session, prompt)]
    show(versions, json=json, columns=("number", "message", "author", "created_at", "content_hash"))


@app.command()
def add(body: Body, json: Json = False) -> None:
    """Create a prompt from a JSON file, or add its content as the next version."""
    content = read(body)
    with write_session() as session:
        names = {prompt.name for prompt in service.listing(session, archived=True, limit=None)}
        if content.name not in names:
            prompt, version = service.create(session, content)
        else:
            prompt = service.get(session, content.name)
            version, _ = service.create_version(session, prompt, content)
        view = service.version_view(prompt, version)
    show(view, json=json, columns=("prompt", "number", "content_hash", "message"))


@app.command("tag")
def tag_(
    name: str,
    tags: Annotated[
        list[str] | None, typer.Argument(help="New tags, replacing the old. None: remove all.")
    ] = None,
    json: Json = False,
) -> None:
    """Set the tags of a prompt."""
    with write_session() as session:
        prompt = service.get(session, name)
        service.set_tags(session, prompt, tags or ())
        view = service.view(session, prompt)
    show(view, json=json, columns=("name", "tags"))


@app.command()
def diff(name: str, before: int, after: int, json: Json = False) -> None:
    """Show the differences between two versions."""
    with read_session() as session:
        diff = service.diff(session, service.get(session, name), before, after)
    if json:
        show(diff, json=True)
        return
    for changed in diff.changed:
        typer.echo(changed.field)
        for line in changed.diff:
            typer.echo(f"  {line}")


@app.command()
def alias(
    name: str,
    alias: str,
    version: int,
    reason: Reason = "",
    author: Author = "",
    protect: Annotated[
        bool | None, typer.Option("--protect/--unprotect", help="Protect or unprotect the alias.")
    ] = None,
    confirm: Confirm = False,
    json: Json = False,
) -> None:
    """Point an alias at a version."""
    body = request(
        AliasPut, version=version, reason=reason, author=author, protected=protect, confirm=confirm
    )
    with write_session() as session:
        moved = service.move_alias(session, service.get(session, name), alias, body)
    show(moved, json=json)


@app.command()
def rollback(
    name: str,
    alias: str,
    reason: Reason = "",
    author: Author = "",
    confirm: Confirm = False,
    json: Json = False,
) -> None:
    """Roll an alias back to its previous version."""
    body = AliasRollback(reason=reason, author=author, confirm=confirm)
    with write_session() as session:
        moved = service.roll_back_alias(session, service.get(session, name), alias, body)
    show(moved, json=json)


@app.command()
def archive(
    name: str, undo: Annotated[bool, typer.Option("--undo", help="Restore the prompt.")] = False
) -> None:
    """Archive a prompt. Its versions are kept."""
    with write_session() as session:
        service.set_archived(session, service.get(session, name), not undo)
