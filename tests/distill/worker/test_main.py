"""The loop of the worker: jobs one after the other, in folders that it may read."""

import hashlib
import sys
import zipfile

import httpx
import pytest

pytest.importorskip("torch")
pytest.importorskip("fastapi")

from contract import CLASSIFIER_ARTIFACT, Report
from distill.runtime import Classifier
from distill.worker.attempt import ARTIFACTS, PICTURES
from distill.worker.main import work
from tests.distill.worker.conftest import (
    KEY,
    epochs,
    events,
    release_colours,
    running_worker,
    state,
)


def test_a_job_ends_with_report_student_and_classifier_at_the_service(
    service, address, work_dir, queue_job, colour_images, tmp_path
):
    job = queue_job(service, 3, export=True)
    with running_worker(address, work_dir, "--once") as process:
        _, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr
    assert f"job {job}: succeeded" in stderr
    assert epochs(service, job) == [1, 2, 3]
    states = [data["state"] for data in events(service, job, "state")]
    assert states == ["queued", "leased", "running", "succeeded"]
    report = Report.model_validate_json(service.get(f"/v1/jobs/{job}/report").content)
    assert report.release_hash == service.get("/v1/releases/1").json()["hash"]
    assert len(report.epochs) == 3
    page = service.get(f"/v1/jobs/{job}/report.html")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "the student recognises" in page.text
    listed = {
        artifact["name"]: artifact for artifact in service.get(f"/v1/jobs/{job}/artifacts").json()
    }
    drawn = {"similarity-before.png", "thumbnails.jpg"}  # names without texts have no "after"
    assert set(listed) == {*ARTIFACTS, *drawn, CLASSIFIER_ARTIFACT} and drawn < set(PICTURES)
    for name, artifact in listed.items():
        mine = (work_dir / f"job-{job}" / name).read_bytes()
        assert artifact["sha256"] == hashlib.sha256(mine).hexdigest()
        assert service.get(f"/v1/jobs/{job}/artifacts/{name}").content == mine
    phases = {data["phase"]: data for data in events(service, job, "progress")}
    assert phases["Exporting the classifier"]["step"] == phases["Exporting the classifier"]["steps"]
    with zipfile.ZipFile(work_dir / f"job-{job}" / CLASSIFIER_ARTIFACT) as archive:
        archive.extractall(tmp_path / "classifier")
    photo = colour_images / "val" / "white" / "0.png"
    assert len(Classifier.load(tmp_path / "classifier").classify([photo])[0].candidates) == 5
    openmp = (work_dir / f"job-{job}" / "stderr.log").read_text()
    assert "OMP_WAIT_POLICY = 'PASSIVE'" in openmp  # as OpenMP read it when it was loaded
    written = (path for path in work_dir.rglob("*") if path.is_file())
    assert KEY not in stderr and not any(KEY.encode() in path.read_bytes() for path in written)


def test_a_job_that_reads_outside_of_the_data_roots_fails(
    service, address, work_dir, queue_job, colour_images
):
    job = queue_job(service, 1)
    root = str(colour_images / "train")
    with running_worker(address, work_dir, "--once", "--data-root", root) as process:
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr
    found = service.get(f"/v1/jobs/{job}").json()
    assert found["state"] == "failed"
    assert f"is not below {root}" in found["error"] and "--data-root" in found["error"]


def test_a_refused_request_about_one_job_leaves_the_worker_alive_for_the_next(
    start_service, tmp_path, queue_job, capfd
):
    """The second service takes only short bodies, so it refuses how the first job ended."""
    from enrich_service.core.settings import Settings

    address = start_service(Settings(data_dir=tmp_path / "data"))
    strict = start_service(Settings(data_dir=tmp_path / "data", max_body_bytes=1024))
    failing = (
        "import json, sys; from pathlib import Path\n"
        "config = Path(sys.argv[sys.argv.index('--config') + 1])\n"
        "raise SystemExit('x' * json.loads(config.read_bytes())['epochs'])\n"
    )
    with httpx.Client(base_url=address, timeout=30) as client:
        release_colours(client)
        refused, accepted = queue_job(client, 1500), queue_job(client, 5)
        command = (sys.executable, "-c", failing)
        work(strict, work_dir=tmp_path / "work", name="w", once=True, command=command)
        assert state(client, refused) == "running"  # its lease is going to end
        found = client.get(f"/v1/jobs/{accepted}").json()
        assert (found["state"], found["error"]) == ("failed", "xxxxx")
    assert f"job {refused}: given up: the service at {strict} rejected" in capfd.readouterr().err


def test_a_training_that_fails_with_odd_characters_fails_with_its_reason(
    service, address, tmp_path, queue_job
):
    job = queue_job(service, 1)
    failing = r"raise SystemExit('\x1b[31mcannot read photo\u202egnp.png\x1b[0m')"
    command = (sys.executable, "-c", failing)
    work(address, work_dir=tmp_path, name="w", once=True, command=command)
    found = service.get(f"/v1/jobs/{job}").json()
    error = r"\u001b[31mcannot read photo\u202egnp.png\u001b[0m"
    assert (found["state"], found["error"]) == ("failed", error)


def test_events_with_half_a_surrogate_pair_or_infinity_do_not_stop_the_others(
    service, address, tmp_path, queue_job
):
    """As in the name of a file that is not UTF-8, or in a loss that diverges."""
    job = queue_job(service, 1)
    printing = r"""
for kind, data in (
    ("log", '{"message": "cannot read caf\\udce9.png"}'),
    ("epoch", '{"epoch": 1, "loss": 1e999}'),
    ("log", '{"message": "last"}'),
):
    print('{"kind": "%s", "at": "2026-01-02T03:04:05Z", "data": %s}' % (kind, data), flush=True)
raise SystemExit("end")
"""
    command = (sys.executable, "-c", printing)
    work(address, work_dir=tmp_path, name="w", once=True, command=command)
    messages = [data["message"] for data in events(service, job, "log")]
    assert (messages[0], messages[2]) == ("cannot read caf?.png", "last")
    assert messages[1].startswith("invalid event: ") and "'loss': None" in messages[1]
