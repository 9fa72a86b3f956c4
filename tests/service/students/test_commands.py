"""`enrich students`, and what `enrich jobs prune` leaves of registered students."""

import json
import os
import time
from datetime import timedelta

import httpx
import pytest
from sqlmodel import select
from typer.testing import CliRunner

from enrich_service.cli import app
from enrich_service.core.settings import Settings
from enrich_service.core.storage.database import make_engine, utcnow, writing
from enrich_service.jobs.models import JobRow
from tests.service.students.test_students import register, trained
from tests.service.web.worker import classifier_zip


@pytest.fixture
def service(start_service, tmp_path, monkeypatch):
    monkeypatch.setenv("ENRICH_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("USER", "ada")
    with httpx.Client(base_url=start_service(Settings(data_dir=tmp_path)), timeout=30) as client:
        labels = [{"name": name} for name in ("mallard", "teal")]
        client.post("/v1/label-sets", json={"name": "ducks", "labels": labels})
        release = {"label_set": "ducks", "name": "r", "allow_missing": True}
        client.post("/v1/releases", json=release)
        yield client


def enrich(*words):
    return CliRunner().invoke(app, [str(word) for word in words], terminal_width=200)


def data_of(*words):
    call = enrich(*words, "--json")
    assert call.exit_code == 0, call.output
    return json.loads(call.stdout)


def test_students_are_registered_compared_and_pointed_at(service):
    one, two = trained(service), trained(service, unseen=12.345)
    made = data_of("students", "register", "birds", one, "--message", "first")
    assert (made["number"], made["author"], made["job_id"]) == (1, "ada", one)
    assert data_of("students", "register", "birds", two)["number"] == 2
    alias = ("students", "alias", "birds", "production")
    assert data_of(*alias, 1, "--reason", "first")["version"] == 1
    assert data_of(*alias, 2, "--reason", "better")["version"] == 2
    back = data_of("students", "rollback", "birds", "production", "--reason", "slow")
    assert back["version"] == 1
    moves = service.get("/v1/students/birds/aliases/production/moves").json()
    assert [(move["reason"], move["author"]) for move in moves] == [
        ("slow", "ada"), ("better", "ada"), ("first", "ada"),
    ]  # fmt: skip

    assert data_of("students", "show", "birds")["number"] == 2
    assert data_of("students", "show", "birds", "--version", 1)["number"] == 1
    assert data_of("students", "show", "birds", "--alias", "production")["number"] == 1
    assert [one["name"] for one in data_of("students", "list")] == ["birds"]
    assert "production → 1" in enrich("students", "list").stdout
    assert [one["number"] for one in data_of("students", "compare", "birds")] == [2, 1]
    (only,) = data_of("students", "compare", "birds", 2)
    assert only["unseen"] == pytest.approx(12.345 + len("name+description"))


@pytest.fixture
def birds(service, monkeypatch):
    """A student of five versions; lines are as in a terminal of 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")
    for number in range(1, 6):
        job = trained(service, student="mobilenetv3_small_100", unseen=98.0 + number / 7)
        data_of("students", "register", "birds", job, "--message", f"number {number}")
    for alias, version in (("production", 5), ("staging", 5), ("staging", 1), ("staging", 5)):
        reason = f"{'quite a long reason ' * 4}for {version}"
        data_of("students", "alias", "birds", alias, version, "--reason", reason)
    return service


def test_versions_are_compared_in_a_table_with_one_row_a_figure(birds):
    call = enrich("students", "compare", "birds", 5, 1)
    lines = call.stdout.splitlines()
    assert max(map(len, lines)) <= 80 and "…" not in call.stdout
    rows = {line[:13].strip(): line[13:].split() for line in lines}
    newest, oldest = data_of("students", "compare", "birds", 5, 1)
    assert rows["version"] == ["5", "1"]
    assert rows["aliases"] == ["production,", "staging"]
    assert rows["model"] == 2 * ["mobilenetv3_small_100"]
    for row, name in (("unseen %", "unseen"), ("latency (ms)", "latency_ms")):
        assert rows[row] == [f"{version[name]:.1f}" for version in (newest, oldest)]
    assert rows["size (MB)"] == [f"{version['bytes'] / 1e6:.1f}" for version in (newest, oldest)]

    every = enrich("students", "compare", "birds").stdout
    assert max(map(len, every.splitlines())) <= 80 and "…" not in every
    titles = [line.split()[1:] for line in every.splitlines() if " version" in line]
    assert titles == [["5", "4", "3", "2"], ["1"]]


def test_a_version_is_shown_with_rounded_figures_and_the_whole_hash(birds):
    shown, version = (
        enrich("students", "show", "birds").stdout,
        data_of("students", "show", "birds"),
    )
    assert max(map(len, shown.splitlines())) <= 80 and "…" not in shown
    assert version["sha256"] in "".join(shown.split())
    rows = dict(line.split(maxsplit=1) for line in shown.splitlines() if len(line.split()) > 1)
    assert rows["aliases"].strip() == "production, staging"
    assert rows["unseen"].strip() == str(round(version["unseen"], 1))


def test_the_moves_of_a_students_aliases_are_printed(birds):
    moves = data_of("students", "moves", "birds")
    assert [(move["alias"], move["from_version"], move["to_version"]) for move in moves] == [
        ("staging", 1, 5), ("staging", 5, 1), ("staging", None, 5), ("production", None, 5),
    ]  # fmt: skip
    printed = enrich("students", "moves", "birds").stdout
    assert max(map(len, printed.splitlines())) <= 80 and "…" not in printed
    first = next(line for line in printed.splitlines() if "staging" in line)
    assert first.strip().startswith(moves[0]["at"][:16].replace("T", " "))
    assert first.split()[2:5] == ["staging", "1", "5"] and first.rstrip().endswith("ada")
    assert " ".join(printed.split()).count("quite") == 16

    job = trained(birds)
    data_of("students", "register", "fish", job)
    assert enrich("students", "moves", "fish").stdout.split() == ["none"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("show", "nix"), "There is no student 'nix'. List them: `enrich students list`"),
        (("register", "birds", 99), "There is no job 99. List them: `enrich jobs list`"),
        (("register", "birds", 0), "job_id: Input should be greater than or equal to 1"),
        (("alias", "nix", "production", 1, "--reason", "r"), "There is no student 'nix'"),
        (("alias", "nix", "production", 1, "--reason", ""), "reason: String should have at least"),
        (("moves", "nix"), "There is no student 'nix'"),
        (("show", "nix", "--version", 1, "--alias", "a"), "Give --version or --alias, not both"),
    ],
)
def test_a_users_error_is_one_line(service, words, message):
    call = enrich("students", *words)
    assert call.exit_code == 1
    assert call.stderr.startswith(f"enrich: {message}") and call.stderr.count("\n") == 1


@pytest.mark.parametrize("number", [0, 10**30])
def test_a_version_number_that_cannot_be_is_refused(service, number):
    for words in (("show", "birds", "--version", number), ("compare", "birds", number)):
        call = enrich("students", *words)
        assert call.exit_code == 2 and "Input should be" in call.stderr


def test_pruning_keeps_the_classifiers_of_registered_students(service, tmp_path):
    kept, loose = trained(service), trained(service)
    register(service, "birds", kept)
    engine = make_engine(Settings(data_dir=tmp_path).sqlalchemy_url)
    with writing(engine) as session:
        for job in session.exec(select(JobRow)):
            job.finished_at = utcnow() - timedelta(days=10)
    engine.dispose()
    for path in (tmp_path / "artifacts").glob("??/*"):
        os.utime(path, (time.time() - 864_000,) * 2)
    pruned = data_of("jobs", "prune", "--weights", 7, "--yes")
    assert (pruned["weights"], pruned["files"]) == (1, 1)
    assert pruned["bytes"] == len(classifier_zip(loose))
    found = service.get("/v1/students/birds/versions/1/classifier")
    assert found.content == classifier_zip(kept)
    artifacts = [one["name"] for one in service.get(f"/v1/jobs/{loose}/artifacts").json()]
    assert artifacts == ["report.html", "report.json"]
