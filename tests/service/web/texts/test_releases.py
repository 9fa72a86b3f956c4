import csv
import io

import pytest

from contract import ReleaseLabel, release_hash
from tests.service.llm_fixtures import wait_for
from tests.service.web.conftest import EVIL

NAMES = ["mallard", "teal", EVIL]


@pytest.fixture(scope="module")
def frozen(service):
    """Two releases of one label set that differ in one label."""
    service.post("/v1/label-sets", json={"name": "ducks", "labels": [{"name": n} for n in NAMES]})
    for label in service.get("/v1/label-sets/ducks/labels").json()["items"]:
        text = f"{label['name']} is green."
        answer = service.post(f"/v1/labels/{label['id']}/texts", json={"text": text})
        assert answer.status_code == 201
    first = {"label_set": "ducks", "name": "ducks-1", "message": EVIL, "author": "ada"}
    assert service.post("/v1/releases", json=first).status_code == 201
    service.post("/v1/labels/1/texts", json={"text": "mallard is brown."})
    service.post("/v1/releases", json={"label_set": "ducks", "name": "ducks-2"})
    job = {"release_id": 1, "config": {"data": "d", "teacher": "t"}}
    assert service.post("/v1/jobs", json=job).status_code == 201
    return "/releases/1"


def test_a_releases_page_shows_contents_hash_origin_and_use(browser, frozen, service):
    page = browser.get(frozen).text
    digest = service.get("/v1/releases").json()[-1]["hash"]
    assert digest in page
    assert "teal is green." in page and "3 written by people" in page
    assert 'href="/jobs/1"' in page
    assert EVIL not in page and "&lt;img src=x" in page
    found = browser.get(frozen, params={"search": "TEAL"}).text
    assert "teal is green." in found and "mallard is" not in found


def test_everything_that_a_page_offers_for_download_is_there(browser, frozen):
    for path in ("/v1/releases/1", "/v1/releases/1/label2text.txt", "/v1/releases/1/chatgpt.txt"):
        assert f'href="{path}"' in browser.get(frozen).text
        assert browser.get(path).status_code == 200
    rows = list(csv.DictReader(io.StringIO(browser.get(f"{frozen}/texts.csv").text)))
    assert [row["name"] for row in rows] == NAMES
    assert rows[1]["text"] == "teal is green."


def test_two_releases_are_compared_side_by_side(browser, frozen):
    page = browser.get(f"{frozen}/diff", params={"to": 2}).text
    assert "1 label differs, 2 unchanged" in page
    assert "<del>green</del>" in page and "<ins>brown</ins>" in page
    assert "same texts" in browser.get(f"{frozen}/diff", params={"to": 1}).text
    assert browser.get(f"{frozen}/diff", params={"to": 99}).status_code == 404


def test_a_release_is_made_by_a_form(browser, frozen, service):
    page = browser.submit(
        "/releases/new?label_set=ducks", "/releases", label_set="ducks", name="by hand", author="bo"
    )
    assert page.status_code == 200 and "by hand" in page.text and "by bo" in page.text
    newest = service.get("/v1/releases").json()[0]
    assert (newest["name"], newest["labels"]) == ("by hand", 3)


def test_a_release_that_cannot_be_is_refused_with_what_was_typed(browser, frozen):
    form = {
        "label_set": "ducks",
        "name": "none",
        "message": "kept",
        "from attributes": "@production",
        "approved_only": "yes",
    }
    page = browser.submit("/releases/new", "/releases", **form)
    assert page.status_code == 409
    assert "have no approved attributes" in page.text and 'value="kept"' in page.text
    chosen = page.text.split('name="from attributes"')[1].split("</select>")[0]
    assert '<option value="@production" selected>' in chosen
    made = browser.submit("/releases/new", "/releases", **form, allow_missing="yes")
    assert made.status_code == 200 and "none (names only)" in made.text


def test_a_release_is_translated_by_a_form(browser, frozen, service, model):
    model.answers["teal"] = '{"description": "Die Krickente trägt einen grünen Streifen."}'
    page = browser.submit(frozen, f"{frozen}/translations", language="German", author="ada")
    run = wait_for(service, int(page.url.path.rpartition("/")[2]))
    assert (run["variables"], run["author"]) == ({"language": "German"}, "ada")
    texts = service.get("/v1/generations", params={"run_id": run["id"]}).json()["items"]
    assert "Die Krickente trägt einen grünen Streifen." in [text["text"] for text in texts]
    page = browser.submit(frozen, f"{frozen}/translations", language="German", prompt="attributes")
    assert page.status_code == 422
    assert "texts" in page.text and 'value="German"' in page.text and "<details open>" in page.text


def test_the_list_shows_releases_and_leads_to_them(browser, frozen):
    page = browser.get("/releases").text
    assert page.index("ducks-2") < page.index("ducks-1")
    assert 'href="/releases/1"' in page and EVIL not in page


def test_a_label_with_many_texts_shows_all_of_them(browser, service):
    label = {"name": "smew", "key": "k", "attributes": {"colours": ["white", "black"]}}
    label |= {"sentences": ["It dives.", EVIL], "captions": ["a smew on a lake"]}
    body = {"id": 1, "name": "taken", "label_set": "smews", "labels": [label]}
    body |= {"hash": release_hash([ReleaseLabel(**label)]), "created_at": "2026-01-02T03:04:05Z"}
    taken = service.post("/v1/releases/import", json=body)
    assert taken.status_code == 201, taken.text
    page = browser.get(f"/releases/{taken.json()['id']}").text
    assert "colours: white, black" in page and "It dives." in page and "a smew on a lake" in page
    assert EVIL not in page
