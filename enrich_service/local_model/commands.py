"""`enrich llm`."""

import signal
import threading
from typing import Annotated

import typer
from pydantic import BaseModel

from enrich_service.core.terminal.console import Json, show
from enrich_service.local_model import server

app = typer.Typer(no_args_is_help=True, help="A small language model on this machine.")


class _Serving(BaseModel):
    url: str
    model: str


@app.callback()
def _group() -> None:
    """Without a callback, Typer would merge the group with its only command."""


@app.command()
def up(
    host: Annotated[
        str, typer.Option(help="Address to bind. There is no authentication: restrict access.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 picks a free one.")] = 8080,
    json: Json = False,
) -> None:
    """Serve SmolLM2-135M-Instruct on loopback until stopped. No key or download is needed.

    Its texts are poor: use it to test the setup, not to judge the quality of enrichment.
    """
    stop = threading.Event()
    llm_server = server.start(host, port)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    url = f"{llm_server.listening_address}/v1"
    show(_Serving(url=url, model=server.MODEL), json=json)
    if not json:
        typer.echo(f"export OPENAI_BASE_URL={url} ENRICH_LLM_MODEL={server.MODEL}")
    stop.wait()
