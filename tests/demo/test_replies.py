import json
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from demo import make_replies
from demo.words import COLOUR_WORDS, SHAPE_WORDS
from demo.world import CONTEXT, charms

FILE = Path(make_replies.__file__).with_name("replies.jsonl")
LINES = [json.loads(line) for line in FILE.read_text(encoding="utf-8").splitlines()]


def test_the_file_is_what_its_script_writes() -> None:
    assert make_replies.replies() == LINES


def test_every_label_has_an_answer_to_both_prompts() -> None:
    names = {charm.name for charm in charms()}
    for prompt in ("visual-description", "attributes"):
        assert {line["label"] for line in LINES if line["prompt"] == prompt} == names


def test_every_line_is_marked_as_not_written_by_a_language_model() -> None:
    assert {line["model"] for line in LINES} == {make_replies.ORIGIN}
    assert "not a language model" in make_replies.ORIGIN


def test_some_descriptions_omit_or_mistake_attributes() -> None:
    said = {line["label"]: line["reply"] for line in LINES if line["prompt"] != "attributes"}
    without_shape = [
        c for c in charms() if not any(w in said[c.name] for w in SHAPE_WORDS[c.look.shape])
    ]
    without_colour = [
        c for c in charms() if not any(w in said[c.name] for w in COLOUR_WORDS[c.look.colour])
    ]
    assert 3 <= len(without_shape) <= 15
    assert 3 <= len(without_colour) <= 15


@pytest.fixture(scope="module")
def runs(start_service, tmp_path_factory) -> Iterator[dict[str, list[dict[str, object]]]]:
    """All generations of a run of each prompt over the world, made by the real service."""
    from enrich_service.core.settings import Settings

    folder = tmp_path_factory.mktemp("service")
    url = start_service(Settings(data_dir=folder, llm_url=f"replay:{FILE}"))
    labels = [{"key": c.key, "name": c.name, "context": CONTEXT} for c in charms()]
    found = {}
    with httpx.Client(base_url=url, timeout=30) as client:
        created = client.post("/v1/label-sets", json={"name": "charms", "labels": labels})
        assert created.status_code == 201
        for prompt in ("visual-description", "attributes"):
            run = client.post("/v1/runs", json={"label_set": "charms", "prompt": prompt}).json()
            until = time.monotonic() + 30
            while run["state"] in ("queued", "running") and time.monotonic() < until:
                time.sleep(0.1)
                run = client.get(f"/v1/runs/{run['id']}").json()
            assert (run["state"], run["done"]) == ("succeeded", len(labels))
            query = {"run_id": run["id"], "limit": 1000}
            found[prompt] = client.get("/v1/generations", params=query).json()["items"]
        yield found


def test_every_label_ends_with_an_accepted_text(runs) -> None:
    for generations in runs.values():
        accepted = {g["label"] for g in generations if g["status"] == "accepted"}
        assert accepted == {charm.name for charm in charms()}


def test_the_four_unusable_answers_are_rejected_with_their_reason_and_retried(runs) -> None:
    refused = [g for g in runs["visual-description"] if g["status"] == "retried"]
    reasons = sorted(g["problems"][0].split(":")[0] for g in refused)
    assert reasons == ["error_text", "refusal", "schema", "schema"]
    assert not [g for g in runs["attributes"] if g["status"] == "retried"]


def test_the_text_that_is_too_long_for_the_teacher_is_flagged_and_kept(runs) -> None:
    flagged = [g for g in runs["visual-description"] if "length" in str(g["flags"])]
    assert [g["status"] for g in flagged] == ["accepted"]


def test_each_generation_is_named_as_recorded(runs) -> None:
    assert {g["source"] for found in runs.values() for g in found} == {"replay"}
