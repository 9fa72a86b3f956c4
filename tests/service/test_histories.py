"""Histories made up by hypothesis: whatever is asked in whatever order, a simple model agrees.

Two models, each beside a running service: prompts with their aliases and releases, and the queue of
jobs with its workers. Histories are the same in each run; HISTORIES=500 makes more and other ones.
"""

import itertools
import json
import os
from collections import defaultdict
from dataclasses import dataclass, field

import httpx
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
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


@dataclass
class JobModel:
    id: int
    priority: int
    gpu: bool
    max_attempts: int
    state: str = "queued"
    attempts: int = 0
    fence: int = 0
    cancelling: bool = False
    events: list[tuple[int, int]] = field(default_factory=list)  # fence, worker_seq

    @property
    def held(self):
        return self.state in ("leased", "running")


class Queue(RuleBasedStateMachine):
    """Jobs, and workers that hold them, fall silent, come back, and say things twice."""

    def __init__(self, client, release):
        super().__init__()
        self.client, self.release = client, release
        self.jobs: list[JobModel] = []

    @rule(priority=st.integers(-1, 1), gpu=st.booleans(), max_attempts=st.integers(1, 2))
    def queue(self, priority, gpu, max_attempts):
        body = {
            "release_id": self.release,
            "config": {"data": "photos", "teacher": "ViT-B-32@openai"},
            "priority": priority,
            "needs": {"gpu": gpu},
            "max_attempts": max_attempts,
        }
        status, found = sent(self.client, "POST", "/v1/jobs", body)
        assert (status, found["state"]) == (201, "queued")
        self.jobs.append(JobModel(found["id"], priority, gpu, max_attempts))

    @rule(gpu=st.booleans())
    def claim(self, gpu):
        status, found = sent(self.client, "POST", "/v1/jobs/claim", {"worker": "w", "gpu": gpu})
        waiting = [job for job in self.jobs if job.state == "queued" and (gpu or not job.gpu)]
        if not waiting:
            assert status == 204
            return
        job = min(waiting, key=lambda job: (-job.priority, job.id))
        job.state, job.attempts, job.fence = "leased", job.attempts + 1, job.fence + 1
        assert (status, found["job"]["id"], found["fence"]) == (200, job.id, job.fence)

    def some(self, data):
        """A job, and a fence that is its own or one that ended."""
        job = data.draw(st.sampled_from(self.jobs), "job")
        return job, data.draw(st.integers(max(1, job.fence - 1), max(1, job.fence)), "fence")

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def heartbeat(self, data):
        job, fence = self.some(data)
        path = f"/v1/jobs/{job.id}/heartbeat"
        status, found = sent(self.client, "POST", path, {"fence": fence})
        if not job.held or fence != job.fence:
            assert status == 409
        else:
            job.state = "running"
            assert (status, found["cancel_requested"]) == (200, job.cancelling)

    @precondition(lambda self: self.jobs)
    @rule(data=st.data(), numbers=st.lists(st.integers(1, 6), min_size=1, max_size=3))
    def tell(self, data, numbers):
        job, fence = self.some(data)
        events = [{"worker_seq": n, "kind": "log", "data": {"message": str(n)}} for n in numbers]
        body = {"fence": fence, "events": events}
        status, found = sent(self.client, "POST", f"/v1/jobs/{job.id}/events", body)
        if not job.held or fence != job.fence:
            assert status == 409
            return
        job.state = "running"
        new = [n for n in dict.fromkeys(numbers) if (fence, n) not in job.events]
        job.events += [(fence, n) for n in new]
        assert (status, found["stored"]) == (200, len(new))

    @precondition(lambda self: self.jobs)
    @rule(data=st.data(), state=st.sampled_from(["succeeded", "failed", "cancelled"]))
    def finish(self, data, state):
        job, fence = self.some(data)
        body = {"fence": fence, "state": state}
        status, _ = sent(self.client, "POST", f"/v1/jobs/{job.id}/finish", body)
        if job.state == state and fence == job.fence:
            assert status == 200  # said twice, as when the first answer was lost
        elif not job.held or fence != job.fence:
            assert status == 409
        else:
            assert status == 200
            job.state = state

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def cancel(self, data):
        job, _ = self.some(data)
        status, _ = sent(self.client, "POST", f"/v1/jobs/{job.id}/cancel")
        assert status == (409 if job.state in ("succeeded", "failed") else 200)
        if job.state == "queued":
            job.state = "cancelled"
            job.cancelling = True
        elif job.held:
            job.cancelling = True

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def retry(self, data):
        job, _ = self.some(data)
        status, _ = sent(self.client, "POST", f"/v1/jobs/{job.id}/retry")
        if job.state in ("failed", "cancelled"):
            assert status == 200
            job.state, job.attempts, job.cancelling = "queued", 0, False
        else:
            assert status == 409

    @invariant()
    def jobs_are_as_the_model_says(self):
        for job in self.jobs:
            seen = self.client.get(f"/v1/jobs/{job.id}").json()
            assert (seen["state"], seen["attempts"], seen["cancel_requested"]) == (
                job.state,
                job.attempts,
                job.cancelling,
            )
            events = self.client.get(f"/v1/jobs/{job.id}/events").json()
            assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
            told = [event["data"]["message"] for event in events if event["kind"] == "log"]
            assert told == [str(number) for _, number in job.events]

    def teardown(self):
        for job in self.jobs:  # so that the next history's workers are not given them
            if job.state == "queued":
                sent(self.client, "POST", f"/v1/jobs/{job.id}/cancel")
            elif job.held:
                body = {"fence": job.fence, "state": "cancelled"}
                sent(self.client, "POST", f"/v1/jobs/{job.id}/finish", body)


def test_versions_aliases_and_releases_are_what_their_history_makes_them(service):
    run_state_machine_as_test(lambda: Registry(service), settings=HISTORIES)


@pytest.fixture
def release(service):
    """The release that all jobs are about."""
    labels = [{"name": "mallard"}]
    assert sent(service, "POST", "/v1/label-sets", {"name": "ducks", "labels": labels})[0] == 201
    body = {"name": "ducks-1", "label_set": "ducks", "allow_missing": True}
    return sent(service, "POST", "/v1/releases", body)[1]["id"]


def test_no_history_of_jobs_and_workers_confuses_the_queue(service, release):
    run_state_machine_as_test(lambda: Queue(service, release), settings=HISTORIES)
