import re
from html import unescape

import pytest

from enrich_service.web.differences import side_by_side, words
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
    assert "short" not in browser.get("/prompts", params={"search": "visual"}).text
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
    assert "Schema of the answer" not in page.split("Equal in both")[0]
    everything = browser.get(f"{prompt}/diff", params={"from": 1, "to": 2, "show": "all"}).text
    assert "<h2>Schema of the answer</h2>" in everything
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


def test_differing_words_are_marked_on_both_sides():
    old, new = words("a red duck", "a blue duck")
    assert [(piece.text, piece.changed) for piece in old] == [
        ("a ", False), ("red", True), (" duck", False),
    ]  # fmt: skip
    assert "".join(piece.text for piece in new) == "a blue duck"


def test_rows_hold_every_line_of_both_texts_once():
    before, after = "a\nb\nc\nd", "a\nx\nc\nd\ne"
    rows = side_by_side(before, after)
    for side, text in (("old", before), ("new", after)):
        lines = ["".join(p.text for p in getattr(r, side)) for r in rows if getattr(r, side)]
        assert lines == text.split("\n")
    assert [row.changed for row in rows] == [False, True, False, False, True]


def test_only_changes_counts_the_equal_lines_it_leaves_out():
    before = "\n".join("abcdefghij")
    rows = side_by_side(before, before.replace("j", "x"), only_changes=True)
    assert rows[0].skipped == 7
    assert [row.old_number for row in rows[1:]] == [8, 9, 10]
    assert [row.skipped for row in side_by_side(before, before, only_changes=True)] == [10]
