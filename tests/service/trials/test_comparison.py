import json

import pytest

from contract import Lease
from tests.llm_server import Answer
from tests.service.jobs.test_jobs import report_of
from tests.service.llm_fixtures import add_labels, start_run, wait_for

SORRY = Answer(content=json.dumps({"description": "I'm sorry, but I cannot describe a teal."}))


def run(client, **body):
    found = wait_for(client, start_run(client, **body)["id"])
    assert found["state"] == "succeeded", found


def compare(client, a="standard@1", b="succinct@1", **params):
    return client.get("/v1/label-sets/birds/comparison", params={"a": a, "b": b, **params})


@pytest.fixture
def birds(client):
    add_labels(client, ["teal", "mallard", "gadwall"])
    return client


def test_two_versions_stand_side_by_side_with_what_they_cost(birds, model):
    model.script("teal", SORRY)
    run(birds, prompt="standard")
    model.script("mallard", SORRY, SORRY, SORRY)
    run(birds, prompt="succinct")
    asked = len(model.requests)
    found = compare(birds, b="succinct@production").json()
    a, b = found["a"], found["b"]
    assert (a["prompt"], a["version"], a["accepted"], a["rejected"]) == ("standard", 1, 3, 0)
    assert (b["prompt"], b["accepted"], b["rejected"], b["missing"]) == ("succinct", 2, 1, 0)
    assert (a["failures"]["refusal"], b["failures"]["refusal"]) == (1, 3)
    assert (a["calls"], a["prompt_tokens"], b["calls"]) == (4, 200, 5)
    assert a["cost_usd"] == pytest.approx(4 * 0.00025)
    texts = [label["a"]["text"] for label in found["labels"]]
    assert a["mean_characters"] == pytest.approx(sum(map(len, texts)) / 3)
    assert (a["too_long"], a["diagnostics"]) == (0, None)
    teal, mallard, _ = found["labels"]
    assert (teal["name"], teal["a"]["attempts"], teal["b"]["attempts"]) == ("teal", 2, 1)
    assert (mallard["b"]["status"], mallard["b"]["text"]) == ("rejected", None)
    assert mallard["b"]["problems"][0].startswith("refusal:")
    assert len(model.requests) == asked


def test_two_models_are_compared_on_one_version(birds, model):
    for name in ("small", "large"):
        run(birds, prompt="standard", model=name)
    both = compare(birds, b="standard@1").json()
    assert both["a"]["calls"] == both["b"]["calls"] == 6
    one = compare(birds, b="standard@1", model_a="small", model_b="large").json()
    assert (one["a"]["model"], one["a"]["calls"], one["b"]["calls"]) == ("small", 3, 3)
    ids = [label[side]["generation_ids"] for label in one["labels"] for side in ("a", "b")]
    assert len({i for (i,) in ids}) == 6
    none = compare(birds, b="standard@1", model_b="other").json()
    assert (none["b"]["missing"], none["labels"][0]["b"]) == (3, None)
    assert none["b"]["mean_characters"] is None


def test_the_edit_of_a_person_is_no_text_of_the_prompt(birds):
    run(birds, prompt="standard")
    before = compare(birds).json()["labels"]
    generation = before[0]["a"]["generation_ids"][0]
    edit = birds.post(f"/v1/generations/{generation}/edits", json={"text": "A teal, by hand."})
    assert edit.status_code == 201
    assert compare(birds).json()["labels"] == before


def test_sentences_are_the_union_of_the_samples(birds, model):
    run(birds, prompt="many-sentences", samples=2)
    other = compare(birds, a="many-sentences@1", b="many-sentences@1").json()
    (first, *_) = other["labels"]
    assert len(first["a"]["generation_ids"]) == 2
    assert len(first["a"]["texts"]) == len(set(first["a"]["texts"])) >= 8
    assert first["a"]["characters"] == sum(map(len, first["a"]["texts"]))


def test_labels_come_in_pages_and_the_sums_are_those_of_all(birds):
    run(birds, prompt="standard")
    page = compare(birds, limit=2).json()
    assert ([one["name"] for one in page["labels"]], page["next_offset"]) == (
        ["teal", "mallard"],
        2,
    )
    last = compare(birds, limit=2, offset=2).json()
    assert ([one["name"] for one in last["labels"]], last["next_offset"]) == (["gadwall"], None)
    assert (last["total"], last["a"]) == (3, page["a"])


def train(client, name, source, pairs):
    """A release of one source, and a job that has measured its texts."""
    body = {"label_set": "birds", "name": name, "sources": [source]}
    release = client.post("/v1/releases", json=body).json()
    config = {"data": "/data", "teacher": "hf-hub:a/b"}
    client.post("/v1/jobs", json={"release_id": release["id"], "config": config})
    lease = client.post("/v1/jobs/claim", json={"worker": "w"}).content
    fence, job_id = Lease.model_validate_json(lease).fence, json.loads(lease)["job"]["id"]
    client.put(
        f"/v1/jobs/{job_id}/artifacts/report.json?fence={fence}",
        content=report_of(pairs).model_dump_json(),
        headers={"Content-Type": "application/json"},
    )
    return job_id


def test_what_a_worker_measured_is_shown_for_the_side_that_its_release_stands_on(birds):
    run(birds, prompt="standard")
    run(birds, prompt="succinct")
    job = train(birds, "r1", {"prompt": "standard", "version": 1}, [("teal", "gadwall", 0.9)])
    found = compare(birds).json()
    assert found["b"]["diagnostics"] is None
    measured = found["a"]["diagnostics"]
    assert (measured["job_id"], measured["release"], measured["labels"]) == (job, "r1", 3)
    assert measured["text"] == "name+description"
    assert measured["effective_rank"] == 2.5
    assert measured["confusable"] == [{"a": "teal", "b": "gadwall", "cosine": 0.9}]
    # A release with a text from elsewhere says nothing of the side alone.
    edit = found["labels"][0]["b"]["generation_ids"][0]
    birds.post(f"/v1/generations/{edit}/edits", json={"text": "A teal, by hand."})
    train(birds, "r2", {"prompt": "succinct", "version": 1}, [])
    assert compare(birds).json()["b"]["diagnostics"] is None


@pytest.mark.parametrize(
    ("sides", "status", "message"),
    [
        ({"a": "standard"}, 422, "PROMPT@VERSION"),
        ({"a": "nix@1"}, 404, "no prompt 'nix'"),
        ({"a": "standard@9"}, 404, "no version 9"),
        ({"a": "standard@0"}, 404, "'0'"),
        ({"a": "attributes@1"}, 409, "prompts of one kind"),
    ],
)
def test_what_cannot_be_compared_is_told(birds, sides, status, message):
    answer = compare(birds, **sides)
    assert answer.status_code == status
    assert message in answer.json()["detail"]


def test_a_label_set_that_is_not_there_is_told(client):
    assert compare(client).status_code == 404
