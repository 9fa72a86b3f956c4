import fcntl
import hashlib
import json
import tempfile
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from contract import (
    ConfusablePair,
    Event,
    Job,
    JobCreate,
    JobState,
    Lease,
    Report,
    TextDiagnostics,
    TrainConfig,
)
from enrich_service.core.errors import Conflict, LeaseLost
from enrich_service.core.settings import Settings
from enrich_service.core.storage.database import make_engine, reading, writing
from enrich_service.jobs import service as jobs
from enrich_service.jobs.schemas import EventIn
from enrich_service.labels import service as labels
from enrich_service.labels.schemas import LabelIn
from enrich_service.releases import service as releases
from enrich_service.releases.schemas import ReleaseCreate
from tests.conftest import running
from tests.llm_server import Answer, LlmServer
from tests.service.llm_fixtures import start_run, wait_for

CONFIG = {"data": "/data", "teacher": "hf-hub:a/b"}
SHORT = 0.5  # seconds of a lease


@pytest.fixture(scope="module")
def client(start_service, tmp_path_factory):
    """A service with a release and small artifacts."""
    settings = Settings(
        data_dir=tmp_path_factory.mktemp("jobs"),
        event_poll_seconds=0.02,
        max_artifact_bytes=100_000,
    )
    with httpx.Client(base_url=start_service(settings), timeout=30) as client:
        client.post("/v1/label-sets", json={"name": "ducks", "labels": [{"name": "mallard"}]})
        body = {"label_set": "ducks", "name": "r", "allow_missing": True}
        client.post("/v1/releases", json=body)
        client.data_dir = settings.data_dir
        yield client


def expire(client, job_id):
    """End the lease of a job now, as if its worker had been silent for so long."""
    engine = make_engine(Settings(data_dir=client.data_dir).sqlalchemy_url)
    with writing(engine) as session:
        jobs.get(session, job_id).lease_expires_at -= timedelta(hours=1)
    engine.dispose()


def queue(client, **more):
    answer = client.post("/v1/jobs", json={"release_id": 1, "config": CONFIG, **more})
    assert answer.status_code == 201, answer.text
    return answer.json()["id"]


def claim(client, worker="w"):
    answer = client.post("/v1/jobs/claim", json={"worker": worker})
    return Lease.model_validate_json(answer.content) if answer.status_code == 200 else None


@pytest.fixture
def lease(client):
    """The lease of a job that was just claimed; the queue is empty otherwise."""
    job_id = queue(client, priority=100)
    lease = claim(client)
    assert lease.job.id == job_id
    yield lease
    for job in client.get("/v1/jobs").json():
        if job["state"] in ("queued", "leased", "running"):
            client.post(f"/v1/jobs/{job['id']}/cancel")
    client.post(f"/v1/jobs/{job_id}/finish", json={"fence": lease.fence, "state": "cancelled"})


def events(client, job_id, **params):
    found = client.get(f"/v1/jobs/{job_id}/events", params=params).json()
    return [Event.model_validate(event) for event in found]


def log(n, text="x"):
    return {"worker_seq": n, "kind": "log", "data": {"message": text}}


def post_events(client, lease, *given):
    return client.post(
        f"/v1/jobs/{lease.job.id}/events", json={"fence": lease.fence, "events": list(given)}
    )


def test_a_job_goes_from_the_queue_to_its_report(client, lease):
    url = f"/v1/jobs/{lease.job.id}"
    assert lease.job.state is JobState.LEASED
    assert lease.release.labels[0].name == "mallard"
    assert lease.job.config == TrainConfig(**CONFIG)
    beat = client.post(f"{url}/heartbeat", json={"fence": lease.fence}).json()
    assert beat["cancel_requested"] is False
    assert datetime.fromisoformat(beat["expires_at"]) > datetime.now(UTC)
    assert client.get(url).json()["state"] == "running"
    assert post_events(client, lease, log(1), log(2)).json() == {"stored": 2}
    report = b'{"accuracies": []}'
    put = client.put(
        f"{url}/artifacts/report.json?fence={lease.fence}",
        content=report,
        headers={
            "Content-Type": "application/json",
            "X-Content-SHA256": hashlib.sha256(report).hexdigest(),
        },
    )
    assert put.json()["size"] == len(report)
    done = client.post(f"{url}/finish", json={"fence": lease.fence, "state": "succeeded"})
    job = Job.model_validate_json(done.content)
    assert job.state is JobState.SUCCEEDED
    assert job.started_at <= job.finished_at
    assert client.get(f"{url}/report").content == report
    assert client.get(f"{url}/report").headers["content-type"] == "application/json"
    kinds = [event.data.get("state", "-") for event in events(client, lease.job.id)]
    assert kinds == ["queued", "leased", "running", "-", "-", "succeeded"]
    assert [event.seq for event in events(client, lease.job.id)] == [1, 2, 3, 4, 5, 6]


def test_an_empty_queue_answers_204(client):
    assert client.post("/v1/jobs/claim", json={"worker": "w"}).status_code == 204


def test_the_most_urgent_job_goes_first_then_the_oldest(client):
    ids = [queue(client, priority=priority) for priority in (0, 5, 0, 5)]
    order = [claim(client).job.id for _ in ids]
    assert order == [ids[1], ids[3], ids[0], ids[2]]
    for job_id in ids:
        client.post(f"/v1/jobs/{job_id}/cancel")
        expire(client, job_id)
    assert claim(client) is None  # cancelled while held: they do not come back
    assert {client.get(f"/v1/jobs/{job_id}").json()["state"] for job_id in ids} == {"cancelled"}


def test_twenty_workers_at_once_never_get_the_same_job(client):
    ids = {queue(client) for _ in range(12)}
    got, start = [], threading.Barrier(20)

    def work(n):
        start.wait()
        with httpx.Client(base_url=client.base_url, timeout=30) as own:
            if lease := claim(own, f"w{n}"):
                got.append((lease.job.id, lease.fence))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(job_id for job_id, _ in got) == sorted(ids)
    for job_id, fence in got:
        client.post(f"/v1/jobs/{job_id}/finish", json={"fence": fence, "state": "failed"})


def test_a_worker_that_wakes_up_too_late_is_told_and_changes_nothing(client):
    queue(client)
    lease = claim(client)
    url = f"/v1/jobs/{lease.job.id}"
    post_events(client, lease, log(1, "mine"))
    expire(client, lease.job.id)
    second = claim(client, "other")
    assert (second.job.id, second.job.attempts) == (lease.job.id, 2)
    answers = [
        client.post(f"{url}/heartbeat", json={"fence": lease.fence}),
        post_events(client, lease, log(2, "late")),
        client.put(f"{url}/artifacts/late.json?fence={lease.fence}", content=b"{}"),
        client.post(f"{url}/finish", json={"fence": lease.fence, "state": "succeeded"}),
    ]
    for answer in answers:
        assert answer.status_code == 409
        assert answer.json()["title"] == "Lease lost"
    assert post_events(client, second, log(1, "theirs")).json() == {"stored": 1}
    told = [event.data for event in events(client, lease.job.id) if event.kind == "log"]
    assert told == [{"message": "mine"}, {"message": "theirs"}]
    assert client.get(f"{url}/artifacts").json() == []
    client.post(f"{url}/finish", json={"fence": second.fence, "state": "failed", "error": "x"})


def test_a_late_worker_whose_job_nobody_took_goes_on_with_it(client):
    job_id = queue(client)
    lease = claim(client)
    expire(client, job_id)
    beat = {"fence": lease.fence}
    assert client.post(f"/v1/jobs/{job_id}/heartbeat", json=beat).status_code == 200
    assert claim(client) is None
    done = client.post(f"/v1/jobs/{job_id}/finish", json=beat | {"state": "succeeded"}).json()
    assert (done["state"], done["attempts"]) == ("succeeded", 1)


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_clock_that_was_set_takes_no_job_from_its_worker_and_none_from_the_queue(
    client, start_service, hours
):
    """Leases are times of a clock that is an hour ahead or behind when the service starts again."""
    job_id = queue(client)
    lease = claim(client)
    settings = Settings(data_dir=client.data_dir, lease_seconds=SHORT)
    engine = make_engine(settings.sqlalchemy_url)
    with writing(engine) as session:
        jobs.get(session, job_id).lease_expires_at += timedelta(hours=hours)
    engine.dispose()
    with httpx.Client(base_url=start_service(settings), timeout=30) as again:
        assert claim(again) is None
        beat = {"fence": lease.fence}
        assert again.post(f"/v1/jobs/{job_id}/heartbeat", json=beat).status_code == 200
        time.sleep(SHORT + 0.1)
        taken = claim(again)
    assert (taken.job.id, taken.job.attempts) == (job_id, 2)
    client.post(f"/v1/jobs/{job_id}/finish", json={"fence": taken.fence, "state": "failed"})


def test_a_job_whose_workers_all_fall_silent_fails_with_the_reason(client):
    job_id = queue(client, max_attempts=2)
    for _ in range(2):
        assert claim(client, "mute").job.id == job_id
        expire(client, job_id)
    assert claim(client) is None
    job = client.get(f"/v1/jobs/{job_id}").json()
    assert (job["state"], job["attempts"]) == ("failed", 2)
    assert "expired in attempt" in job["error"]


def test_a_heartbeat_renews_a_lease(client):
    queue(client)
    lease = claim(client)
    expire(client, lease.job.id)
    beat = {"fence": lease.fence}
    answer = client.post(f"/v1/jobs/{lease.job.id}/heartbeat", json=beat).json()
    assert datetime.fromisoformat(answer["expires_at"]) >= lease.expires_at
    assert claim(client) is None
    client.post(f"/v1/jobs/{lease.job.id}/finish", json=beat | {"state": "failed"})


def test_events_posted_again_are_stored_once(client, lease):
    assert post_events(client, lease, log(1), log(2)).json() == {"stored": 2}
    assert post_events(client, lease, log(2), log(3), log(3)).json() == {"stored": 1}
    seqs = [event.seq for event in events(client, lease.job.id)]
    assert seqs == list(range(1, len(seqs) + 1))


def post_raw(client, lease, event):
    return client.post(
        f"/v1/jobs/{lease.job.id}/events",
        content=f'{{"fence": "{lease.fence}", "events": [{event}]}}',
        headers={"Content-Type": "application/json"},
    )


EPOCH = (
    '{"epoch": 1, "learning_rate": 0.1, "loss": LOSS, "losses": {}, "seen_top1": 1, "seconds": 1,'
    ' "images_per_second": 1}'
)
QUOTED_INF, QUOTED_NAN = '"inf"', '"nan"'  # pydantic reads them as floats


@pytest.mark.parametrize(
    ("event", "said"),
    [
        ('"kind": "log", "data": {"x": NaN}', "values are not JSON"),
        ('"kind": "log", "data": "text"', "data: Input should be a valid dictionary"),
        ('"kind": "song", "data": {}', "kind: Input should be"),
        ('"kind": "state", "data": {"state": "succeeded"}', "workers must not send state events"),
        ('"kind": "epoch", "data": {"epoch": [1]}', "epoch: Input should be a valid integer"),
        (f'"kind": "epoch", "data": {EPOCH.replace("LOSS", "1" + "0" * 400)}', "loss: Input"),
        (f'"kind": "epoch", "data": {EPOCH.replace("LOSS", "NaN")}', "float values are not JSON"),
        (f'"kind": "epoch", "data": {EPOCH.replace("LOSS", QUOTED_INF)}', "not JSON"),
        (f'"kind": "epoch", "data": {EPOCH.replace("LOSS", QUOTED_NAN)}', "not JSON"),
        ('"kind": "epoch", "data": {"epoch": 1e308}', "epoch: "),
        ('"kind": "progress", "data": {"phase": "p", "step": 1e400, "steps": 1}', "not JSON"),
        ('"kind": "log", "data": {}, "at": "2026-01-02T03:04:05"', "at: Input should have"),
        ('"kind": "log", "data": {"message": "' + "y" * 100_001 + '"}', "has at most 100000 bytes"),
    ],
)  # fmt: skip
def test_an_event_that_does_not_fit_its_kind_is_kept_as_a_log_line(client, lease, event, said):
    answer = post_raw(client, lease, '{"worker_seq": 1, ' + event + "}")
    assert (answer.status_code, answer.json()) == (200, {"stored": 1})
    told = events(client, lease.job.id)[-1]
    assert told.kind == "log" and told.data["message"].startswith("invalid event: ")
    assert said in told.data["message"] and len(told.data["message"]) <= 10_000


def test_an_event_without_a_number_is_refused(client, lease):
    for number in ('"worker_seq": 0, ', ""):
        answer = post_raw(client, lease, "{" + number + '"kind": "log", "data": {"message": "x"}}')
        assert answer.status_code == 422
    assert len(events(client, lease.job.id)) == 2


ODD = "\x1b[31mno image photo\u202egnp.png\x00\ud800\n"


@pytest.mark.parametrize("error", [ODD, "x" * 5000, "\x1b" * 5000])
def test_an_error_of_any_characters_ends_the_job_and_can_be_read(client, lease, error):
    body = {"fence": lease.fence, "state": "failed", "error": error}
    done = client.post(
        f"/v1/jobs/{lease.job.id}/finish",
        content=json.dumps(body),  # httpx would not send half a surrogate pair
        headers={"Content-Type": "application/json"},
    )
    assert (done.status_code, done.json()["state"]) == (200, "failed")
    said = done.json()["error"]
    assert len(said) <= 2000
    if error is ODD:
        assert said == "\\u001b[31mno image photo\\u202egnp.png\\u0000\\ud800\n"


def test_a_log_line_of_any_characters_is_stored_visibly(client, lease):
    assert post_events(client, lease, log(1, "\x1b[31mred\r\n")).json() == {"stored": 1}
    assert events(client, lease.job.id)[-1].data == {"message": "\\u001b[31mred\n"}


def test_a_worker_of_any_name_gets_work(client):
    job_id = queue(client, priority=100)
    lease = claim(client, "gpu\x1b\n1 \u202e" + "x" * 1000)
    assert lease.job.id == job_id and lease.job.worker.startswith("gpu\\u001b 1 \\u202exxx")
    assert len(lease.job.worker) == 200
    client.post(f"/v1/jobs/{job_id}/finish", json={"fence": lease.fence, "state": "failed"})
    job_id = queue(client, priority=100)
    lease = claim(client, " ")
    assert lease.job.worker == "unnamed worker"
    client.post(f"/v1/jobs/{job_id}/finish", json={"fence": lease.fence, "state": "failed"})


def test_a_fence_cannot_be_guessed_and_is_shown_to_its_worker_alone(client, lease):
    other = queue(client, priority=100)
    second = claim(client)
    assert second.job.id == other and second.fence != lease.fence and len(second.fence) >= 20
    url = f"/v1/jobs/{lease.job.id}"
    post_events(client, lease, log(1))
    for guess in ("1", "2", second.fence, lease.fence.swapcase()):
        done = client.post(f"{url}/finish", json={"fence": guess, "state": "succeeded"})
        assert (done.status_code, done.json()["title"]) == (409, "Lease lost")
        assert lease.fence not in done.text
    for path in (url, f"{url}/events", "/v1/jobs", "/jobs", f"/jobs/{lease.job.id}"):
        assert lease.fence not in client.get(path).text
    assert client.get(url).json()["state"] == "running"
    client.post(f"/v1/jobs/{other}/finish", json={"fence": second.fence, "state": "failed"})


def test_cancelling_a_waiting_job_ends_it_and_a_held_one_is_told(client, lease):
    waiting = queue(client)
    assert client.post(f"/v1/jobs/{waiting}/cancel").json()["state"] == "cancelled"
    assert client.post(f"/v1/jobs/{waiting}/cancel").status_code == 200
    url = f"/v1/jobs/{lease.job.id}"
    held = client.post(f"{url}/cancel").json()
    assert (held["state"], held["cancel_requested"]) == ("leased", True)
    beat = client.post(f"{url}/heartbeat", json={"fence": lease.fence}).json()
    assert beat["cancel_requested"] is True
    done = {"fence": lease.fence, "state": "cancelled"}
    assert client.post(f"{url}/finish", json=done).json()["state"] == "cancelled"
    assert client.post(f"{url}/finish", json=done).status_code == 200  # the answer was lost
    assert client.post(f"{url}/heartbeat", json={"fence": lease.fence}).status_code == 409


def test_a_job_that_has_ended_cannot_be_cancelled_or_ended_otherwise(client, lease):
    url = f"/v1/jobs/{lease.job.id}"
    client.post(f"{url}/finish", json={"fence": lease.fence, "state": "succeeded"})
    assert client.post(f"{url}/cancel").status_code == 409
    other = client.post(f"{url}/finish", json={"fence": lease.fence, "state": "failed"})
    assert other.status_code == 409


def stream(client, job_id, last=None, stop_after=None):
    headers = (
        {"Last-Event-ID": last if isinstance(last, bytes) else str(last)}
        if last is not None
        else {}
    )
    found = []
    with client.stream("GET", f"/v1/jobs/{job_id}/events/stream", headers=headers) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        for line in answer.iter_lines():
            if line.startswith("data:"):
                found.append(Event.model_validate_json(line.removeprefix("data:")))
                if len(found) == stop_after:
                    break
    return found


def test_a_stream_goes_on_where_it_broke_off_and_ends_with_the_job(client, lease):
    job_id = lease.job.id
    post_events(client, lease, log(1), log(2))
    first = stream(client, job_id, stop_after=3)
    rest = []
    follower = threading.Thread(target=lambda: rest.extend(stream(client, job_id, first[-1].seq)))
    follower.start()
    for n in range(3, 8):
        post_events(client, lease, log(n))
        time.sleep(0.03)
    client.post(f"/v1/jobs/{job_id}/finish", json={"fence": lease.fence, "state": "succeeded"})
    follower.join(timeout=10)
    assert not follower.is_alive()
    assert first + rest == events(client, job_id)
    assert rest[-1].data == {"state": "succeeded"}
    assert stream(client, job_id, last=rest[-1].seq) == []
    assert stream(client, job_id, last="9" * 400) == first + rest  # not an id: from the beginning
    assert stream(client, job_id, last=b"\xb2") == first + rest  # a superscript two
    assert client.get("/v1/jobs/999999/events/stream").status_code == 404


def put(client, lease, name, content=b"{}", **headers):
    url = f"/v1/jobs/{lease.job.id}/artifacts/{name}?fence={lease.fence}"
    return client.put(url, content=content, headers={"Content-Type": "text/html"} | headers)


def files(client):
    return [path for path in (client.data_dir / "artifacts").rglob("*") if path.is_file()]


def test_an_artifact_is_stored_whole_or_not_at_all(client, lease):
    put(client, lease, "a.json")
    before = files(client)
    wrong = put(client, lease, "b.json", b"abc", **{"X-Content-SHA256": "0" * 64})
    assert wrong.status_code == 422
    assert "SHA-256" in wrong.json()["detail"]
    large = put(client, lease, "b.json", b"x" * 100_001)
    assert large.status_code == 413
    assert files(client) == before
    assert [one["name"] for one in client.get(f"/v1/jobs/{lease.job.id}/artifacts").json()] == [
        "a.json"
    ]


@pytest.mark.parametrize(
    "name", ["..", "a.exe", ".json", "a%2Fb.json", "a b.json", "x" * 200 + ".json", "a.json%00"]
)
def test_an_artifact_needs_a_harmless_name(client, lease, name):
    assert put(client, lease, name).status_code in (404, 405, 422)
    assert client.get(f"/v1/jobs/{lease.job.id}/artifacts").json() == []


def test_a_later_artifact_takes_the_place_of_an_earlier_one(client, lease):
    put(client, lease, "report.html", b"<p>one")
    put(client, lease, "report.html", b"<p>two")
    page = client.get(f"/v1/jobs/{lease.job.id}/report.html")
    assert page.content == b"<p>two"
    assert "sandbox" in page.headers["content-security-policy"]
    download = client.get(f"/v1/jobs/{lease.job.id}/artifacts/report.html")
    assert download.headers["content-disposition"].startswith("attachment")
    assert len(client.get(f"/v1/jobs/{lease.job.id}/artifacts").json()) == 1


def test_an_upload_that_breaks_off_leaves_nothing(client, lease):
    before = files(client)

    def half():
        yield b"x" * 1000
        raise ConnectionError

    with pytest.raises(ConnectionError):
        client.put(
            f"/v1/jobs/{lease.job.id}/artifacts/half.json?fence={lease.fence}", content=half()
        )
    deadline = time.monotonic() + 5
    while files(client) != before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert files(client) == before


def test_what_a_killed_service_left_of_an_upload_goes_with_the_next_one(client, lease):
    folder = client.data_dir / "artifacts"
    folder.mkdir(exist_ok=True)
    left, living = folder / "incoming-left", folder / "incoming-living"
    left.write_bytes(b"half")
    with living.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # as the upload of another process
        put(client, lease, "a.json")
        assert living.exists() and not left.exists()
    living.unlink()


def put_chunk(client, lease, whole, span, content=b"", sha256=None):
    sha256 = sha256 or hashlib.sha256(whole).hexdigest()
    headers = {"Content-Range": f"bytes {span}/{len(whole)}", "X-Content-SHA256": sha256}
    return put(client, lease, "chunks.json", content, **headers)


def test_an_artifact_in_chunks_goes_on_where_it_broke_off(client, lease):
    whole = bytes(range(256)) * 40

    def is_there():
        names = [one["name"] for one in client.get(f"/v1/jobs/{lease.job.id}/artifacts").json()]
        return "chunks.json" in names

    def offset(answer):
        assert answer.status_code == 202, answer.text
        return answer.json()["offset"]

    assert offset(put_chunk(client, lease, whole, "*")) == 0
    assert offset(put_chunk(client, lease, whole, "0-3999", whole[:4000])) == 4000
    # What is sent twice, or begins elsewhere, changes nothing.
    assert offset(put_chunk(client, lease, whole, "0-3999", whole[:4000])) == 4000
    assert offset(put_chunk(client, lease, whole, "5000-5999", whole[5000:6000])) == 4000
    assert offset(put_chunk(client, lease, whole, "*")) == 4000
    assert not is_there()
    last = put_chunk(client, lease, whole, f"4000-{len(whole) - 1}", whole[4000:])
    assert (last.status_code, last.json()["size"]) == (200, len(whole))
    found = client.get(f"/v1/jobs/{lease.job.id}/artifacts/chunks.json")
    assert found.content == whole
    # Who asks once more, perhaps of another name, need send nothing.
    assert put_chunk(client, lease, whole, "*").status_code == 200


def test_chunks_that_do_not_make_the_announced_file_are_refused_and_gone(client, lease):
    whole = b"x" * 3000
    before = files(client)
    wrong = {"sha256": "0" * 64}
    assert put_chunk(client, lease, whole, "0-1999", whole[:2000], **wrong).status_code == 202
    refused = put_chunk(client, lease, whole, "2000-2999", whole[2000:], **wrong)
    assert refused.status_code == 422 and "send it again" in refused.json()["detail"]
    assert files(client) == before
    for span in ("5-2", "0-9999", "words", "-", "0-3000"):
        assert put_chunk(client, lease, whole, span).status_code == 422, span
    longer = put_chunk(client, lease, whole, "0-9", b"y" * 11)
    assert "longer than its Content-Range" in longer.json()["detail"]
    nameless = put(client, lease, "chunks.json", b"ab", **{"Content-Range": "bytes 0-1/4"})
    assert "X-Content-SHA256" in nameless.json()["detail"]
    assert put_chunk(client, lease, b"x" * 100_001, "*").status_code == 413


@pytest.mark.parametrize("end", ["finish", "silence"])
def test_what_has_come_of_an_upload_goes_when_its_job_ends(client, end):
    job_id = queue(client, priority=100, max_attempts=1)
    lease = claim(client)
    before, whole = files(client), b"x" * 3000
    assert put_chunk(client, lease, whole, "0-1999", whole[:2000]).status_code == 202
    assert len(files(client)) == len(before) + 1
    url = f"/v1/jobs/{job_id}"
    if end == "silence":
        expire(client, job_id)
        assert claim(client) is None
    else:
        client.post(f"{url}/cancel")  # a worker holds it: it has not ended yet
        assert len(files(client)) == len(before) + 1
        client.post(f"{url}/finish", json={"fence": lease.fence, "state": "cancelled"})
        assert claim(client) is None  # any worker's next claim cleans up
    assert client.get(url).json()["state"] in ("cancelled", "failed")
    assert files(client) == before


def test_a_report_that_is_not_there_yet_is_a_404(client, lease):
    assert client.get(f"/v1/jobs/{lease.job.id}/report").status_code == 404
    assert client.get("/v1/jobs/999999/report").status_code == 404


@pytest.mark.parametrize(
    "body",
    [
        {"release_id": 1, "config": CONFIG | {"epochs": 0}},
        {"release_id": 1, "config": CONFIG | {"unknown": 1}},
        {"release_id": 1, "config": CONFIG, "max_attempts": 0},
        {"release_id": 10**30, "config": CONFIG},
    ],
)
def test_a_job_that_makes_no_sense_is_refused(client, body):
    assert client.post("/v1/jobs", json=body).status_code == 422


def test_an_infinite_learning_rate_is_refused(client):
    body = json.dumps({"release_id": 1, "config": CONFIG | {"learning_rate": float("inf")}})
    headers = {"Content-Type": "application/json"}
    assert client.post("/v1/jobs", content=body, headers=headers).status_code == 422


def test_a_job_needs_a_release_that_exists(client):
    answer = client.post("/v1/jobs", json={"release_id": 99, "config": CONFIG})
    assert answer.status_code == 404


def test_jobs_are_listed_by_state_the_newest_first(client):
    ids = [queue(client) for _ in range(3)]
    found = client.get("/v1/jobs", params={"state": "queued", "limit": 2}).json()
    assert [job["id"] for job in found] == ids[:0:-1]
    for job_id in ids:
        client.post(f"/v1/jobs/{job_id}/cancel")


class JobMachine(RuleBasedStateMachine):
    """Jobs, workers and time in any order, against a model of what must hold."""

    def __init__(self, migrated):
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        settings = Settings(data_dir=migrated(Path(self.folder.name)))
        self.engine = make_engine(settings.sqlalchemy_url)
        with writing(self.engine) as session:
            labels.create(session, "d", [LabelIn(name="a")])
            releases.create(session, ReleaseCreate(label_set="d", name="r", allow_missing=True))
        self.living: dict[int, str] = {}  # job → fence of the lease that must be good
        self.late: dict[int, str] = {}  # of the lease that is over, and good until another claims
        self.dead: list[tuple[int, str]] = []
        self.ended: set[int] = set()
        self.seqs: dict[tuple[int, str], int] = {}

    def teardown(self):
        self.engine.dispose()
        self.folder.cleanup()

    @rule()
    def queue(self):
        with writing(self.engine) as session:
            jobs.create(session, JobCreate(release_id=1, config=CONFIG, max_attempts=2))

    @rule()
    def claim(self):
        with writing(self.engine) as session:
            lease = jobs.claim(session, "w", 1000)
        self.dead += self.late.items()
        self.late.clear()
        if lease is not None:
            assert lease.job.id not in self.living | dict.fromkeys(self.ended)
            self.living[lease.job.id] = lease.fence

    @precondition(lambda self: self.living)
    @rule(data=st.data())
    def let_a_lease_end(self, data):
        job_id = data.draw(st.sampled_from(sorted(self.living)))
        with writing(self.engine) as session:
            row = jobs.get(session, job_id)
            row.lease_expires_at -= timedelta(hours=1)
        self.late[job_id] = self.living.pop(job_id)

    @precondition(lambda self: self.late)
    @rule(data=st.data())
    def a_late_worker_renews(self, data):
        job_id = data.draw(st.sampled_from(sorted(self.late)))
        with writing(self.engine) as session:
            jobs.heartbeat(session, job_id, self.late[job_id], 1000)
        self.living[job_id] = self.late.pop(job_id)

    @precondition(lambda self: self.living)
    @rule(data=st.data(), repeat=st.integers(1, 2))
    def tell(self, data, repeat):
        job_id = data.draw(st.sampled_from(sorted(self.living)))
        fence = self.living[job_id]
        seq = self.seqs[job_id, fence] = self.seqs.get((job_id, fence), 0) + 1
        event = EventIn(worker_seq=seq, kind="log", data={"message": "x"})
        for n in range(repeat):
            with writing(self.engine) as session:
                assert jobs.add_events(session, job_id, fence, [event]) == (n == 0)

    @precondition(lambda self: self.dead)
    @rule(data=st.data())
    def a_dead_worker_speaks(self, data):
        job_id, fence = data.draw(st.sampled_from(self.dead))
        for act in (
            lambda session: jobs.heartbeat(session, job_id, fence, 1000),
            lambda session: jobs.add_events(session, job_id, fence, []),
            lambda session: jobs.finish(session, job_id, fence, JobState.SUCCEEDED),
        ):
            with pytest.raises(LeaseLost), writing(self.engine) as session:
                act(session)

    @precondition(lambda self: self.living)
    @rule(data=st.data(), state=st.sampled_from([JobState.SUCCEEDED, JobState.FAILED]))
    def finish(self, data, state):
        job_id = data.draw(st.sampled_from(sorted(self.living)))
        with writing(self.engine) as session:
            jobs.finish(session, job_id, self.living.pop(job_id), state)
        self.ended.add(job_id)

    @rule(job_id=st.integers(1, 5))
    def cancel(self, job_id):
        with reading(self.engine) as session:
            known = {job.id: job for job in jobs.listing(session, limit=None)}
        if job_id not in known:
            return
        if known[job_id].state in (JobState.SUCCEEDED, JobState.FAILED):
            with pytest.raises(Conflict), writing(self.engine) as session:
                jobs.cancel(session, job_id)
            return
        with writing(self.engine) as session:
            if jobs.cancel(session, job_id).state is JobState.CANCELLED:
                assert job_id not in self.living
                self.ended.add(job_id)
                if job_id in self.late:
                    self.dead.append((job_id, self.late.pop(job_id)))

    @invariant()
    def holds(self):
        with reading(self.engine) as session:
            for job in jobs.listing(session, limit=None):
                told = jobs.events(session, job.id, limit=None)
                assert [event.seq for event in told] == list(range(1, len(told) + 1))
                states = [event.data["state"] for event in told if event.kind == "state"]
                assert states[-1] == job.state.value
                assert job.attempts <= job.max_attempts
                assert (job.id in self.ended) <= job.state.is_final
                assert (job.finished_at is not None) == job.state.is_final


def test_jobs_keep_their_promises_in_any_order(migrated):
    run_state_machine_as_test(
        lambda: JobMachine(migrated),
        settings=hypothesis_settings(max_examples=15, stateful_step_count=25, deadline=None),
    )


def report_of(pairs):
    """A whole report in which these texts lay closest."""
    diagnostics = TextDiagnostics(
        text="name+description",
        classes=3,
        mean_cosine=0.1,
        mean_nearest_cosine=0.5,
        effective_rank=2.5,
        singular_values=(1.0, 0.5, 0.1),
        confusable=[ConfusablePair(a=a, b=b, cosine=cosine) for a, b, cosine in pairs],
    )
    now = datetime.now(UTC)
    return Report(
        config=TrainConfig(**CONFIG),
        release_id=1,
        release_hash="0" * 64,
        label_set="three",
        teacher="hf-hub:a/b",
        teacher_fingerprint="0" * 64,
        teacher_dim=8,
        student_parameters=1,
        epochs=(),
        accuracies=(),
        diagnostics=(diagnostics,),
        pulled_apart=(),
        started_at=now,
        finished_at=now,
    )


def test_a_report_teaches_its_label_set_which_labels_are_confused(client):
    names = ["mallard", "teal", "gadwall", "heron"]
    client.post("/v1/label-sets", json={"name": "four", "labels": [{"name": n} for n in names]})
    near = {"confusable": {"heron": ["teal"], "teal": ["heron"]}}
    client.put("/v1/label-sets/four/confusable", json=near)
    body = {"label_set": "four", "name": "four-1", "allow_missing": True}
    release = client.post("/v1/releases", json=body).json()
    job = queue(client, release_id=release["id"], priority=100)
    assert client.post(f"/v1/jobs/{job}/confusable").status_code == 404  # no report yet
    fence = claim(client).fence
    url = f"/v1/jobs/{job}/artifacts/report.json?fence={fence}"
    headers = {"Content-Type": "application/json"}
    client.put(url, content=b'{"accuracies": []}', headers=headers)
    refused = client.post(f"/v1/jobs/{job}/confusable")
    assert (refused.status_code, "run it again" in refused.json()["detail"]) == (409, True)
    pairs = [("teal", "gadwall", 0.5), ("teal", "mallard", 0.9)]
    client.put(url, content=report_of(pairs).model_dump_json(), headers=headers)
    client.post(f"/v1/jobs/{job}/finish", json={"fence": fence, "state": "succeeded"})
    learnt = client.post(f"/v1/jobs/{job}/confusable").json()["confusable"]
    assert learnt == {"teal": ["mallard", "gadwall"], "mallard": ["teal"], "gadwall": ["teal"]}
    page = client.get("/v1/label-sets/four/labels").json()
    assert {one["key"]: one["confusable"] for one in page["items"]} == learnt | {"heron": ["teal"]}


# ------------------------------------------------------ what jobs wait for, need and run out of


@pytest.fixture
def asked(tmp_path, migrated):
    """A service of its own whose language model answers; an empty queue."""
    with LlmServer() as model:
        settings = Settings(data_dir=migrated(tmp_path), llm_url=model.url, llm_model="small")
        with running(settings) as url, httpx.Client(base_url=url, timeout=30) as client:
            client.model = model
            names = [{"name": name} for name in ("mallard", "teal")]
            client.post("/v1/label-sets", json={"name": "ducks", "labels": names})
            client.post(
                "/v1/releases", json={"label_set": "ducks", "name": "r", "allow_missing": True}
            )
            yield client


def test_a_job_waits_for_its_run_and_trains_on_what_it_gave(asked):
    asked.model.behave = lambda _: Answer(delay=0.5)
    run = start_run(asked, label_set="ducks", prompt="visual-description")["id"]
    body = {"config": CONFIG, "after_run": run}
    job = asked.post("/v1/jobs", json=body).json()
    assert (job["state"], job["release_id"], job["release_hash"]) == ("queued", None, None)
    second = asked.post("/v1/jobs", json=body).json()["id"]
    assert claim(asked) is None
    assert [one["id"] for one in asked.get("/v1/jobs").json()] == [second, job["id"]]
    wait_for(asked, run, "succeeded")
    lease = claim(asked)
    assert lease.job.id == job["id"] and lease.job.after_run == run
    assert lease.release.name == f"run-{run}"
    assert all(label.description for label in lease.release.labels)
    assert claim(asked).release.hash == lease.release.hash  # one release for both


def test_a_job_fails_with_its_run(asked):
    asked.model.behave = lambda _: Answer(delay=5)
    run = start_run(asked, label_set="ducks", prompt="visual-description")["id"]
    job = asked.post("/v1/jobs", json={"config": CONFIG, "after_run": run}).json()["id"]
    asked.post(f"/v1/runs/{run}/cancel")
    assert claim(asked) is None
    found = asked.get(f"/v1/jobs/{job}").json()
    assert found["state"] == "failed" and f"Run {run} has cancelled" in found["error"]
    late = asked.post("/v1/jobs", json={"config": CONFIG, "after_run": run})
    assert late.status_code == 409
    assert asked.post("/v1/jobs", json={"config": CONFIG, "after_run": 99}).status_code == 404
    for ids in ({}, {"after_run": run, "release_id": 1}):
        wrong = asked.post("/v1/jobs", json={"config": CONFIG, **ids})
        assert wrong.status_code == 422 and "release_id" in wrong.json()["detail"]


def test_a_worker_is_given_only_what_it_has_enough_for(asked):
    large = queue(asked, needs={"gpu": True, "memory_gb": 64}, priority=9)
    middle = queue(asked, needs={"memory_gb": 16})
    small = queue(asked)

    def take(**has):
        answer = asked.post("/v1/jobs/claim", json={"worker": "w", **has})
        return answer.json()["job"]["id"] if answer.status_code == 200 else None

    assert take(memory_gb=128) == middle  # no GPU
    assert take(gpu=True, memory_gb=32) == small
    assert take(gpu=True, memory_gb=32) is None
    assert take(gpu=True, memory_gb=64) == large


@pytest.mark.parametrize(
    ("shrink", "attempts", "batch_size", "state", "said"),
    [
        (False, 3, 128, "failed", "batch_size of 128: try 64"),
        (True, 3, 128, "queued", "trying 64"),
        (True, 3, 5, "queued", "trying 2"),
        (True, 3, 2, "failed", "even with a batch_size of 2"),
        (True, 1, 128, "failed", "try 64"),
    ],
)
def test_out_of_memory_is_told_with_the_next_smaller_batch_and_tried_if_allowed(
    asked, shrink, attempts, batch_size, state, said
):
    config = CONFIG | {"batch_size": batch_size}
    job = queue(asked, config=config, shrink_batch=shrink, max_attempts=attempts)
    lease = claim(asked)
    body = {"fence": lease.fence, "state": "failed", "error": "x", "out_of_memory": True}
    ended = asked.post(f"/v1/jobs/{job}/finish", json=body).json()
    last = events(asked, job)[-1].data
    assert ended["state"] == last["state"] == state
    assert said in (ended["error"] or last["reason"])
    if state == "queued":
        assert claim(asked).job.config.batch_size == max(2, batch_size // 2)


@pytest.mark.parametrize(("shrink", "batch_size"), [(True, 128), (False, 128), (True, 2)])
def test_a_job_to_be_cancelled_that_runs_out_of_memory_is_not_queued_again(
    asked, shrink, batch_size
):
    job = queue(asked, config=CONFIG | {"batch_size": batch_size}, shrink_batch=shrink)
    lease = claim(asked)
    asked.post(f"/v1/jobs/{job}/cancel")
    body = {"fence": lease.fence, "state": "failed", "error": "x", "out_of_memory": True}
    ended = asked.post(f"/v1/jobs/{job}/finish", json=body).json()
    assert ended["state"] == "cancelled" and "out of memory" in ended["error"]
    assert claim(asked) is None


def test_a_job_that_failed_is_tried_again_when_a_person_says_so(asked):
    job = queue(asked, max_attempts=1)
    lease = claim(asked)
    assert asked.post(f"/v1/jobs/{job}/retry").status_code == 409
    body = {"fence": lease.fence, "state": "failed", "error": "no such folder"}
    asked.post(f"/v1/jobs/{job}/finish", json=body)
    again = asked.post(f"/v1/jobs/{job}/retry").json()
    assert (again["state"], again["attempts"], again["error"]) == ("queued", 0, None)
    assert claim(asked).job.id == job
