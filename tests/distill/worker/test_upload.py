"""Uploads go on where they were cut."""

import hashlib
import os
import socket
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("fastapi")

from distill.worker.client import ServiceClient
from distill.worker.upload import upload
from tests.distill.worker.conftest import (
    release_colours,
    serving,
)


@contextmanager
def cutting(port: int, after: int) -> Iterator[tuple[int, list[int]]]:
    """A proxy that cuts each connection after so many bytes on their way to `port`.

    Yields its own port and how many bytes went through each connection.
    """
    sent: list[int] = []

    class Cut(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            place = len(sent)
            sent.append(0)
            with socket.create_connection(("127.0.0.1", port)) as service:
                back = threading.Thread(target=self.bring_back, args=(service,))
                back.start()
                while sent[place] < after and (some := self.request.recv(65536)):
                    service.sendall(some[: after - sent[place]])
                    sent[place] = min(after, sent[place] + len(some))
                for end in (service, self.request):
                    with suppress(OSError):
                        end.shutdown(socket.SHUT_RDWR)
                back.join()

        def bring_back(self, service: socket.socket) -> None:
            with suppress(OSError):
                while some := service.recv(65536):
                    self.request.sendall(some)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Cut) as proxy:
        thread = threading.Thread(target=proxy.serve_forever)
        thread.start()
        try:
            yield proxy.server_address[1], sent
        finally:
            proxy.shutdown()
            thread.join()


def test_an_upload_that_is_cut_goes_on_where_it_was_in_little_memory(
    free_port, tmp_path, migrated, queue_job
):
    size, after = 70_000_000, 30_000_000
    file = tmp_path / "student.safetensors"
    file.write_bytes(b"".join(hashlib.sha256(str(n).encode()).digest() * 1000 for n in range(2188)))
    os.truncate(file, size)

    def peak() -> int:
        status = Path(f"/proc/{client.pid}/status").read_text()
        return 1024 * int(status.partition("VmHWM:")[2].split()[0])

    with (
        serving(free_port, migrated(tmp_path / "data")) as client,
        cutting(free_port, after) as (port, sent),
    ):
        release_colours(client)
        job = queue_job(client, 1)
        fence = client.post("/v1/jobs/claim", json={"worker": "w"}).json()["fence"]
        before = peak()
        service = ServiceClient(f"http://127.0.0.1:{port}", None, threading.Event())
        path = f"/v1/jobs/{job}/artifacts/{file.name}"
        upload(service, f"{path}?fence={fence}", file, "application/octet-stream")
        assert peak() - before < size / 2
        service.close()
        assert len(sent) >= 3 and size <= sum(sent) < size + 2 * 4 * 2**20
        found = client.get(path).content
    assert hashlib.sha256(found).digest() == hashlib.sha256(file.read_bytes()).digest()
