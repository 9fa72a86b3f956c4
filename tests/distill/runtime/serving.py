"""A running server of a classifier, as `distill serve` starts it."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("fastapi")
from distill.runtime.server.app import create_app
from distill.runtime.server.http.head_timeout import http_protocol
from distill.runtime.server.main import serve_folder
from distill.runtime.server.settings import ServerSettings
from tests.conftest import running_app

AXE = Path(__file__).parents[3] / "node_modules" / "axe-core" / "axe.min.js"


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
    with running_app(app, http=http_protocol(settings.head_timeout_s)) as url:
        yield url


def as_file(image: Image.Image, kind: str = "PNG") -> bytes:
    """The image as the content of a file."""
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def noise(seed: int, side: int = 48) -> bytes:
    """A PNG of random pixels."""
    rng = np.random.default_rng(seed)
    return as_file(Image.fromarray(rng.integers(0, 255, (side, side + 8, 3), dtype=np.uint8)))


def check_accessibility(tab) -> None:
    """Fail where axe-core finds a violation on the page of a browser's tab."""
    if not AXE.is_file():
        pytest.skip("no axe-core in node_modules: see CONTRIBUTING.md")
    tab.evaluate(AXE.read_text())
    found = tab.evaluate("axe.run()")
    violations = [
        (violation["id"], violation["nodes"][0]["html"]) for violation in found["violations"]
    ]
    assert not violations, violations
