import re
from html import unescape

import pytest

from tests.service.web.conftest import EVIL

SCHEMA = {
    "type": "object",
    "properties": {"description": {"type": "string"}},
    "required": ["description"],
}


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


def test_the_list_tells_aliases_and_use(browser, prompt):
    page = browser.get("/prompts").text
    assert "production → 1" in page
    assert EVIL not in page and "&lt;img src=x" in page
    assert f'href="{prompt}"' in page
    assert f'href="{prompt}"' not in browser.get("/prompts", params={"search": "visual"}).text
    assert "No prompt fits" in browser.get("/prompts", params={"search": "§"}).text


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
    assert "Be brief." in page and "schema of the answer" in page.split("Equal in both")[1]
    same = browser.get(f"{prompt}/diff", params={"from": 2, "to": 2}).text
    assert "Both versions say the same" in same
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
    assert "is no alias" in page.text
    assert 'value="kept"' in page.text
