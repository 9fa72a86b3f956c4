"""From class names to a student and its accuracy, with nothing but what the project brings.

The demo's rendered world, its teacher and its recorded replies stand in for photos, CLIP and a
language model, so that this runs on a fresh clone without any other test data.
"""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

pytest.importorskip("torch")
pytest.importorskip("fastapi")

from contract import Report
from demo.world import CONTEXT, write_world
from distill.cli.main import app as distill_app
from enrich_service.cli import app as enrich_app

DEMO = Path(__file__).parents[1] / "demo"
TEACHER = f"local-dir:{DEMO / 'teacher'}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A few images of each class of the demo's world, in the paper's layout."""
    folder = tmp_path_factory.mktemp("world")
    write_world(folder / "charms", train=6, val_on_train=3, val=4)
    return folder


@pytest.fixture(scope="module")
def release(folder, migrated) -> Path:
    """A release of the answers that the recorded model gave to both prompts, as a file."""
    environment = {
        "ENRICH_DATA_DIR": str(migrated(folder / "data")),
        "OPENAI_BASE_URL": f"replay:{DEMO / 'replies.jsonl'}",
    }

    def enrich(*arguments: object) -> str:
        call = CliRunner().invoke(
            enrich_app, [str(argument) for argument in arguments], env=environment
        )
        assert call.exit_code == 0, call.output
        return call.stdout

    names = folder / "charms" / "label2text.txt"
    enrich("labels", "add", "charms", "--label2text", names, "--context", CONTEXT)
    prompts = ("visual-description", "attributes")
    for prompt in prompts:
        run = json.loads(enrich("run", "start", "charms", "--prompt", prompt, "--json"))
        assert (run["state"], run["rejected"], run["failed"]) == ("succeeded", 0, 0)
    sources = [part for prompt in prompts for part in ("--source", f"{prompt}@production")]
    enrich("release", "create", "charms", "charms-1", *sources)
    file = folder / "charms.json"
    enrich("export", "release", "charms-1", "-o", file)
    return file


@pytest.fixture
def distill(folder, release, monkeypatch) -> Callable[..., str]:
    """Run a `distill` command with the release; gives what it printed."""
    monkeypatch.chdir(folder)  # the folder of its cache

    def run(*arguments: object) -> str:
        words = [*map(str, arguments), "--release", str(release)]
        call = CliRunner().invoke(distill_app, words)
        assert call.exit_code == 0, call.output
        return call.stdout

    return run


def evaluate(distill: Callable[..., str], *options: object) -> float:
    words = ("evaluate", "--data", "charms", "--teacher", TEACHER, "--json", *options)
    return json.loads(distill(*words))["top1"]


def test_descriptions_help_the_teacher_on_classes_it_never_saw(distill):
    names, described = (
        evaluate(distill, "--split", "unseen", "--strategy", strategy)
        for strategy in ("name", "name+description")
    )
    assert described > names + 30


def test_a_trained_student_is_reported_as_it_is_evaluated(distill, folder):
    config = {
        "data": "charms", "teacher": TEACHER, "student": "resnet10t", "image_size": 32,
        "text_strategy": "name+description", "epochs": 2, "batch_size": 32, "export": False,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    distill("train", "--config", "config.json", "--out", "run")
    report = Report.model_validate_json((folder / "run" / "report.json").read_bytes())
    assert (folder / "run" / "report.html").is_file()
    top1 = {(row.model, row.text, row.split): row.top1 for row in report.accuracies}
    for split in ("seen", "unseen"):
        for model in ("teacher", "student"):
            assert top1[model, "name+description", split] > top1[model, "shuffled", split]
        again = evaluate(distill, "--student", "run", "--split", split)
        assert again == pytest.approx(top1["student", "name+description", split])
