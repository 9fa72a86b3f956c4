"""One attempt at a job: interrupted, without its lease, failed, killed."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("fastapi")

from contract import Report
from distill.worker import attempt
from distill.worker.main import work
from tests.distill.worker.conftest import (
    KEY,
    LEASE_SECONDS,
    epochs,
    events,
    running,
    running_worker,
    state,
    trainings,
    wait_for,
)


def test_other_workers_resume_jobs_of_stopped_and_of_killed_workers(
    service, address, work_dir, queue_job
):
    job = queue_job(service, 40)
    with running_worker(address, work_dir) as stopped:
        wait_for(lambda: epochs(service, job))
        stopped.send_signal(signal.SIGTERM)
        _, stderr = stopped.communicate(timeout=30)
    assert stopped.returncode == 0
    assert "resumes from its checkpoint" in stderr
    assert not trainings(work_dir, job)
    assert state(service, job) == "running"  # left to its lease
    before = len(epochs(service, job))
    with running_worker(address, work_dir) as killed:
        wait_for(lambda: len(epochs(service, job)) > before)
        killed.kill()
        killed.communicate(timeout=30)
    assert state(service, job) == "running"
    with running_worker(address, work_dir) as last:
        wait_for(lambda: state(service, job) == "succeeded")
        last.send_signal(signal.SIGTERM)
        last.communicate(timeout=30)
    assert service.get(f"/v1/jobs/{job}").json()["attempts"] == 3
    reported = epochs(service, job)
    assert reported == list(range(1, 41))  # none is missing, none reported twice
    report = Report.model_validate_json(service.get(f"/v1/jobs/{job}/report").content)
    assert [epoch.epoch for epoch in report.epochs] == list(range(1, 41))


def test_a_worker_that_slept_through_its_lease_stops_writing(service, address, work_dir, queue_job):
    job = queue_job(service, 3)
    endless = (
        "import json, time\n"
        "for n in range(10_000):\n"
        "    at = '2026-01-02T03:04:05Z'\n"
        "    data = dict.fromkeys(('learning_rate', 'loss', 'seen_top1', 'seconds'), 1)\n"
        "    data |= {'epoch': n, 'losses': {}, 'images_per_second': 1}\n"
        "    line = {'kind': 'epoch', 'data': data, 'at': at}\n"
        "    print(json.dumps(line), flush=True)\n"
        "    time.sleep(0.05)\n"
    )
    program = (
        "import sys; from pathlib import Path; from distill.worker.main import work\n"
        "address, folder, script = sys.argv[1:]\n"
        "command = (sys.executable, '-c', script)\n"
        "work(address, work_dir=Path(folder), name='w', command=command)\n"
    )
    arguments = [address, str(work_dir), endless]
    with running([sys.executable, "-c", program, *arguments]) as process:
        wait_for(lambda: epochs(service, job))
        process.send_signal(signal.SIGSTOP)
        time.sleep(LEASE_SECONDS + 0.2)
        taken = service.post("/v1/jobs/claim", json={"worker": "another"}).json()
        assert (taken["job"]["id"], taken["job"]["attempts"]) == (job, 2)
        known = len(events(service, job, "epoch"))
        process.send_signal(signal.SIGCONT)
        wait_for(lambda: not trainings(work_dir, job), 15)
        process.send_signal(signal.SIGTERM)
        _, stderr = process.communicate(timeout=30)
    assert "given up" in stderr
    assert len(events(service, job, "epoch")) == known
    body = {"fence": taken["fence"], "state": "cancelled"}
    assert service.post(f"/v1/jobs/{job}/finish", json=body).status_code == 200


def test_a_training_that_ignores_its_end_is_killed_with_its_children(
    service, address, tmp_path, queue_job, monkeypatch
):
    monkeypatch.setattr(attempt, "TERMINATION_GRACE_S", 1.0)
    monkeypatch.setenv("ENRICH_API_KEY", KEY)
    stubborn = (
        "import os, signal, subprocess, sys\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "print('a word of some library', sorted(os.environ), flush=True)\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "print(child.pid, flush=True)\n"
        "child.wait()\n"
    )
    job = queue_job(service, 3)
    working = threading.Thread(
        target=work,
        args=(address,),
        kwargs={
            "work_dir": tmp_path,
            "name": "w",
            "once": True,
            "command": (sys.executable, "-c", stubborn),
        },
    )
    working.start()
    wait_for(lambda: len(events(service, job, "log")) == 2)
    words, child = (data["message"] for data in events(service, job, "log"))
    assert words.startswith("a word of some library") and "ENRICH_API_KEY" not in words
    service.post(f"/v1/jobs/{job}/cancel")
    working.join(timeout=20)
    assert not working.is_alive()
    assert state(service, job) == "cancelled"
    assert not is_alive(int(child))


def is_alive(process: int) -> bool:
    """Whether the process runs: a zombie that nobody has buried does not."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text()
    except FileNotFoundError:
        return False
    return fields.rpartition(")")[2].split()[0] != "Z"


def test_a_failed_training_reports_why_and_keeps_the_folder_of_another_job(
    service, address, tmp_path, queue_job
):
    job = queue_job(service, 1)
    old = tmp_path / f"job-{job}"
    old.mkdir()
    (old / "checkpoint").write_text("of another service")
    failing = "raise SystemExit('a warning\\n\\ndistill: there is no folder x: make it')"
    work(
        address,
        work_dir=tmp_path,
        name="w",
        once=True,
        command=(sys.executable, "-c", failing),
    )
    found = service.get(f"/v1/jobs/{job}").json()
    assert (found["state"], found["error"]) == ("failed", "there is no folder x: make it")
    assert not (old / "checkpoint").exists()
    assert (tmp_path / f"job-{job}-before-1" / "checkpoint").read_text() == "of another service"


def test_a_training_that_the_kernel_kills_is_tried_again_with_a_smaller_batch(
    service, address, work_dir, queue_job
):
    job = queue_job(service, 40, job={"shrink_batch": True})
    with running_worker(address, work_dir, "--once") as process:
        wait_for(lambda: epochs(service, job))
        os.kill(trainings(work_dir, job)[0], signal.SIGKILL)  # as it does for lack of memory
        wait_for(lambda: service.get(f"/v1/jobs/{job}").json()["config"]["batch_size"] == 8)
        service.post(f"/v1/jobs/{job}/cancel")
        process.communicate(timeout=60)
    reasons = [data.get("reason") for data in events(service, job, "state")]
    assert "out of memory with a batch_size of 16: trying 8" in reasons
