"""The page of workers, and what the form of a job makes of what they have."""

import re
from html import unescape

import pytest

from tests.service.web.conftest import EVIL
from tests.service.web.world import offers_of


@pytest.fixture(scope="module")
def release(service):
    body = {"name": "ducks", "labels": [{"name": "mallard"}]}
    service.post("/v1/label-sets", json=body)
    body = {"label_set": "ducks", "name": "r", "allow_missing": True}
    return str(service.post("/v1/releases", json=body).json()["id"])


@pytest.fixture(scope="module")
def worker(service, release):
    body = {"worker": f"cpu {EVIL}", "memory_gb": 16, "offers": offers_of(EVIL)}
    body["offers"]["data_complete"] = True
    assert service.post("/v1/workers", json=body).status_code == 204


def queued(service):
    return service.get("/v1/jobs").json()


def test_without_workers_the_pages_say_how_to_start_one(browser, release, service):
    page = browser.get("/workers").text
    assert f"distill worker --service {service.base_url}".rstrip("/") in page
    form = browser.get("/jobs/new").text
    assert 'No <a href="/workers">worker</a> is running' in form and "<datalist" not in form
    page = browser.submit("/jobs/new", "/jobs", release_id=release, data="/d", teacher="t")
    assert "state queued" in page.text  # nothing to confirm


def test_the_page_of_workers_shows_what_they_have(browser, worker):
    page = browser.get("/workers").text
    assert "120 classes; 12,000 training, 3,000 validation, 2,400 unseen images" in page
    assert "ViT-B-32@openai" in page and "state running" in page
    assert EVIL not in page and EVIL in unescape(page)
    assert "<dt>Trackers</dt><dd>tensorboard, " in page
    assert '<a href="/workers" aria-current="page">Workers</a>' in page


def test_the_form_of_a_job_offers_what_the_workers_have(browser, worker):
    page = browser.get("/jobs/new").text
    for field, value in (
        ("data", "/data/birds"), ("teacher", "ViT-B-32@openai"), ("student", f"resnet18.{EVIL}"),
        ("weights", f"/data/{EVIL}.safetensors"),
    ):  # fmt: skip
        assert f'list="known-{field}"' in page
        (listed,) = re.findall(rf'<datalist id="known-{field}">(.*?)</datalist>', page, re.DOTALL)
        assert f'value="{value}"' in unescape(listed)


def test_a_recipe_fills_in_the_fields_that_it_knows(browser, worker, release):
    page = browser.get(f"/jobs/new?release_id={release}").text
    (address,) = re.findall(r'href="(/jobs/new[?]recipe=small[^"]*)"', page)
    assert f"release_id={release}" in address
    page = browser.get(unescape(address)).text
    assert re.search('name="epochs" value="3"', page)
    assert re.search('name="student" value="resnet18"', page)
    missing = browser.get("/jobs/new?recipe=large")
    assert missing.status_code == 404 and "No running worker has a recipe" in missing.text


def test_a_job_that_no_worker_can_do_is_queued_only_when_that_is_confirmed(
    browser, worker, release, service
):
    form = {"release_id": release, "data": "/data/fish", "teacher": "hf-hub:a/b", "epochs": "5"}
    before = len(queued(service))
    page = browser.submit("/jobs/new", "/jobs", **form)
    assert page.status_code == 200
    assert "No running worker has the data" in page.text and "&#39;/data/fish&#39;" in page.text
    assert "the teacher &#39;hf-hub:a/b&#39; in its cache: it will be downloaded" in page.text
    assert 'value="/data/fish"' in page.text and 'name="epochs" value="5"' in page.text
    assert len(queued(service)) == before
    page = browser.submit("/jobs/new", "/jobs", **form, anyway="yes")
    assert "state queued" in page.text
    assert queued(service)[0]["config"]["epochs"] == 5


def test_a_job_that_a_worker_can_do_is_queued_at_once(browser, worker, release, service):
    form = {"release_id": release, "data": "/data/birds", "teacher": "ViT-B-32@openai"}
    page = browser.submit("/jobs/new", "/jobs", **form)
    assert "state queued" in page.text
    service.post(f"/v1/jobs/{queued(service)[0]['id']}/cancel")
