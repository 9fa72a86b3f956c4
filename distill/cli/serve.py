"""`distill serve`: serves a classifier folder over REST, with a page. Does not import torch."""

from pathlib import Path
from typing import Annotated

import typer

from distill.cli.console import CACHE, one_line_errors
from distill.data.cores import usable_cores
from distill.errors import ClassifierError


@one_line_errors
def serve(
    folder: Annotated[
        Path | None, typer.Argument(help="Classifier folder (`distill export`).")
    ] = None,
    student: Annotated[
        str | None,
        typer.Option(
            help="Instead of FOLDER: a student registered in the service, like birds@production; "
            "the server follows the alias. Set ENRICH_API_KEY to the API key of the service."
        ),
    ] = None,
    service: Annotated[
        str | None,
        typer.Option(help="Enrichment service: serves --student and describes new classes."),
    ] = None,
    cache: Annotated[Path, typer.Option(help="Folder for downloaded classifiers.")] = CACHE
    / "classifiers",
    poll: Annotated[
        float, typer.Option(min=0.1, help="Seconds between polls of the alias.")
    ] = 10.0,
    host: Annotated[str, typer.Option(help="Address to bind.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 picks a free one.")] = 8100,
    max_batch: Annotated[
        int, typer.Option(min=1, help="Largest batch of photos, from one or several requests.")
    ] = 8,
    max_wait_ms: Annotated[
        float,
        typer.Option(min=0, help="Longest time that a photo waits for a batch to fill, in ms."),
    ] = 5.0,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of the encoder. Default: one per core.")
    ] = None,
    max_queue: Annotated[
        int, typer.Option(min=1, help="Most photos in the queue; a request beyond it gets a 503.")
    ] = 256,
    max_photos: Annotated[int, typer.Option(min=1, help="Most photos in a request.")] = 64,
    max_bytes: Annotated[int, typer.Option(min=1, help="Most bytes in a request.")] = 32 * 1024**2,
    max_pixels: Annotated[int, typer.Option(min=1, help="Most pixels in a photo.")] = 50_000_000,
    key_file: Annotated[
        Path | None,
        typer.Option(help="File with API keys, one per line. Default: DISTILL_SERVE_KEY."),
    ] = None,
    allow_remote: Annotated[
        bool, typer.Option("--allow-remote", help="Accept other machines without an API key.")
    ] = False,
    read_only: Annotated[
        bool, typer.Option("--read-only", help="Reject requests that add or remove classes.")
    ] = False,
) -> None:
    """Serve a classifier over REST, with a web page to try it."""
    try:
        from distill.runtime.server.main import check_address, run, serve_folder, serve_student
        from distill.runtime.server.settings import ServerSettings, read_keys
    except ModuleNotFoundError as error:
        raise ClassifierError(
            f"`distill serve` needs the package {error.name}: pip install 'enrich-distill[serve]'"
        ) from None
    settings = ServerSettings(
        max_batch=max_batch,
        max_wait_ms=max_wait_ms,
        threads=threads or usable_cores(),
        max_queue=max_queue,
        max_photos=max_photos,
        max_bytes=max_bytes,
        max_pixels=max_pixels,
        keys=read_keys(key_file),
        allow_remote=allow_remote,
        read_only=read_only,
        service=service,
    )
    check_address(host, port, settings)
    if (folder is None) == (student is None):
        raise ClassifierError("give either a classifier folder or --student NAME@ALIAS")
    if folder is not None:
        source = serve_folder(folder, settings)
    elif student is None or service is None:
        raise ClassifierError("--student needs the address of its service: give --service URL")
    else:
        source = serve_student(student, cache, poll, settings)
    run(source, settings, host=host, port=port)
