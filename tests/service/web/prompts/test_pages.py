import json
import re
from html import unescape

import pytest
from sqlalchemy import Engine, event

from tests.llm_server import Answer
from tests.service.web.conftest import EVIL

SCHEMA = {
    "type": "object",
    "properties": {"description": {"type": "string"}},
    "required": ["description"],
}
SLOW = (
    "{% for a in range(100) %}{% for b in range(100) %}"
    "{{ '" + "zyxw" * 4000 + "'|sort|first }}{% endfor %}{% endfor %}"
)


@pytest.fixture(scope="module")
def prompt(service):
    body = {"name": "short", "kind": "description", "output_schema": SCHEMA, "summary": EVIL}
    first = {"user": "Describe {{ label }}.\nBe brief.", "message": "First", "author": "ada"}
    second = {"user": "Describe the colours of {{ label }}.\nBe brief.", "message": EVIL}
    assert service.post("/v1/prompts", json=body | first).status_code == 201
    answer = service.post("/v1/prompts/short/versions", json={"output_schema": SCHEMA} | second)
    assert answer.status_code == 201
    service.put("/v1/prompts/short/aliases/production", json={"version": 1, "reason": "start"})
    return "/prompts/short"


@pytest.mark.parametrize("path", ["/prompts", "/runs/new"])
def test_a_page_needs_as_many_queries_for_many_prompts_as_for_few(browser, service, prompt, path):
    service.post(
        "/v1/label-sets", json={"name": "birds", "labels": [{"name": "duck"}]}
    )  # for /runs/new

    def queries():
        """How many are about prompts; the service may look for work meanwhile."""
        statements = []

        def add(_connection, _cursor, statement, *_):
            statements.append(statement)

        event.listen(Engine, "before_cursor_execute", add)
        try:
            assert "short" in browser.get(path).text
        finally:
            event.remove(Engine, "before_cursor_execute", add)
        return sum("FROM prompt" in statement for statement in statements)

    few = queries()
    for number in range(5):
        name = f"many for {path[1:5]} {number}"
        body = {"name": name, "kind": "description", "output_schema": SCHEMA, "tags": ["many"]}
        added = service.post("/v1/prompts", json=body | {"user": "Describe {{ label }}."})
        assert added.status_code == 201, added.text
    assert 0 < few == queries()
    assert name in browser.get(path).text


def test_the_list_tells_aliases_and_use(browser, prompt):
    page = browser.get("/prompts").text
    assert "production → 1" in page
    assert EVIL not in page and "&lt;img src=x" in page
    assert f'href="{prompt}"' in page
    assert f'href="{prompt}"' not in browser.get("/prompts", params={"search": "visual"}).text
    assert "No matching prompts" in browser.get("/prompts", params={"search": "§"}).text


def test_a_prompts_page_shows_its_history_and_what_changed(browser, prompt):
    page = browser.get(prompt).text
    assert page.index(">2</a>") < page.index(">1</a>")
    assert "First" in page and "ada" in page
    assert f"{prompt}/diff?from=1&amp;to=2" in page
    version = browser.get(f"{prompt}/versions/1").text
    assert "Be brief." in version and "production" in version


def test_a_diff_marks_the_words_that_changed_and_leaves_out_what_is_equal(browser, prompt):
    page = browser.get(f"{prompt}/diff", params={"from": 1, "to": 2}).text
    assert re.search(r"<ins> ?the colours of ?</ins>", page)
    assert "Be brief." in page and "response schema" in page.split("Unchanged:")[1]
    same = browser.get(f"{prompt}/diff", params={"from": 2, "to": 2}).text
    assert "Both versions are identical" in same
    assert browser.get(f"{prompt}/diff", params={"from": 1, "to": 9}).status_code == 404


def test_an_alias_is_moved_with_a_reason_and_rolled_back(browser, prompt, service):
    moved = browser.submit(
        prompt, f"{prompt}/aliases", alias="production", version="2", reason=EVIL, author="bob"
    )
    assert moved.status_code == 200
    assert "&lt;img src=x" in moved.text and EVIL not in moved.text
    assert service.get("/v1/prompts/short").json()["aliases"][0]["version"] == 2
    assert 'value="bob"' in browser.get(prompt).text  # who signed once need not type it again
    back = browser.submit(prompt, f"{prompt}/aliases/production/rollback", reason="worse")
    assert "worse" in back.text
    assert service.get("/v1/prompts/short").json()["aliases"][0]["version"] == 1


def test_a_protected_alias_needs_a_tick_and_a_reason(browser, prompt, service):
    service.put("/v1/prompts/short/aliases/safe", json={"version": 1, "protected": True})
    form = {"alias": "safe", "version": "2"}
    refused = browser.submit(prompt, f"{prompt}/aliases", **form)
    assert refused.status_code == 409
    assert "is protected" in unescape(refused.text)
    moved = browser.submit(prompt, f"{prompt}/aliases", **form, confirm="yes", reason="checked")
    assert moved.status_code == 200


def test_what_is_no_alias_is_said_beside_the_form(browser, prompt):
    page = browser.submit(prompt, f"{prompt}/aliases", alias="No!", version="1", reason="kept")
    assert page.status_code == 422
    assert "is not an alias" in page.text
    assert 'value="kept"' in page.text


def content_of(service, name, number=1):
    version = service.get(f"/v1/prompts/{name}/versions/{number}").json()
    return {
        "system": version["system"],
        "user": version["user"],
        "output_schema": json.dumps(version["output_schema"]),
        "model_defaults": json.dumps(version["model_defaults"]),
        "validators": json.dumps(version["validators"]),
    }


def test_a_changed_prompt_is_tried_beside_the_saved_one_and_stored_nowhere(browser, service, model):
    url = "/prompts/visual-description/playground"
    form = content_of(service, "visual-description") | {
        "labels": f"garganey\n{EVIL}",
        "against": "1",
    }
    form["user"] += "\nMention the bill."
    model.script("garganey", Answer(content=json.dumps({"description": "A garganey has a bill."})))
    page = browser.submit(url, url, **form)
    assert page.status_code == 200
    assert (
        page.text.count("<strong>Saved</strong>")
        == page.text.count("<strong>Changed</strong>")
        == 2
    )
    assert "<ins>" in page.text and EVIL not in page.text
    assert "Mention the bill.</textarea>" in page.text
    kept = service.get("/v1/generations", params={"label": "garganey"}).json()["items"]
    assert [one["prompt_version"] for one in kept] == [1]
    assert service.get("/v1/prompts/visual-description").json()["latest"] == 1


def test_answers_are_streamed_as_they_come(browser, service, model):
    url = "/prompts/visual-description/playground"
    model.script("shoveler", Answer(delay=0.5))
    form = content_of(service, "visual-description") | {
        "labels": "shoveler\npintail",
        "against": "1",
    }
    form["form_token"] = re.search(
        r'name="form_token" value="([^"]+)', browser.get(url).text
    ).group(1)
    with browser.stream("POST", f"{url}/live", data=form) as answer:
        found = "".join(answer.iter_text()).split("\n\n")
    asking = [event.count("Waiting for the answer") for event in found if "data:" in event]
    assert asking == [2, 1, 0]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"user": "{{ nothing"}, "user"),
        ({"validators": "[{"}, "Rules: invalid JSON"),
        ({"output_schema": "[" * 20_000}, "Response schema: the JSON is nested too deep"),
        ({"output_schema": '{"not":' * 150 + "{}" + "}" * 150}, "JSON nested more than 60 deep"),
        ({"user": SLOW}, "The user template takes too much work to render"),
        ({"labels": "\n".join("abcdefghijk")}, "at most 10"),
        ({"labels": ""}, "at least 1"),
    ],
)
def test_what_cannot_be_tried_is_said_and_kept_in_the_form(browser, service, changed, said):
    url = "/prompts/visual-description/playground"
    form = {"labels": "teal", "against": "1"} | content_of(service, "visual-description") | changed
    page = browser.submit(url, url, **form)
    assert page.status_code == 422
    assert said in unescape(page.text)


def test_a_version_with_too_deep_a_schema_is_refused_in_its_form(browser, service):
    url = "/prompts/visual-description/playground"
    form = content_of(service, "visual-description") | {"output_schema": "[" * 20_000}
    token = re.search(r'name="form_token" value="([^"]+)', browser.get(url).text).group(1)
    page = browser.post("/prompts/visual-description/versions", data=form | {"form_token": token})
    assert page.status_code == 422
    assert "the JSON is nested too deep" in page.text


def test_what_was_tried_is_kept_as_the_next_version(browser, service):
    service.post(
        "/v1/prompts",
        json={"name": "kept", "kind": "description", "user": "a\nb\nc"} | {"output_schema": SCHEMA},
    )
    url = "/prompts/kept/playground"
    form = content_of(service, "kept") | {"user": "a\r\nx\r\nc", "message": "better"}
    page = browser.submit(url, url, **form, labels="teal", against="1")
    assert "Save as version 2" in page.text
    token = re.search(r'name="form_token" value="([^"]+)', page.text).group(1)
    page = browser.post("/prompts/kept/versions", data=form | {"form_token": token})
    assert page.headers["location"] == "/prompts/kept/versions/2"
    (changed,) = service.get("/v1/prompts/kept/diff?from=1&to=2").json()["changed"]
    assert changed["diff"][1:] == [" a", "-b", "+x", " c"]  # lines end as they did
