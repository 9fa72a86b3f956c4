import pytest

EVIL = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def filled(service):
    service.post("/v1/label-sets", json={"name": "ducks", "labels": [{"name": EVIL}]})
    body = {"label_set": "ducks", "name": "r1", "allow_missing": True}
    service.post("/v1/releases", json=body)
    config = {"data": "d", "teacher": EVIL}
    service.post("/v1/jobs", json={"release_id": 1, "config": config})
    return service


def test_the_home_page_lists_what_there_is_with_links(filled):
    page = filled.get("/")
    assert page.status_code == 200
    for link in ("/v1/label-sets/ducks/labels", "/v1/releases/1", "/v1/jobs/1", "/docs"):
        assert f'href="{link}"' in page.text
        assert filled.get(link).status_code == 200
    assert filled.get("/static/style.css").status_code == 200


def test_what_users_wrote_stays_text_and_no_inline_code_can_run(filled):
    page = filled.get("/")
    assert EVIL not in page.text
    assert "&lt;img src=x" in page.text
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe-inline" not in policy
    assert "<script" not in page.text and "style=" not in page.text


def test_an_operators_machine_can_ask_for_health(service):
    assert service.get("/healthz").json() == {"status": "ok"}
    assert service.get("/readyz").json() == {"status": "ok"}


def test_what_is_not_there_is_a_problem_document(service):
    answer = service.get("/nothing/here")
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["title"] == "Not Found"
    assert service.put("/healthz").headers["content-type"] == "application/problem+json"
