"""Histories made up by hypothesis: whatever is asked in whatever order, a simple model agrees.

They are the same in each run; HISTORIES=500 makes more and other ones. Those of jobs are made up in
jobs/test_jobs.py.
"""

import itertools
import json
import os
from collections import defaultdict
from dataclasses import dataclass, field

import httpx
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

MORE = int(os.environ.get("HISTORIES", "0"))
HISTORIES = settings(
    max_examples=MORE or 10,
    stateful_step_count=40,
    deadline=None,
    derandomize=not MORE,
    suppress_health_check=list(HealthCheck),
)
NAMES = itertools.count(1)  # each history works under names of its own
SCHEMA = {
    "type": "object",
    "properties": {"description": {"type": "string"}},
    "required": ["description"],
}
TEXTS = st.sampled_from(["a teal patch", "a grey back", "a red bill"])
ALIASES = st.sampled_from(["production", "candidate"])


def sent(client: httpx.Client, method: str, path: str, body=None):
    """Status and JSON of an answer, which is a problem document if it is an error."""
    found = client.request(method, path, json=body)
    if found.is_error:
        kind = found.headers["content-type"]
        assert kind == "application/problem+json" and found.status_code < 500, found.text
    return found.status_code, found.json() if found.content else None


@dataclass
class AliasModel:
    version: int
    protected: bool
    moves: list[tuple[int | None, int]] = field(default_factory=list)


class Registry(RuleBasedStateMachine):
    """A prompt's versions and aliases, and releases of a label set of two labels."""

    def __init__(self, client):
        super().__init__()
        self.client = client

    @initialize()
    def begin(self):
        self.name = f"history {next(NAMES)}"
        self.versions, self.archived = ["a"], False
        self.aliases: dict[str, AliasModel] = {}
        self.texts: dict[str, str] = {}
        self.releases: dict[str, tuple[int, bytes, dict[str, str]]] = {}
        labels = {"name": self.name, "labels": [{"name": "mallard"}, {"name": "smew"}]}
        assert sent(self.client, "POST", "/v1/label-sets", labels)[0] == 201
        rows = self.client.get(f"/v1/label-sets/{self.name}/labels").json()["items"]
        self.labels = {row["name"]: row["id"] for row in rows}
        made = {"name": self.name, "kind": "description"} | self.content("a")
        assert sent(self.client, "POST", "/v1/prompts", made)[0] == 201

    def content(self, word):
        return {"user": f"Say {word} of {{{{ label | tojson }}}}", "output_schema": SCHEMA}

    @rule(word=st.sampled_from("abc"))
    def add_version(self, word):
        body = self.content(word)
        status, found = sent(self.client, "POST", f"/v1/prompts/{self.name}/versions", body)
        if self.archived:
            assert status == 409
        elif word == self.versions[-1]:
            assert (status, found["number"]) == (200, len(self.versions))
        else:
            self.versions.append(word)
            assert (status, found["number"]) == (201, len(self.versions))

    @rule(archived=st.booleans())
    def archive(self, archived):
        body = {"archived": archived}
        assert sent(self.client, "PUT", f"/v1/prompts/{self.name}/archived", body)[0] == 200
        self.archived = archived

    @rule(
        alias=ALIASES,
        version=st.integers(1, 5),
        protected=st.sampled_from([None, True, False]),
        sure=st.booleans(),
    )
    def move(self, alias, version, protected, sure):
        body = {"version": version, "protected": protected}
        body |= {"confirm": True, "reason": "better"} if sure else {}
        status, found = sent(self.client, "PUT", f"/v1/prompts/{self.name}/aliases/{alias}", body)
        known = self.aliases.get(alias)
        if version > len(self.versions):
            assert status == 404
            return
        changes = known is not None and (known.version != version or protected is False)
        if known is not None and known.protected and changes and not sure:
            assert status == 409
            return
        assert status == 200
        before = known.version if known else None
        known = self.aliases.setdefault(alias, AliasModel(version, False))
        known.version = version
        if protected is not None:
            known.protected = protected
        if before != version:
            known.moves.insert(0, (before, version))
        assert (found["version"], found["protected"]) == (known.version, known.protected)

    @rule(alias=ALIASES, sure=st.booleans())
    def roll_back(self, alias, sure):
        path = f"/v1/prompts/{self.name}/aliases/{alias}/rollback"
        status, found = sent(self.client, "POST", path, {"confirm": sure})
        known = self.aliases.get(alias)
        if known is None:
            assert status == 404
        elif known.moves[0][0] is None or (known.protected and not sure):
            assert status == 409
        else:
            known.moves.insert(0, (known.version, known.moves[0][0]))
            known.version = known.moves[0][1]
            assert (status, found["version"]) == (200, known.version)

    @rule(label=st.sampled_from(["mallard", "smew"]), text=TEXTS)
    def write_text(self, label, text):
        body = {"prompt": self.name, "text": text}
        path = f"/v1/labels/{self.labels[label]}/texts"
        assert sent(self.client, "POST", path, body)[0] == 201
        self.texts[label] = text

    @rule(name=st.sampled_from(["one", "two"]), missing=st.booleans())
    def release(self, name, missing):
        body = {"name": f"{self.name} {name}", "label_set": self.name, "allow_missing": missing}
        status, found = sent(self.client, "POST", "/v1/releases", body)
        known = self.releases.get(name)
        # Where no source is asked for by name, a label needs a text of any kind.
        if not missing and len(self.texts) < 2:
            assert status == 409
        elif known is not None:
            assert status == (200 if known[2] == self.texts else 409)
            assert status == 409 or found["id"] == known[0]
        else:
            assert status == 201
            stored = self.client.get(f"/v1/releases/{found['id']}").content
            self.releases[name] = (found["id"], stored, dict(self.texts))

    @invariant()
    def a_prompt_is_as_the_model_says(self):
        seen = self.client.get(f"/v1/prompts/{self.name}").json()
        assert (seen["latest"], seen["archived_at"] is not None) == (
            len(self.versions),
            self.archived,
        )
        assert {one["name"]: (one["version"], one["protected"]) for one in seen["aliases"]} == {
            name: (alias.version, alias.protected) for name, alias in self.aliases.items()
        }
        versions = self.client.get(f"/v1/prompts/{self.name}/versions").json()
        assert [one["user"].split()[1] for one in reversed(versions)] == self.versions

    @invariant()
    def every_move_is_in_the_log(self):
        for name, alias in self.aliases.items():
            log = self.client.get(f"/v1/prompts/{self.name}/aliases/{name}/moves").json()
            assert [(one["from_version"], one["to_version"]) for one in log] == alias.moves

    @invariant()
    def a_release_stays_what_it_was_and_its_hash_tells_its_texts(self):
        hashes = defaultdict(set)
        for number, stored, texts in self.releases.values():
            assert self.client.get(f"/v1/releases/{number}").content == stored
            seen = json.loads(stored)
            assert {
                one["name"]: one["description"] for one in seen["labels"] if one["description"]
            } == texts
            hashes[json.dumps(texts, sort_keys=True)].add(seen["hash"])
        assert all(len(found) == 1 for found in hashes.values())
        assert len({next(iter(found)) for found in hashes.values()}) == len(hashes)


def test_versions_aliases_and_releases_are_what_their_history_makes_them(service):
    run_state_machine_as_test(lambda: Registry(service), settings=HISTORIES)
