import pytest

from contract import Report
from enrich_service.app import create_app
from enrich_service.core.settings import Settings
from enrich_service.jobs.schemas import REPORT_EXAMPLE


@pytest.fixture(scope="module")
def document():
    return create_app(Settings()).openapi()


def operations(document):
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield f"{method.upper()} {path}", operation


def resolved(document, schema):
    while "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    return schema


def has_example(document, media):
    schema = media.get("schema", {})
    schema = next((one for one in schema.get("anyOf", []) if "$ref" in one), schema)
    whole = resolved(document, schema)
    items = resolved(document, whole.get("items", {}))
    if any("example" in one or "examples" in one for one in (media, schema, whole, items)):
        return True
    # A form shows an example at each field that must be given.
    fields = [whole["properties"][name] for name in whole.get("required", [])]
    return bool(fields) and all("example" in one or "examples" in one for one in fields)


def test_every_route_has_a_summary_of_its_own_and_a_tag_that_the_docs_know(document):
    summaries = [operation.get("summary") for _, operation in operations(document)]
    assert all(summaries)
    assert len(set(summaries)) == len(summaries)
    assert all(operation.get("tags") for _, operation in operations(document))
    used = {tag for _, operation in operations(document) for tag in operation["tags"]}
    assert used == {tag["name"] for tag in document["tags"]}


def test_every_request_body_has_an_example(document):
    missing = [
        name
        for name, operation in operations(document)
        for media in operation.get("requestBody", {}).get("content", {}).values()
        if not has_example(document, media)
    ]
    assert missing == []


def test_every_json_answer_has_a_schema_and_an_example(document):
    missing = [
        f"{name} {status}"
        for name, operation in operations(document)
        for status, answer in operation["responses"].items()
        if status.startswith("2")
        and "application/json" in answer.get("content", {})
        and not (
            answer["content"]["application/json"].get("schema")
            and has_example(document, answer["content"]["application/json"])
        )
    ]
    assert missing == []


def test_every_error_is_declared_as_a_problem_document(document):
    for name, operation in operations(document):
        for status, answer in operation["responses"].items():
            if status[0] in "45":
                assert list(answer["content"]) == ["application/problem+json"], name
                schema = answer["content"]["application/problem+json"]["schema"]
                assert schema == {"$ref": "#/components/schemas/Problem"}
    assert "Problem" in document["components"]["schemas"]


def test_the_example_of_a_report_is_one():
    Report.model_validate(REPORT_EXAMPLE)
