def test_an_operators_machine_can_ask_for_health(service):
    assert service.get("/healthz").json() == {"status": "ok"}
    assert service.get("/readyz").json() == {"status": "ok"}


def test_what_is_not_there_is_a_problem_document(service):
    answer = service.get("/nothing/here")
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["title"] == "Not Found"
    assert service.put("/healthz").headers["content-type"] == "application/problem+json"
