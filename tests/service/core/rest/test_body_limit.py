"""What a client sees that sends too much: a real one, over a real connection, again and again."""

import http.client
from urllib.parse import urlsplit

import httpx
import pytest

from enrich_service.core.settings import Settings

LIMIT = 2048
SENT = 8 * 1024 * 1024  # far more than the buffers of a connection hold
TRIES = 5


@pytest.fixture(scope="module")
def url(start_service, tmp_path_factory) -> str:
    return start_service(Settings(data_dir=tmp_path_factory.mktemp("small"), max_body_bytes=LIMIT))


def chunks():
    for _ in range(SENT // 65536):
        yield b" " * 65536


@pytest.mark.parametrize("content", [b" " * SENT, None], ids=["announced", "chunked"])
@pytest.mark.parametrize(
    ("path", "media_type"),
    [
        ("/v1/label-sets", "application/json"),
        ("/v1/import/generations.csv", "text/csv"),
        ("/label-sets", "application/x-www-form-urlencoded"),
    ],
)
def test_a_body_over_the_limit_is_answered_with_413(url, content, path, media_type):
    for _ in range(TRIES):
        headers = {"Content-Type": media_type}
        answer = httpx.post(f"{url}{path}", content=content or chunks(), headers=headers)
        assert answer.status_code == 413
        assert answer.headers["connection"] == "close"
        assert f"exceeds {LIMIT} bytes (ENRICH_MAX_BODY_BYTES)" in answer.text


def test_the_refusal_comes_before_the_body_is_sent(url):
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=10)
    connection.putrequest("POST", "/v1/label-sets")
    connection.putheader("Content-Length", str(SENT))
    connection.putheader("Content-Type", "application/json")
    connection.endheaders()
    assert connection.getresponse().status == 413
    connection.close()
    assert httpx.get(f"{url}/healthz").status_code == 200


def test_a_connection_goes_on_after_a_body_that_was_read_to_its_end(url):
    with httpx.Client(base_url=url) as client:
        assert client.post("/v1/label-sets", content=b"{}").status_code == 422
        assert client.get("/healthz").status_code == 200
