"""`distill serve`: a classifier folder behind REST and a page. Imports no torch."""

from pathlib import Path
from typing import Annotated

import typer

from distill.cli.console import CACHE, one_line_errors
from distill.errors import ClassifierError


@one_line_errors
def serve(
    folder: Annotated[
        Path | None, typer.Argument(help="Classifier folder (`distill export`).")
    ] = None,
    student: Annotated[
        str | None,
        typer.Option(
            help="In the place of FOLDER: a student of the service, such as birds@production; the "
            "server follows the alias. The API key of the service is ENRICH_API_KEY."
        ),
    ] = None,
    service: Annotated[
        str | None,
        typer.Option(help="Enrichment service: it has the student, or describes new classes."),
    ] = None,
    cache: Annotated[Path, typer.Option(help="Folder for classifiers that were fetched.")] = CACHE
    / "classifiers",
    poll: Annotated[
        float, typer.Option(min=0.1, help="Seconds between two looks at the alias.")
    ] = 10.0,
    host: Annotated[str, typer.Option(help="Address to bind.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 picks a free one.")] = 8100,
    max_batch: Annotated[
        int, typer.Option(min=1, help="Photos encoded together, of one or several requests.")
    ] = 8,
    max_wait_ms: Annotated[
        float, typer.Option(min=0, help="Longest wait of a photo for those of other requests.")
    ] = 5.0,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads that encode. Default: one on each core.")
    ] = None,
    max_queue: Annotated[
        int, typer.Option(min=1, help="Photos of all requests that may wait; more get a 503.")
    ] = 256,
    max_photos: Annotated[int, typer.Option(min=1, help="Photos in a request.")] = 64,
    max_bytes: Annotated[int, typer.Option(min=1, help="Bytes of a request.")] = 32 * 1024**2,
    max_pixels: Annotated[int, typer.Option(min=1, help="Pixels of a photo.")] = 50_000_000,
    key_file: Annotated[
        Path | None,
        typer.Option(help="API keys, one a line. Default: the one in DISTILL_SERVE_KEY."),
    ] = None,
    allow_remote: Annotated[
        bool, typer.Option("--allow-remote", help="Let other machines in without an API key.")
    ] = False,
    read_only: Annotated[
        bool, typer.Option("--read-only", help="Let nobody add or remove classes.")
    ] = False,
) -> None:
    """Serve a classifier: photos in, classes out, with a page to try it."""
    try:
        from distill.runtime.server.main import check_address, run, serve_folder, serve_student
        from distill.runtime.server.settings import ServerSettings, read_keys, usable_cores
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
    check_address(host, settings)
    if (folder is None) == (student is None):
        raise ClassifierError("give either a classifier folder or --student NAME@ALIAS")
    if folder is not None:
        source = serve_folder(folder, settings)
    elif student is None or service is None:
        raise ClassifierError(f"the student {student} is in a service: name it with --service URL")
    else:
        source = serve_student(student, cache, poll, settings)
    run(source, settings, host=host, port=port)
