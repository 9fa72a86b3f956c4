"""A service that cannot be reached is named, and no secret with it."""

import socket

import pytest

pytest.importorskip("torch")
pytest.importorskip("fastapi")

from distill.errors import ServiceError
from distill.worker.main import work
from tests.distill.worker.conftest import (
    KEY,
    running_worker,
)


def test_a_service_that_does_not_answer_at_the_start_is_named(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with running_worker(f"http://user:secret@127.0.0.1:{port}", tmp_path) as process:
        _, stderr = process.communicate(timeout=30)
    assert process.returncode == 1
    assert stderr.count("\n") == 1 and f"http://127.0.0.1:{port} does not answer" in stderr
    assert "secret" not in stderr


def test_something_else_than_the_service_is_named(tmp_path):
    with running_worker("ftp://127.0.0.1", tmp_path) as process:
        _, stderr = process.communicate(timeout=30)
    assert process.returncode == 1
    assert stderr == "distill: the service's address must be like http://127.0.0.1:8000\n"


def test_a_key_that_cannot_be_sent_is_not_shown(tmp_path):
    with pytest.raises(ServiceError, match="ENRICH_API_KEY") as caught:
        work("http://127.0.0.1:1", work_dir=tmp_path, name="w", api_key=f"{KEY}\n")
    assert KEY not in str(caught.value)
