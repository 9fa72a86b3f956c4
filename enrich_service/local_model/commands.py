"""`enrich llm`."""

import signal
import threading
from typing import Annotated

import typer
from pydantic import BaseModel

from enrich_service.core.console import Json, show
from enrich_service.local_model import server

app = typer.Typer(no_args_is_help=True, help="A small real language model on this machine.")


class _Serving(BaseModel):
    url: str
    model: str


@app.callback()
def _group() -> None:
    """Without this, the only command would stand in for the group."""


@app.command()
def up(
    host: Annotated[
        str, typer.Option(help="Address; it asks nobody for a key, so keep others out.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free one.")] = 8080,
    json: Json = False,
) -> None:
    """Serve SmolLM2-135M-Instruct on loopback until it is stopped. It needs no key and no hub.

    Its sentences are weak: it shows that everything works, not what enrichment is worth.
    """
    ended = threading.Event()
    running = server.start(host, port)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    url = f"{running.listening_address}/v1"
    show(_Serving(url=url, model=server.MODEL), json=json)
    if not json:
        typer.echo(f"export OPENAI_BASE_URL={url} ENRICH_LLM_MODEL={server.MODEL}")
    ended.wait()
