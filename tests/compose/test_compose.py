"""The images and docker-compose.yml on a real engine: `make compose-test`."""

import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest

from contract import CLASSIFIER_ARTIFACT, Report
from demo.world import write_world
from enrich_service.local_model.server import MODEL
from tests.service.local_model.test_local_model import SMALL

pytestmark = pytest.mark.compose

ROOT = Path(__file__).parents[2]
FILES = ("docker-compose.yml", "tests/compose/override.yml")
EPOCHS = 30
CONFIG = {
    "data": "/images/world",
    "teacher": "local-dir:/images/teacher",
    "text_strategy": "name",
    "student": "test_resnet",
    "image_size": 32,
}
MOST_ADDED = 150e6  # bytes that the api image may add to its base
MOST_ADDED_BY_CLASSIFIER = 200e6


def run(*command: str, **options: object) -> str:
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


class Stack:
    """The project as `docker compose` runs it, under a name of its own."""

    def __init__(self, folder: Path, name: str, **settings: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.name = f"enrich-test-{os.getpid()}-{name}"
        self.env_file = folder / "env"
        lines = [f"{setting}={value}\n" for setting, value in settings.items()]
        self.env_file.write_text((ROOT / ".env.example").read_text() + "".join(lines))
        self.environment = os.environ | {
            "ENRICH_PUBLISH": f"127.0.0.1:{self.port}",
            "ENRICH_IMAGES": str(folder / "images"),
            "TEST_ENV": str(self.env_file),
            "TESTS": str(ROOT / "tests"),
            "COMPOSE_PROGRESS": "plain",
        }

    def compose(self, *arguments: str) -> str:
        files = [part for file in FILES for part in ("-f", file)]
        command = ["docker", "compose", "-p", self.name, "--env-file", str(self.env_file), *files]
        return run(*command, *arguments, env=self.environment)

    @contextmanager
    def up(self, *options: str, services: Sequence[str] = ()) -> Iterator[httpx.Client]:
        """`services`, or everything, up, and a client of the api; at the end nothing is left."""
        try:
            self.compose(*options, "up", "--detach", "--wait", "--wait-timeout", "180", *services)
            with httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=30) as client:
                yield client
        finally:
            self.compose("--profile", "*", "down", "--volumes", "--timeout", "5")

    def kill(self, service: str) -> None:
        """kill -9 the container's first process, as a lack of memory would; Docker restarts it."""
        (container,) = self.compose("ps", "-q", service).split()
        inspected = json.loads(run("docker", "inspect", container))[0]
        os.kill(inspected["State"]["Pid"], signal.SIGKILL)
        self.wait(
            lambda: (
                json.loads(run("docker", "inspect", container))[0]["RestartCount"]
                > inspected["RestartCount"]
            )
        )

    def wait(self, condition, seconds: float = 300):
        until = time.monotonic() + seconds
        while True:
            with suppress(httpx.HTTPError):
                if found := condition():
                    return found
            assert time.monotonic() < until, self.compose("logs", "--tail", "30")
            time.sleep(0.2)


@pytest.fixture(scope="module", autouse=True)
def images():
    """The images, built by a Docker engine; without one the tests are skipped."""
    if (
        shutil.which("docker") is None
        or subprocess.run(["docker", "compose", "version"], capture_output=True).returncode
    ):
        pytest.skip("there is no Docker with Compose v2 here")
    if subprocess.run(["docker", "info"], capture_output=True).returncode:
        pytest.skip("no Docker engine answers")
    profiles = ("--profile", "local-llm", "--profile", "ray", "--profile", "classifier")
    run("docker", "compose", *profiles, "build", "api", "worker", "llm", "ray-head", "classifier")


def write_images(folder: Path) -> None:
    """A small world and its teacher, where jobs find them below /images."""
    write_world(folder / "images" / "world", train=40, val_on_train=10, val=10)
    shutil.copytree(ROOT / "demo" / "teacher", folder / "images" / "teacher")


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compose")
    write_images(folder)
    return Stack(folder, "all", OPENAI_BASE_URL="http://llm-test:8080/v1", ENRICH_LLM_MODEL="small")


@pytest.fixture(scope="module")
def client(stack):
    with stack.up() as client:
        yield client


def image_size(name: str) -> int:
    return int(run("docker", "image", "inspect", "--format", "{{.Size}}", name))


def test_the_api_image_is_small_has_no_torch_and_runs_as_nobody_special(stack, client):
    added = image_size("enrich-api") - image_size("python:3.11-slim-bookworm")
    print(f"\nthe api image adds {added / 1e6:.0f} MB to its base")
    assert added < MOST_ADDED
    code = "import importlib.util as u; assert not u.find_spec('torch')"
    stack.compose("exec", "api", "python", "-c", code)
    assert stack.compose("exec", "api", "id", "-u").strip() == "10001"
    assert stack.compose("exec", "worker", "id", "-u").strip() == "10001"
    for service in ("api", "worker"):
        refused = stack.compose("exec", service, "sh", "-c", "! touch /x 2>&1")
        assert "Read-only" in refused


READ_FORMATS = """
from pathlib import Path
import pillow_heif
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image
from distill.data.files.image_file import open_image
from distill.data.splits import scan_splits

photo = Image.new("RGB", (32, 24), (200, 40, 40))
pillow_heif.from_pillow(photo).save("/tmp/photo.heic")
photo.save("/tmp/photo.avif")
for name in ("photo.heic", "photo.avif"):
    assert open_image(Path("/tmp", name)).size == (32, 24)

names = ["mallard", "teal"]
features = Features({"image": ImageFeature(), "label": ClassLabel(names=names)})
rows = {"image": [photo] * 20, "label": [0, 1] * 10}
Dataset.from_dict(rows, features=features).save_to_disk("/tmp/birds")
assert scan_splits("/tmp/birds")["train"].keys == tuple(names)
"""


@pytest.mark.parametrize("image", ["enrich-worker", "enrich-ray"])
def test_workers_read_heic_photos_avif_photos_and_hugging_face_datasets(image):
    run(
        "docker",
        "run",
        "--rm",
        "--read-only",
        "--tmpfs",
        "/tmp",
        image,
        "python",
        "-c",
        READ_FORMATS,
    )


def test_nothing_is_lost_when_every_container_is_killed_in_the_middle(stack, client):
    labels = json.loads(
        (Path(stack.environment["ENRICH_IMAGES"]) / "world/labels.json").read_text()
    )
    body = {"name": "charms", "labels": labels}
    assert client.post("/v1/label-sets", json=body).status_code == 201
    body = {"label_set": "charms", "prompt": "visual-description", "concurrency": 2}
    run_id = client.post("/v1/runs", json=body).json()["id"]
    stack.wait(lambda: client.get(f"/v1/runs/{run_id}").json()["accepted"] >= 3)
    stack.kill("api")
    done = stack.wait(
        lambda: (r := client.get(f"/v1/runs/{run_id}").json())["state"] == "succeeded" and r
    )
    assert (done["total"], done["rejected"], done["failed"]) == (len(labels), 0, 0)
    items = client.get("/v1/generations?status=accepted&limit=1000").json()["items"]
    assert sorted(item["label"] for item in items) == sorted(label["name"] for label in labels)

    body = {
        "label_set": "charms",
        "name": "charms-1",
        "sources": [{"prompt": "visual-description", "alias": "production"}],
    }
    release = client.post("/v1/releases", json=body).json()
    config = CONFIG | {"epochs": EPOCHS, "track": ["tensorboard", "mlflow"]}
    body = {"release_id": release["id"], "config": config, "max_attempts": 5}
    job = f"/v1/jobs/{client.post('/v1/jobs', json=body).json()['id']}"

    def epochs() -> list[int]:
        found = client.get(f"{job}/events?limit=10000").json()
        assert [event["seq"] for event in found] == list(range(1, len(found) + 1))
        return [event["data"]["epoch"] for event in found if event["kind"] == "epoch"]

    stack.wait(lambda: len(epochs()) >= 2, 900)
    stack.kill("worker")
    before = len(epochs())
    assert before < EPOCHS, "the training ended too early to be killed"
    stack.wait(lambda: len(epochs()) > before, 900)
    stack.kill("api")
    stack.wait(lambda: client.get(job).json()["state"] == "succeeded", 900)
    ended = client.get(job).json()
    assert ended["attempts"] >= 2
    # What a worker had not yet sent when it was killed is missing here, and stands in the report.
    told = epochs()
    assert told == sorted(set(told)) and told[-1] == EPOCHS
    report = Report.model_validate_json(client.get(f"{job}/report").content)
    assert report.release_hash == release["hash"]
    assert [epoch.epoch for epoch in report.epochs] == list(range(1, EPOCHS + 1))
    assert "the student recognises" in client.get(f"{job}/report.html").text
    assert stack.compose("exec", "worker", "find", "/data/jobs", "-path", "*/tensorboard/events*")
    stack.compose("exec", "worker", "test", "-s", "/data/mlflow.db")
    artifacts = client.get(f"{job}/artifacts").json()
    assert CLASSIFIER_ARTIFACT in [artifact["name"] for artifact in artifacts]
    for artifact in artifacts:
        content = client.get(f"{job}/artifacts/{artifact['name']}").content
        assert hashlib.sha256(content).hexdigest() == artifact["sha256"]


def test_an_operator_finds_it_healthy_and_can_back_it_up(stack, client):
    found = json.loads(stack.compose("exec", "api", "enrich", "doctor", "--json"))
    assert [one for one in found if one["verdict"] == "failed"] == []
    stack.compose("exec", "api", "enrich", "backup", "/data/backup.db")


def test_commands_run_in_a_worker_and_workers_can_be_more(stack, client):
    assert "Distil a student" in stack.compose(
        "run", "--rm", "worker", "distill", "train", "--help"
    )
    stack.compose("up", "--detach", "--wait", "--scale", "worker=2", "--no-recreate")
    assert len(stack.compose("ps", "-q", "worker").split()) == 2


def test_a_second_start_keeps_everything(stack, client):
    stack.compose("down", "--timeout", "10")
    stack.compose("up", "--detach", "--wait", "api")
    assert [one["name"] for one in client.get("/v1/label-sets").json()] == ["charms"]
    assert client.get("/v1/jobs").json()[0]["state"] == "succeeded"


def test_the_profile_local_llm_describes_through_the_api(tmp_path):
    settings = {"OPENAI_BASE_URL": "http://llm:8080/v1", "ENRICH_LLM_MODEL": MODEL}
    stack = Stack(tmp_path, "llm", **settings, ENRICH_LLM_CONCURRENCY="1")
    with stack.up("--profile", "local-llm") as client:
        assert client.post("/v1/prompts", json=SMALL).status_code == 201
        body = {"labels": ["mallard"], "prompt": "small"}
        (found,) = client.post("/v1/describe", json=body, timeout=120).json()
        assert (found["status"], found["source"], found["model"]) == ("accepted", "model", MODEL)
        refused = stack.compose("exec", "llm", "sh", "-c", "! touch /x 2>&1; id -u")
        assert "Read-only" in refused and "10001" in refused


def test_the_profile_postgres_migrates_and_keeps_rows_over_kills_and_restarts(tmp_path):
    password = "a-password"
    stack = Stack(
        tmp_path,
        "postgres",
        OPENAI_BASE_URL="http://llm-test:8080/v1",
        POSTGRES_PASSWORD=password,
        DATABASE_URL=f"postgresql+psycopg://enrich:{password}@postgres/enrich",
    )
    official = json.loads(stack.compose("--profile", "postgres", "config", "--format", "json"))
    name = official["services"]["postgres"]["image"]
    if subprocess.run(["docker", "image", "inspect", name], capture_output=True).returncode:
        stack.environment["TEST_POSTGRES"] = "enrich-test-postgres"
        file = "tests/compose/postgres.Dockerfile"
        run("docker", "build", "-t", "enrich-test-postgres", "-f", file, "tests/compose")
    profile = ("--profile", "postgres")
    with stack.up(*profile) as client:

        def names() -> list[str]:
            return [one["name"] for one in client.get("/v1/label-sets").raise_for_status().json()]

        body = {"name": "ducks", "labels": [{"name": "mallard"}]}
        assert client.post("/v1/label-sets", json=body).status_code == 201
        assert not stack.compose(*profile, "exec", "api", "ls", "/data/service").count("enrich.db")
        stack.kill("postgres")
        stack.wait(lambda: names() == ["ducks"])
        stack.compose(*profile, "down", "--timeout", "10")
        stack.compose(*profile, "up", "--detach", "--wait", "--wait-timeout", "180")
        assert names() == ["ducks"]
        found = json.loads(stack.compose(*profile, "exec", "api", "enrich", "doctor", "--json"))
        assert [one for one in found if one["verdict"] == "failed"] == []
        assert password not in stack.compose(*profile, "logs", "api")


def test_the_profile_classifier_serves_a_student(tmp_path):
    """The image is small and has no torch; without a promoted student it is alive and says so."""
    added = image_size("enrich-classifier") - image_size("python:3.11-slim-bookworm")
    print(f"\nthe classifier image adds {added / 1e6:.0f} MB to its base")
    assert added < MOST_ADDED_BY_CLASSIFIER
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    stack = Stack(tmp_path, "classifier")
    stack.environment["CLASSIFIER_PUBLISH"] = f"127.0.0.1:{port}"
    profile = ("--profile", "classifier")
    with (
        stack.up(*profile, services=("api", "classifier")),
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client,
    ):
        assert client.get("/healthz").json() == {"status": "ok"}
        assert "Classifier" in client.get("/").text
        found = stack.wait(lambda: "birds" in (r := client.get("/readyz")).json()["detail"] and r)
        assert found.status_code == 503
        code = "import importlib.util as u; assert not u.find_spec('torch')"
        stack.compose(*profile, "exec", "classifier", "python", "-c", code)
        refused = stack.compose(
            *profile, "exec", "classifier", "sh", "-c", "! touch /x 2>&1; touch /cache/x; id -u"
        )
        assert "Read-only" in refused and refused.strip().endswith("10001")


def test_the_profile_ray_trains_a_job_on_two_nodes(tmp_path):
    write_images(tmp_path)
    stack = Stack(tmp_path, "ray")
    with stack.up("--profile", "ray") as client:
        stack.compose("stop", "worker")  # or it might take the job
        labels = json.loads((tmp_path / "images/world/labels.json").read_text())
        body = {"name": "charms", "labels": labels}
        assert client.post("/v1/label-sets", json=body).status_code == 201
        body = {"name": "names", "label_set": "charms", "allow_missing": True}
        release = client.post("/v1/releases", json=body).json()["id"]
        config = CONFIG | {"epochs": 2, "export": False}
        body = {"release_id": release, "config": config}
        job = f"/v1/jobs/{client.post('/v1/jobs', json=body).json()['id']}"
        stack.wait(lambda: client.get(job).json()["state"] in ("succeeded", "failed"), 600)
        assert client.get(job).json()["error"] is None
        assert "training in 2 processes on Ray" in client.get(f"{job}/events").text
        assert len(client.get(f"{job}/report").json()["epochs"]) == 2


def test_the_gpu_override_asks_for_one_gpu_a_worker():
    files = ("-f", "docker-compose.yml", "-f", "docker-compose.gpu.yml")
    merged = json.loads(run("docker", "compose", *files, "config", "--format", "json"))
    (device,) = merged["services"]["worker"]["deploy"]["resources"]["reservations"]["devices"]
    assert (device["driver"], device["count"]) == ("nvidia", 1)
    assert device["capabilities"] == ["gpu"]
