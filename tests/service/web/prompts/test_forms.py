"""Forms that create, tag and archive prompts."""

import re
from html import unescape

import pytest

from tests.service.web.html_forms import forms_of


def fields_of(browser, path, action):
    """What a browser would send for the form of a page, without the token."""
    form = next(form for form in forms_of(path, browser.get(path).text) if form.action == action)
    return {
        one.name: one.value
        for one in form.controls
        if one.value is not None and one.name != "form_token"
    }


def test_a_prompt_is_created_by_a_form_and_edited_into_a_next_version(browser, service):
    form = fields_of(browser, "/prompts/-/new", "/prompts")
    standard = service.get("/v1/prompts/visual-description/versions/1").json()
    assert form["user"] == standard["user"] and form["kind"] == "description"
    form |= {"name": "my birds", "summary": "Plumage", "tags": "birds\nshort", "author": "ada"}
    page = browser.submit("/prompts/-/new", "/prompts", **form)
    assert page.status_code == 200 and page.url.path == "/prompts/my birds"
    made = service.get("/v1/prompts/my birds").json()
    assert (made["summary"], made["tags"], made["latest"]) == ("Plumage", ["birds", "short"], 1)
    version = service.get("/v1/prompts/my birds/versions/1").json()
    content = ("system", "user", "output_schema", "model_defaults", "validators")
    assert [version[name] for name in content] == [standard[name] for name in content]
    assert version["author"] == "ada"

    edit = re.search(r'href="([^"]+)">Edit and try', page.text).group(1)
    assert edit == "/prompts/my%20birds/playground"
    changed = fields_of(browser, edit, edit) | {"user": "Describe {{ label }}.", "message": "brief"}
    token = re.search(r'name="form_token" value="([^"]+)', browser.get(edit).text).group(1)
    saved = browser.post("/prompts/my%20birds/versions", data=changed | {"form_token": token})
    assert saved.headers["location"] == "/prompts/my%20birds/versions/2"
    assert service.get("/v1/prompts/my birds").json()["latest"] == 2


def test_a_prompt_is_duplicated_from_its_newest_version(browser, service):
    page = browser.get("/prompts/attributes").text
    link = unescape(re.search(r'href="([^"]+)">Duplicate', page).group(1))
    form = fields_of(browser, link, "/prompts")
    assert form["kind"] == "attributes" and form["name"] == ""
    assert form["user"] == service.get("/v1/prompts/attributes/versions/1").json()["user"]
    assert browser.get("/prompts/-/new?like=nix").status_code == 404


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": "a/b"}, "is not a valid name"),
        ({"name": "visual-description"}, "Prompt 'visual-description' already exists"),
        ({"user": "{{ nix }}"}, "unknown variable 'nix'"),
        ({"output_schema": "{"}, "Response schema: invalid JSON"),
        ({"output_schema": "[]"}, "schema: Input should be a valid dictionary"),
        ({"tags": "x" * 51}, "Tag 1 has 51 characters"),
    ],
)
def test_what_cannot_be_a_prompt_is_said_with_what_was_typed(browser, change, said):
    form = fields_of(browser, "/prompts/-/new", "/prompts")
    form |= {"name": "kept", "summary": "typed"} | change
    page = browser.submit("/prompts/-/new", "/prompts", **form)
    assert page.status_code in (409, 422)
    assert said in unescape(page.text) and 'value="typed"' in page.text


def test_tags_are_replaced_and_removed(browser, service):
    path = "/prompts/attributes"
    page = browser.submit(path, f"{path}/tags", tags="b, with comma\na")
    assert page.status_code == 200
    assert service.get(f"/v1{path}").json()["tags"] == ["a", "b, with comma"]
    assert fields_of(browser, path, f"{path}/tags")["tags"] == "a\nb, with comma"
    page = browser.submit(path, f"{path}/tags", tags="x" * 51)
    assert page.status_code == 422 and "x" * 51 in page.text
    page = browser.submit(path, f"{path}/tags", tags="")
    assert "No tags" in page.text and service.get(f"/v1{path}").json()["tags"] == []


def test_a_prompt_is_archived_and_restored(browser, service):
    path = "/prompts/attributes"
    page = browser.submit(path, f"{path}/archive")
    assert page.url.path == path and "state archived" in page.text
    assert path not in browser.get("/prompts").text
    edited = fields_of(browser, f"{path}/playground", f"{path}/playground")
    token = re.search(r'name="form_token" value="([^"]+)', page.text).group(1)
    refused = browser.post(f"{path}/versions", data=edited | {"form_token": token})
    assert refused.status_code == 409
    assert "is archived: restore it first" in refused.text
    page = browser.submit(path, f"{path}/restore")
    assert "state archived" not in page.text and path in browser.get("/prompts").text
