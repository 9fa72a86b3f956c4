"""Refusals that are no route's own: each one line, in a document that says what to do."""

import pytest

from tests.conftest import POSTGRES

TOO_LARGE = 2**63


@pytest.mark.parametrize(
    "path",
    [
        f"/v1/runs/{TOO_LARGE}",
        f"/v1/runs/{TOO_LARGE}/events",
        f"/v1/generations/{TOO_LARGE}",
        f"/v1/generations/{TOO_LARGE}/reviews",
        f"/v1/generations?run_id={TOO_LARGE}",
        f"/v1/generations?label_id={TOO_LARGE}",
        f"/v1/generations?before={TOO_LARGE}",
        f"/v1/jobs/{TOO_LARGE}",
        f"/v1/releases/{TOO_LARGE}",
    ],
)
def test_a_number_that_is_no_id_is_refused(service, path):
    found = service.get(path)
    assert (found.status_code, found.json()["title"]) == (422, "Invalid input")
    assert "less than or equal to 2147483647" in found.json()["detail"]


def test_a_review_of_numbers_that_are_no_ids_is_refused(service):
    body = {"generations": [TOO_LARGE], "action": "approve"}
    assert service.post("/v1/reviews", json=body).status_code == 422


def test_a_truth_value_is_not_guessed_from_a_number(service):
    body = {"labels": ["smew"], "refresh": 0}
    found = service.post("/v1/describe", json=body)
    assert found.status_code == 422 and "refresh: Input should be a valid boolean" in found.text


def test_a_body_that_is_no_text_is_told_as_such(service):
    found = service.post(
        "/v1/label-sets", content=b"\x80{}", headers={"Content-Type": "application/json"}
    )
    assert found.status_code == 400
    assert found.json()["detail"].startswith("The body does not match its Content-Type")


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/v1/jobs", "GET, POST"),
        ("/v1/jobs/claim", "POST"),
        ("/v1/label-sets/ducks", "GET, DELETE"),
        ("/v1/prompts/attributes/aliases/production", "GET, PUT"),
    ],
)
def test_a_method_that_a_path_does_not_know_is_answered_with_all_that_it_knows(
    service, path, allowed
):
    found = service.request("PATCH", path)
    assert (found.status_code, found.headers["allow"]) == (405, allowed)


def test_a_rule_of_a_body_is_told_without_the_prefix_of_the_library(service):
    found = service.post("/v1/jobs", json={"config": {"data": "/d", "teacher": "t"}})
    assert found.status_code == 422
    assert "Value error" not in found.text and found.json()["detail"].startswith("body: ")


def test_a_nul_character_is_no_internal_error(service):
    found = service.get("/v1/label-sets/a%00b")
    assert found.status_code == (422 if POSTGRES else 404)  # SQLite stores it
    assert ("NUL" in found.json()["detail"]) == bool(POSTGRES)


def test_where_a_body_does_not_fit_is_told_on_one_short_line(service):
    found = service.post("/v1/label-sets", json={"name": "a", "labels": [], "x\n" * 5000: 1})
    assert found.status_code == 422
    detail = found.json()["detail"]
    assert "Extra inputs are not permitted" in detail and "\n" not in detail and len(detail) < 300
