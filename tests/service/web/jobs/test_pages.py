import csv
import io
import json
import math
import re

import httpx
import pytest

from contract import EventKind
from enrich_service.core.settings import Settings
from enrich_service.core.storage.database import make_engine, writing
from enrich_service.jobs.models import JobEvent
from tests.service.web.conftest import EVIL
from tests.service.web.test_runs import events
from tests.service.web.worker import Worker, pictures_of, report_of
from tests.service.web.world import a_photo

TEXTS = {"mallard": "A mallard is green.", EVIL: f"It shows {EVIL}."}


@pytest.fixture(scope="module")
def release(service):
    labels = [{"name": name} for name in TEXTS]
    service.post("/v1/label-sets", json={"name": "ducks", "labels": labels})
    for label in service.get("/v1/label-sets/ducks/labels").json()["items"]:
        service.post(f"/v1/labels/{label['id']}/texts", json={"text": TEXTS[label["name"]]})
    return service.post("/v1/releases", json={"label_set": "ducks", "name": "r"}).json()["id"]


def queue(service, release, **config):
    body = {"release_id": release, "config": {"data": "/d", "teacher": EVIL} | config}
    return service.post("/v1/jobs", json=body).json()["id"]


@pytest.fixture(scope="module")
def trained(service, release):
    """Two jobs that ended: on bare names, and on descriptions."""
    jobs = []
    for strategy, unseen in (("name", 7.0), ("name+description", 11.5)):
        jobs.append(queue(service, release, text_strategy=strategy))
        Worker(service).finish(unseen=unseen)
    return jobs


def test_a_job_is_put_into_the_queue_by_a_form(browser, release, service):
    page = browser.submit(
        f"/jobs/new?release_id={release}",
        "/jobs",
        release_id=str(release),
        data="/data",
        teacher="ViT-B-32@openai",
        text_strategy="name",
        epochs="3",
        **{"losses.cls": "0.5", "pretrained": "true"},
    )
    assert page.status_code == 200 and "state queued" in page.text
    job = service.get(f"/v1/jobs/{page.url.path.rpartition('/')[2]}").json()
    config = job["config"]
    assert (config["data"], config["epochs"], config["text_strategy"]) == ("/data", 3, "name")
    assert config["losses"]["cls"] == 0.5 and config["losses"]["mse"] == 1.0
    assert config["pretrained"] is True
    assert config["vlprox_filter"] is False  # a box that was left empty
    cancelled = browser.submit(page.url.path, f"{page.url.path}/cancel")
    assert "state cancelled" in cancelled.text


def test_the_form_of_a_job_has_a_field_for_every_setting(browser, release):
    from contract import LossWeights, TrainConfig

    page = browser.get("/jobs/new").text
    names = [name for name in TrainConfig.model_fields if name != "losses"]
    for name in (*names, *(f"losses.{name}" for name in LossWeights.model_fields)):
        assert f'name="{name}"' in page, name


def test_what_cannot_be_a_job_is_said_with_what_was_typed(browser, release):
    form = {"release_id": str(release), "data": "kept", "teacher": "t", "losses.cap": "1"}
    page = browser.submit("/jobs/new", "/jobs", **form)
    assert page.status_code == 422
    assert "there are no captions" in page.text and 'value="kept"' in page.text
    page = browser.submit("/jobs/new", "/jobs", **(form | {"losses.cap": "0", "epochs": "0"}))
    assert "epochs: Input should be greater than or equal to 1" in page.text


def test_a_new_job_may_begin_as_an_old_one(browser, trained):
    page = browser.get("/jobs/new", params={"like": trained[0]}).text
    assert "<option selected>name</option>" in page
    assert 'value="/d"' in page


def test_a_running_job_shows_curves_and_log_that_grow_by_themselves(browser, release, service):
    job = queue(service, release)
    worker = Worker(service)
    worker.tell("log", message=f"look {EVIL}")
    worker.tell("progress", phase="Training", step=3, steps=9)
    worker.train(1)
    page = browser.get(f"/jobs/{job}").text
    assert f'hx-sse:connect="/jobs/{job}/live"' in page
    assert "by gpu-1" in page and "Training: 3 of 9" in page
    assert "look &lt;img" in page and EVIL not in page
    assert page.count("<polyline") == 5 and "<circle" in page  # four losses and one accuracy
    live = events(service, f"/jobs/{job}/live")
    first, _, text = next(live)
    assert "<polyline" in text
    worker.train(2)
    second, _, text = next(live)
    assert int(second) > int(first) and "<circle" not in text
    again = events(service, f"/jobs/{job}/live", second)  # comes back and gets only news
    worker.tell("log", message="news")
    _, _, text = next(again)
    assert "news" in text
    rows = list(csv.DictReader(io.StringIO(browser.get(f"/jobs/{job}/epochs.csv").text)))
    assert [row["epoch"] for row in rows] == ["1", "2"] and "losses.cls" in rows[0]
    stopping = browser.submit(f"/jobs/{job}", f"/jobs/{job}/cancel").text
    assert "cancel requested" in stopping
    service.post(f"/v1/jobs/{job}/finish", json={"fence": worker.lease.fence, "state": "cancelled"})
    assert [name for _, name, _ in again][-1] == "end"


def test_odd_events_of_a_worker_do_no_harm(browser, release, service):
    job = queue(service, release)
    worker = Worker(service)
    worker.tell("epoch", epoch=[1], loss=None)
    worker.tell("progress", phase=EVIL)
    worker.tell("log", text="no message")
    page = browser.get(f"/jobs/{job}")
    assert page.status_code == 200 and "<polyline" not in page.text
    assert page.text.count("invalid event: ") == 3 and EVIL not in page.text
    assert browser.get("/").status_code == 200
    service.post(f"/v1/jobs/{job}/finish", json={"fence": worker.lease.fence, "state": "failed"})
    assert "failed without an error message" in browser.get("/").text


NUMBERS = {"learning_rate": 1, "loss": 1, "seen_top1": 1, "seconds": 1, "images_per_second": 1}


@pytest.mark.parametrize("kind", ["epoch", "progress", "log", "state"])
def test_no_stored_event_breaks_a_page(start_service, tmp_path, kind):
    """Whatever an older version, or a hand in the database, has left there."""
    settings = Settings(data_dir=tmp_path, event_poll_seconds=0.05)
    with httpx.Client(base_url=start_service(settings), timeout=30) as client:
        client.post("/v1/label-sets", json={"name": "d", "labels": [{"name": "mallard"}]})
        client.post("/v1/releases", json={"label_set": "d", "name": "r", "allow_missing": True})
        jobs = [queue(client, 1), queue(client, 1)]
        engine = make_engine(settings.sqlalchemy_url)
        epoch = NUMBERS | {"epoch": 1, "losses": {"cls": 1}}
        # PostgreSQL itself refuses to store these two as JSON.
        unordered = (math.inf, math.nan) if engine.dialect.name == "sqlite" else ()
        told = [
            [1], "text", 7, {}, {"epoch": [1]}, {"epoch": {}}, {"message": [1]}, {"state": {}},
            {"message": "\x1b[31m"}, {"phase": [], "step": "1", "steps": 10**400},
            {"phase": "p", "step": 10**400, "steps": 0}, epoch, epoch | {"epoch": 10**400},
            *(epoch | {"epoch": 2, "loss": n, "seen_top1": n, "seconds": n, "losses": {"cls": n}}
              for n in (10**400, 1e308, -1e308, 1e-308, "1", None, *unordered)),
            *(epoch | {"epoch": 3, "losses": losses} for losses in ([], {"": 1}, {"cls": []})),
        ]  # fmt: skip
        with writing(engine) as session:
            for job in jobs:
                for seq, data in enumerate(told, start=100):
                    session.add(JobEvent(job_id=job, seq=seq, kind=EventKind(kind), data=data))
        engine.dispose()
        compared = f"job={jobs[0]}&job={jobs[1]}"
        for path in (
            "/", "/jobs", f"/jobs/{jobs[0]}", f"/jobs/{jobs[0]}/epochs.csv",
            f"/jobs/compare?{compared}", f"/jobs/compare.csv?{compared}",
            f"/v1/jobs/{jobs[0]}/events",
        ):  # fmt: skip
            answer = client.get(path, headers={"Accept": "text/html"})
            assert answer.status_code == 200, (path, answer.text)
        for job in jobs:
            client.post(f"/v1/jobs/{job}/cancel")
        live = "".join(text for _, _, text in events(client, f"/jobs/{jobs[0]}/live"))
        stream = client.get(f"/v1/jobs/{jobs[0]}/events/stream").text
        assert live.endswith("end") and '"cancelled"' in stream


def test_a_report_of_extreme_numbers_breaks_no_page(browser, release, service):
    job, other = queue(service, release), queue(service, release)
    worker = Worker(service)
    report = report_of(worker.lease, (worker.train(1),), 1.0).model_dump(mode="json")
    extreme = [1e308, -1e308, 1e-308, 0.0]
    for row, number in zip(report["accuracies"], extreme * 9, strict=False):
        row["top1"] = number
    for row, number in zip(report["diagnostics"], extreme, strict=False):
        row["singular_values"] = extreme
        row["mean_cosine"] = row["effective_rank"] = number
    report["pulled_apart"][0] |= {"before": 1e308, "after": -1e308}
    plane = pictures_of(["mallard", EVIL])["text_plane"].model_dump(mode="json")
    plane["classes"][0]["before"] = [1e308, -1e308]
    report |= {"text_plane": plane}
    worker.leave("report.json", json.dumps(report).encode(), "application/json")
    for path in (
        f"/jobs/{job}", f"/jobs/{job}/diagnostics", f"/jobs/compare?job={job}&job={other}",
        f"/jobs/compare.csv?job={job}&job={other}",
    ):  # fmt: skip
        assert browser.get(path).status_code == 200, path
    service.post(f"/v1/jobs/{job}/finish", json={"fence": worker.lease.fence, "state": "failed"})
    service.post(f"/v1/jobs/{other}/cancel")


def test_an_ended_job_shows_its_report_in_a_box_of_its_own(browser, trained):
    page = browser.get(f"/jobs/{trained[1]}").text
    frame = re.search(r"<iframe[^>]*>", page).group()
    assert 'sandbox="allow-scripts"' in frame and "allow-same-origin" not in frame
    report = browser.get(re.search(r'src="([^"]*)"', frame).group(1))
    assert report.text == "<h1>The report</h1>"
    assert report.headers["content-security-policy"].startswith("sandbox")
    assert "report.json" in page and "state succeeded" in page


def test_a_job_without_unseen_classes_says_what_its_figures_do_not_tell(browser, release, service):
    job = queue(service, release)
    worker = Worker(service)
    report = report_of(worker.lease, (worker.train(1),), 1.0)
    seen = tuple(row for row in report.accuracies if row.split == "seen")
    worker.leave(
        "report.json",
        report.model_copy(update={"accuracies": seen}).model_dump_json().encode(),
        "application/json",
    )
    worker.leave("report.html", b"<h1>The report</h1>", "text/html; charset=utf-8")
    body = {"fence": worker.lease.fence, "state": "succeeded"}
    assert service.post(f"/v1/jobs/{job}/finish", json=body).status_code == 200
    assert "The data of this job has no unseen classes" in browser.get(f"/jobs/{job}").text


def test_jobs_are_compared_with_what_differs_marked(browser, trained, release):
    page = browser.get("/jobs/compare", params={"job": trained}).text
    differing = re.findall(r'<tr class="differs"><th scope="row">(\S+)', page)
    assert differing == ["text_strategy"]
    assert "<strong>15.5</strong>" in page  # the higher one of 11.0 and 15.5
    assert page.count("<rect") == 10 and page.count("<polyline") == 2
    assert EVIL not in page
    address = f"/jobs/compare.csv?job={trained[0]}&job={trained[1]}"
    assert address.replace("&", "&amp;") in page
    rows = list(csv.reader(io.StringIO(browser.get(address).text)))
    assert rows[0] == ["", f"job {trained[0]}", f"job {trained[1]}"]


@pytest.mark.parametrize("jobs", [[], [1], [1, 1], [1, 2, 3, 4, 5, 6, 7]])
def test_two_to_six_jobs_are_compared(browser, trained, jobs):
    page = browser.get("/jobs/compare", params={"job": jobs})
    assert page.status_code == 422 and "Choose 2 to 6 jobs" in page.text


def test_a_job_without_a_report_can_be_compared_too(browser, release, service, trained):
    job = queue(service, release, epochs=2)
    page = browser.get("/jobs/compare", params={"job": [job, trained[0]]})
    assert page.status_code == 200 and "–" in page.text
    service.post(f"/v1/jobs/{job}/cancel")


def test_diagnostics_show_what_lies_close_with_both_texts(browser, trained):
    page = browser.get(f"/jobs/{trained[1]}/diagnostics").text
    assert "A mallard is green." in page and "cosine 0.750" in page
    assert 'aria-label="Cosine from 0.90 to 0.25"' in page
    assert "<polyline" in page
    assert EVIL not in page and "&lt;img src=x" in page


def test_diagnostics_show_moves_and_example_images_where_the_worker_drew_them(
    browser, release, service, shared
):
    job = queue(service, release, text_strategy="name+description")
    Worker(service).finish(unseen=1.0, photo=a_photo(shared))
    page = browser.get(f"/jobs/{job}/diagnostics").text
    assert page.count('marker-end="url(#tip)"') == len(TEXTS)
    assert "which explain 25 % of the variance" in page
    first = f'<image href="/v1/jobs/{job}/artifacts/thumbnails.jpg" x="-0" y="-0" width="64"'
    assert page.count(first) == 3  # once in each pair of the first label, but for the control's
    assert browser.get(f"/v1/jobs/{job}/artifacts/thumbnails.jpg").content == a_photo(shared)
    assert f'href="/jobs/{job}/similarity"' in page and EVIL not in page


def test_similarities_are_shown_for_each_strategy_with_the_classes_in_order(
    browser, release, service, shared
):
    job = queue(service, release, text_strategy="name+description")
    Worker(service).finish(unseen=1.0, photo=a_photo(shared))
    page = browser.get(f"/jobs/{job}/similarity").text
    assert f'data-src="/v1/jobs/{job}/artifacts/similarity-after.png"' in page
    assert "<li>mallard</li>" in page and "<li>&lt;img src=x" in page and EVIL not in page
    assert "From -0.50 (darkest) to 0.90 (brightest), in steps of 0.0055" in page
    bare = browser.get(f"/jobs/{job}/similarity", params={"texts": "name"}).text
    assert "similarity-before.png" in bare and 'aria-current="true">bare names</a>' in bare


def test_a_report_of_an_older_worker_has_no_pictures_and_says_so(browser, trained):
    page = browser.get(f"/jobs/{trained[1]}/diagnostics").text
    assert "<image" not in page and "marker" not in page and "/similarity" not in page
    missing = browser.get(f"/jobs/{trained[1]}/similarity")
    assert (
        missing.status_code == 404 and "has no similarity matrix: duplicate the job" in missing.text
    )


def test_a_job_without_a_report_has_no_diagnostics(browser, release, service):
    job = queue(service, release)
    page = browser.get(f"/jobs/{job}/diagnostics")
    assert page.status_code == 404 and "has no artifact" in page.text
    service.post(f"/v1/jobs/{job}/cancel")


def test_a_report_of_another_version_is_said_on_the_page(browser, release, service):
    job = queue(service, release)
    worker = Worker(service)
    worker.leave("report.json", b"{}", "application/json")
    assert "is from another version" in browser.get(f"/jobs/{job}").text
    service.post(f"/v1/jobs/{job}/finish", json={"fence": worker.lease.fence, "state": "failed"})


def test_the_queue_is_listed_by_state(browser, trained):
    page = browser.get("/jobs", params={"state": "succeeded"}).text
    assert f'href="/jobs/{trained[0]}"' in page
    assert 'aria-label="Compare job' in page
    assert browser.get("/jobs", params={"state": "odd"}).status_code == 422
