"""Several processes on one database: what they must agree on is decided there."""

import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import httpx
import pytest

from tests.llm_server import Answer, LlmServer
from tests.service.llm_fixtures import add_labels, start_run, wait_for
from tests.service.runs.test_runs import generations, serving, until

DUCK = "It has slate-blue plumage, chestnut flanks and bold white stripes on its head."


def text(description):
    return Answer(content=json.dumps({"description": description}))


@pytest.fixture(scope="module")
def model():
    with LlmServer() as server:
        yield server


@pytest.fixture(scope="module")
def environment(model, tmp_path_factory, migrated):
    return {
        "ENRICH_DATA_DIR": str(migrated(tmp_path_factory.mktemp("processes") / "data")),
        "OPENAI_BASE_URL": model.url,
        "ENRICH_LLM_MODEL": "small",
        "ENRICH_RUN_LEASE_SECONDS": "2",
    }


@pytest.fixture(scope="module")
def clients(environment):
    """Clients of two services, each a process of its own, on one database."""
    with ExitStack() as stack:
        urls = [stack.enter_context(serving(environment))[1] for _ in range(2)]
        yield [stack.enter_context(httpx.Client(base_url=url, timeout=60)) for url in urls]


@pytest.fixture
def services(clients, model):
    """Those clients; the model answers at once. Each test has labels of its own."""
    model.latency = 0.0
    return clients


def describe(client, name):
    (found,) = client.post("/v1/describe", json={"labels": [name]}).json()
    return found


def test_a_text_that_another_process_has_accepted_is_refused_for_another_label(services, model):
    for number, client in enumerate(services):  # both have read what was accepted before
        assert describe(client, f"teal {number}")["status"] == "accepted"
    for label in ("harlequin duck", "surf scoter"):
        model.script(label, text(DUCK))

    assert describe(services[0], "harlequin duck")["text"] == DUCK
    other = describe(services[1], "surf scoter")
    assert (other["status"], model.calls["surf scoter"]) == ("accepted", 2)
    assert other["text"] != DUCK
    [bad] = generations(services[1], label="surf scoter", status="retried")
    assert bad["problems"] == ['duplicate: the text is the same as the one of "harlequin duck"']


def test_runs_of_two_processes_accept_no_text_for_two_labels(services, model):
    model.latency = 0.05
    for kind in ("duck", "goose"):
        add_labels(services[0], [f"{kind} {n}" for n in range(40)], kind)
        for n in range(40):
            model.script(f"{kind} {n}", text(f"It has {n} feathers of slate blue and a red bill."))

    def run(client, kind):
        return wait_for(client, start_run(client, label_set=kind, concurrency=8)["id"])

    with ThreadPoolExecutor(2) as pool:
        runs = list(pool.map(run, services, ("duck", "goose")))
    assert [run["accepted"] for run in runs] == [40, 40]
    accepted = [generations(services[0], run_id=run["id"], status="accepted") for run in runs]
    texts = [row["text"] for rows in accepted for row in rows]
    assert len(texts) == len(set(texts)) == 80
    names = [f"{kind} {n}" for kind in ("duck", "goose") for n in range(40)]
    calls = sum(model.calls[name] for name in names)
    assert sum(run["calls"] for run in runs) == calls == 80 + 40


def test_overlapping_runs_of_two_processes_ask_each_label_once(services, model):
    model.latency = 0.2
    names = [f"bird {n}" for n in range(90)]
    add_labels(services[0], names[:60], "first")
    add_labels(services[0], names[30:], "last")

    def run(client, label_set):
        return wait_for(client, start_run(client, label_set=label_set, concurrency=8)["id"])

    with ThreadPoolExecutor(2) as pool:
        runs = list(pool.map(run, services, ("first", "last")))
    assert sum(model.calls[name] for name in names) == 90
    assert [(run["state"], run["done"]) for run in runs] == [("succeeded", 60)] * 2
    assert sum(run["accepted"] for run in runs) == sum(run["calls"] for run in runs) == 90
    assert sum(run["cached"] for run in runs) == 30


def test_who_describes_what_another_process_is_asking_waits_for_its_answer(services, model):
    model.latency = 1.0
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(describe, services, ["smew", "smew"]))
    assert len({one["generation_id"] for one in found}) == 1
    assert model.calls["smew"] == 1


def test_the_questions_of_a_killed_process_are_asked_once_its_lease_is_over(
    services, environment, model
):
    model.script("teal", Answer(hang=True))
    with (
        serving(environment) as (process, url),
        httpx.Client(base_url=url, timeout=60) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        lost = pool.submit(client.post, "/v1/describe", json={"labels": ["teal"]})
        until(lambda: model.calls["teal"] == 1)
        process.kill()
        assert describe(services[1], "teal")["status"] == "accepted"
        assert isinstance(lost.exception(), httpx.HTTPError)
    assert model.calls["teal"] == 2
