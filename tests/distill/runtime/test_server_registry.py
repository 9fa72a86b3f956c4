"""`distill serve --student`: a server that follows an alias of a student registry.

The registry is a small HTTP server with the service's interface, which can be made to fail.
"""

import hashlib
import io
import json
import threading
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest
from typer.testing import CliRunner

pytest.importorskip("fastapi")

from distill.cli.main import app
from distill.runtime import Classifier
from distill.runtime.server.main import serve_student
from distill.runtime.server.settings import ServerSettings
from tests.distill.runtime.serving import noise, running

POLL_S = 0.1


class Registry(ThreadingHTTPServer):
    """Versions of the student "birds" as zip files; `version` is where "production" points."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.zips: dict[int, bytes] = {}
        self.version: int | None = None
        self.key: str | None = None
        self.down = False  # answers nothing but 500
        self.altered: set[int] = set()  # versions whose files are not the registered ones
        self.asked: list[tuple[str, int]] = []  # path and status of each answer

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}"

    def target(self):
        content = self.zips[self.version]
        path = f"/v1/students/birds/versions/{self.version}/classifier"
        return {
            "student": "birds",
            "alias": "production",
            "version": self.version,
            "sha256": hashlib.sha256(content).hexdigest(),
            "bytes": len(content),
            "classifier": path,
        }

    def downloads(self):
        return [path for path, status in self.asked if "/classifier" in path and status == 200]


class Handler(BaseHTTPRequestHandler):
    server: Registry

    def do_GET(self):
        registry = self.server
        if registry.down:
            self.answer(500, b"{}")
        elif registry.key and self.headers["Authorization"] != f"Bearer {registry.key}":
            self.answer(401, json.dumps({"detail": "This service needs an API key"}).encode())
        elif self.path == "/v1/students/birds/aliases/production" and registry.version:
            target = registry.target()
            etag = f'"{target["version"]}-{target["sha256"]}"'
            if self.headers["If-None-Match"] == etag:
                self.answer(304, b"", etag)
            else:
                self.answer(200, json.dumps(target).encode(), etag)
        elif self.path.endswith("/classifier"):
            version = int(self.path.split("/")[-2])
            content = registry.zips[version]
            self.answer(200, content[:-1] + b"?" if version in registry.altered else content)
        else:
            self.answer(404, json.dumps({"detail": "There is no such alias."}).encode())

    def answer(self, status, body, etag=None):
        self.server.asked.append((self.path, status))
        self.send_response(status)
        if etag:
            self.send_header("ETag", etag)
        if status != 304:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def registry():
    with Registry() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def as_zip(folder, **extra):
    """The files of a classifier folder at the root of a zip file, and `extra` ones."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for path in sorted(folder.iterdir()):
            archive.write(path, path.name)
        for name, content in extra.items():
            archive.writestr(name, content)
    return file.getvalue()


@pytest.fixture(scope="module")
def zips(exported_charms, tmp_path_factory):
    """Two versions: the second has a class more."""
    second = Classifier.load(exported_charms.folder)
    second.add("okapi", "a horse-like animal with striped legs")
    return as_zip(exported_charms.folder), as_zip(second.save(tmp_path_factory.mktemp("x") / "b"))


@pytest.fixture
def follow(registry, tmp_path):
    """A client of a server that follows birds@production."""

    @contextmanager
    def start():
        settings = ServerSettings(threads=1, service=registry.url)
        source = serve_student("birds@production", tmp_path / "cache", POLL_S, settings)
        with running(source, settings) as url, httpx.Client(base_url=url, timeout=60) as client:
            yield client

    return start


def wait_for(client, status=200, **expected):
    """/readyz, once it has this status and these values, or texts that begin with them."""
    deadline = time.monotonic() + 60
    while True:
        answer = client.get("/readyz")
        found = answer.json()
        if answer.status_code == status and all(
            str(found[name]).startswith(str(value)) for name, value in expected.items()
        ):
            return found
        assert time.monotonic() < deadline, found
        time.sleep(0.02)


def test_the_server_follows_the_alias_without_dropping_a_request(registry, follow, zips):
    registry.zips = dict(enumerate(zips, start=1))
    registry.version = 1
    with follow() as client:
        wait_for(client, classifier="birds@production, version 1", classes=51)
        stop = threading.Event()

        def classify(seed):
            found = set()
            with httpx.Client(base_url=client.base_url, timeout=60) as own:
                while not stop.is_set():
                    answer = own.post("/v1/classify?top=100", content=noise(seed))
                    document = answer.raise_for_status().json()
                    (photo,) = document["photos"]
                    found.add((document["classifier"], len(photo["candidates"])))
            return found

        with ThreadPoolExecutor(4) as pool:
            clients = [pool.submit(classify, seed) for seed in range(4)]
            try:
                for version in (2, 1, 2):
                    registry.version = version
                    wait_for(client, classifier=f"birds@production, version {version}")
                unchanged = ("/v1/students/birds/aliases/production", 304)
                deadline = time.monotonic() + 60
                while unchanged not in registry.asked:
                    assert time.monotonic() < deadline, "the server no longer polls"
                    time.sleep(0.02)
            finally:
                stop.set()
            seen = set().union(*(client.result() for client in clients))
        # No answer mixes one version's name with the other's classes.
        assert seen == {
            ("birds@production, version 1", 51),
            ("birds@production, version 2", 52),
        }
        metrics = client.get("/metrics").text
        assert 'distill_classifier_info{classifier="birds@production, version 2"' in metrics


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda good: b"no zip", "not a readable zip file"),
        (lambda good: good[: len(good) // 2], "not a readable zip file"),
        (lambda good: renamed(good, "README.md", "../README.md"), "a file outside its folder"),
        (lambda good: renamed(good, "README.md", "x\\README.md"), "a file outside its folder"),
        (lambda good: renamed(good, "README.md", "/tmp/README.md"), "a file outside its folder"),
        (lambda good: renamed(good, "classifier.json", "x.json"), "has no classifier.json"),
        (lambda good: renamed(good, "tokenizer.json", "other.json"), "has no file tokenizer.json"),
        (lambda good: swapped(good), "is not the file that was exported"),
    ],
)
def test_a_bad_version_keeps_the_old_one(registry, follow, zips, make, message, tmp_path, caplog):
    registry.zips = {1: zips[0], 2: make(zips[1])}
    registry.version = 1
    with follow() as client:
        wait_for(client, classifier="birds@production, version 1")
        registry.version = 2
        found = wait_for(client, detail="birds@production, version 2 cannot be served")
        assert message in found["detail"]
        assert len(found["detail"].splitlines()) == 1
        assert found["classifier"] == "birds@production, version 1"
        assert client.post("/v1/classify", content=noise(0)).status_code == 200
        registry.version = 1
        wait_for(client, detail="None")
    assert "birds@production, version 1 stays in use" in caplog.text
    assert not (tmp_path / "README.md").exists()
    assert len(list((tmp_path / "cache" / "birds@production").iterdir())) == 2  # it and last.json


def renamed(content, old, new):
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as source, zipfile.ZipFile(file, "w") as target:
        for name in source.namelist():
            target.writestr(new if name == old else name, source.read(name))
    return file.getvalue()


def swapped(content):
    """The zip file is whole, and one of its files is another one."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as source, zipfile.ZipFile(file, "w") as target:
        for name in source.namelist():
            data = source.read(name)
            target.writestr(name, data[::-1] if name == "text_encoder.onnx" else data)
    return file.getvalue()


def test_a_file_with_a_wrong_checksum_is_downloaded_again(registry, follow, zips):
    registry.zips = dict(enumerate(zips, start=1))
    registry.version, registry.altered = 1, {1}
    with follow() as client:
        found = wait_for(client, status=503, title="Service Unavailable")
        found = wait_for(client, status=503, detail="There is no classifier yet: birds@production,")
        assert "is not the registered one" in found["detail"]
        assert client.post("/v1/classify", content=noise(0)).status_code == 503
        registry.altered = set()
        wait_for(client, classifier="birds@production, version 1")


def test_an_alias_that_comes_later_is_served_then(registry, follow, zips):
    registry.zips = dict(enumerate(zips, start=1))
    with follow() as client:
        found = wait_for(client, status=503, detail="There is no classifier yet: the service at")
        assert "There is no such alias." in found["detail"]
        registry.version = 1
        wait_for(client, classifier="birds@production, version 1")


def test_an_unreachable_service_changes_nothing_and_a_restart_serves_from_the_cache(
    registry, follow, zips
):
    registry.zips = dict(enumerate(zips, start=1))
    registry.version = 2
    with follow() as client:
        wait_for(client, classifier="birds@production, version 2")
        registry.down = True
        wait_for(client, detail="the service at", classifier="birds@production, version 2")
        assert client.post("/v1/classify", content=noise(0)).status_code == 200
    with follow() as client:
        wait_for(client, classifier="birds@production, version 2", detail="the service at")
        registry.down = False
        wait_for(client, detail="None")
    assert len(registry.downloads()) == 1


def test_the_key_of_the_service_is_sent(registry, follow, zips, monkeypatch):
    registry.zips, registry.version, registry.key = {1: zips[0]}, 1, "secret"
    with follow() as client:
        found = wait_for(client, status=503, detail="There is no classifier yet: the service at")
        assert "rejects the API key" in found["detail"] and "ENRICH_API_KEY" in found["detail"]
    monkeypatch.setenv("ENRICH_API_KEY", "secret")
    with follow() as client:
        wait_for(client, classifier="birds@production, version 1")


def test_classes_of_a_followed_student_cannot_be_changed(registry, follow, zips):
    registry.zips, registry.version = {1: zips[0]}, 1
    with follow() as client:
        wait_for(client, classifier="birds@production, version 1")
        refused = client.post("/v1/classes", json={"name": "okapi", "text": "striped legs"})
        assert refused.status_code == 409
        assert "This server follows birds@production" in refused.json()["detail"]


def test_mistakes_on_the_command_line_are_one_line_errors(tmp_path):
    cases = [
        ((), "give either a classifier folder or --student NAME@ALIAS"),
        ((str(tmp_path), "--student", "birds"), "give either a classifier folder or --student"),
        (("--student", "birds"), "give --service URL"),
        (("--student", "@production", "--service", "http://x"), "has no student name"),
        (("--student", "birds", "--service", "x"), "must be like http://127.0.0.1:8000"),
    ]
    for arguments, message in cases:
        result = CliRunner().invoke(app, ["serve", *arguments])
        assert result.exit_code == 1, arguments
        assert message in result.stderr
        assert len(result.stderr.splitlines()) == 1


def test_the_registry_of_the_service_is_followed_through_a_move_and_a_rollback(
    start_service, zips, tmp_path
):
    from enrich_service.core.settings import Settings
    from tests.service.web.worker import Worker

    url = start_service(Settings(data_dir=tmp_path / "service"))
    settings = ServerSettings(threads=1, service=url)
    source = serve_student("birds@production", tmp_path / "cache", POLL_S, settings)
    with (
        httpx.Client(base_url=url, timeout=60) as service,
        running(source, settings) as own_url,
        httpx.Client(base_url=own_url, timeout=60) as client,
    ):

        def post(path, **body):
            return service.post(path, json=body).raise_for_status().json()

        found = wait_for(client, status=503, detail="There is no classifier yet: the service at")
        assert "There is no student 'birds'" in found["detail"]
        post("/v1/label-sets", name="birds", labels=[{"name": "mallard"}, {"name": "teal"}])
        release = post("/v1/releases", label_set="birds", name="r", allow_missing=True)["id"]
        for content in zips:
            post("/v1/jobs", release_id=release, config={"data": "/d", "teacher": "t"})
            worker = Worker(service)
            worker.leave("classifier.zip", content, "application/zip")
            post(f"{worker.url}/finish", fence=worker.lease.fence, state="succeeded")
            post("/v1/students", name="birds", job_id=worker.job.id)
        alias = "/v1/students/birds/aliases/production"
        for version, classes in ((1, 51), (2, 52)):
            body = {"version": version, "reason": "a test"}
            service.put(alias, json=body).raise_for_status()
            wait_for(client, classifier=f"birds@production, version {version}", classes=classes)
        post(f"{alias}/rollback", reason="a test")
        wait_for(client, classifier="birds@production, version 1", classes=51)
