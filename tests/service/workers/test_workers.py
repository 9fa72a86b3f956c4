"""Workers say what they have; the service lists it and warns of jobs that none can do."""

import json
from datetime import timedelta

import httpx
import pytest
from typer.testing import CliRunner

from enrich_service.cli import app
from enrich_service.core.settings import Settings
from enrich_service.core.storage.database import make_engine, utcnow, writing
from enrich_service.workers import service as workers
from enrich_service.workers.models import WorkerRow

BIRDS = {
    "path": "/data/birds",
    "kind": "split folders",
    "classes": 2,
    "images": {"train": 40, "val": 10},
}
OFFERS = {
    "version": "0.2.0",
    "device": "NVIDIA H200",
    "device_memory_gb": 140.0,
    "data_roots": ["/data"],
    "data": [BIRDS],
    "teachers": ["hf-hub:a/b", "ViT-B-32@openai", "local-dir:/data/teacher"],
    "students": ["resnet18.a1_in1k"],
    "weights": ["/data/resnet18.safetensors"],
    "trackers": ["tensorboard"],
    "recipes": [{"name": "resnet", "config": {"student": "resnet18", "epochs": 90}}],
}
CONFIG = {"data": "/data/birds", "teacher": "hf-hub:a/b"}


@pytest.fixture
def client(start_service, tmp_path):
    settings = Settings(data_dir=tmp_path)
    with httpx.Client(base_url=start_service(settings), timeout=30) as client:
        client.post("/v1/label-sets", json={"name": "ducks", "labels": [{"name": "mallard"}]})
        body = {"label_set": "ducks", "name": "r", "allow_missing": True}
        client.post("/v1/releases", json=body)
        client.settings = settings
        yield client


def register(client, worker="gpu-1", *, gpu=True, memory_gb=64, **changes):
    body = {"worker": worker, "gpu": gpu, "memory_gb": memory_gb, "offers": OFFERS | changes}
    headers = {"Content-Type": "application/json"}
    answer = client.post("/v1/workers", content=json.dumps(body), headers=headers)
    assert answer.status_code == 204, answer.text


def listed(client):
    return client.get("/v1/workers").json()


def warnings(client, needs=None, **changes):
    body = {"release_id": 1, "config": CONFIG | changes, "needs": needs or {}}
    answer = client.post("/v1/jobs", json=body)
    assert answer.status_code == 201, answer.text
    assert answer.json()["state"] == "queued"
    return answer.json()["warnings"]


def age(client, name, **since):
    """Let the last sign of a worker lie in the past."""
    engine = make_engine(client.settings.sqlalchemy_url)
    with writing(engine) as session:
        row = workers._find(session, name)
        row.last_seen = utcnow() - timedelta(**since)
        session.add(row)
    engine.dispose()


def test_a_worker_is_listed_with_what_it_has_and_the_job_it_holds(client):
    register(client)
    warnings(client)
    client.post("/v1/jobs/claim", json={"worker": "gpu-1", "gpu": True, "memory_gb": 64})
    client.post("/v1/jobs/claim", json={"worker": "older"})
    gpu, older = listed(client)
    assert (gpu["name"], gpu["running"], gpu["job"], gpu["memory_gb"]) == ("gpu-1", True, 1, 64)
    assert {name: gpu["offers"][name] for name in OFFERS if name != "data"} == {
        name: value for name, value in OFFERS.items() if name != "data"
    }
    assert gpu["offers"]["data"] == [BIRDS | {"complete": True}]
    assert (older["name"], older["job"], older["offers"]) == ("older", None, None)


def test_registering_again_replaces_what_was_said(client):
    register(client)
    register(client, data=[], memory_gb=32)
    (worker,) = listed(client)
    assert (worker["offers"]["data"], worker["memory_gb"]) == ([], 32)


def test_a_worker_that_is_silent_is_shown_as_gone_and_forgotten_after_a_week(client):
    register(client)
    register(client, "other")
    age(client, "gpu-1", minutes=2)
    assert [(w["name"], w["running"]) for w in listed(client)] == [
        ("other", True), ("gpu-1", False),
    ]  # fmt: skip
    age(client, "gpu-1", days=8)
    register(client, "other")
    assert [w["name"] for w in listed(client)] == ["other"]


def test_a_claim_and_a_heartbeat_are_signs_of_life(client):
    register(client)
    job = client.post("/v1/jobs", json={"release_id": 1, "config": CONFIG}).json()["id"]
    for sign in ("claim", "heartbeat"):
        age(client, "gpu-1", minutes=2)
        assert not listed(client)[0]["running"]
        if sign == "claim":
            fence = client.post("/v1/jobs/claim", json={"worker": "gpu-1"}).json()["fence"]
        else:
            client.post(f"/v1/jobs/{job}/heartbeat", json={"fence": fence})
        assert listed(client)[0]["running"], sign


@pytest.mark.parametrize(
    "offers",
    [
        None,
        "everything",
        [],
        {"data": "all", "teachers": {"a": 1}, "device_memory_gb": "much", "offline": "who knows"},
        {"data": [{"path": ""}, {"path": "/d", "kind": "odd"}, 7, BIRDS]},
        {"data": [BIRDS | {"images": {"train": -1}}, BIRDS | {"classes": 10**30}, BIRDS]},
        {"recipes": [{"name": "n", "config": {"a": [[[[[[[[[[[[1]]]]]]]]]]]]}}], "data": [BIRDS]},
        {"unknown": 1, "data": [BIRDS]},
    ],
    ids=range(8),
)
def test_what_is_invalid_is_left_out_and_never_refused(client, offers):
    answer = client.post("/v1/workers", json={"worker": "odd", "offers": offers})
    assert answer.status_code == 204, answer.text
    (worker,) = listed(client)
    valid = isinstance(offers, dict) and BIRDS in list(offers.get("data", []))
    assert [folder["path"] for folder in worker["offers"]["data"]] == ["/data/birds"] * valid
    assert client.get("/workers", headers={"Accept": "text/html"}).status_code == 200


def test_long_and_invisible_texts_are_shortened_and_escaped(client):
    register(
        client,
        "w\u202e" + "x" * 500,
        device="\x1b[31m" + "d" * 5000,
        teachers=[f"hf-hub:a/{number}{'t' * 900}" for number in range(2000)],
        recipes=[{"name": "r", "config": {"text": "\0\ud800"}}],
    )
    (worker,) = listed(client)
    assert worker["name"].startswith("w\\u202e") and len(worker["name"]) <= 200
    assert worker["offers"]["device"].startswith("\\u001b[31m")
    assert len(worker["offers"]["device"]) <= 1000
    assert 100 < len(worker["offers"]["teachers"]) < 500
    assert len(json.dumps(worker["offers"])) < 310_000
    assert worker["offers"]["recipes"][0]["config"] == {"text": "\\u0000\\ud800"}


def test_numbers_that_json_does_not_know_are_left_out(client):
    offers = '{"recipes": [{"name": "r", "config": {"a": NaN}}], "device_memory_gb": Infinity}'
    body = f'{{"worker": "w", "offers": {offers}}}'
    headers = {"Content-Type": "application/json"}
    answer = client.post("/v1/workers", content=body, headers=headers)
    assert answer.status_code in (204, 422), answer.text
    if answer.status_code == 204:
        assert listed(client)[0]["offers"]["recipes"][0]["config"] == {"a": None}


def test_a_job_that_a_running_worker_can_do_has_no_warnings(client):
    register(client)
    assert warnings(client) == []
    assert warnings(client, data="/data/birds/", pretrained=True) == []
    assert warnings(client, teacher="ViT-B-32@openai", needs={"gpu": True, "memory_gb": 64}) == []
    assert warnings(client, teacher="local-dir:/data/teacher", device="cuda") == []
    assert warnings(client, weights="/data/resnet18.safetensors") == []
    assert warnings(client, data="hf:org/photos") == []
    assert warnings(client, track=["tensorboard"]) == []


def test_a_file_of_an_export_that_a_worker_has_is_not_missed(client):
    photos = {"path": "/data/boxes/labels.json", "kind": "COCO export"}
    coco = {"path": "/data/coco", "kind": "COCO export"}
    register(client, data=[BIRDS, coco, photos])
    assert warnings(client, data="/data/boxes/labels.json") == []
    assert warnings(client, data="/data/coco/annotations/instances_train2017.json") == []
    for missing in ("/data/boxes/other.json", "/data/coco/photos", "/data/birds/train.json"):
        assert warnings(client, data=missing) == [f"No running worker has the data '{missing}'."]


def test_a_job_that_no_running_worker_can_do_is_queued_with_warnings(client):
    assert warnings(client) == ["No worker is running: the job waits until one starts."]
    register(client, gpu=False)
    assert warnings(client, data="/data/fish") == ["No running worker has the data '/data/fish'."]
    assert warnings(client, data="/data/../etc") == [
        "No running worker has the data '/data/../etc'."
    ]
    assert warnings(client, teacher="hf-hub:a/c") == [
        "No running worker has the teacher 'hf-hub:a/c' in its cache: it will be downloaded."
    ]
    assert warnings(client, student="resnet50", pretrained=True) == [
        "No running worker has pretrained weights of the student resnet50 in its cache: it will "
        "be downloaded."
    ]
    assert warnings(client, weights="/data/w.safetensors", teacher="local-dir:/data/t") == [
        "No running worker has the weights '/data/w.safetensors'.",
        "No running worker has the teacher 'local-dir:/data/t'.",
    ]
    assert warnings(client, needs={"gpu": True, "memory_gb": 65}) == [
        "No running worker has a GPU.",
        "No running worker has 65 GiB of memory.",
    ]
    assert warnings(client, device="cuda:1") == ["No running worker has the device cuda:1."]
    assert warnings(client, track=["tensorboard", "mlflow"]) == [
        "No running worker has the package mlflow of `track`: install it there, or remove it from "
        "`track`."
    ]
    register(client, gpu=False, offline=True)
    assert warnings(client, teacher="hf-hub:a/c") == [
        "No running worker has the teacher 'hf-hub:a/c' in its cache, and none may download it."
    ]


def test_workers_that_each_lack_something_else_are_named(client):
    register(client, "one", data=[])
    register(client, "two", teachers=[])
    assert warnings(client) == [
        "No running worker meets all requirements: one lacks the data '/data/birds'; two lacks "
        "the teacher 'hf-hub:a/b' in its cache."
    ]
    age(client, "two", minutes=5)  # what is gone is not counted
    assert warnings(client) == ["No running worker has the data '/data/birds'."]


def test_a_worker_that_does_not_know_what_it_has_gets_the_benefit_of_the_doubt(client):
    register(client, data_roots=[], data=[])
    assert warnings(client, data="/elsewhere/fish") == []
    register(client, data_complete=False, data=[])
    assert warnings(client, data="/data/fish") == []
    assert warnings(client, data="/elsewhere") == ["No running worker has the data '/elsewhere'."]
    client.post("/v1/jobs/claim", json={"worker": "older"})  # says nothing of itself
    assert warnings(client, data="/elsewhere") == []


def test_what_an_older_version_has_stored_breaks_nothing(client):
    register(client)
    engine = make_engine(client.settings.sqlalchemy_url)
    with writing(engine) as session:
        session.add(WorkerRow(name="odd", offers={"data": 7}))
    engine.dispose()
    assert [worker["offers"] is None for worker in listed(client)] == [False, True]


def test_workers_are_listed_on_the_command_line(client, monkeypatch):
    register(client)
    monkeypatch.setenv("ENRICH_DATA_DIR", str(client.settings.data_dir))
    found = json.loads(CliRunner().invoke(app, ["jobs", "workers", "--json"]).stdout)
    assert found[0]["offers"]["data"][0]["path"] == "/data/birds"
    assert "gpu-1" in CliRunner().invoke(app, ["jobs", "workers"]).stdout


def claim(client, worker, **resources):
    body = {"worker": worker, "gpu": True, "memory_gb": 64} | resources
    answer = client.post("/v1/jobs/claim", json=body)
    return answer.json()["job"]["id"] if answer.status_code == 200 else None


FISH = {"path": "/data/fish", "kind": "class folders"}


def test_a_worker_leaves_a_job_to_a_running_worker_that_has_its_data(client):
    register(client, "birds")
    register(client, "fish", data=[FISH])
    warnings(client, data="/data/fish")
    warnings(client, data="/data/birds")
    assert claim(client, "birds") == 2
    assert claim(client, "birds") is None
    assert claim(client, "fish") == 1


@pytest.mark.parametrize(
    ("changes", "needed"),
    [
        ({"teachers": []}, {"teacher": "local-dir:/data/teacher"}),
        ({"teachers": [], "offline": True}, {}),
        ({"weights": []}, {"weights": "/data/resnet18.safetensors"}),
        ({"trackers": []}, {"track": ["tensorboard"]}),
    ],
    ids=["teacher", "offline", "weights", "tracker"],
)
def test_a_worker_leaves_a_job_to_one_that_has_what_it_lacks(client, changes, needed):
    register(client, "lacking", **changes)
    register(client, "equipped")
    warnings(client, **needed)
    assert claim(client, "lacking") is None
    assert claim(client, "equipped") == 1


def test_what_a_worker_may_download_is_no_reason_to_leave_a_job(client):
    register(client, "empty", teachers=[], students=[])
    register(client, "full")
    warnings(client, pretrained=True)
    assert claim(client, "empty") == 1


def test_a_job_that_no_other_worker_can_do_is_taken_as_ever(client):
    register(client, "birds")
    register(client, "fish", data=[FISH], gpu=False)
    warnings(client, data="/data/frogs")
    warnings(client, data="/data/fish", needs={"gpu": True})  # the one with the data has no GPU
    assert [claim(client, "birds"), claim(client, "birds")] == [1, 2]


def test_a_job_does_not_wait_for_a_worker_that_is_gone(client):
    register(client, "birds")
    register(client, "fish", data=[FISH])
    warnings(client, data="/data/fish")
    assert claim(client, "birds") is None
    age(client, "fish", minutes=5)
    assert claim(client, "birds") == 1


def test_a_job_is_left_to_a_worker_that_may_read_any_folder_but_not_by_it(client):
    register(client, "birds")
    register(client, "any", data_roots=[], data=[])
    warnings(client, data="/data/fish")
    assert claim(client, "birds") is None
    assert claim(client, "any") == 1
