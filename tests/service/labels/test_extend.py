"""`enrich labels extend`: a class that comes later is described and released by one command."""

import json

import pytest
from typer.testing import CliRunner

from enrich_service.cli import app
from tests.llm_server import LlmServer


@pytest.fixture
def model(tmp_path, monkeypatch):
    """A language model's server that `enrich` asks, with an empty data folder."""
    monkeypatch.setenv("ENRICH_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("OPENAI_API_KEY", "key")
    with LlmServer() as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        yield server


def enrich(*words, code=0):
    call = CliRunner().invoke(app, [str(word) for word in (*words, "--json")])
    assert call.exit_code == code, call.output
    return json.loads(call.stdout) if code == 0 else call.stderr


@pytest.fixture
def released(model):
    enrich("labels", "add", "ducks", "mallard", "teal", "--context", "a bird")
    enrich("run", "start", "ducks")
    source = ("--source", "visual-description@production")
    enrich("release", "create", "ducks", "ducks-1", *source)


def test_only_the_new_classes_are_asked_about_and_the_next_release_has_all(model, released):
    before = len(model.requests)
    made = enrich("labels", "extend", "ducks", "surf scoter", "okapi")
    assert (made["name"], made["labels"]) == ("ducks-2", 4)
    assert [call.label for call in model.requests[before:]] == ["surf scoter", "okapi"]
    items = enrich("labels", "show", "ducks")["items"]
    assert [one["key"] for one in items] == ["mallard", "teal", "surf_scoter", "okapi"]
    assert {one["context"] for one in items} == {"a bird"}
    changes = enrich("release", "diff", "ducks-1", "ducks-2")
    assert {one["key"] for one in changes["changed"]} <= {"surf_scoter", "okapi"}


def test_a_class_that_cannot_be_added_leaves_everything_as_it_was(model, released):
    told = enrich("labels", "extend", "ducks", "Teal", code=1)
    assert "already has a label 'Teal'" in told
    asked = len(model.requests)
    told = enrich("labels", "extend", "ducks", "eider", "--release", "ducks-1", code=1)
    assert told.count("\n") == 1 and "ducks-1" in told
    assert len(model.requests) == asked
    assert enrich("labels", "show", "ducks")["total"] == 2
    assert len(enrich("release", "list")) == 1


def test_a_set_without_a_release_says_what_to_do_first(model):
    enrich("labels", "add", "ducks", "mallard")
    told = enrich("labels", "extend", "ducks", "teal", code=1)
    assert "has no release yet: describe it with `enrich run start ducks`" in told
