"""The process behind `distill serve`."""

import logging
import os
from pathlib import Path
from typing import Final

import uvicorn

from contract.local_access import is_loopback, listen_error
from distill.errors import UserError
from distill.runtime.classifier import Classifier
from distill.runtime.manifest import check_folder
from distill.runtime.server.app import Background, create_app
from distill.runtime.server.http.head_timeout import http_protocol
from distill.runtime.server.live_classifier import LiveClassifier
from distill.runtime.server.memory import return_freed_memory
from distill.runtime.server.registry.client import RegistryClient
from distill.runtime.server.registry.follower import Follower
from distill.runtime.server.settings import ServerSettings

READ_ONLY: Final = "This server is read-only: classes can be neither added nor removed."
FOLLOWS: Final = (
    "This server follows {}, whose next version would lose the change: add the class to a release, "
    "or serve a classifier folder."
)
Source = tuple[LiveClassifier, Background | None]


def check_address(host: str, port: int, settings: ServerSettings) -> None:
    """Check the address before the classifier is loaded.

    Raises:
        UserError: other machines could connect without a key, which is not allowed; or the address
            is in use, or not of this machine.
    """
    if not settings.keys and not settings.allow_remote and not is_loopback(host):
        raise UserError(
            f"{host} can be reached from other machines, and there is no API key: set "
            "DISTILL_SERVE_KEY, bind 127.0.0.1, or allow it with --allow-remote"
        )
    if error := listen_error(host, port):
        raise UserError(error)


def serve_folder(folder: Path, settings: ServerSettings) -> Source:
    """Serve the classifier in `folder`; classes can be changed unless the server is read-only.

    Raises:
        ClassifierError: `folder` is not a classifier folder, or it is damaged.
    """
    path = folder.resolve()
    check_folder(path)  # all files, also those that are read only when a class is added
    live = LiveClassifier(
        Classifier.load(folder, threads=settings.threads),
        path.parent.name if path.name == "classifier" else path.name,  # RUN/classifier: the run
        read_only=READ_ONLY if settings.read_only else None,
        service=settings.service,
    )
    return_freed_memory()
    return live, None


def serve_student(student: str, cache: Path, poll_s: float, settings: ServerSettings) -> Source:
    """Serve the student that an alias such as birds@production of the service points at.

    The classifier is downloaded after the server has started; until then there is none.

    Raises:
        ServiceError: the address of the service, the name or the API key is malformed.
    """
    assert settings.service is not None
    client = RegistryClient(settings.service, student, os.environ.get("ENRICH_API_KEY"))
    name = f"{client.student}@{client.alias}"
    live = LiveClassifier(None, name, read_only=FOLLOWS.format(name))
    return live, Follower(client, cache, poll_s=poll_s, threads=settings.threads).run


def run(source: Source, settings: ServerSettings, *, host: str, port: int) -> None:
    """Serve until stopped."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)-7s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    live, background = source
    uvicorn.run(
        create_app(live, settings, background=background),
        host=host,
        port=port,
        http=http_protocol(settings.head_timeout_s),
        log_config=None,  # use the root logger
        access_log=False,
        timeout_graceful_shutdown=5,
        # Longer than the usual 60 s of clients and proxies: if the server closed an idle
        # connection first, a request on its way would be lost.
        timeout_keep_alive=75,
    )
