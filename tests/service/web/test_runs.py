import csv
import io
import json
import threading

import httpx
import pytest
from PIL import Image

from tests.llm_batches import Fate
from tests.llm_server import Answer
from tests.service.llm_fixtures import wait_for
from tests.service.web.conftest import EVIL

NAMES = ("wigeon", "gadwall", "pochard")


@pytest.fixture(scope="module")
def wildfowl(service):
    labels = [{"name": name} for name in NAMES]
    service.post("/v1/label-sets", json={"name": "wildfowl", "labels": labels})
    return "wildfowl"


def start(browser, label_set, **fields):
    page = f"/runs/new?label_set={label_set}&prompt=visual-description"
    return browser.submit(page, "/runs", **fields)


def run_id(page):
    return int(page.url.path.rpartition("/")[2])


def test_a_run_shows_its_price_before_it_starts(browser, wildfowl):
    page = browser.get("/runs/new", params={"label_set": wildfowl, "prompt": "visual-description"})
    assert "<dt>New requests</dt><dd>3</dd>" in page.text
    assert "<dt>Cost</dt><dd>$" in page.text
    assert "Start the run" in page.text
    assert "Start the run" not in browser.get("/runs/new").text


def test_a_run_is_started_followed_and_ends(browser, wildfowl, service):
    page = start(browser, wildfowl, author="ada", model="large")
    run = wait_for(service, run_id(page))
    assert (run["state"], run["author"], run["model"]) == ("succeeded", "ada", "large")
    page = browser.get(page.url.path).text
    assert "3 of 3" in page and "hx-sse:connect" not in page
    assert "by ada" in page
    assert f'href="/runs/{run["id"]}"' in browser.get("/runs").text
    (row, *_) = csv.DictReader(io.StringIO(browser.get("/runs.csv").text))
    assert row["state"] == "succeeded"


def test_a_bad_choice_is_said_on_the_form(browser, wildfowl):
    page = start(browser, wildfowl, samples="1", concurrency="x")
    assert page.status_code == 422
    assert "Concurrency" in page.text and "Input should be a valid integer" in page.text
    page = start(browser, wildfowl, budget_usd="1", model="priceless")
    assert page.status_code == 422 and "ENRICH_PRICES" in page.text


def test_labels_without_a_text_are_grouped_by_reason(browser, service, model):
    labels = [{"name": name} for name in ("knot", "dunlin", EVIL)]
    service.post("/v1/label-sets", json={"name": "waders", "labels": labels})
    sorry = Answer(content=json.dumps({"description": "I'm sorry, I cannot describe that."}))
    for name in ("knot", "dunlin", EVIL):
        model.script(name, *[sorry] * 3)
    page = start(browser, "waders")
    wait_for(service, run_id(page))
    page = browser.get(page.url.path).text
    assert 'refusal <span class="muted">3 labels</span>' in page
    assert all(name in page for name in ("knot", "dunlin", "&lt;img")) and EVIL not in page
    assert "state=rejected" in page
    assert "3 labels of waders" in browser.get("/").text  # needs review


def test_a_run_by_batch_is_started_and_its_batches_are_followed(browser, service, model):
    labels = [{"name": f"tern {n}"} for n in range(4)]
    service.post("/v1/label-sets", json={"name": "terns", "labels": labels})
    model.batching.fates.append(Fate(seconds=2))
    chosen = "/runs/new?label_set=terns&prompt=visual-description&mode=batch"
    page = browser.submit(chosen, "/runs", model="large")
    found = [text for _, name, text in events(service, f"{page.url.path}/live") if name != "end"]
    assert any("<h2>Batches</h2>" in text and "in_progress" in text for text in found)
    assert "completed" in found[-1] and "4 of 4" in found[-1]
    assert service.get(f"/v1/runs/{run_id(page)}").json()["mode"] == "batch"


def test_captions_of_a_folder_of_images_are_asked_for(browser, service, image_root):
    labels = [{"key": "p1", "name": "phalarope"}]
    service.post("/v1/label-sets", json={"name": "phalaropes", "labels": labels})
    (image_root / "train" / "p1").mkdir(parents=True)
    for shade in (40, 140):
        Image.new("RGB", (8, 8), (shade, 0, 0)).save(image_root / "train" / "p1" / f"{shade}.png")
    chosen = "/runs/new?label_set=phalaropes&prompt=image-caption"
    assert "is for images: start a run with a folder" in browser.get(chosen).text
    outside = browser.get(f"{chosen}&images=/etc")
    assert outside.status_code == 422 and "ENRICH_IMAGE_ROOTS" in outside.text
    chosen = f"{chosen}&images={image_root / 'train'}"
    assert "<dt>Images × samples</dt><dd>2</dd>" in browser.get(chosen).text
    run = wait_for(service, run_id(browser.submit(chosen, "/runs")))
    assert (run["state"], run["accepted"]) == ("succeeded", 2)


@pytest.fixture
def slow(service, model, browser):
    """A run that asks 40 labels and takes its time."""
    labels = [{"name": f"gull {n}"} for n in range(40)]
    service.post("/v1/label-sets", json={"name": "gulls", "labels": labels})
    model.latency = 0.15
    page = start(browser, "gulls", concurrency="1", model="large")
    yield run_id(page)
    model.latency = 0.0
    run = service.get(f"/v1/runs/{run_id(page)}").json()
    if run["state"] in ("queued", "running", "paused"):
        service.post(f"/v1/runs/{run['id']}/cancel")


def events(service, path, last=None):
    """Id, name and text of each event of a stream until it ends."""
    headers = {"Last-Event-ID": last} if last else {}
    with service.stream("GET", path, headers=headers) as answer:
        event = {"data": []}
        for line in answer.iter_lines():
            name, _, value = line.partition(": ")
            if not line:
                if event["data"]:
                    yield event.get("id"), event.get("event"), "\n".join(event["data"])
                event = {"data": []}
            elif name == "data":
                event["data"].append(value)
            else:
                event[name] = value


def test_progress_comes_by_itself_and_who_returns_gets_only_news(browser, slow, service):
    page = browser.get(f"/runs/{slow}").text
    assert f'hx-sse:connect="/runs/{slow}/live"' in page
    found = events(service, f"/runs/{slow}/live")
    first, second = next(found), next(found)
    assert first[0] != second[0]
    assert "state running" in second[2] or "state queued" in second[2]
    browser.submit(f"/runs/{slow}", f"/runs/{slow}/pause")
    *_, (last, _, text) = (e for e in _until_quiet(service, slow))
    assert "Resume" in text
    seen = []
    again = threading.Thread(
        target=lambda: seen.extend(events(service, f"/runs/{slow}/live", last)), daemon=True
    )
    again.start()
    browser.submit(f"/runs/{slow}", f"/runs/{slow}/cancel")
    again.join(20)
    assert last not in [id for id, _, _ in seen]  # the paused state, which was seen before
    assert "state cancelled" in seen[-2][2]
    assert seen[-1][1] == "end"


def _until_quiet(service, run):
    """Events of a paused run, until a call is in (one in flight may still follow)."""
    for event in events(service, f"/runs/{run}/live"):
        yield event
        if "state paused" in event[2] and wait_for(service, run, "paused")["calls"] > 0:
            return


def test_a_run_is_paused_resumed_cancelled_and_retried_by_buttons(browser, slow, service):
    url = f"/runs/{slow}"
    assert "state paused" in browser.submit(url, f"{url}/pause").text
    assert browser.submit(url, f"{url}/resume", budget_tokens="100000").status_code == 200
    assert service.get(f"/v1/runs/{slow}").json()["budget_tokens"] == 100000
    page = browser.submit(url, f"{url}/cancel")
    assert "state cancelled" in page.text
    assert browser.submit(url, f"{url}/retry").status_code == 200
    assert service.get(f"/v1/runs/{slow}").json()["state"] in ("queued", "running")


def test_a_button_that_comes_too_late_says_so_on_a_page(browser, wildfowl, service):
    page = start(browser, wildfowl)
    wait_for(service, run_id(page))
    url = page.url.path
    token = dict(browser.cookies)["enrich_form"]
    late = browser.post(f"{url}/pause", data={"form_token": token})
    assert late.status_code == 409
    assert "has already ended (succeeded)" in late.text and late.text.startswith("<!doctype html>")


def test_a_first_visit_shows_the_three_steps(start_service, tmp_path):
    from enrich_service.core.settings import Settings

    page = httpx.get(start_service(Settings(data_dir=tmp_path / "new")) + "/").text
    assert "Create your first release in three steps" in page
    assert "Add a label set" in page and "Running now" not in page
