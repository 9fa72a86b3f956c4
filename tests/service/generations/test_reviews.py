import json

import pytest

from tests.llm_server import Answer
from tests.service.llm_fixtures import add_labels, start_run, wait_for

TEAL = "The teal has a chestnut head with a green stripe behind its eye, written by hand."


@pytest.fixture
def texts(client):
    """The generations of two labels that a run described, by label."""
    add_labels(client, ["teal", "mallard"])
    wait_for(client, start_run(client)["id"])
    return {one["label"]: one["id"] for one in client.get("/v1/generations").json()["items"]}


def review(client, action, *ids, **more):
    return client.post("/v1/reviews", json={"generations": ids, "action": action, **more})


def release(client, name, *, version=1, **more):
    source = {"prompt": "visual-description", "version": version}
    body = {"label_set": "birds", "name": name, "sources": [source], **more}
    return client.post("/v1/releases", json=body)


def released(client, answer):
    assert answer.status_code == 201, answer.text
    body = client.get(f"/v1/releases/{answer.json()['id']}").json()
    return {label["name"]: label["description"] for label in body["labels"]}


def shown(client, generation_id):
    return client.get(f"/v1/generations/{generation_id}").json()


def test_who_said_what_and_when_is_kept_and_the_last_word_counts(client, texts):
    teal = texts["teal"]
    assert (shown(client, teal)["approved"], shown(client, teal)["locked"]) == (None, False)
    review(client, "approve", teal, author="ada")
    assert shown(client, teal)["approved"] is True
    review(client, "reject", teal, reason="no bird has that", author="bob")
    assert shown(client, teal)["approved"] is False
    log = client.get(f"/v1/generations/{teal}/reviews").json()
    assert [(one["action"], one["reason"], one["author"]) for one in log] == [
        ("reject", "no bird has that", "bob"),
        ("approve", "", "ada"),
    ]
    assert log[0]["at"] >= log[1]["at"]


def test_texts_are_found_by_what_people_think_of_them(client, texts):
    def found(opinion):
        page = client.get("/v1/generations", params={"opinion": opinion}).json()
        return [one["label"] for one in page["items"]]

    assert len(found("open")) == 2
    review(client, "approve", texts["teal"])
    review(client, "reject", texts["mallard"])
    assert (found("approved"), found("rejected"), found("open")) == (["teal"], ["mallard"], [])
    review(client, "lock", texts["teal"])
    assert found("locked") == ["teal"]


def test_a_release_can_demand_that_each_text_was_approved(client, texts):
    review(client, "approve", texts["teal"])
    refused = release(client, "r", approved_only=True)
    assert refused.status_code == 409
    assert (
        "1 of 2 labels have no approved description: 'mallard'. Approve"
        in (refused.json()["detail"])
    )
    some = released(client, release(client, "some", approved_only=True, allow_missing=True))
    assert (some["teal"] is None, some["mallard"]) == (False, None)
    review(client, "lock", texts["mallard"])  # whoever locks approves too
    assert None not in released(client, release(client, "r", approved_only=True)).values()


def test_no_release_takes_a_rejected_text(client, texts):
    edit = client.post(f"/v1/generations/{texts['teal']}/edits", json={"text": TEAL}).json()
    assert released(client, release(client, "edited"))["teal"] == TEAL
    review(client, "reject", edit["id"])
    before = released(client, release(client, "back"))["teal"]
    assert before == shown(client, texts["teal"])["text"]
    review(client, "reject", texts["teal"])
    assert "'teal'" in release(client, "none").json()["detail"]
    review(client, "approve", texts["teal"])
    assert released(client, release(client, "again"))["teal"] == before


def test_a_locked_text_wins_over_all_others_until_it_is_unlocked(client, model, texts):
    kept = shown(client, texts["teal"])["text"]
    review(client, "lock", texts["teal"], author="ada")
    version = client.get("/v1/prompts/visual-description/versions/1").json()
    content = {name: version[name] for name in ("user", "output_schema", "validators")}
    client.post("/v1/prompts/visual-description/versions", json=content)
    other = "The teal has a wing patch of another shade of green."
    model.script("teal", Answer(content=json.dumps({"description": other})))
    wait_for(client, start_run(client, version=2)["id"])
    assert released(client, release(client, "locked", version=2))["teal"] == kept
    review(client, "unlock", texts["teal"])
    assert released(client, release(client, "unlocked", version=2))["teal"] == other


def test_what_is_locked_is_not_edited_rejected_or_locked_twice(client, texts):
    teal = texts["teal"]
    label_id = shown(client, teal)["label_id"]
    edit = client.post(f"/v1/generations/{teal}/edits", json={"text": TEAL}).json()
    review(client, "lock", teal)
    for answer in (
        client.post(f"/v1/generations/{teal}/edits", json={"text": TEAL}),
        client.post(f"/v1/generations/{edit['id']}/edits", json={"text": TEAL}),
        client.post(f"/v1/labels/{label_id}/texts", json={"text": TEAL}),
        review(client, "reject", teal),
        review(client, "lock", teal),
        review(client, "lock", edit["id"]),
    ):
        assert answer.status_code == 409
        assert "unlock" in answer.json()["detail"]
    assert review(client, "unlock", teal).status_code == 201
    again = client.post(f"/v1/generations/{teal}/edits", json={"text": TEAL})
    assert again.status_code == 201


def test_reviews_that_make_no_sense_write_nothing_for_any_text(client, model, texts):
    bad = Answer(content='{"description": "A rail is . . . ."}')
    model.script("rail", bad, bad, bad)
    client.post("/v1/describe", json={"labels": ["rail"]})
    rejected = client.get("/v1/generations?label=rail&status=rejected").json()["items"][0]["id"]
    teal = texts["teal"]
    for answer, status, message in (
        (review(client, "approve", teal, rejected), 409, "edit it instead"),
        (review(client, "approve", teal, 999), 404, "no generation 999"),
        (review(client, "approve", teal, teal), 422, "duplicates"),
        (review(client, "approve", teal, author="a\x07"), 422, "control character"),
        (review(client, "unlock", teal), 409, "is not locked"),
        (review(client, "applaud", teal), 422, "action"),
        (review(client, "approve"), 422, "generations"),
    ):
        assert answer.status_code == status
        assert message in answer.json()["detail"]
    assert client.get(f"/v1/generations/{teal}/reviews").json() == []
    review(client, "reject", teal)
    assert "approve it before" in review(client, "lock", teal).json()["detail"]
    assert client.get("/v1/generations/999/reviews").status_code == 404
