"""The registry of students over REST: versions of jobs, aliases, downloads."""

import hashlib
import io
import itertools
import json
import zipfile
from pathlib import Path

import httpx
import pytest
from sqlalchemy import event
from sqlalchemy.exc import IntegrityError
from sqlmodel import delete, select

from contract import Report
from enrich_service.core.settings import Settings
from enrich_service.core.storage.database import make_engine, reading, writing
from enrich_service.jobs.models import JobArtifact, JobRow
from enrich_service.students import service as students
from tests.service.web.worker import Worker, classifier_zip, report_of

NAMES = (f"student {n}" for n in itertools.count(1))  # each test works under a name of its own
UNSEEN = 10.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("students")


@pytest.fixture(scope="module")
def service(start_service, folder):
    with httpx.Client(base_url=start_service(Settings(data_dir=folder)), timeout=30) as client:
        labels = [{"name": name} for name in ("mallard", "teal")]
        client.post("/v1/label-sets", json={"name": "ducks", "labels": labels})
        release = {"label_set": "ducks", "name": "r", "allow_missing": True}
        client.post("/v1/releases", json=release)
        yield client


def queue(service, **config):
    config = {"data": "/d", "teacher": "t", "student": "resnet18"} | config
    answer = service.post("/v1/jobs", json={"release_id": 1, "config": config})
    return answer.json()["id"]


def trained(service, unseen=UNSEEN, **config):
    """The id of a job that has succeeded and left a report and a classifier."""
    job_id = queue(service, **config)
    Worker(service).finish(unseen=unseen)
    return job_id


def register(service, name, job_id, **body):
    return service.post("/v1/students", json={"name": name, "job_id": job_id} | body)


def move(service, name, version, alias="production", reason="better", **body):
    path = f"/v1/students/{name}/aliases/{alias}"
    return service.put(path, json={"version": version, "reason": reason} | body)


@pytest.fixture
def name():
    return next(NAMES)


@pytest.fixture
def two(service, name):
    """A student of two versions; the jobs of these."""
    jobs = [trained(service), trained(service, unseen=12.0)]
    for job_id in jobs:
        assert register(service, name, job_id).status_code == 201
    return jobs


def test_the_first_version_creates_the_student_and_the_next_job_is_the_next_version(service, name):
    job_id = trained(service)
    made = register(service, name, job_id, message="the first", author="ada")
    assert made.status_code == 201, made.text
    content = classifier_zip(job_id)
    version = made.json()
    assert version["student"] == name and version["number"] == 1
    assert (version["job_id"], version["model"]) == (job_id, "resnet18")
    assert (version["message"], version["author"]) == ("the first", "ada")
    assert version["bytes"] == len(content)
    assert version["sha256"] == hashlib.sha256(content).hexdigest()
    assert register(service, name, trained(service)).json()["number"] == 2
    path = f"/v1/students/{name}"
    assert service.get(path).json()["latest"] == 2
    assert [one["number"] for one in service.get(f"{path}/versions").json()] == [2, 1]
    assert service.get(f"{path}/versions/1").json() == version
    assert name in [one["name"] for one in service.get("/v1/students").json()]


def test_a_version_has_the_figures_of_its_jobs_report(service, name):
    job_id = trained(service, text_strategy="name+description")
    report = Report.model_validate_json(service.get(f"/v1/jobs/{job_id}/report").content)
    version = register(service, name, job_id).json()
    top1 = {
        row.split: row.top1
        for row in report.accuracies
        if (row.model, row.text) == ("student", "name+description")
    }
    assert (version["seen"], version["unseen"]) == (top1["seen"], top1["unseen"])
    assert version["joint_harmonic_mean"] == pytest.approx(120 * UNSEEN / (60 + UNSEEN))
    assert (version["parameters"], version["latency_ms"]) == (1000, 6.5)


@pytest.mark.parametrize("report", [None, b"{}", b"no JSON", {"student_parameters": 10**30}])
def test_a_job_without_a_report_that_can_be_read_is_registered_without_figures(
    service, name, report
):
    job_id = queue(service)
    worker = Worker(service)
    if isinstance(report, dict):
        whole = report_of(worker.lease, (), UNSEEN).model_dump(mode="json")
        report = json.dumps(whole | report).encode()
    if report is not None:
        worker.leave("report.json", report, "application/json")
    worker.leave("classifier.zip", classifier_zip(job_id), "application/zip")
    finish(worker)
    version = register(service, name, job_id).json()
    figures = ("seen", "unseen", "joint_harmonic_mean", "parameters")
    assert [version[figure] for figure in figures] == [None] * 4
    assert version["latency_ms"] == 6.5  # the classifier itself says so


def finish(worker, state="succeeded"):
    body = {"fence": worker.lease.fence, "state": state}
    assert worker.client.post(f"{worker.url}/finish", json=body).status_code == 200


def test_a_job_is_one_version_of_a_student_and_may_be_another_students_too(service, name):
    job_id = trained(service)
    register(service, name, job_id)
    again = register(service, name, job_id)
    assert again.status_code == 409
    assert again.json()["detail"] == (
        f"Job {job_id} is already version 1 of student {name!r}: point an alias at that version "
        "instead."
    )
    assert service.get(f"/v1/students/{name}").json()["latest"] == 1
    other = register(service, next(NAMES), job_id)
    assert (other.status_code, other.json()["number"]) == (201, 1)


def test_a_job_that_has_no_classifier_to_register_is_refused_with_what_to_do(service, name, folder):
    waiting = queue(service)
    told = register(service, name, waiting)
    assert told.status_code == 409 and "is queued: register it once" in told.json()["detail"]
    worker = Worker(service)
    finish(worker, "failed")
    told = register(service, name, waiting)
    assert told.status_code == 409 and "is failed: retry it" in told.json()["detail"]

    bare = queue(service)
    finish(Worker(service))
    told = register(service, name, bare)
    assert told.status_code == 409
    assert "has no artifact classifier.zip: duplicate the job" in told.json()["detail"]

    empty = io.BytesIO()
    with zipfile.ZipFile(empty, "w") as archive:
        archive.writestr("inner/classifier.json", "{}")
    for content in (b"no zip", empty.getvalue()):
        job_id = queue(service)
        worker = Worker(service)
        worker.leave("classifier.zip", content, "application/zip")
        finish(worker)
        told = register(service, name, job_id)
        assert told.status_code == 409
        assert "is not a zip file with classifier.json at its root" in told.json()["detail"]

    lost = trained(service)
    digest = hashlib.sha256(classifier_zip(lost)).hexdigest()
    (folder / "artifacts" / digest[:2] / digest).unlink()
    told = register(service, name, lost)
    assert told.status_code == 409 and "restore it from a backup" in told.json()["detail"]

    assert register(service, name, 999_999).status_code == 404
    assert service.get(f"/v1/students/{name}").status_code == 404  # nothing was created


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"name": "a/b"}, "'a/b' is not a valid name"),
        ({"name": ""}, "is not a valid name"),
        ({"message": "a\u202eb"}, "bidi control"),
        ({"author": "x" * 201}, "201 characters"),
        ({"extra": 1}, "extra"),
    ],
)
def test_what_cannot_be_registered_is_told(service, name, body, message):
    answer = register(service, **{"name": name, "job_id": 1} | body)
    assert answer.status_code == 422 and message in answer.json()["detail"]


def test_an_alias_moves_with_a_log_and_goes_back(service, name, two):
    path = f"/v1/students/{name}/aliases/production"
    assert service.get(path).status_code == 404
    assert move(service, name, 1, reason="first", author="ada").json()["version"] == 1
    assert move(service, name, 2, reason="better", author="bob").json()["version"] == 2
    assert move(service, name, 2, reason="again").status_code == 200  # changes nothing
    back = service.post(f"{path}/rollback", json={"reason": "slower", "author": "eve"})
    assert back.json()["version"] == 1
    moves = service.get(f"{path}/moves").json()
    assert [(m["from_version"], m["to_version"], m["reason"], m["author"]) for m in moves] == [
        (2, 1, "slower", "eve"),
        (1, 2, "better", "bob"),
        (None, 1, "first", "ada"),
    ]
    assert all(one["alias"] == "production" and one["at"] for one in moves)
    (alias,) = service.get(f"/v1/students/{name}").json()["aliases"]
    assert alias == service.get(path).json()
    versions = service.get(f"/v1/students/{name}/versions").json()
    assert [one["aliases"] for one in versions] == [[], ["production"]]


def test_moves_that_cannot_be_are_refused(service, name, two):
    path = f"/v1/students/{name}/aliases"
    assert move(service, name, 3).status_code == 404
    assert "has no version 3" in move(service, name, 3).json()["detail"]
    for reason in ("", "  ", "a\nb"):
        assert move(service, name, 1, reason=reason).status_code == 422
    assert "not an alias" in move(service, name, 1, alias="Production").json()["detail"]
    assert service.put(f"{path}/production", json={"version": 1}).status_code == 422
    body = {"reason": "worse"}
    missing = service.post(f"{path}/production/rollback", json=body)
    assert missing.status_code == 404 and "no alias 'production'" in missing.json()["detail"]
    move(service, name, 1)
    first = service.post(f"{path}/production/rollback", json=body)
    assert first.status_code == 409 and "has no previous version" in first.json()["detail"]
    assert service.get(f"{path}/nix/moves").status_code == 404
    assert service.get("/v1/students/nix").json()["detail"] == (
        "There is no student 'nix'. List them: `enrich students list`, GET /v1/students."
    )


def test_an_alias_is_followed_by_its_etag(service, name, two):
    path = f"/v1/students/{name}/aliases/production"
    move(service, name, 1)
    first = service.get(path)
    content = classifier_zip(two[0])
    assert first.json() == {
        "student": name,
        "alias": "production",
        "version": 1,
        "sha256": hashlib.sha256(content).hexdigest(),
        "bytes": len(content),
        "classifier": f"/v1/students/{name.replace(' ', '%20')}/versions/1/classifier",
    }
    known = {"If-None-Match": first.headers["etag"]}
    same = service.get(path, headers=known)
    assert (same.status_code, same.content) == (304, b"")
    assert same.headers["etag"] == first.headers["etag"]
    move(service, name, 2)
    second = service.get(path, headers=known)
    assert (second.status_code, second.json()["version"]) == (200, 2)
    assert service.get(second.json()["classifier"]).content == classifier_zip(two[1])


def test_a_classifier_is_downloaded_whole_in_parts_and_not_twice(service, name, two):
    path = f"/v1/students/{name}/versions/1/classifier"
    content = classifier_zip(two[0])
    whole = service.get(path)
    assert whole.content == content
    assert whole.headers["content-type"] == "application/zip"
    assert whole.headers["etag"] == f'"{hashlib.sha256(content).hexdigest()}"'
    part = service.get(path, headers={"Range": "bytes=10-"})
    assert (part.status_code, part.content) == (206, content[10:])
    known = {"If-None-Match": whole.headers["etag"]}
    assert service.get(path, headers=known).status_code == 304
    assert service.get(f"/v1/students/{name}/versions/3/classifier").status_code == 404


def test_a_classifier_whose_file_is_gone_is_told(service, name, folder):
    job_id = trained(service)
    version = register(service, name, job_id).json()
    digest = version["sha256"]
    (folder / "artifacts" / digest[:2] / digest).unlink()
    answer = service.get(version["classifier"])
    assert answer.status_code == 404 and "is missing" in answer.json()["detail"]


def test_a_registered_job_and_its_classifier_cannot_be_deleted(service, name, two, folder):
    engine = make_engine(Settings(data_dir=folder).sqlalchemy_url)
    for table, column in ((JobRow, JobRow.id), (JobArtifact, JobArtifact.job_id)):
        with pytest.raises(IntegrityError), writing(engine) as session:
            session.exec(delete(table).where(column == two[0]))
    engine.dispose()
    assert service.get(f"/v1/students/{name}/versions/1/classifier").status_code == 200


def test_listing_needs_as_many_queries_for_many_students_as_for_one(service, folder, name, two):
    move(service, name, 1)
    statements = []
    engine = make_engine(Settings(data_dir=folder).sqlalchemy_url)
    event.listen(engine, "before_cursor_execute", lambda *args: statements.append(args[2]))
    with reading(engine) as session:
        session.exec(select(1))
        statements.clear()  # those that begin the transaction
        one = students.listing(session, limit=1)
        needed = len(statements)
        statements.clear()
        everyone = students.listing(session, limit=None)
        listed = len(statements)
        newest = students.newest_versions(session)
    engine.dispose()
    assert len(one) == 1 < len(everyone) and needed == listed
    assert len(statements) - listed == 2  # the versions, and the aliases that point at them
    by_name = {student.name: student for student in everyone}
    assert {name: version.number for name, version in newest.items()} == {
        name: student.latest for name, student in by_name.items()
    }
    assert [(a.alias, a.version) for a in by_name[name].aliases] == [("production", 1)]


def test_reading_needs_the_scope_read_and_changing_the_scope_write(start_service, tmp_path):
    with httpx.Client(base_url=start_service(Settings(data_dir=tmp_path))) as client:
        keys = {}
        for scope in ("admin", "read", "write"):
            headers = {"Authorization": f"Bearer {keys['admin']}"} if keys else {}
            body = {"name": scope, "scope": scope}
            keys[scope] = client.post("/v1/keys", json=body, headers=headers).json()["key"]

        def asked(scope, method, path, **body):
            headers = {"Authorization": f"Bearer {keys[scope]}"}
            return client.request(method, path, headers=headers, json=body or None).status_code

        assert client.get("/v1/students").status_code == 401
        assert asked("read", "GET", "/v1/students") == 200
        assert asked("read", "POST", "/v1/students", name="a", job_id=1) == 403
        assert asked("write", "POST", "/v1/students", name="a", job_id=1) == 404
