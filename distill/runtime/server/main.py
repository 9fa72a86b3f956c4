"""The process behind `distill serve`."""

import logging
from pathlib import Path

import uvicorn

from distill.errors import UserError
from distill.runtime.classifier import Classifier
from distill.runtime.server.app import create_app
from distill.runtime.server.http.access import is_loopback
from distill.runtime.server.live_classifier import LiveClassifier
from distill.runtime.server.settings import ServerSettings

READ_ONLY = "This server is read-only (--read-only): classes can be neither added nor removed."


def check_address(host: str, settings: ServerSettings) -> None:
    """Raise UserError where other machines would get in without a key, and nobody allowed it."""
    if not settings.keys and not settings.allow_remote and not is_loopback(host):
        raise UserError(
            f"{host} can be reached from other machines, and there is no API key: set "
            "DISTILL_SERVE_KEY, bind 127.0.0.1, or allow it with --allow-remote"
        )


def serve_folder(folder: Path, settings: ServerSettings) -> LiveClassifier:
    """The classifier in `folder`, whose classes may change unless the server is read-only.

    Raises:
        ClassifierError: there is none, or it is damaged.
    """
    return LiveClassifier(
        Classifier.load(folder, threads=settings.threads),
        folder.resolve().name,
        read_only=READ_ONLY if settings.read_only else None,
        service=settings.service,
    )


def run(folder: Path, settings: ServerSettings, *, host: str, port: int) -> None:
    """Serve the classifier in `folder` until stopped.

    Raises:
        ClassifierError: there is none, or it is damaged.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)-7s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    uvicorn.run(
        create_app(serve_folder(folder, settings), settings),
        host=host,
        port=port,
        log_config=None,  # its lines go where all others go
        access_log=False,
        timeout_graceful_shutdown=5,
        # Longer than clients and proxies keep theirs (a minute, mostly): who closes an idle
        # connection must not be the server, or a request on its way to it is lost.
        timeout_keep_alive=75,
    )
