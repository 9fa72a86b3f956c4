"""A service that asks the local language-model server, and a client that behaves as a browser."""

import re
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any

import httpx
import pytest

from enrich_service.core.settings import Settings
from tests.llm_server import LlmServer

EVIL = "<img src=x onerror=alert(1)>"
PRICES = {"small": (1.0, 10.0)}  # USD per million tokens


class Browser(httpx.Client):
    """Asks for pages, keeps cookies, sends forms as the page has them."""

    def submit(self, path: str, action: str, /, **fields: Any) -> httpx.Response:
        """Fill in the form for `action` on the page at `path` and send it; the page that follows.

        A field of the name `files` holds files.
        """
        files = fields.pop("files", None)
        page = self.get(path).text
        form = re.search(
            rf'<form[^>]*method="post"[^>]*action="{re.escape(action)}"[^>]*>(.*?)</form>'
            rf'|<form[^>]*action="{re.escape(action)}"[^>]*method="post"[^>]*>(.*?)</form>',
            page,
            re.DOTALL,
        )
        assert form, f"{path} has no form for {action}"
        hidden = re.findall(
            r'<input type="hidden" name="([^"]+)" value="([^"]*)"', form.group(1) or form.group(2)
        )
        data = {name: unescape(value) for name, value in hidden} | fields
        return self.post(action, data=data, files=files, follow_redirects=True)


@pytest.fixture(scope="module")
def model() -> Iterator[LlmServer]:
    with LlmServer() as server:
        yield server


@pytest.fixture(scope="module")
def image_root(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("images")


@pytest.fixture(scope="module")
def service(start_service, model, tmp_path_factory, image_root) -> Iterator[httpx.Client]:
    settings = Settings(
        data_dir=tmp_path_factory.mktemp("pages"),
        llm_url=model.url,
        llm_model="small",
        prices=PRICES,
        event_poll_seconds=0.05,
        lease_seconds=3600,  # no worker is gone before the tests are over
        image_roots=(image_root,),
    )
    with httpx.Client(base_url=start_service(settings), timeout=30) as client:
        yield client


@pytest.fixture
def browser(service) -> Iterator[Browser]:
    headers = {"Accept": "text/html", "Sec-Fetch-Site": "same-origin"}
    with Browser(base_url=service.base_url, headers=headers, timeout=30) as browser:
        yield browser
