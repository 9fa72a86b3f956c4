import csv
import io
import json
import re

import pytest

from tests.llm_server import Answer
from tests.service.llm_fixtures import wait_for
from tests.service.web.conftest import EVIL

NAMES = ("mallard", "teal", "smew", EVIL)


@pytest.fixture(scope="module")
def ducks(service, model):
    """A label set with a text, an edit, a flagged, a rejected and a missing one."""
    labels = [{"key": f"n{i}", "name": name} for i, name in enumerate(NAMES)]
    service.post("/v1/label-sets", json={"name": "ducks", "labels": labels})
    long = json.dumps({"description": "A smew is white with black lines. " + "It is small. " * 25})
    model.script("smew", Answer(content=long))
    model.script("teal", *[Answer(content='{"description": ""}')] * 3)
    run = service.post("/v1/runs", json={"label_set": "ducks"}).json()
    wait_for(service, run["id"])
    return "/label-sets/ducks"


def rows(page):
    return re.findall(r'<th scope="row"><a href="/labels/(\d+)[^>]*>([^<]*)</a>', page.text)


def test_a_label_set_is_made_of_pasted_names(browser, service):
    page = browser.submit("/label-sets", "/label-sets", name="geese", names="greylag\n\n brant ")
    assert page.status_code == 200
    assert page.url.path == "/label-sets/geese"
    assert [name for _, name in rows(page)] == ["greylag", "brant"]
    assert "No text yet." in page.text


def test_a_label_set_is_made_of_a_file(browser):
    page = browser.submit(
        "/label-sets",
        "/label-sets",
        name="swans",
        files={"file": ("swans.csv", b"name,context\nmute swan,a bird\n")},
    )
    assert [name for _, name in rows(page)] == ["mute swan"]


def test_a_label_set_that_cannot_be_is_refused_with_what_was_typed(browser):
    page = browser.submit("/label-sets", "/label-sets", name="<b>", names="kept name")
    assert page.status_code == 422
    assert (
        "is not a valid name" in page.text and "kept name" in page.text and "<b>" not in page.text
    )
    assert "Give names" in browser.submit("/label-sets", "/label-sets", name="none").text


def test_a_form_that_is_refused_is_not_in_the_audit_log(browser, service):
    before = service.get("/v1/audit").json()
    assert browser.submit("/label-sets", "/label-sets", name="<b>", names="x").status_code == 422
    assert service.get("/v1/audit").json() == before


@pytest.mark.parametrize("version", ["9" * 5000, "\N{SUPERSCRIPT TWO}", "0", "-1"])
def test_a_version_that_is_no_number_is_named(browser, ducks, version):
    page = browser.get(ducks, params={"version": version})
    assert page.status_code == 422 and "is not a version number" in page.text


def test_the_table_shows_each_label_with_its_text_and_state(browser, ducks):
    page = browser.get(ducks)
    assert len(rows(page)) == len(NAMES)
    assert "state accepted" in page.text and "state rejected" in page.text
    assert "about " in page.text and "state flagged" in page.text  # longer than the teacher reads
    assert EVIL not in page.text


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ({"search": "teal"}, ["teal"]),
        ({"search": "n0"}, ["mallard"]),
        ({"state": "rejected"}, ["teal"]),
        ({"state": "flagged"}, ["smew"]),
        ({"state": "missing"}, []),
        ({"state": "missing", "prompt": "attributes"}, list(NAMES[:3])),
        ({"search": "mallard", "state": "rejected"}, []),
    ],
)
def test_search_and_filters_live_in_the_address(browser, ducks, query, found):
    names = [name for _, name in rows(browser.get(ducks, params=query))]
    assert [name for name in names if "img" not in name] == found


def test_a_filter_that_does_not_exist_is_named(browser, ducks):
    assert "state: must be one of" in browser.get(ducks, params={"state": "odd"}).text
    assert browser.get(ducks, params={"version": "x"}).status_code == 422
    assert browser.get(ducks, params={"version": "99"}).status_code == 404


def test_the_table_is_downloaded_as_it_is_filtered(browser, ducks):
    answer = browser.get(f"{ducks}/texts.csv", params={"search": "smew"})
    (row,) = csv.DictReader(io.StringIO(answer.text))
    assert row["key"] == "n2" and row["state"] == "accepted" and row["flags"]


def label_id(browser, ducks, name):
    return next(id_ for id_, found in rows(browser.get(ducks)) if found == name)


def test_a_long_table_comes_in_pages(browser, service):
    names = [{"name": f"bird {n}"} for n in range(120)]
    service.post("/v1/label-sets", json={"name": "many", "labels": names})
    first = browser.get("/label-sets/many")
    assert len(rows(first)) == 50 and "1–50 of 120" in first.text
    assert 'rel="next" href="?offset=50"' in first.text
    last = browser.get("/label-sets/many", params={"offset": 100})
    assert len(rows(last)) == 20 and 'rel="next"' not in last.text


def test_a_text_is_edited_in_place_and_the_edit_wins(browser, ducks, service):
    url = f"/labels/{label_id(browser, ducks, 'mallard')}"
    before = browser.get(url).text
    assert "The mallard has a" in before
    page = browser.submit(url, f"{url}/texts", text="Green head,\nyellow bill. <b>", author="ada")
    assert page.status_code == 200
    assert "Green head, yellow bill. &lt;b&gt;" in page.text
    assert "state edited" in page.text and "Written by people" in page.text
    assert "The mallard has a" in page.text  # what the model said is still there
    edited = browser.get(ducks, params={"state": "edited"})
    assert [name for _, name in rows(edited)] == ["mallard"]
    newest = service.get("/v1/generations", params={"label": "mallard"}).json()["items"][0]
    assert newest["author"] == "ada" and newest["parent_id"]


def test_a_missing_text_is_written(browser, ducks):
    url = f"/labels/{label_id(browser, ducks, 'teal')}"
    page = browser.get(url, params={"prompt": "attributes"})
    assert "No text yet." in page.text
    bad = browser.submit(f"{url}?prompt=attributes", f"{url}/texts", text="green")
    assert (
        bad.status_code == 422
        and "is not an attribute" in bad.text
        and ">green</textarea>" in bad.text
    )
    good = browser.submit(
        f"{url}?prompt=attributes", f"{url}/texts", text="colours: green, shiny; brown\nsize: small"
    )
    assert "colours: green, shiny, brown; size: small" in good.text


def test_two_texts_of_a_label_are_compared(browser, ducks, service):
    found = service.get("/v1/generations", params={"label": "mallard"}).json()["items"]
    url = f"/labels/{label_id(browser, ducks, 'mallard')}"
    page = browser.get(url, params={"from": found[1]["id"], "to": found[0]["id"]}).text
    assert "<del>" in page and "<ins>" in page


def test_provenance_shows_the_raw_reply_and_what_was_asked(browser, ducks, service):
    found = service.get("/v1/generations", params={"label": EVIL}).json()["items"][0]
    page = browser.get(f"/generations/{found['id']}").text
    assert "small-2026-01-01" in page and "fp_test" in page
    assert "Raw reply" in page and "Messages" in page
    assert EVIL not in page


def test_a_text_is_approved_locked_and_rejected_in_place(browser, ducks, service):
    url = f"/labels/{label_id(browser, ducks, 'smew')}"
    (found,) = service.get(
        "/v1/generations", params={"label": "smew", "status": "accepted"}
    ).json()["items"]
    action = f"/generations/{found['id']}/reviews"
    page = browser.submit(url, action, action="lock", reason=EVIL, author="ada")
    assert page.url.path == url and "state locked" in page.text
    assert [n for _, n in rows(browser.get(ducks, params={"state": "locked"}))] == ["smew"]
    refused = browser.submit(url, f"{url}/texts", text="Another.")
    assert refused.status_code == 409 and "is locked" in refused.text
    text = browser.get(f"/generations/{found['id']}").text
    assert "ada: lock, &lt;img" in text
    browser.submit(url, action, action="unlock")
    page = browser.submit(url, action, action="reject", reason="wrong bird")
    assert "rejected by a person" in page.text
    assert [n for _, n in rows(browser.get(ducks, params={"state": "missing"}))] == []
    assert "smew" in [n for _, n in rows(browser.get(ducks, params={"state": "rejected"}))]
    assert browser.submit(url, f"{url}/texts", text="A white duck.").status_code == 200
