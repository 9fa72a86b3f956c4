"""A running server of a classifier, as `distill serve` starts it."""

import io
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("fastapi")
import uvicorn

from distill.runtime.server.app import create_app
from distill.runtime.server.main import serve_folder
from distill.runtime.server.settings import ServerSettings


@contextmanager
def serving(folder, settings=None) -> Iterator[str]:
    """The base URL of a server of a classifier folder, on a free loopback port."""
    settings = settings or ServerSettings(threads=1)
    with running(serve_folder(folder, settings), settings) as url:
        yield url


@contextmanager
def running(source, settings) -> Iterator[str]:
    """The base URL of a server of a classifier and the task that keeps it up to date."""
    live, background = source
    app = create_app(live, settings, background=background)
    config = uvicorn.Config(
        app, host="127.0.0.1", port=0, log_level="warning", timeout_graceful_shutdown=2
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        deadline = time.monotonic() + 20
        while not server.started:
            assert thread.is_alive() and time.monotonic() < deadline, "the server did not start"
            time.sleep(0.01)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(timeout=20)


def as_file(image: Image.Image, kind: str = "PNG") -> bytes:
    """The image as the content of a file."""
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def noise(seed: int, side: int = 48) -> bytes:
    """A PNG of random pixels."""
    rng = np.random.default_rng(seed)
    return as_file(Image.fromarray(rng.integers(0, 255, (side, side + 8, 3), dtype=np.uint8)))
