import pytest

from tests.llm_server import Answer
from tests.service.llm_fixtures import add_labels, start_run, wait_for

BETTER = "The teal is a small duck with a chestnut head and a green stripe behind its eye."


@pytest.fixture
def ducks(client):
    """A label set of three ducks, described; gives what a label's generation is."""
    add_labels(client, ["teal", "mallard", "surf scoter"], "ducks")
    wait_for(client, start_run(client, label_set="ducks")["id"])
    return lambda label: listed(client, label=label)[0]


def listed(client, **filters):
    answer = client.get("/v1/generations", params=filters)
    assert answer.status_code == 200, answer.text
    return answer.json()["items"]


def edit(client, generation_id, **body):
    return client.post(f"/v1/generations/{generation_id}/edits", json=body)


def texts_of_release(client, name):
    source = {"prompt": "visual-description", "alias": "production"}
    asked = {"label_set": "ducks", "name": name, "sources": [source]}
    answer = client.post("/v1/releases", json=asked)
    assert answer.status_code == 201, answer.text
    release = client.get(f"/v1/releases/{answer.json()['id']}").json()
    return {label["name"]: label["description"] for label in release["labels"]}


# ------------------------------------------------------------------------------------------ lists


def test_the_list_can_be_narrowed_by_anything_that_is_known_of_a_generation(client, model, ducks):
    run = client.get("/v1/runs").json()[0]["id"]
    model.script("eider", *[Answer(content='{"description": "Sorry, I cannot."}')] * 3)
    client.post("/v1/describe", json={"labels": ["eider"]})
    edit(client, ducks("teal")["id"], text=BETTER)
    teal = ducks("teal")["label_id"]
    expected = {
        (("run_id", run),): {"teal", "mallard", "surf scoter"},
        (("label", "mallard"),): {"mallard"},
        (("label_id", teal),): {"teal"},
        (("status", "rejected"),): {"eider"},
        (("status", "retried"), ("label", "teal")): set(),
        (("source", "person"),): {"teal"},
        (("prompt", "visual-description"), ("version", 1), ("status", "accepted")): {
            "teal", "mallard", "surf scoter",
        },
        (("prompt", "attributes"),): set(),
        (("flagged", "true"), ("status", "accepted")): set(),
    }  # fmt: skip
    for filters, labels in expected.items():
        assert {one["label"] for one in listed(client, **dict(filters))} == labels, filters


def test_pages_hold_everything_once_the_newest_first(client, model):
    add_labels(client, [f"bird {i}" for i in range(25)])
    wait_for(client, start_run(client)["id"])
    seen, before, pages = [], None, 0
    while True:
        params = {"limit": 10} | ({"before": before} if before else {})
        page = client.get("/v1/generations", params=params).json()
        seen += [one["id"] for one in page["items"]]
        pages += 1
        before = page["next_before"]
        if before is None:
            break
    assert pages == 3
    assert len(seen) == 25
    assert seen == sorted(set(seen), reverse=True)


@pytest.mark.parametrize(
    ("filters", "status", "message"),
    [
        ({"version": 1}, 422, "give prompt too"),
        ({"prompt": "nix"}, 404, "no prompt 'nix'"),
        ({"status": "fine"}, 422, "status"),
        ({"limit": 0}, 422, "limit"),
    ],
)
def test_a_filter_that_makes_no_sense_is_named(client, filters, status, message):
    answer = client.get("/v1/generations", params=filters)
    assert answer.status_code == status
    assert message in answer.json()["detail"]


def test_a_generation_that_is_not_there_is_named(client):
    for answer in (client.get("/v1/generations/7"), edit(client, 7, text="x")):
        assert answer.status_code == 404
        assert "no generation 7" in answer.json()["detail"]


# ------------------------------------------------------------------------------------------ edits


def test_an_edit_wins_in_a_release_and_keeps_what_it_came_from(client, ducks):
    before = texts_of_release(client, "r1")
    parent = ducks("teal")
    made = edit(client, parent["id"], text=f"  {BETTER}\n", author="ada")
    assert made.status_code == 201
    one = made.json()
    assert (one["text"], one["source"], one["author"]) == (BETTER, "person", "ada")
    assert (one["parent_id"], one["prompt_version"]) == (parent["id"], 1)
    assert (one["calls"], one["cost_usd"], one["model"]) == (0, None, None)
    assert client.get(f"/v1/generations/{parent['id']}").json()["text"] == before["teal"]
    assert texts_of_release(client, "r2") == before | {"teal": BETTER}


def test_the_newest_edit_wins_and_a_new_run_does_not_undo_it(client, ducks):
    edit(client, ducks("teal")["id"], text="A first try that is about the teal.")
    edit(client, ducks("teal")["id"], text=BETTER)
    wait_for(client, start_run(client, label_set="ducks", samples=2)["id"])
    assert texts_of_release(client, "r")["teal"] == BETTER


def test_a_text_can_be_written_for_a_label_that_has_none(client):
    add_labels(client, ["teal"], "ducks")
    label = client.get("/v1/label-sets/ducks/labels").json()["items"][0]["id"]
    body = {"prompt": "visual-description", "text": BETTER, "author": "ada"}
    made = client.post(f"/v1/labels/{label}/texts", json=body)
    assert made.status_code == 201
    assert (made.json()["parent_id"], made.json()["label_id"]) == (None, label)
    assert texts_of_release(client, "r") == {"teal": BETTER}
    assert client.post("/v1/labels/999/texts", json=body).status_code == 404


def test_attributes_are_edited_as_an_object(client):
    (one,) = client.post("/v1/describe", json={"labels": ["teal"], "prompt": "attributes"}).json()
    made = edit(client, one["generation_id"], parsed={"shape": "stocky", "colours": ["slate"]})
    assert made.status_code == 201
    assert made.json()["attributes"] == {"shape": ["stocky"], "colours": ["slate"]}
    assert made.json()["text"] == "shape: stocky; colours: slate"


def test_a_long_text_of_a_person_is_kept_and_flagged(client, ducks):
    long = "The teal has " + ", ".join(f"a feather of shade {n}" for n in range(16)) + "."
    made = edit(client, ducks("teal")["id"], text=long).json()
    assert (made["status"], made["text"]) == ("accepted", long)
    assert made["flags"][0].startswith("length:")


BAD_EDITS = [
    ({}, "either text or parsed"),
    ({"text": BETTER, "parsed": {"description": BETTER}}, "either text or parsed"),
    ({"text": ""}, "text"),
    ({"text": "  \n "}, "no text"),
    ({"text": "…!"}, "no words"),
    ({"text": "a\u202eb"}, "bidi control U+202E"),
    ({"text": "a\x07b"}, "control character U+0007"),
    ({"text": "x" * 20_001}, "20000"),
    ({"parsed": {"caption": "A teal."}}, "format of 'description'"),
    ({"parsed": {"description": []}}, "format of 'description'"),
    ({"text": BETTER, "author": "x" * 201}, "author"),
    ({"text": BETTER, "colour": "red"}, "colour"),
]


def test_a_bad_edit_is_refused_and_not_stored(client, ducks):
    teal = ducks("teal")["id"]
    for body, message in BAD_EDITS:
        answer = edit(client, teal, **body)
        assert (answer.status_code, body) == (422, body)
        assert message in answer.json()["detail"]
        assert "\n" not in answer.json()["detail"]
    assert listed(client, source="person") == []
