"""The prompts that the service is delivered with, each asked of a real server."""

import json

import pytest

from tests.llm_server import Answer
from tests.service.llm_fixtures import add_labels, start_run, wait_for

KINDS = {
    "standard": "description",
    "succinct": "description",
    "detailed": "description",
    "distinct": "description",
    "attribute-list": "attributes",
    "many-sentences": "sentences",
    "class-captions": "captions",
    "look-alikes": "look_alikes",
}


def describe(client, *labels, **body):
    answer = client.post("/v1/describe", json={"labels": list(labels), **body})
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_the_papers_prompts_and_three_lists_are_there_and_found_by_tag(client):
    found = {one["name"]: one for one in client.get("/v1/prompts").json()}
    assert {name: found[name]["kind"] for name in KINDS} == KINDS
    paper = client.get("/v1/prompts", params={"tag": "paper"}).json()
    assert {one["name"] for one in paper} == {"standard", "succinct", "detailed", "distinct"}
    assert found["image-caption"]["kind"] == "image_caption"
    for name in (*KINDS, "image-caption"):
        assert found[name]["aliases"][0]["name"] == "production"


@pytest.mark.parametrize("prompt", KINDS)
def test_each_is_answered_and_its_content_passes_the_checks_of_a_new_prompt(client, model, prompt):
    (one,) = describe(client, "mallard", prompt=prompt)
    assert (one["status"], one["problems"]) == ("accepted", [])
    counts = {"sentences": 8, "captions": 8, "attributes": 4, "look_alikes": 2}
    assert len(one["texts"]) == counts.get(KINDS[prompt], 1)
    version = client.get(f"/v1/prompts/{prompt}/versions/1").json()
    copy = {name: version[name] for name in ("kind", "system", "user", "output_schema")}
    copy |= {name: version[name] for name in ("model_defaults", "validators")}
    made = client.post("/v1/prompts", json={"name": "copy", **copy})
    assert made.json()["content_hash"] == version["content_hash"]


def test_a_list_with_too_few_sentences_is_asked_again(client, model):
    model.script(
        "teal", Answer(content=json.dumps({"sentences": ["The teal is small and green."]}))
    )
    (one,) = describe(client, "teal", prompt="many-sentences")
    assert (one["status"], model.calls["teal"]) == ("accepted", 2)


def test_distinct_names_the_labels_that_a_class_is_confused_with_as_data(client, model):
    add_labels(client, ["mallard", "teal", 'gad"wall'])
    near = {"n0": ["n2", "n1"]}
    client.put("/v1/label-sets/birds/confusable", json={"confusable": near})
    assert wait_for(client, start_run(client, prompt="distinct")["id"])["state"] == "succeeded"
    sent = {call.label: call.text for call in model.requests}
    assert 'classes, as JSON data: ["gad\\"wall", "teal"]' in sent["mallard"]
    assert "JSON data: [" not in sent["teal"]


def test_other_confusable_labels_are_another_question_only_where_the_prompt_reads_them(
    client, model
):
    add_labels(client, ["mallard", "teal", "gadwall"])
    for prompt in ("distinct", "standard"):
        wait_for(client, start_run(client, prompt=prompt)["id"])
    client.put("/v1/label-sets/birds/confusable", json={"confusable": {"n0": ["n1"]}})
    estimate = client.post("/v1/runs/estimate", json={"label_set": "birds", "prompt": "distinct"})
    assert (estimate.json()["new_requests"], estimate.json()["cached"]) == (1, 2)
    for prompt in ("distinct", "standard"):
        wait_for(client, start_run(client, prompt=prompt)["id"])
    assert model.calls == {"mallard": 3, "teal": 2, "gadwall": 2}


def test_labels_described_at_once_can_bring_those_they_are_confused_with(client, model):
    label = {"name": "mallard", "confusable": ["teal"]}
    describe(client, label, prompt="distinct")
    assert '["teal"]' in model.requests[0].text
    assert describe(client, label, prompt="distinct")[0]["cached"]
    assert not describe(client, "mallard", prompt="distinct")[0]["cached"]
    bad = {"labels": [{"name": "mallard", "confusable": ["a\u202eb"]}], "prompt": "distinct"}
    answer = client.post("/v1/describe", json=bad)
    assert answer.status_code == 422
    assert "confused with label 1" in answer.json()["detail"]
