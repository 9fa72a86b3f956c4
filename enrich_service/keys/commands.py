"""`enrich keys`."""

from datetime import timedelta
from typing import Annotated

import typer

from enrich_service.core.rest.caller import Scope
from enrich_service.core.storage.database import utcnow
from enrich_service.core.terminal.console import Json, read_session, show, write_session
from enrich_service.keys import service
from enrich_service.keys.schemas import AuditView, KeyCreated, KeyView

app = typer.Typer(no_args_is_help=True, help="API keys and the audit log.")


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="Name of the key's owner, shown in the audit log.")],
    scope: Annotated[Scope, typer.Option(help="Permissions: read < write < admin.")] = Scope.WRITE,
    days: Annotated[int | None, typer.Option(min=1, help="Days until it expires.")] = None,
    json: Json = False,
) -> None:
    """Create a key and print it once. Once a key exists, every request needs one."""
    expires_at = None if days is None else utcnow() + timedelta(days=days)
    with write_session() as session:
        key, secret = service.create(session, name, scope, expires_at=expires_at)
        made = KeyCreated(**key.model_dump(), key=secret)
    show(made, json=json, columns=("id", "name", "scope", "expires_at", "key"))


@app.command("list")
def list_(json: Json = False) -> None:
    """List keys, newest first."""
    with read_session() as session:
        keys = [KeyView(**key.model_dump()) for key in service.listing(session)]
    show(keys, json=json)


@app.command()
def revoke(key_id: int, json: Json = False) -> None:
    """Revoke a key."""
    with write_session() as session:
        key = KeyView(**service.revoke(session, key_id).model_dump())
    show(key, json=json)


@app.command()
def audit(
    key: Annotated[int | None, typer.Option(help="Filter by key id.")] = None,
    limit: Annotated[int, typer.Option(min=1)] = 100,
    json: Json = False,
) -> None:
    """List changes made over HTTP, newest first."""
    with read_session() as session:
        entries = service.audit_log(session, key_id=key, limit=limit)
        views = [AuditView(**entry.model_dump()) for entry in entries]
    show(views, json=json, columns=("id", "at", "who", "route", "object"))
