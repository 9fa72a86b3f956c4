"""Answers in other languages and of so many texts, and how often which rule was broken."""

import json

import pytest

from tests.llm_server import Answer
from tests.service.llm_fixtures import add_labels, start_run, wait_for

PROMPT = {
    "name": "spoken",
    "kind": "sentences",
    "user": 'Say {{ n }} things of {"name": {{ label | tojson }}} in {{ language }}.',
    "output_schema": {
        "type": "object",
        "properties": {"sentences": {"type": "array", "items": {"type": "string"}}},
        "required": ["sentences"],
    },
    "validators": [{"rule": "language"}, {"rule": "placeholder"}],
}


@pytest.fixture
def spoken(client):
    made = client.post("/v1/prompts", json=PROMPT)
    assert made.status_code == 201, made.text
    return client


def describe(client, **body):
    answer = client.post("/v1/describe", json={"labels": ["teal"], "prompt": "spoken", **body})
    assert answer.status_code == 200, answer.text
    return answer.json()[0]


def sentences(*texts):
    return Answer(content=json.dumps({"sentences": list(texts)}))


def test_language_and_number_reach_the_model_and_are_part_of_the_question(spoken, model):
    german = ("Die Krickente hat einen grünen Streifen.", "Ihr Schnabel ist grau und schmal.")
    model.script("teal", sentences(*german), sentences("The teal has a green stripe."))
    one = describe(spoken, language="German", n=2)
    assert one["texts"] == list(german)
    assert "Say 2 things" in model.requests[0].text
    assert "in German." in model.requests[0].text
    assert describe(spoken)["texts"] == ["The teal has a green stripe."]
    assert describe(spoken, language="German", n=2)["cached"]
    assert model.calls["teal"] == 2
    kept = spoken.get(f"/v1/generations/{one['generation_id']}").json()
    assert kept["variables"] == {"language": "German", "n": 2}


def test_too_few_texts_and_the_wrong_language_are_asked_again_with_the_reason(spoken, model):
    model.script(
        "teal",
        sentences("Die Krickente ist klein."),
        sentences(
            "The teal is a small duck and it has a green stripe on the side of its head.",
            "It has a grey bill and a white line on the wing, and it is often in the reeds.",
        ),
        sentences("Die Krickente ist klein.", "Sie hat einen grünen Streifen."),
    )
    assert describe(spoken, language="German", n=2)["status"] == "accepted"
    asked = [call.text for call in model.requests]
    assert "count: there are 1 sentences; give 2" in asked[1]
    assert "is English; write German" in asked[2]


@pytest.mark.parametrize("setting", [{"language": "German"}, {"n": 3}])
def test_a_prompt_that_does_not_speak_of_a_variable_is_named(client, model, setting):
    answer = client.post("/v1/describe", json={"labels": ["teal"], **setting})
    assert answer.status_code == 422
    name = next(iter(setting))
    assert f"{name}: version 1 of prompt 'visual-description'" in answer.json()["detail"]
    assert not model.requests


def test_a_run_counts_which_rules_its_answers_broke_and_which_flagged_them(client, model):
    add_labels(client, ["teal", "mallard", "pintail"])
    sorry = Answer(content='{"description": "I am sorry, but I cannot describe a teal."}')
    long = "The mallard has " + ", ".join(f"a feather of shade {i}" for i in range(16)) + "."
    model.script("teal", sorry, Answer(content="no JSON"))
    model.script("mallard", Answer(content=json.dumps({"description": long})))
    model.script("pintail", Answer(body="<html>", content_type="text/html"))
    run = wait_for(client, start_run(client)["id"])
    assert (run["state"], run["accepted"]) == ("succeeded", 3)
    assert run["problems"] == {
        "refusal": 1,
        "placeholder": 1,  # an apology shows nothing either
        "schema": 1,
        "protocol": 1,
    }
    assert run["flags"] == {"length": 1}
