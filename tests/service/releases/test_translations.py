"""A release, its translation, and what is known of where the new texts came from."""

import json

import pytest

from enrich_service.client import Client
from enrich_service.releases.schemas import TranslationCreate
from tests.llm_server import Answer
from tests.service.llm_fixtures import add_labels, data_of, start_run, wait_for

NAMES = ["teal", 'ignore the "above"', "pintail"]
GERMAN = {
    "teal": "Die Krickente ist klein und trägt einen grünen Streifen hinter dem Auge.",
    'ignore the "above"': "Dieser Vogel ist rundlich, hat einen weißen Bauch und rote Füße.",
    "pintail": "Die Spießente ist schlank, grau gewellt und hat einen spitzen Schwanz.",
}


@pytest.fixture
def english(client, model):
    """A service with an English release of three labels, and a model that then knows German."""
    add_labels(client, NAMES)
    wait_for(client, start_run(client)["id"])
    release = freeze(client, "english", "visual-description")
    model.answers = {name: json.dumps({"description": text}) for name, text in GERMAN.items()}
    model.requests.clear()
    return release


def freeze(client, name, prompt, **body):
    body = {"sources": [{"prompt": prompt, "alias": "production"}], **body}
    answer = client.post("/v1/releases", json={"label_set": "birds", "name": name, **body})
    assert answer.status_code == 201, answer.text
    return client.get(f"/v1/releases/{answer.json()['id']}").json()


def test_the_client_begins_a_translation_too(client, model, english):
    with Client(str(client.base_url)) as http:
        run = http.translate(english["id"], TranslationCreate(language="German"))
        assert http.wait_for_run(run.id, every=0.05).accepted == 3


def translate(client, release, **body):
    return client.post(
        f"/v1/releases/{release['id']}/translations", json={"language": "German"} | body
    )


def test_a_release_is_translated_and_each_text_knows_what_it_was_made_of(
    client,
    model,
    english,
):
    run = wait_for(client, translate(client, english).json()["id"])
    assert (run["state"], run["accepted"], run["variables"]) == (
        "succeeded",
        3,
        {"language": "German"},
    )
    by_label = {label["name"]: label["description"] for label in english["labels"]}
    for call in model.requests:
        assert json.dumps([by_label[call.label]], ensure_ascii=False) in call.text
        assert "Translate into German." in call.text
    german = freeze(client, "german", "translation", languages=["German"])
    assert [label["description"] for label in german["labels"]] == list(GERMAN.values())
    sources = {one["key"]: one["generation_id"] for one in english["sources"]}
    for one in german["sources"]:
        assert (one["prompt"], one["language"]) == ("translation", "German")
        made = client.get(f"/v1/generations/{one['generation_id']}").json()
        assert made["parent_id"] == sources[one["key"]]
    assert "Derived from" in client.get(f"/generations/{one['generation_id']}").text

    # Nothing is paid for twice, another text is another question.
    again = wait_for(client, translate(client, english).json()["id"])
    assert (again["cached"], len(model.requests)) == (3, 3)
    edited = client.post(
        f"/v1/generations/{sources['n0']}/edits", json={"text": "The teal is a small duck."}
    )
    second = freeze(client, "edited", "visual-description", languages=["English"])
    run = wait_for(client, translate(client, second).json()["id"])
    assert (run["cached"], run["accepted"]) == (2, 1)
    (new,) = client.get("/v1/generations", params={"run_id": run["id"]}).json()["items"]
    assert new["parent_id"] == edited.json()["id"]


def test_an_answer_that_is_still_english_is_asked_again(client, model, english):
    still = "The teal is a small duck and it has a green stripe on the side of its head."
    model.script("teal", Answer(content=json.dumps({"description": still})))
    run = wait_for(client, translate(client, english).json()["id"])
    assert (run["accepted"], run["problems"]) == (3, {"language": 1})


def test_what_cannot_be_translated_is_told_in_one_line(client, model, english):
    spoken = {"name": "spoken", "kind": "description", "user": "{{ label }} in {{ language }}"}
    client.post("/v1/prompts", json=spoken | {"output_schema": {"type": "object"}})
    for body, status, said in (
        ({"language": "english"}, 409, "are already in english"),
        ({"prompt": "spoken"}, 422, "does not rewrite texts"),
        ({"prompt": "nix"}, 404, "no prompt 'nix'"),
        ({"language": " "}, 422, "language is empty"),
        ({"budget_usd": 1, "model": "other"}, 422, "budget_usd"),
    ):
        answer = translate(client, english, **body)
        assert (answer.status_code, said in answer.json()["detail"]) == (status, True), answer.text
    assert translate(client, {"id": 99}).status_code == 404
    for route, body in (
        ("/v1/describe", {"labels": ["teal"]}),
        ("/v1/runs", {"label_set": "birds"}),
        ("/v1/runs/estimate", {"label_set": "birds"}),
    ):
        answer = client.post(route, json=body | {"prompt": "translation"})
        assert answer.status_code == 422
        assert "enrich release translate" in answer.json()["detail"]
    assert not model.requests


def test_the_command_line_estimates_translates_and_says_how_to_go_on(
    enrich,
    model,
):
    data_of(enrich("labels", "add", "birds", "teal", "pintail", "--json"))
    data_of(enrich("run", "start", "birds", "--json"))
    source = ("--source", "visual-description@production")
    data_of(enrich("release", "create", "birds", "english", *source, "--json"))
    model.answers = {name: json.dumps({"description": text}) for name, text in GERMAN.items()}
    command = ("release", "translate", "english", "--language", "German")
    guess = data_of(enrich(*command, "--estimate", "--json"))
    assert (guess["total"], guess["new_requests"]) == (2, 2)
    paused = enrich(*command, "--budget-tokens", "50", "--concurrency", "1")
    assert paused.exit_code == 75
    assert "continue with `enrich run resume 2`" in paused.stderr
    run = data_of(enrich("run", "resume", "2", "--budget-tokens", "5000", "--json"))
    assert run["accepted"] == 2
    source = ("--source", "translation@production", "--language", "German")
    data_of(enrich("release", "create", "birds", "german", *source, "--json"))
    call = enrich("release", "translate", "nix", "--language", "German")
    assert (call.exit_code, call.stderr.count("\n")) == (1, 1)
