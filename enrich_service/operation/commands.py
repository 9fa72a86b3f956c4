"""`enrich backup`, `enrich restore`, `enrich doctor` and `enrich settings`."""

from pathlib import Path
from typing import Annotated

import typer
from pydantic import BaseModel

from enrich_service.core.settings import Settings, environment_names, masked_value
from enrich_service.core.terminal.console import Json, load_settings, show
from enrich_service.operation import backup as backups
from enrich_service.operation import doctor as doctors


def backup(
    file: Annotated[Path, typer.Argument(help="File to write; must not exist.")],
    json: Json = False,
) -> None:
    """Copy the database to FILE and verify the copy. The service may be running."""
    show(backups.back_up(load_settings(), file), json=json)


def restore(
    file: Annotated[Path, typer.Argument(help="File written by `enrich backup`.")],
    json: Json = False,
) -> None:
    """Restore the database from a backup. The old database is kept next to it.

    Stop the service first if runs are in progress: their pending answers would be lost.
    """
    show(backups.restore(load_settings(), file), json=json)


def doctor(json: Json = False) -> None:
    """Check the installation for problems. The exit status is 1 if there are any."""
    findings = doctors.examine(load_settings())
    show(findings, json=json)
    if any(finding.verdict == "failed" for finding in findings):
        raise typer.Exit(1)


class _Setting(BaseModel):
    name: str
    value: str | None
    variables: list[str]
    description: str


def settings(json: Json = False) -> None:
    """List settings and their environment variables. Secrets are masked."""
    current = load_settings()
    show(
        [
            _Setting(
                name=name,
                value=masked_value(current, name),
                variables=environment_names(name),
                description=field.description or "",
            )
            for name, field in Settings.model_fields.items()
        ],
        json=json,
    )
