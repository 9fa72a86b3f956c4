"""`distill serve` over REST: a real server on loopback, asked as clients do."""

import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

import httpx
import pytest

pytest.importorskip("fastapi")

from PIL import Image
from typer.testing import CliRunner

from distill.cli.main import app
from distill.data.splits import scan_split
from distill.runtime import Classifier
from distill.runtime.server.settings import ServerSettings
from tests.distill.runtime.serving import as_file, noise, serving
from tests.llm_server import Answer, LlmServer

ROOT = Path(__file__).parents[3]
OKAPI = {"name": "okapi", "text": "a horse-like animal with striped legs"}


@pytest.fixture(scope="module")
def photos(charm_world):
    return scan_split(charm_world, "unseen").paths[:40]


@pytest.fixture(scope="module")
def client(exported_charms):
    """Of a server that no test changes."""
    with (
        serving(exported_charms.folder, ServerSettings(threads=1, read_only=True)) as url,
        httpx.Client(base_url=url, timeout=60) as client,
    ):
        yield client


@pytest.fixture
def ask(classifier_folder):
    """A function that starts a server of a classifier that may change, for given settings."""
    with ServerStack(classifier_folder) as stack:
        yield stack.client


class ServerStack:
    def __init__(self, folder):
        self.folder, self.opened = folder, []

    def client(self, settings=None):
        server = serving(self.folder, settings)
        client = httpx.Client(base_url=server.__enter__(), timeout=60)
        self.opened += [server, client]
        return client

    def __enter__(self):
        return self

    def __exit__(self, *error):
        for context in reversed(self.opened):
            context.__exit__(None, None, None)


def files_of(paths):
    return [("photos", (path.name, path.read_bytes())) for path in paths]


def assert_same(answer, prediction):
    """An answer is what `Classifier.classify` gives; batches differ in the last digits."""
    assert answer["error"] is None
    assert answer["unknown"] == prediction.unknown
    for found, expected in zip(answer["candidates"], prediction.candidates, strict=True):
        assert found["probability"] == pytest.approx(expected.probability, abs=1e-4)
        assert found["cosine"] == pytest.approx(expected.cosine, abs=1e-4)
    best, expected = answer["candidates"][0], prediction.best
    assert (best["key"], best["name"], best["seen"]) == (expected.key, expected.name, expected.seen)


def test_photos_in_a_form_and_as_the_body_get_the_predictions_of_the_classifier(
    client, exported_charms, photos
):
    expected = Classifier.load(exported_charms.folder).classify(photos)
    document = client.post("/v1/classify", files=files_of(photos)).json()
    assert [entry["photo"] for entry in document["photos"]] == [path.name for path in photos]
    for answer, prediction in zip(document["photos"], expected, strict=True):
        assert_same(answer, prediction)
    for kind in ("image/png", "application/octet-stream", "application/x-www-form-urlencoded"):
        (answer,) = client.post(
            "/v1/classify?top=5",
            content=photos[0].read_bytes(),
            headers={"Content-Type": kind},
        ).json()["photos"]
        assert_same(answer, expected[0])


def test_reasons_come_if_they_are_asked_for(client, exported_charms, photos):
    body = photos[0].read_bytes()
    (plain,) = client.post("/v1/classify", content=body).json()["photos"]
    assert plain["reasons"] is None
    (answer,) = client.post("/v1/classify?reasons=true", content=body).json()["photos"]
    (expected,) = Classifier.load(exported_charms.folder).classify(photos[:1], reasons=True)
    assert_same(answer, expected)
    reasons = answer["reasons"]
    assert reasons["runner_up"] == expected.reasons.runner_up
    for found, reason in zip(reasons["attributes"], expected.reasons.attributes, strict=True):
        assert (found["text"], found["supports"]) == (reason.text, reason.supports)
        assert found["evidence"] == pytest.approx(reason.evidence, abs=1e-2)
    for found, reason in zip(reasons["differences"], expected.reasons.differences, strict=True):
        assert (found["text"], found["key"], found["name"]) == (
            reason.text,
            reason.key,
            reason.name,
        )


def test_top_sets_the_number_of_classes(client, photos):
    body = photos[0].read_bytes()
    for top, count in ((1, 1), (3, 3), (1000, 51)):
        (answer,) = client.post(f"/v1/classify?top={top}", content=body).json()["photos"]
        assert len(answer["candidates"]) == count
    refused = client.post("/v1/classify?top=0", content=body)
    assert refused.status_code == 422
    assert "query.top" in refused.json()["detail"]


def test_thirty_two_clients_at_once_each_get_their_own_answer(client, exported_charms, photos):
    expected = Classifier.load(exported_charms.folder).classify(photos[:32])

    def ask(path):
        with httpx.Client(base_url=client.base_url, timeout=60) as own:
            return [own.post("/v1/classify", content=path.read_bytes()).json() for _ in range(4)]

    with ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(ask, photos[:32]))
    for own, prediction in zip(answers, expected, strict=True):
        for document in own:
            assert_same(document["photos"][0], prediction)
    metrics = client.get("/metrics").text
    batches = float(re.search(r"^distill_batch_photos_count (\S+)", metrics, re.MULTILINE)[1])
    encoded = float(re.search(r"^distill_batch_photos_sum (\S+)", metrics, re.MULTILINE)[1])
    assert encoded > batches, "no two requests shared a run of the encoder"


def test_an_unreadable_photo_is_an_entry_among_others_and_an_error_alone(client, photos):
    good = photos[0].read_bytes()
    bad = {
        "cut.png": good[: len(good) // 2],
        "notes.txt": b"no photo",
        "empty.png": b"",
        "page.eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n",
    }
    files = [("photos", photo) for photo in [("good.png", good), *bad.items()]]
    answer = client.post("/v1/classify", files=files)
    assert answer.status_code == 200
    first, *others = answer.json()["photos"]
    assert first["error"] is None and first["candidates"]
    for found, name in zip(others, bad, strict=True):
        assert found["photo"] == name
        assert found["error"] and len(found["error"].splitlines()) == 1
        assert (found["candidates"], found["unknown"]) == ([], None)
    assert others[2]["error"] == "it is empty"
    for content in bad.values():
        alone = client.post("/v1/classify", content=content)
        assert alone.status_code == 422
        assert alone.headers["content-type"] == "application/problem+json"
        assert len(alone.json()["detail"].splitlines()) == 1


def test_a_request_without_photos_is_refused_with_advice(client):
    for request in ({"content": b""}, {"files": {"x": ("a.png", b"")}}):
        refused = client.post("/v1/classify", **request)
        assert refused.status_code == 422
        assert "send a form with files, or one image as the body" in refused.json()["detail"]
    damaged = client.post(
        "/v1/classify", content=b"--x", headers={"Content-Type": "multipart/form-data"}
    )
    assert damaged.status_code == 400


@pytest.mark.parametrize(
    ("request_", "detail"),
    [
        (
            {"content": b'{"name": "okapi"}'},
            "body: expected a JSON object: send one with Content-Type",
        ),
        ({"json": ["okapi"]}, "body: expected a JSON object"),
        (
            {"content": b'{"name": okapi}', "headers": {"Content-Type": "application/json"}},
            "body.9: invalid JSON at this character: Expecting value",
        ),
    ],
)
def test_a_malformed_class_is_refused_with_advice(client, request_, detail):
    refused = client.post("/v1/classes", **request_)
    assert refused.status_code == 422
    assert refused.json()["detail"].startswith(detail)


def test_limits_on_bytes_photos_and_pixels(ask, photos):
    settings = ServerSettings(threads=1, max_bytes=100_000, max_photos=3, max_pixels=10_000)
    client = ask(settings)
    for content in (bytes(100_001), chain([bytes(60_000)] * 2)):  # announced, and in chunks
        large = client.post("/v1/classify", content=content)
        assert large.status_code == 413
        assert "exceeds 100000 bytes" in large.json()["detail"]
    for number in (4, 5, 6):
        many = client.post("/v1/classify", files=files_of(photos[:number]))
        assert many.status_code == 413
        assert many.json()["detail"] == "A request may have at most 3 photos: send fewer."
    wide = client.post("/v1/classify", content=as_file(Image.new("1", (200, 51))))
    assert wide.status_code == 422
    assert "more than 10000 pixels" in wide.json()["detail"]
    assert client.post("/v1/classify", files=files_of(photos[:3])).status_code == 200


def test_a_decompression_bomb_is_an_error_of_that_photo_alone(client, photos):
    """400 megapixels of one colour are a PNG of 50 kB."""
    bomb = as_file(Image.new("1", (20_000, 20_000)))
    files = [("photos", ("bomb.png", bomb)), *files_of(photos[:1])]
    first, second = client.post("/v1/classify", files=files).json()["photos"]
    assert first["error"] == "it has more than 50000000 pixels"
    assert second["error"] is None


def test_a_full_queue_is_a_503_with_retry_after(ask):
    client = ask(ServerSettings(threads=1, max_queue=2, max_photos=2))

    def post(seed):
        with httpx.Client(base_url=client.base_url, timeout=60) as own:
            return own.post("/v1/classify", content=noise(seed, side=1500))

    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(post, range(12)))
    by_status = {answer.status_code: answer for answer in answers}
    assert set(by_status) == {200, 503}
    assert by_status[503].headers["Retry-After"] == "1"
    assert "at most 2 fit" in by_status[503].json()["detail"]
    assert client.post("/v1/classify", content=noise(0)).status_code == 200


def raw(client):
    return socket.create_connection((client.base_url.host, client.base_url.port), timeout=20)


def read_until(connection, end):
    found = b""
    while not found.endswith(end):
        piece = connection.recv(4096)
        assert piece, f"the server closed the connection after {found!r}"
        found += piece


def test_a_stalled_client_and_those_that_leave_do_not_stop_others(ask, photos):
    client = ask(ServerSettings(threads=1, body_timeout_s=0.5))
    stalled = raw(client)
    stalled.sendall(b"POST /v1/classify HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 99\r\n\r\nx")
    silent = raw(client)
    body = noise(0, side=1000)
    head = f"POST /v1/classify HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n\r\n"
    for _ in range(8):  # they leave while their photo is decoded
        with raw(client) as gone:
            gone.sendall(head.encode() + body)
    assert client.post("/v1/classify", files=files_of(photos[:20])).status_code == 200
    with stalled, silent:
        assert b"408 Request Timeout" in stalled.recv(4096)
    deadline = time.monotonic() + 30
    while "distill_queue_photos 0.0" not in client.get("/metrics").text:
        assert time.monotonic() < deadline, "photos of clients that left are still in the queue"
        time.sleep(0.05)


def test_half_open_connections_are_closed_and_idle_ones_kept(ask):
    client = ask(ServerSettings(threads=1, head_timeout_s=0.5))
    with raw(client) as silent, raw(client) as half, raw(client) as idle:
        half.sendall(b"GET /healthz HTTP/1.1\r\nHost:")
        idle.sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        read_until(idle, b'{"status":"ok"}')
        assert silent.recv(1) == b"" and half.recv(1) == b""
        idle.sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n")
        idle.sendall(b"\r\n")
        read_until(idle, b'{"status":"ok"}')


def test_a_body_that_drips_is_refused(ask):
    """Each byte comes in time, and all of them would take hours."""
    client = ask(ServerSettings(threads=1, body_timeout_s=0.5))
    with raw(client) as dripping:
        dripping.sendall(
            b"POST /v1/classify HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 99999\r\n\r\n"
        )
        dripping.settimeout(0.1)
        answer = b""
        for _ in range(200):
            try:
                answer = dripping.recv(4096)
                break
            except TimeoutError:
                dripping.sendall(b"x")
    assert b"408 Request Timeout" in answer


def test_a_class_is_added_saved_and_removed(ask, classifier_folder, photos):
    client = ask()
    before = client.get("/v1/classes").json()
    added = client.post("/v1/classes", json=OKAPI)
    assert added.status_code == 201
    assert added.json() == {
        "key": "okapi",
        "name": "okapi",
        "texts": ["a photo of okapi . a horse-like animal with striped legs"],
        "seen": False,
        "origin": "added",
        "attributes": ["a horse-like animal with striped legs"],
        "photos": 0,
        "offset": 0.0,
    }
    document = client.post("/v1/classify?top=1000", content=photos[0].read_bytes()).json()
    assert "okapi" in [candidate["name"] for candidate in document["photos"][0]["candidates"]]
    # It was on disk before the answer, and is there for the next server.
    assert Classifier.load(classifier_folder).classes[-1].name == "okapi"
    restarted = ask()
    assert restarted.get("/v1/classes").json()["classes"] == [*before["classes"], added.json()]
    assert restarted.delete("/v1/classes/OKAPI").status_code == 204
    assert restarted.get("/v1/classes").json() == before
    assert len(Classifier.load(classifier_folder).classes) == len(before["classes"])
    # The first server did not see that: it must not write over it.
    stale = client.post("/v1/classes", json={"name": "tapir", "text": "a pig-like animal"})
    assert stale.status_code == 409
    assert "another program has changed the classifier" in stale.json()["detail"]


def test_a_class_with_a_slash_in_its_name_can_be_removed(ask):
    client = ask()
    new = {"name": "duck/goose?", "text": "a bird of either kind"}
    assert client.post("/v1/classes", json=new).status_code == 201
    assert client.delete("/v1/classes/duck%2Fgoose%3F").status_code == 204


def test_classes_that_cannot_be_added_or_removed_are_one_line_errors(ask):
    client = ask(ServerSettings(threads=1, service="http://127.0.0.1:9"))
    assert client.post("/v1/classes", json=OKAPI).status_code == 201
    cases = [
        (409, "the class 'Okapi' exists already", {"name": "Okapi", "text": "another"}),
        (409, "is too similar to that of 'okapi'", OKAPI | {"name": "okapis"}),
        (422, "a new class needs a name", {"name": " ", "text": "a text"}),
        (422, "the text of the new class 'x' is empty", {"name": "x", "text": " "}),
        (422, "body.name", {"text": "a text"}),
        (422, "body.colour", {"name": "x", "colour": "red"}),
        (503, "the service at http://127.0.0.1:9/v1/describe does not answer", {"name": "x"}),
    ]
    for status, message, body in cases:
        refused = client.post("/v1/classes", json=body)
        assert (refused.status_code, message in refused.json()["detail"]) == (status, True), body
        assert len(refused.json()["detail"].splitlines()) == 1
    near = OKAPI | {"name": "okapis", "allow_near": True}
    assert client.post("/v1/classes", json=near).status_code == 201
    missing = client.delete("/v1/classes/unicorn")
    assert missing.status_code == 404
    assert "no class 'unicorn'" in missing.json()["detail"]


def test_a_name_alone_is_described_by_the_language_model_of_the_environment(ask, monkeypatch):
    client = ask()
    refused = client.post("/v1/classes", json={"name": "okapi"})
    assert refused.status_code == 422
    assert "the new class 'okapi' needs a description" in refused.json()["detail"]
    with LlmServer(behave=lambda call: Answer(content=OKAPI["text"])) as model:
        monkeypatch.setenv("OPENAI_BASE_URL", model.url)
        added = client.post("/v1/classes", json={"name": "okapi"})
        assert added.json()["texts"] == [f"a photo of okapi . {OKAPI['text']}"]
        assert client.post("/v1/classes", json={"name": "OKAPI"}).status_code == 409
        assert len(model.requests) == 1


def test_a_change_that_cannot_be_saved_changes_nothing(ask, classifier_folder):
    client = ask()
    before = client.get("/v1/classes").json()
    (classifier_folder / "classifier.json").rename(classifier_folder / "hidden")
    assert client.post("/v1/classes", json=OKAPI).status_code == 409
    assert client.get("/v1/classes").json() == before
    (classifier_folder / "hidden").rename(classifier_folder / "classifier.json")
    assert client.post("/v1/classes", json=OKAPI).status_code == 201


def test_photos_are_classified_while_classes_come_and_go(ask, photos):
    client = ask()
    count = len(client.get("/v1/classes").json()["classes"])

    def change(_):
        with httpx.Client(base_url=client.base_url, timeout=60) as own:
            for _ in range(5):
                own.post("/v1/classes", json=OKAPI).raise_for_status()
                own.delete("/v1/classes/okapi").raise_for_status()

    def classify(path):
        with httpx.Client(base_url=client.base_url, timeout=60) as own:
            return [
                own.post("/v1/classify?top=1000", content=path.read_bytes()).json()
                for _ in range(10)
            ]

    with ThreadPoolExecutor(5) as pool:
        changes = pool.submit(change, None)
        answers = list(chain(*pool.map(classify, photos[:4])))
        changes.result()
    for document in answers:
        candidates = document["photos"][0]["candidates"]
        assert len(candidates) in (count, count + 1)
        assert sum(candidate["probability"] for candidate in candidates) == pytest.approx(1)


def test_a_classifier_without_classes_is_refused_with_advice(ask):
    client = ask()
    for entry in client.get("/v1/classes").json()["classes"]:
        client.delete(f"/v1/classes/{entry['key']}").raise_for_status()
    refused = client.post("/v1/classify", content=noise(0))
    assert refused.status_code == 409
    assert "add one with POST /v1/classes" in refused.json()["detail"]


def test_a_read_only_server_keeps_its_classes(client):
    assert client.get("/v1/classes").json()["read_only"] is True
    for refused in (client.post("/v1/classes", json=OKAPI), client.delete("/v1/classes/x")):
        assert refused.status_code == 409
        assert "read-only" in refused.json()["detail"]


def test_keys_are_asked_of_everybody_but_probes(ask):
    client = ask(ServerSettings(threads=1, keys=("first", "second")))
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/readyz").status_code == 200
    for path in ("/", "/v1/classes", "/metrics", "/openapi.json", "/static/page.js"):
        refused = client.get(path)
        assert refused.status_code == 401, path
        assert "Basic" in refused.headers["WWW-Authenticate"]
    assert client.get("/v1/classes", headers={"Authorization": "Bearer third"}).status_code == 401
    for key in ("first", "second"):
        allowed = client.get("/v1/classes", headers={"Authorization": f"Bearer {key}"})
        assert allowed.status_code == 200
        assert client.get("/v1/classes", auth=("anybody", key)).status_code == 200


def test_without_a_key_foreign_hosts_and_pages_are_kept_out(ask):
    client = ask()
    assert client.get("/v1/classes", headers={"Host": "evil.example"}).status_code == 403
    for headers in ({"Origin": "http://evil.example"}, {"Sec-Fetch-Site": "cross-site"}):
        assert client.post("/v1/classes", json=OKAPI, headers=headers).status_code == 403
    own = {"Sec-Fetch-Site": "same-origin"}
    assert client.post("/v1/classes", json=OKAPI, headers=own).status_code == 201


def test_every_answer_has_security_headers(client):
    for path in ("/", "/v1/classes", "/nowhere", "/static/page.js"):
        headers = client.get(path).headers
        assert "default-src 'none'" in headers["Content-Security-Policy"], path
        assert headers["X-Content-Type-Options"] == "nosniff"


def test_metrics_count_requests_photos_and_errors(client, photos):
    client.post("/v1/classify", content=photos[0].read_bytes()).raise_for_status()
    lines = client.get("/metrics").text.splitlines()
    assert "distill_classes 51.0" in lines
    route = 'method="POST",route="/v1/classify",status="200"'
    for start in (f"distill_http_requests_total{{{route}}}", "distill_classifier_info{"):
        assert any(line.startswith(start) for line in lines), start


def test_the_requests_of_the_guide_work(classifier_folder, photos, tmp_path):
    """Every curl command of docs/how-to/serving.md, unchanged."""
    if shutil.which("curl") is None:
        pytest.skip("no curl")
    for key in ("king_eider", "bufflehead"):
        (tmp_path / "photos/val" / key).mkdir(parents=True)
        shutil.copy(photos[0], tmp_path / "photos/val" / key / "1.jpg")
    page = (ROOT / "docs/how-to/serving.md").read_text()
    commands = re.findall(r"^\$ (curl .*)$", page, re.MULTILINE)
    assert len(commands) == 5
    with serving(classifier_folder) as url:
        for command in commands:
            command = command.replace("http://127.0.0.1:8100", url)
            done = subprocess.run(
                command.replace("curl", "curl --silent --show-error --fail-with-body", 1),
                shell=True,
                cwd=tmp_path,
                capture_output=True,
                text=True,
                timeout=60,
            )
            assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"


def test_what_is_not_there_is_a_problem_document(client):
    missing = client.get("/nowhere")
    assert missing.status_code == 404
    wrong = client.put("/v1/classes")
    assert (wrong.status_code, wrong.headers["Allow"]) == (405, "GET, POST")
    for answer in (missing, wrong):
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["type"] == "about:blank"


def serve(*arguments, **environment):
    return CliRunner().invoke(app, ["serve", *map(str, arguments)], env=environment)


def test_mistakes_on_the_command_line_are_one_line_errors(exported_charms, tmp_path):
    folder = exported_charms.folder
    (tmp_path / "empty").write_text("\n")
    damaged = shutil.copytree(folder, tmp_path / "damaged")
    with (damaged / "text_encoder.onnx").open("r+b") as file:
        file.write(b"x")
    cases = [
        ((tmp_path,), "is not a classifier folder"),
        ((damaged,), "text_encoder.onnx is not the file that was exported"),
        ((folder, "--host", "0.0.0.0"), "can be reached from other machines"),
        ((folder, "--key-file", tmp_path / "none"), "cannot read the key file"),
        ((folder, "--key-file", tmp_path / "empty"), "is empty: write one key per line"),
        ((folder, "--max-photos", "300"), "does not fit into a queue of 256"),
    ]
    with socket.create_server(("127.0.0.1", 0)) as other:
        cases.append(
            ((folder, "--port", other.getsockname()[1]), "(Address already in use): choose")
        )
        results = [(serve(*arguments), message) for arguments, message in cases]
    for result, message in results:
        assert result.exit_code == 1, message
        assert message in result.stderr
        assert len(result.stderr.splitlines()) == 1
    odd = serve(folder, DISTILL_SERVE_KEY="blank inside")
    assert "DISTILL_SERVE_KEY has invalid characters" in odd.stderr


def test_the_command_serves_until_it_is_stopped(exported_charms, photos, tmp_path):
    command = [sys.executable, "-m", "distill", "serve", str(exported_charms.folder), "--port", "0"]
    log = tmp_path / "log"
    with log.open("wb") as stderr:
        process = subprocess.Popen(command, stderr=stderr)
    try:
        deadline = time.monotonic() + 60
        while not (found := re.search(r"running on (\S+)", log.read_text())):
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        answer = httpx.post(f"{found[1]}/v1/classify", files=files_of(photos[:3]), timeout=60)
        assert len(answer.json()["photos"]) == 3
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=20)
    assert "Application shutdown complete" in log.read_text()
    assert "Traceback" not in log.read_text()


def test_made_up_requests_get_described_answers_and_no_5xx(ask, tmp_path):
    """Schemathesis makes them up from the server's own OpenAPI description."""
    pytest.importorskip("schemathesis")
    # A name may be taken, and made-up bytes are no photo.
    statuses = 'expected-statuses = ["2xx", "404", "409", "422"]'
    (tmp_path / "fuzz.toml").write_text(f"[checks.positive_data_acceptance]\n{statuses}\n")
    program = Path(sys.executable).with_name("schemathesis")
    command = [program, "--config-file", "fuzz.toml", "run", f"{ask().base_url}/openapi.json"]
    options = ["--continue-on-failure", "--max-examples", "10", "--seed", "0", "--warnings", "off"]
    done = subprocess.run(
        [*command, *options], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout
    assert "7 passed" in done.stdout
