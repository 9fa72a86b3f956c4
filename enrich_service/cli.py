"""The `enrich` command."""

import gc
from typing import Annotated, Any

import typer
import uvicorn
from fastapi.routing import iter_route_contexts
from pydantic import BaseModel
from typer.core import TyperGroup

from enrich_service.app import create_app
from enrich_service.core.console import Json, database, load_settings, show
from enrich_service.core.database import reading
from enrich_service.core.errors import InvalidInput, UserError
from enrich_service.core.settings import Settings, environment_names, shown
from enrich_service.exchange import commands as exchange
from enrich_service.generations import commands as texts
from enrich_service.jobs import commands as jobs
from enrich_service.keys import commands as keys
from enrich_service.keys.gate import is_loopback
from enrich_service.keys.service import exist as keys_exist
from enrich_service.labels import commands as labels
from enrich_service.local_model import commands as local_model
from enrich_service.operation import commands as operation
from enrich_service.operation.log import configure as configure_log
from enrich_service.prompts import commands as prompts
from enrich_service.releases import commands as releases
from enrich_service.runs import commands as enrichment
from enrich_service.trials import commands as trials

GARBAGE = 20_000  # objects more than there were, after which those in cycles are looked for


class _Commands(TyperGroup):
    """Tells a user's mistake in one line on standard error, and exits with 1."""

    def invoke(self, ctx: Any) -> Any:  # noqa: ANN401 - as the base class has it
        try:
            return super().invoke(ctx)
        except UserError as error:
            typer.echo(f"enrich: {error}", err=True)
            raise typer.Exit(1) from error


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Class names in; versioned and released texts out.",
)


@app.callback()
def _before_any_command() -> None:
    # An answer makes thousands of objects that are soon gone again without being looked for.
    gc.set_threshold(GARBAGE)


app.command()(enrichment.describe)
app.command("try")(trials.try_)
app.command()(trials.compare)
app.add_typer(labels.app, name="labels")
app.add_typer(prompts.app, name="prompts")
app.add_typer(enrichment.app, name="run")
app.add_typer(texts.app, name="texts")
app.add_typer(releases.app, name="release")
app.add_typer(exchange.import_app, name="import")
app.add_typer(exchange.export_app, name="export")
app.add_typer(jobs.app, name="jobs")
app.add_typer(keys.app, name="keys")
app.command()(operation.backup)
app.command()(operation.restore)
app.command()(operation.doctor)
app.add_typer(local_model.app, name="llm")


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address; default ENRICH_HOST.")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="0: any free one.")] = None,
) -> None:
    """Run the service until it is stopped."""
    settings = load_settings()
    host = settings.host if host is None else host
    with database(settings) as engine, reading(engine) as session:
        guarded = keys_exist(session)
    if not guarded:
        if not is_loopback(host) and not settings.allow_remote:
            raise InvalidInput(
                f"{host} can be reached from other machines, and there is no API key yet: make one "
                "with `enrich keys create NAME`, bind 127.0.0.1, or set ENRICH_ALLOW_REMOTE=1 "
                "behind a proxy that lets in whom you trust."
            )
        who = "whoever reaches it" if settings.allow_remote else "this machine alone"
        typer.echo(
            f"enrich: there is no API key yet, so the service lets in {who}, with every right; "
            "`enrich keys create NAME` makes the first key",
            err=True,
        )
    configure_log(settings.log_format)
    service = create_app(settings)
    for _ in iter_route_contexts(service.routes):
        pass  # FastAPI puts each router's routes together when first asked for one, or here
    uvicorn.run(
        service,
        host=host,
        port=settings.port if port is None else port,
        log_config=None,  # its lines go where all others go
        access_log=False,
        timeout_graceful_shutdown=5,  # streams of events never end by themselves
        # Longer than clients and proxies keep theirs (a minute, mostly): who closes an idle
        # connection must not be the service, or a request on its way to it is lost.
        timeout_keep_alive=75,
    )


class _Setting(BaseModel):
    name: str
    value: str | None
    variables: list[str]
    description: str


@app.command()
def settings(json: Json = False) -> None:
    """List all settings with the environment variables that set them; secrets are masked."""
    now = load_settings()
    show(
        [
            _Setting(
                name=name,
                value=shown(now, name),
                variables=environment_names(name),
                description=field.description or "",
            )
            for name, field in Settings.model_fields.items()
        ],
        json=json,
    )


if __name__ == "__main__":
    app()
