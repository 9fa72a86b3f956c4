"""`enrich serve`."""

from typing import Annotated

import typer
import uvicorn
from fastapi.routing import iter_route_contexts

from contract.local_access import is_loopback, listen_error
from enrich_service.app import create_app
from enrich_service.core.errors import InvalidInput
from enrich_service.core.storage.database import reading
from enrich_service.core.terminal.console import database, load_settings
from enrich_service.keys.service import exist as keys_exist
from enrich_service.operation.log import configure as configure_log


def serve(
    host: Annotated[str | None, typer.Option(help="Address to bind. Default: ENRICH_HOST.")] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port; 0 picks a free one.")
    ] = None,
) -> None:
    """Run the service until stopped."""
    settings = load_settings()
    host = settings.host if host is None else host
    port = settings.port if port is None else port
    with database(settings) as engine, reading(engine) as session:
        has_keys = keys_exist(session)
    if not has_keys:
        if not is_loopback(host) and not settings.allow_remote:
            raise InvalidInput(
                f"{host} is reachable from other machines, and there is no API key yet: create "
                "one with `enrich keys create NAME`, bind 127.0.0.1, or set ENRICH_ALLOW_REMOTE=1 "
                "behind a proxy that authenticates users."
            )
        clients = "everyone who can reach it" if settings.allow_remote else "this machine only"
        typer.echo(
            f"enrich: there is no API key yet, so the service gives full access to {clients}; "
            "create a key with `enrich keys create NAME`",
            err=True,
        )
    if error := listen_error(host, port):
        raise InvalidInput(error)
    configure_log(settings.log_format)
    service = create_app(settings)
    for _ in iter_route_contexts(service.routes):
        pass  # builds FastAPI's routing table now, not during the first request
    uvicorn.run(
        service,
        host=host,
        port=port,
        log_config=None,  # uvicorn logs like the rest of the service
        access_log=False,
        timeout_graceful_shutdown=5,  # event streams may not end by themselves
        # Longer than in clients and proxies (usually a minute): if the service closed an idle
        # connection first, a request that is being sent would be lost.
        timeout_keep_alive=75,
    )
