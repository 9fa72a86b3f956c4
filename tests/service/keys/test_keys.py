import json
import re
import socket
import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from typer.testing import CliRunner

from enrich_service.cli import app
from enrich_service.core.rest.caller import Scope
from enrich_service.core.settings import Settings
from enrich_service.core.storage.database import make_engine, writing
from enrich_service.keys import service as keys
from tests.conftest import running
from tests.llm_server import LlmServer
from tests.service.runs.test_runs import until


@pytest.fixture
def enrich(tmp_path, monkeypatch, migrated):
    """Run `enrich` on the data folder of the test's service; gives what it printed as JSON."""
    monkeypatch.setenv("ENRICH_DATA_DIR", str(migrated(tmp_path)))

    def run(*arguments):
        call = CliRunner().invoke(app, [*map(str, arguments), "--json"])
        assert call.exit_code == 0, call.output
        return json.loads(call.stdout)

    return run


@pytest.fixture
def client(start_service, tmp_path):
    url = start_service(Settings(data_dir=tmp_path, rate_limit=1000))
    with httpx.Client(base_url=url, timeout=30) as client:
        yield client


def bearer(key):
    return {"Authorization": f"Bearer {key}"}


def add_ducks(client, name="ducks", **more):
    body = {"name": name, "labels": [{"name": "mallard"}]}
    return client.post("/v1/label-sets", json=body, **more)


def problem(answer):
    assert answer.headers["content-type"] == "application/problem+json"
    assert "\n" not in answer.json()["detail"]
    return answer.status_code, answer.json()["detail"]


def test_the_first_key_closes_the_service_to_whoever_has_none(client, enrich):
    assert add_ducks(client).status_code == 201
    made = enrich("keys", "create", "ann", "--scope", "read", "--days", 30)
    assert made["key"].startswith(made["prefix"]) and made["scope"] == "read"
    for path in ("/v1/label-sets", "/v1/nothing", "/docs", "/openapi.json", "/"):
        answer = client.get(path)
        assert problem(answer)[0] == 401, path
        assert "Basic" in answer.headers["www-authenticate"]  # so that a browser asks
    assert client.get("/healthz").status_code == client.get("/readyz").status_code == 200
    assert client.get("/static/style.css").status_code == 200
    assert client.get("/v1/label-sets", headers=bearer(made["key"])).status_code == 200
    status, detail = problem(client.get("/v1/label-sets", headers=bearer(made["key"] + "x")))
    assert status == 401 and "Unknown API key" in detail


def test_a_browser_sends_the_key_as_a_password_for_pages_and_their_requests(client, enrich):
    key = enrich("keys", "create", "ann")["key"]
    page = client.get("/", auth=("anybody", key))
    assert page.status_code == 200 and "Label sets" in page.text
    assert add_ducks(client, auth=("", key)).status_code == 201
    assert client.get("/", auth=("ann", "wrong")).status_code == 401
    assert client.get("/", headers={"Authorization": "Basic ***"}).status_code == 401


def test_a_browser_reads_a_refusal_as_a_page_that_still_asks_for_the_key(
    start_service, tmp_path, monkeypatch
):
    monkeypatch.setenv("ENRICH_DATA_DIR", str(tmp_path))
    url = start_service(Settings(data_dir=tmp_path, rate_limit=0.01))
    key = json.loads(
        CliRunner().invoke(app, ["keys", "create", "ann", "--scope", "read", "--json"]).stdout
    )["key"]

    def said(answer):
        assert answer.headers["content-type"].startswith("text/html"), answer.text
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        return answer.status_code, re.search(r'class="notice bad">([^<]*)', answer.text).group(1)

    with httpx.Client(base_url=url, timeout=30, headers={"Accept": "text/html"}) as browser:
        closed = browser.get("/")
        status, detail = said(closed)
        assert status == 401 and "the password in your browser" in detail
        assert "Basic" in closed.headers["www-authenticate"]
        assert problem(browser.get("/v1/label-sets"))[0] == 401  # not what browsers look at
        assert said(browser.post("/runs", auth=("ann", key)))[0] == 403
        foreign = browser.post("/runs", auth=("ann", key), headers={"Origin": "http://a.example"})
        assert "Cross-site requests" in said(foreign)[1]
        busy = browser.get("/runs", auth=("ann", key))  # the second of its requests
        assert said(busy)[0] == 429 and int(busy.headers["retry-after"]) > 0


def test_scopes_open_what_they_say(client, enrich):
    key = {scope: enrich("keys", "create", scope, "--scope", scope)["key"] for scope in Scope}
    read, write, admin = (bearer(key[scope]) for scope in Scope)
    status, detail = problem(add_ducks(client, headers=read))
    assert status == 403 and "requires write" in detail
    assert add_ducks(client, headers=write).status_code == 201
    assert client.post("/v1/jobs/claim", json={"worker": "w"}, headers=read).status_code == 403
    assert client.post("/v1/jobs/claim", json={"worker": "w"}, headers=write).status_code == 204
    assert client.get("/v1/label-sets/ducks", headers=read).status_code == 200
    for path in ("/v1/keys", "/v1/audit"):
        assert problem(client.get(path, headers=write))[0] == 403
        assert client.get(path, headers=admin).status_code == 200
    assert client.post("/v1/keys", json={"name": "x"}, headers=write).status_code == 403


def test_admins_make_list_and_revoke_keys_and_a_key_is_told_once(client, enrich):
    admin = bearer(enrich("keys", "create", "root", "--scope", "admin")["key"])
    made = client.post("/v1/keys", json={"name": "gpu-1"}, headers=admin)
    assert made.status_code == 201 and made.headers["cache-control"] == "no-store"
    worker = bearer(made.json()["key"])
    assert client.get("/v1/label-sets", headers=worker).status_code == 200
    listed = client.get("/v1/keys", headers=admin)
    assert [one["name"] for one in listed.json()] == ["gpu-1", "root"]
    assert made.json()["key"] not in listed.text and "hash" not in listed.json()[0]
    used = datetime.fromisoformat(listed.json()[0]["last_used_at"])
    assert datetime.now(UTC) - used < timedelta(minutes=1)
    for _ in range(2):
        gone = client.post(f"/v1/keys/{made.json()['id']}/revoke", headers=admin)
        assert gone.json()["revoked_at"] is not None
    status, detail = problem(client.get("/v1/label-sets", headers=worker))
    assert status == 401 and "revoked" in detail
    assert client.post("/v1/keys/99/revoke", headers=admin).status_code == 404
    assert enrich("keys", "list")[0]["revoked_at"] is not None
    past = {"name": "x", "expires_at": "2001-01-01T00:00:00Z"}
    assert "past" in client.post("/v1/keys", json=past, headers=admin).json()["detail"]


def test_a_key_that_expired_or_was_revoked_opens_nothing_and_the_service_stays_closed(
    client, enrich, tmp_path
):
    engine = make_engine(Settings(data_dir=tmp_path).sqlalchemy_url)
    with writing(engine) as session:
        row, key = keys.create(session, "old", Scope.ADMIN)
        row.expires_at = datetime.now(UTC) - timedelta(seconds=1)
    engine.dispose()
    assert "expired" in client.get("/v1/jobs", headers=bearer(key)).json()["detail"]
    assert client.get("/v1/jobs").status_code == 401
    assert client.get("/v1/jobs", headers=bearer(enrich("keys", "create", "new")["key"])).is_success


def test_what_another_process_did_to_the_keys_is_known_within_a_moment(client, enrich):
    """Who was let in is remembered, so a key is not looked up at each request."""
    assert client.get("/v1/label-sets").status_code == 200
    made = enrich("keys", "create", "ann", "--scope", "read")
    until(lambda: client.get("/v1/label-sets").status_code == 401)
    key = bearer(made["key"])
    assert client.get("/v1/label-sets", headers=key).status_code == 200
    enrich("keys", "revoke", made["id"])
    until(lambda: client.get("/v1/label-sets", headers=key).status_code == 401)


@pytest.mark.sqlite
def test_the_key_itself_is_written_nowhere(client, enrich, tmp_path):
    key = enrich("keys", "create", "ann")["key"]
    add_ducks(client, headers=bearer(key))
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert key[:13].encode() in written and key.encode() not in written


def test_every_change_is_in_the_audit_log_with_its_key(client, enrich):
    add_ducks(client, "before")
    admin = bearer(enrich("keys", "create", "root", "--scope", "admin")["key"])
    ann = bearer(enrich("keys", "create", "ann")["key"])
    add_ducks(client, headers=ann)
    assert add_ducks(client, headers=ann).status_code == 409  # refused: nothing changed
    body = {"label_set": "ducks", "name": "r", "allow_missing": True}
    release = client.post("/v1/releases", json=body, headers=ann).json()["id"]
    config = {"data": "/d", "teacher": "hf-hub:a/b"}
    body = {"release_id": release, "config": config}
    job = client.post("/v1/jobs", json=body, headers=ann).json()["id"]
    fence = client.post("/v1/jobs/claim", json={"worker": "w"}, headers=ann).json()["fence"]
    url = f"/v1/jobs/{job}"
    client.post(f"{url}/heartbeat", json={"fence": fence}, headers=ann)
    put = client.put(f"{url}/artifacts/report.json?fence={fence}", content=b"{}", headers=ann)
    assert put.status_code == 200
    client.post(f"{url}/cancel", headers=admin)
    client.get("/v1/jobs", headers=ann)
    log = client.get("/v1/audit", headers=admin).json()
    assert [(one["who"], one["route"], one["object"]) for one in reversed(log)] == [
        ("(no key)", "POST /v1/label-sets", "/v1/label-sets"),
        ("ann", "POST /v1/label-sets", "/v1/label-sets"),
        ("ann", "POST /v1/releases", "/v1/releases"),
        ("ann", "POST /v1/jobs", "/v1/jobs"),
        ("ann", "PUT /v1/jobs/{job_id}/artifacts/{name}", f"{url}/artifacts/report.json"),
        ("root", "POST /v1/jobs/{job_id}/cancel", f"{url}/cancel"),
    ]
    assert log[0]["action"] == "cancel_job" and log[0]["key_id"] == 1
    only = client.get("/v1/audit?key_id=2&limit=1&before=5", headers=admin).json()
    assert [one["action"] for one in only] == ["create_job"]
    assert len(enrich("keys", "audit", "--key", 1)) == 1


def test_a_change_that_its_route_commits_itself_is_in_the_audit_log_too(tmp_path, migrated):
    with (
        LlmServer() as model,
        running(Settings(data_dir=migrated(tmp_path), llm_url=model.url)) as url,
        httpx.Client(base_url=url) as client,
    ):
        add_ducks(client)
        run = {"label_set": "ducks", "prompt": "visual-description"}
        assert client.post("/v1/runs", json=run).status_code == 201
        log = client.get("/v1/audit").json()
    assert [one["route"] for one in log] == ["POST /v1/runs", "POST /v1/label-sets"]


@pytest.mark.sqlite
def test_a_change_whose_audit_row_cannot_be_written_is_not_made(tmp_path, migrated):
    with (
        LlmServer() as model,
        running(Settings(data_dir=migrated(tmp_path), llm_url=model.url)) as url,
        httpx.Client(base_url=url) as client,
    ):
        add_ducks(client)
        with closing(sqlite3.connect(tmp_path / "enrich.db")) as database:
            refusal = "BEGIN SELECT raise(ABORT, 'no'); END"
            database.execute(f"CREATE TRIGGER refuse BEFORE INSERT ON audit_entry {refusal}")
        run = {"label_set": "ducks", "prompt": "visual-description"}
        assert client.post("/v1/runs", json=run).status_code == 409
        assert client.get("/v1/runs").json() == []


def test_a_key_that_asks_too_often_is_told_when_to_come_again(start_service, tmp_path, enrich):
    url = start_service(Settings(data_dir=tmp_path, rate_limit=0.5))
    one, other = (bearer(enrich("keys", "create", name)["key"]) for name in ("a", "b"))
    with httpx.Client(base_url=url) as client:
        assert client.get("/v1/jobs", headers=one).status_code == 200
        late = client.get("/v1/jobs", headers=one)
        assert problem(late)[0] == 429 and int(late.headers["retry-after"]) in (1, 2)
        assert client.get("/v1/jobs", headers=other).status_code == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "localhost:1"}, 200),
        ({"Host": "[::1]:1"}, 200),
        ({"Host": "rebound.example"}, 403),  # a name that was made to resolve to 127.0.0.1
        ({"Host": "[1"}, 403),  # no address at all
        ({"X-Forwarded-For": "203.0.113.9"}, 403),  # a proxy here lets in the world
    ],
)
def test_without_a_key_only_this_machine_is_answered(client, headers, status):
    answer = client.get("/v1/jobs", headers=headers)
    assert answer.status_code == status
    if status == 403:
        assert "enrich keys create" in problem(answer)[1]


def test_an_operator_may_let_in_whoever_reaches_the_service(start_service, tmp_path):
    url = start_service(Settings(data_dir=tmp_path, allow_remote=True))
    assert httpx.get(f"{url}/v1/jobs", headers={"Host": "api:8000"}).status_code == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Sec-Fetch-Site": "same-origin", "Origin": "https://behind.a.proxy"}, 201),
        ({"Sec-Fetch-Site": "none"}, 201),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Origin": "http://elsewhere.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Origin": "https://friend.example"}, 201),
    ],
)
def test_pages_of_other_sites_change_nothing(start_service, tmp_path, headers, status):
    settings = Settings(data_dir=tmp_path, cors_origins=("https://friend.example",))
    with httpx.Client(base_url=start_service(settings)) as client:
        assert add_ducks(client, headers=headers).status_code == status
        seen = client.get("/v1/label-sets", headers=headers)
        friend = headers.get("Origin") == "https://friend.example"
        assert ("access-control-allow-origin" in seen.headers) is friend


def test_no_other_site_may_read_unless_it_is_named(client):
    headers = {"Origin": "https://friend.example", "Access-Control-Request-Method": "POST"}
    assert "access-control-allow-origin" not in client.options("/v1/jobs", headers=headers).headers


def test_serve_says_who_gets_in(tmp_path, monkeypatch):
    monkeypatch.setenv("ENRICH_DATA_DIR", str(tmp_path))
    monkeypatch.setattr("enrich_service.serve.uvicorn.run", lambda *_, **__: None)
    monkeypatch.setattr("enrich_service.serve.configure_log", lambda _: None)
    monkeypatch.setenv("ENRICH_PORT", "0")
    call = CliRunner().invoke(app, ["serve"])
    assert "no API key yet" in call.stderr and "this machine only" in call.stderr
    assert CliRunner().invoke(app, ["serve", "--host", "0.0.0.0"]).exit_code == 1
    CliRunner().invoke(app, ["keys", "create", "ann"])
    call = CliRunner().invoke(app, ["serve", "--host", "0.0.0.0"])
    assert call.exit_code == 0 and "no API key" not in call.output
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        call = CliRunner().invoke(app, ["serve", "--port", str(port)])
    assert call.exit_code == 1
    assert f"cannot listen at 127.0.0.1:{port} (Address already in use)" in call.stderr
