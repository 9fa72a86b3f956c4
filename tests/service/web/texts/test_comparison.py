import json
import re

import pytest

from enrich_service.web.texts import comparison
from tests.llm_server import Answer
from tests.service.llm_fixtures import wait_for
from tests.service.web.conftest import EVIL
from tests.service.web.worker import Worker

SORRY = Answer(content=json.dumps({"description": "I'm sorry, but I cannot describe that."}))
TEXTS = {
    "teal": "A teal is a small duck with a green patch on each wing.",
    "smew": "A smew is a white duck with a black mask.",
    EVIL: f"The {EVIL} has a red body and a long tail.",
}
URL = "/label-sets/pond/comparison"
SIDES = {"a": "visual-description@1", "b": "visual-description@2"}


def run(service, **body):
    started = service.post("/v1/runs", json={"label_set": "pond", **body}).json()
    wait_for(service, started["id"])


@pytest.fixture(scope="module")
def pond(service, model):
    """Three labels; both versions answered, the second with other words, and once in vain."""
    labels = [{"name": name} for name in TEXTS]
    service.post("/v1/label-sets", json={"name": "pond", "labels": labels})
    model.answers |= {name: json.dumps({"description": text}) for name, text in TEXTS.items()}
    run(service, model="small")
    version = service.get("/v1/prompts/visual-description/versions/1").json()
    content = {
        key: version[key]
        for key in ("system", "user", "output_schema", "model_defaults", "validators")
    }
    content["user"] += "\nName the colours first."
    path = "/v1/prompts/visual-description/versions"
    assert service.post(path, json=content | {"message": "colours"}).status_code == 201
    changed = TEXTS["teal"].replace("small", "tiny")
    model.answers["teal"] = json.dumps({"description": changed})
    model.script("smew", SORRY, SORRY, SORRY)
    run(service, model="small", version=2)
    return "pond"


def row(page, words):
    """Both values of a line of the table."""
    found = re.search(rf'<th scope="row">{re.escape(words)}</th><td>(.*?)</td><td>(.*?)</td>', page)
    assert found, words
    return found.groups()


def test_the_form_proposes_the_version_in_production(browser, pond):
    page = browser.get(URL).text
    assert "<option selected>visual-description@1</option>" in page
    assert "Summary" not in page
    assert f'href="{URL}"' in browser.get("/label-sets/pond").text


def test_two_versions_stand_side_by_side_with_changed_words_marked(browser, pond):
    page = browser.get(URL, params=SIDES).text
    assert "<del>small</del>" in page and "<ins>tiny</ins>" in page
    assert row(page, "Labels with a text") == ("3", "2")
    assert row(page, "Labels with rejected answers only") == ("0", "1")
    assert row(page, "Rejected: refusal") == ("0", "3")
    assert row(page, "Calls") == ("3", "5")
    assert all(cost.startswith("$0.00") for cost in row(page, "Cost"))
    assert "refusal:" in page  # with the label that has no text
    assert "once a job has trained on a release" in page
    assert EVIL not in page and "&lt;img src=x" in page
    shown = re.search(r'<a href="(/v1/label-sets/pond/comparison[^"]*)">JSON', page).group(1)
    assert browser.get(shown.replace("&amp;", "&")).json()["a"]["accepted"] == 3


def test_two_models_stand_side_by_side_and_who_was_never_asked_is_said(browser, pond):
    both = {"a": SIDES["a"], "b": SIDES["a"], "model_a": "small", "model_b": "large"}
    page = browser.get(URL, params=both).text
    assert row(page, "Labels without a request") == ("0", "3")
    assert page.count("No answer.") == 3 and 'value="large"' in page


def test_sums_of_many_labels_come_after_the_page(browser, pond, monkeypatch):
    monkeypatch.setattr(comparison, "MAX_INLINE_SUMMARY", 2)
    page = browser.get(URL, params=SIDES).text
    assert "<del>small</del>" in page and "Labels with a text" not in page
    link = (
        re.search(r'<a href="([^"]*summary=true)">compute the summary', page)
        .group(1)
        .replace("&amp;", "&")
    )
    asked = re.search(r'hx-get="([^"]*)" hx-trigger="load"', page).group(1).replace("&amp;", "&")
    assert link == asked
    whole = browser.get(link).text
    assert row(whole, "Labels with a text") == ("3", "2") and "hx-trigger" not in whole


@pytest.mark.parametrize(
    ("sides", "status", "said"),
    [
        ({"a": "attributes@1"}, 409, "compare prompts of one kind"),
        ({"b": "visual-description"}, 422, "PROMPT@VERSION"),
        ({"b": f"{EVIL}@1"}, 404, "There is no prompt"),
    ],
)
def test_what_cannot_be_compared_is_said_on_the_form(browser, pond, sides, status, said):
    page = browser.get(URL, params=SIDES | sides)
    assert page.status_code == status
    assert said in page.text and 'class="notice bad"' in page.text and EVIL not in page.text


def test_what_a_worker_measured_stands_in_the_table(browser, pond, service):
    source = [{"prompt": "visual-description", "version": 1}]
    body = {"label_set": "pond", "name": "pond-1", "sources": source}
    release = service.post("/v1/releases", json=body).json()["id"]
    config = {"data": "/d", "teacher": "t", "text_strategy": "name+description"}
    job = service.post("/v1/jobs", json={"release_id": release, "config": config}).json()["id"]
    Worker(service).finish(unseen=1.0)
    page = browser.get(URL, params=SIDES).text
    measured = row(page, "Measured by")
    assert f'href="/jobs/{job}/diagnostics"' in measured[0] and measured[1] == "–"
    assert row(page, "Effective rank") == ("1.5", "–")
