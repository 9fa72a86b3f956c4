import json

import pytest

from tests.llm_server import Answer

BODY = {
    "kind": "description",
    "user": 'The class: {"name": {{ label | tojson }}}. Describe its colours. JSON.',
    "output_schema": {
        "type": "object",
        "properties": {"description": {"type": "string"}},
        "required": ["description"],
    },
    "validators": [{"rule": "refusal"}, {"rule": "duplicate"}],
}
SORRY = json.dumps({"description": "I'm sorry, but I cannot describe a teal."})


def attempt(client, *labels, **more):
    return client.post("/v1/playground", json=BODY | {"labels": labels} | more)


def generations(client, **filters):
    return client.get("/v1/generations", params=filters).json()["items"]


def test_an_unsaved_prompt_is_shown_beside_a_saved_version_and_stored_nowhere(client, model):
    against = {"prompt": "visual-description", "version": 1}
    answer = attempt(client, "teal", {"name": "mallard", "context": "a bird"}, against=against)
    assert answer.status_code == 200, answer.text
    trial = answer.json()
    assert [one["label"] for one in trial["labels"]] == ["teal", "mallard"]
    for one in trial["labels"]:
        assert one["label"] in one["candidate"]["text"]
        assert (one["candidate"]["prompt_tokens"], one["candidate"]["attempts"]) == (50, 1)
        assert one["candidate"]["cost_usd"] == pytest.approx(0.00025)
        assert one["candidate"]["latency_ms"] > 0
    assert trial["candidate"]["cost_usd"] == trial["against"]["cost_usd"] == pytest.approx(0.0005)
    assert trial["against_version"] == 1
    # What is stored is what the saved version said, and nothing else.
    kept = generations(client)
    assert {(one["prompt"], one["prompt_version"]) for one in kept} == {("visual-description", 1)}
    assert len(kept) == 2
    assert client.get("/v1/prompts/visual-description").json()["latest"] == 1


def test_the_saved_version_is_paid_for_once_and_the_unsaved_one_each_time(client, model):
    against = {"prompt": "visual-description", "alias": "production"}
    attempt(client, "teal", against=against)
    again = attempt(client, "teal", against=against).json()
    assert again["labels"][0]["against"]["cached"]
    assert again["labels"][0]["against"]["completion_tokens"] == 20
    assert model.calls["teal"] == 3


def test_the_attempts_of_a_saved_version_are_all_counted(client, model):
    model.script("teal", Answer(content=SORRY))
    client.post("/v1/describe", json={"labels": ["teal"]})
    trial = attempt(client, "teal", against={"prompt": "visual-description", "version": 1}).json()
    side = trial["labels"][0]["against"]
    assert (side["attempts"], side["prompt_tokens"]) == (2, 100)
    assert side["cost_usd"] == pytest.approx(0.0005)


def test_a_bad_answer_is_shown_as_it_is_with_what_is_wrong_with_it(client, model):
    model.script("teal", Answer(content=SORRY))
    model.script("mallard", Answer(content="no JSON at all"))
    model.script("heron", Answer(400, body='{"error": {"message": "no herons"}}'))
    trial = attempt(client, "teal", "mallard", "heron", "gadwall").json()
    teal, mallard, heron, gadwall = [one["candidate"] for one in trial["labels"]]
    assert (teal["status"], teal["raw_reply"]) == ("rejected", SORRY)
    assert "I'm sorry" in teal["text"]
    assert teal["problems"][0].startswith("refusal:")
    assert mallard["problems"][0].startswith("schema:")
    assert (heron["status"], heron["text"]) == ("failed", None)
    assert "no herons" in heron["problems"][0]
    assert gadwall["status"] == "accepted"
    assert (trial["candidate"]["rejected"], trial["candidate"]["failed"]) == (2, 1)
    assert generations(client) == []


def test_what_was_tried_is_saved_as_the_next_version_with_the_hash_that_was_shown(client, model):
    version = client.get("/v1/prompts/visual-description/versions/1").json()
    content = {name: version[name] for name in BODY} | {"user": BODY["user"]}
    trial = client.post("/v1/playground", json=content | {"labels": ["teal"]}).json()
    del content["kind"]
    saved = client.post(
        "/v1/prompts/visual-description/versions", json=content | {"message": "Colours first"}
    )
    assert saved.json()["number"] == 2
    # Its system text was left out on purpose: all that shapes an answer is in the hash.
    assert saved.json()["content_hash"] == trial["content_hash"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": []}, "labels"),
        ({"labels": ["x"] * 11}, "labels"),
        ({"labels": ["a\u202eb"]}, "bidi control"),
        ({"user": "{{ labl }}"}, "unknown variable 'labl'"),
        ({"user": "{{ label.__class__ }}"}, "attribute access"),
        ({"user": "{% for a in range(1000000) %}x{% endfor %}"}, "range(N) up to"),
        ({"output_schema": {"type": "strange"}}, "output schema is not valid"),
        ({"validators": [{"rule": "nix"}]}, "nix"),
        ({"parameters": {"messages": []}}, "'messages' is set by the service"),
        ({"against": {"prompt": "nix", "version": 1}}, "no prompt 'nix'"),
        ({"against": {"prompt": "visual-description"}}, "either"),
    ],
)
def test_a_trial_that_makes_no_sense_asks_nothing(client, model, change, message):
    answer = attempt(client, *change.pop("labels", ["teal"]), **change)
    assert answer.status_code in (404, 422)
    assert message in answer.json()["detail"]
    assert "\n" not in answer.json()["detail"]
    assert not model.requests


def test_without_a_language_model_the_variables_are_named(connect):
    client = connect(llm_url="https://api.openai.com/v1")
    answer = attempt(client, "teal")
    assert answer.status_code == 503
    assert "OPENAI_API_KEY" in answer.json()["detail"]
