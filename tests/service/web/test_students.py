"""Pages of students: from the page of a job to an alias and back."""

import re

import pytest

from tests.service.web.conftest import EVIL
from tests.service.web.jobs.test_pages import queue, release  # noqa: F401 - a fixture
from tests.service.web.worker import Worker, classifier_zip


@pytest.fixture
def job(service, release):  # noqa: F811
    """A job that has succeeded."""
    job_id = queue(service, release)
    Worker(service).finish(unseen=10.0)
    return job_id


def test_a_student_goes_from_a_job_to_an_alias_and_back(browser, service, job, release):  # noqa: F811
    assert "No students yet" in browser.get("/students").text
    page = browser.submit(
        f"/jobs/{job}", f"/jobs/{job}/students", name="my ducks", message=EVIL, author="ada"
    )
    assert page.url.path == "/students/my ducks" and page.status_code == 200
    assert EVIL not in page.text and "&lt;img src=x" in page.text
    assert "26.0" in page.text and "6.5 ms" in page.text
    assert "The best value" not in page.text  # there is nothing to compare yet
    download = re.search(r'href="(/v1/students/[^"]*classifier)"', page.text).group(1)
    assert browser.get(download).content == classifier_zip(job)

    better = queue(service, release)
    Worker(service).finish(unseen=30.0)
    page = browser.submit(f"/jobs/{better}", f"/jobs/{better}/students", name="my ducks")
    assert "<strong>46.0</strong>" in page.text  # unseen: 30 and the length of the strategy
    aliases = "/students/my%20ducks/aliases"
    for version, reason in (("1", "the first"), ("2", "better")):
        fields = {"alias": "production", "version": version, "reason": reason, "author": "ada"}
        page = browser.submit("/students/my%20ducks", aliases, **fields)
    assert '2 <span class="state production">production</span>' in page.text
    assert "Roll back to version 1" in page.text
    page = browser.submit(
        "/students/my%20ducks", f"{aliases}/production/rollback", reason="too slow"
    )
    assert '1 <span class="state production">production</span>' in page.text
    moves = service.get(f"/v1{aliases}/production/moves").json()
    assert [(move["reason"], move["author"]) for move in moves] == [
        ("too slow", ""), ("better", "ada"), ("the first", "ada"),
    ]  # fmt: skip
    assert all(move["reason"] in page.text for move in moves)

    listed = browser.get("/students").text
    assert "production → 1" in listed and 'href="/students/my%20ducks"' in listed
    shown = browser.get(f"/jobs/{job}").text
    assert "my ducks, version 1" in shown and "production" in shown


def test_what_cannot_be_registered_is_said_with_what_was_typed(browser, service, job):
    action = f"/jobs/{job}/students"
    page = browser.submit(f"/jobs/{job}", action, name="a/b", message="kept")
    assert page.status_code == 422
    assert "is not a valid name" in page.text and 'value="kept"' in page.text
    browser.submit(f"/jobs/{job}", action, name="once")
    page = browser.submit(f"/jobs/{job}", action, name="once")
    assert page.status_code == 409 and "is already version 1" in page.text


def test_a_move_without_a_reason_is_refused_with_what_was_typed(browser, service, job):
    browser.submit(f"/jobs/{job}", f"/jobs/{job}/students", name="moved")
    page = browser.submit("/students/moved", "/students/moved/aliases", alias="kept", version="1")
    assert page.status_code == 422
    assert "Reason: Field required" in page.text and 'value="kept"' in page.text
    rollback = browser.post("/students/moved/aliases/nix/rollback", data={})
    assert rollback.status_code == 403  # not from a page
    assert browser.get("/students/nix").status_code == 404


def test_only_a_succeeded_job_with_a_classifier_has_the_form(browser, service, release):  # noqa: F811
    job = queue(service, release)
    assert "/students" not in browser.get(f"/jobs/{job}").text.partition("<main")[2]
    worker = Worker(service)
    service.post(f"/v1/jobs/{job}/finish", json={"fence": worker.lease.fence, "state": "succeeded"})
    assert "/students" not in browser.get(f"/jobs/{job}").text.partition("<main")[2]


def test_a_failed_job_is_retried_from_its_page(browser, service, release):  # noqa: F811
    job = queue(service, release)
    assert "/retry" not in browser.get(f"/jobs/{job}").text
    worker = Worker(service)
    service.post(f"/v1/jobs/{job}/finish", json={"fence": worker.lease.fence, "state": "failed"})
    page = browser.submit(f"/jobs/{job}", f"/jobs/{job}/retry")
    assert "state queued" in page.text
    service.post(f"/v1/jobs/{job}/cancel")
