"""Jobs on a local Ray cluster of three nodes, as a worker with --ray hands them over."""

import pytest

from contract import Report
from tests.distill.on_ray.conftest import free_port, kill, on_ray
from tests.distill.worker.conftest import epochs, events, running_worker, state, wait_for

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_installed")]


def test_a_job_trains_in_two_processes_of_the_cluster(
    service, address, work_dir, queue_job, cluster
):
    job = queue_job(service, 3, {"needs": {"memory_gb": 0.1}})
    with running_worker(address, work_dir, "--once", *on_ray(cluster)) as process:
        _, said = process.communicate(timeout=300)
    assert f"job {job}: succeeded" in said
    assert epochs(service, job) == [1, 2, 3]
    assert "2 processes on Ray" in str(events(service, job, "log"))
    report = Report.model_validate_json(service.get(f"/v1/jobs/{job}/report").content)
    assert len(report.epochs) == 3


def test_a_job_goes_on_elsewhere_when_its_node_is_killed(
    service, address, work_dir, queue_job, cluster
):
    job = queue_job(service, 200)
    with running_worker(address, work_dir, *on_ray(cluster)):
        wait_for(lambda: epochs(service, job), 600)
        kill(cluster.nodes.pop())
        cluster.nodes.append(cluster.add())
        wait_for(lambda: state(service, job) != "running", 400)
    assert state(service, job) == "succeeded"
    assert service.get(f"/v1/jobs/{job}").json()["attempts"] == 1  # the service knew nothing of it
    assert str(events(service, job, "log")).count("2 processes on Ray") == 2
    report = Report.model_validate_json(service.get(f"/v1/jobs/{job}/report").content)
    assert [epoch.epoch for epoch in report.epochs] == list(range(1, 201))


def test_a_cancel_ends_the_ray_job_and_leaves_a_checkpoint(
    service, address, work_dir, queue_job, cluster
):
    job = queue_job(service, 10_000)
    with running_worker(address, work_dir, *on_ray(cluster)):
        wait_for(lambda: epochs(service, job), 600)
        service.post(f"/v1/jobs/{job}/cancel")
        wait_for(lambda: state(service, job) == "cancelled", 60)
        wait_for(lambda: not cluster.running(), 60)
    assert (work_dir / f"job-{job}" / "checkpoint.safetensors").is_file()


def test_the_job_of_a_killed_worker_is_ended_before_the_next_one_goes_on(
    service, address, work_dir, queue_job, cluster
):
    job = queue_job(service, 300)
    with running_worker(address, work_dir, *on_ray(cluster)) as first:
        wait_for(lambda: epochs(service, job), 600)
        first.kill()
        [left] = cluster.running()
    with running_worker(address, work_dir, *on_ray(cluster)):
        wait_for(lambda: state(service, job) == "succeeded", 400)
    assert left["submission_id"] not in [one["submission_id"] for one in cluster.running()]
    assert service.get(f"/v1/jobs/{job}").json()["attempts"] == 2
    report = Report.model_validate_json(service.get(f"/v1/jobs/{job}/report").content)
    assert [epoch.epoch for epoch in report.epochs] == list(range(1, 301))


def test_what_a_user_has_to_mend_is_told_in_one_line_and_not_tried_again(
    service, address, work_dir, queue_job, cluster
):
    job = queue_job(service, 1, data="/nowhere")
    with running_worker(address, work_dir, "--once", *on_ray(cluster)) as process:
        process.communicate(timeout=300)
    found = service.get(f"/v1/jobs/{job}").json()
    assert found["state"] == "failed" and "/nowhere" in found["error"]
    assert "\n" not in found["error"]


def test_a_cluster_that_is_not_there_is_told(service, address, work_dir, queue_job):
    job = queue_job(service, 1)
    there = f"http://127.0.0.1:{free_port()}"
    with running_worker(address, work_dir, "--once", "--ray", there) as process:
        process.communicate(timeout=120)
    found = service.get(f"/v1/jobs/{job}").json()
    assert found["state"] == "failed"
    assert f"the Ray cluster at {there} does not answer" in found["error"]


def test_a_job_fails_when_the_head_of_the_cluster_dies(
    service, address, work_dir, queue_job, cluster
):
    """The last one: there is no cluster after it."""
    job = queue_job(service, 10_000)
    with running_worker(address, work_dir, *on_ray(cluster)):
        wait_for(lambda: epochs(service, job), 600)
        kill(cluster.head)
        wait_for(lambda: state(service, job) == "failed", 120)
    assert "does not answer" in service.get(f"/v1/jobs/{job}").json()["error"]
    assert (work_dir / f"job-{job}" / "checkpoint.safetensors").is_file()
