import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta

import httpx
import pytest

from enrich_service.core.settings import Settings
from enrich_service.core.storage.database import make_engine, utcnow, writing
from enrich_service.generations.models import Run, RunState
from enrich_service.llm import retry
from enrich_service.runs.answering import enricher
from enrich_service.runs.scheduling.worker_pool import WORKERS
from tests.llm_server import Answer, faulty
from tests.service.llm_fixtures import add_labels, start_run, wait_for

LONG = Answer(429, headers={"Retry-After": "3600"})
BROKE = Answer(429, body='{"error": {"message": "broke", "code": "insufficient_quota"}}')
DOWN = Answer(500, headers={"retry-after-ms": "1"})


def birds(n: int) -> list[str]:
    return [f"bird {i}" for i in range(n)]


def generations(client, **filters):
    items, before = [], None
    while True:
        page = client.get(
            "/v1/generations", params=filters | ({"before": before} if before else {})
        )
        items += page.json()["items"]
        before = page.json()["next_before"]
        if before is None:
            return items


def until(condition, seconds: float = 20.0):
    """What `condition` gives, once it is true."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end
        time.sleep(0.02)
    return found


def progress(client, run_id):
    return client.get(f"/v1/runs/{run_id}").json()


# ------------------------------------------------------------------------------ the whole way


def test_a_run_reaches_every_label_and_its_counts_agree_with_the_generations(client, model):
    add_labels(client, birds(30))
    model.script("bird 3", Answer(content='{"description": "Sorry, I cannot describe it."}'))
    run = wait_for(client, start_run(client, concurrency=8)["id"])
    assert (run["state"], run["error"]) == ("succeeded", None)
    assert (run["total"], run["done"], run["accepted"], run["calls"]) == (30, 30, 30, 31)
    assert run["started_at"] and run["finished_at"]
    kept = generations(client, run_id=run["id"])
    assert {one["label"] for one in kept if one["status"] == "accepted"} == set(birds(30))
    details = [client.get(f"/v1/generations/{one['id']}").json() for one in kept]
    for name in ("calls", "prompt_tokens", "completion_tokens"):
        assert run[name] == sum(one[name] for one in details)
    assert run["cost_usd"] == pytest.approx(sum(one["cost_usd"] for one in details))


def test_no_more_calls_are_in_flight_than_the_run_allows(client, model):
    model.latency = 0.02
    add_labels(client, birds(40))
    wait_for(client, start_run(client, concurrency=5)["id"])
    assert model.most_in_flight == 5


def test_all_runs_together_keep_to_the_limit_of_the_service(connect, model):
    client = connect(llm_concurrency=4)
    model.latency = 0.02
    add_labels(client, birds(20))
    runs = [start_run(client, concurrency=16, parameters={"seed": seed}) for seed in (1, 2)]
    for run in runs:
        assert wait_for(client, run["id"])["state"] == "succeeded"
    assert model.most_in_flight == 4


def test_the_same_run_again_costs_nothing(client, model):
    add_labels(client, birds(10))
    first = wait_for(client, start_run(client)["id"])
    again = wait_for(client, start_run(client)["id"])
    assert (again["cached"], again["calls"], again["cost_usd"]) == (10, 0, None)
    assert again["state"] == first["state"] == "succeeded"
    assert sum(model.calls.values()) == 10


def test_what_describe_has_answered_is_not_asked_by_a_run(client, model):
    add_labels(client, birds(4))
    client.post("/v1/describe", json={"labels": ["bird 2"]})
    run = wait_for(client, start_run(client)["id"])
    assert (run["accepted"], run["cached"]) == (3, 1)
    assert model.calls["bird 2"] == 1


def test_a_label_that_stands_twice_in_a_set_is_asked_once(client, model):
    add_labels(client, ["teal", "mallard", "teal"])
    run = wait_for(client, start_run(client)["id"])
    assert (run["state"], run["done"], run["accepted"], run["cached"]) == ("succeeded", 3, 2, 1)
    assert model.calls["teal"] == 1


def test_each_sample_is_a_generation_of_its_own(client, model):
    add_labels(client, ["teal", "mallard"])
    run = wait_for(client, start_run(client, samples=3)["id"])
    assert (run["total"], run["accepted"]) == (6, 6)
    kept = generations(client, run_id=run["id"], label="teal")
    assert sorted(one["sample_index"] for one in kept) == [0, 1, 2]
    more = wait_for(client, start_run(client, samples=4)["id"])
    assert (more["cached"], more["accepted"]) == (6, 2)


# --------------------------------------------------------------------- pause, resume, cancel, retry


def test_a_paused_run_asks_no_more_and_goes_on_where_it_stopped(client, model):
    model.latency = 0.05
    add_labels(client, birds(60))
    run = start_run(client, concurrency=4)["id"]
    until(lambda: progress(client, run)["done"] >= 8)
    assert client.post(f"/v1/runs/{run}/pause").json()["state"] == "paused"
    # Calls in flight come in and are kept.
    until(
        lambda: progress(client, run)["done"] == sum(model.calls.values()) and not model.in_flight
    )
    asked = sum(model.calls.values())
    time.sleep(0.3)
    assert sum(model.calls.values()) == asked < 60
    assert client.post(f"/v1/runs/{run}/resume").status_code == 200
    assert wait_for(client, run, "succeeded")["accepted"] == 60
    assert set(model.calls.values()) == {1}


def test_a_cancelled_run_keeps_its_answers_and_a_retry_asks_for_the_rest(client, model):
    model.latency = 0.05
    add_labels(client, birds(60))
    run = start_run(client, concurrency=4)["id"]
    until(lambda: progress(client, run)["done"] >= 4)
    assert client.post(f"/v1/runs/{run}/cancel").json()["state"] == "cancelled"
    assert client.post(f"/v1/runs/{run}/resume").status_code == 409
    until(lambda: model.in_flight == 0)
    kept = len(generations(client, run_id=run))
    assert 4 <= kept < 60
    assert client.post(f"/v1/runs/{run}/retry").status_code == 200
    assert wait_for(client, run, "succeeded")["accepted"] == 60
    assert set(model.calls.values()) == {1}


def test_persistent_faults_end_as_failed_and_a_retry_asks_only_those(client, model):
    add_labels(client, birds(12))
    bad = {"bird 3", "bird 7"}
    model.behave = lambda call: DOWN if call.label in bad else None
    run = wait_for(client, start_run(client)["id"])
    assert (run["state"], run["accepted"], run["failed"]) == ("failed", 10, 2)
    assert run["error"] == "2 of 12 got no answer: retry the run to get the others"
    failed = generations(client, run_id=run["id"], status="failed")
    assert {one["label"] for one in failed} == bad
    assert all("answers 500" in one["problems"][0] for one in failed)
    assert run["calls"] == sum(model.calls.values()) == 10 + 2 * 6
    model.behave = lambda call: None
    before = dict(model.calls)
    assert client.post(f"/v1/runs/{run['id']}/retry").status_code == 200
    run = wait_for(client, run["id"], "succeeded")
    assert (run["accepted"], run["failed"], run["error"]) == (12, 0, None)
    assert {label for label in model.calls if model.calls[label] > before[label]} == bad
    assert client.post(f"/v1/runs/{run['id']}/retry").status_code == 409


def test_a_server_that_answers_nobody_stops_the_run(client, model):
    add_labels(client, birds(100))
    model.behave = lambda call: Answer(400, body='{"error": {"message": "closed today"}}')
    run = wait_for(client, start_run(client, concurrency=4)["id"])
    assert run["state"] == "failed"
    assert "labels in a row got no answer" in run["error"]
    assert "closed today" in run["error"]
    assert run["failed"] < 30


def test_answers_that_stay_bad_are_rejected_and_do_not_fail_the_run(client, model):
    add_labels(client, birds(3))
    sorry = json.dumps({"description": "I'm sorry, but I cannot describe that."})
    model.script("bird 1", *[Answer(content=sorry)] * 3)
    run = wait_for(client, start_run(client)["id"])
    assert (run["state"], run["accepted"], run["rejected"], run["calls"]) == ("succeeded", 2, 1, 5)


# -------------------------------------------------------------------------------- money and limits


def test_a_spent_budget_pauses_and_a_raised_one_goes_on(client, model):
    add_labels(client, birds(30))
    model.latency = 0.01
    run = start_run(client, concurrency=2, budget_tokens=700)["id"]  # ten answers of 70 tokens
    paused = wait_for(client, run, "paused")
    assert "budget of the run is spent" in paused["error"]
    assert 10 <= paused["accepted"] <= 11  # one more may have been in flight
    client.post(f"/v1/runs/{run}/resume")
    assert wait_for(client, run, "paused")["accepted"] == paused["accepted"]
    answer = client.post(f"/v1/runs/{run}/resume", json={"budget_tokens": 100_000})
    assert answer.json()["budget_tokens"] == 100_000
    assert wait_for(client, run, "succeeded")["accepted"] == 30
    assert set(model.calls.values()) == {1}


def test_bad_answers_are_spent_too(client, model):
    add_labels(client, birds(30))
    model.behave = lambda call: Answer(content="no JSON") if call.number < 3 else None
    run = wait_for(client, start_run(client, concurrency=1, budget_tokens=70 * 9)["id"])
    assert run["state"] == "paused"
    assert run["accepted"] == 3  # of three calls each


def test_a_budget_in_money_pauses_too(client, model):
    add_labels(client, birds(10))
    model.latency = 0.01
    each = (50 * 1.0 + 20 * 10.0) / 1e6
    run = wait_for(client, start_run(client, concurrency=1, budget_usd=3 * each)["id"])
    assert (run["state"], run["accepted"]) == ("paused", 3)
    assert run["cost_usd"] == pytest.approx(3 * each)


def test_a_budget_in_money_needs_a_price(client, model):
    add_labels(client, birds(2))
    body = {"label_set": "birds", "model": "unpriced", "budget_usd": 1.0}
    answer = client.post("/v1/runs", json=body)
    assert answer.status_code == 422
    assert "ENRICH_PRICES" in answer.json()["detail"]
    assert client.get("/v1/runs").json() == []
    body = {"model": "unpriced", "budget_tokens": 1, "concurrency": 1}
    run = wait_for(client, start_run(client, **body)["id"])
    answer = client.post(f"/v1/runs/{run['id']}/resume", json={"budget_usd": 1.0})
    assert answer.status_code == 422
    assert run["state"] == "paused"


def test_a_quota_that_is_used_up_stops_at_once_and_keeps_what_is_there(client, model):
    add_labels(client, birds(50))
    model.latency = 0.02
    model.behave = lambda call: BROKE if sum(model.calls.values()) > 10 else None
    run = wait_for(client, start_run(client, concurrency=2)["id"])
    assert run["state"] == "failed"
    assert "quota" in run["error"] and "add credit" in run["error"]
    assert run["accepted"] == 10
    assert sum(model.calls.values()) <= 12
    model.behave = lambda call: None
    client.post(f"/v1/runs/{run['id']}/retry")
    assert wait_for(client, run["id"], "succeeded")["accepted"] == 50


def test_a_label_that_is_put_off_for_long_is_parked_while_the_others_go_on(client, model):
    add_labels(client, birds(20))
    model.script("bird 0", LONG)
    run = start_run(client, concurrency=4)["id"]
    found = until(lambda: (now := progress(client, run))["done"] == 19 and now)
    assert (found["state"], found["parked"], found["accepted"]) == ("running", 1, 19)
    assert model.calls["bird 0"] == 1
    assert client.post(f"/v1/runs/{run}/cancel").json()["state"] == "cancelled"


def test_labels_that_are_parked_while_another_waits_are_each_requested_again(
    client, model, monkeypatch
):
    for module in (enricher, retry):
        monkeypatch.setattr(module, "MAX_RETRY_AFTER_S", 0.1)  # longer waits are parked
    add_labels(client, birds(12))
    # The third is parked while the run waits for the first two, and is due before them.
    for name in ("bird 0", "bird 1"):
        model.script(name, Answer(429, headers={"Retry-After": "2"}, delay=0.3))
    model.script("bird 2", Answer(429, headers={"Retry-After": "0.2"}, delay=0.5))
    run = wait_for(client, start_run(client, concurrency=2)["id"])
    assert (run["state"], run["accepted"], run["cached"]) == ("succeeded", 12, 0)
    assert [model.calls[name] for name in birds(12)] == [2, 2, 2, *[1] * 9]


@pytest.mark.parametrize(
    "limits", [{"llm_calls_per_minute": 600}, {"llm_tokens_per_minute": 42_000}]
)
def test_the_limits_of_the_operator_slow_a_run_down(connect, model, limits):
    client = connect(**limits)
    add_labels(client, birds(40))
    run = wait_for(client, start_run(client, concurrency=40)["id"])
    assert run["accepted"] == 40
    times = [call.at for call in model.requests]
    # 10 calls (of 70 tokens) a second, the first ten or so at once: 3 s but for a busy machine.
    assert max(times) - min(times) >= 1


def test_a_paused_run_drops_what_only_waits_for_its_turn(connect, model):
    client = connect(llm_calls_per_minute=60)
    add_labels(client, birds(20))
    run = start_run(client, concurrency=20)["id"]
    until(lambda: model.calls)
    client.post(f"/v1/runs/{run}/pause")
    until(lambda: not model.in_flight)
    time.sleep(0.6)
    asked = sum(model.calls.values())
    time.sleep(1.2)
    assert sum(model.calls.values()) == asked


def test_a_run_that_shares_the_questions_of_a_paused_one_goes_on_with_them(client, model):
    add_labels(client, birds(6))
    model.latency = 1.0  # longer than it takes to see the pause
    paused = start_run(client, concurrency=1)["id"]  # has one question under way and one in hand
    until(lambda: model.in_flight)
    run = start_run(client, concurrency=3)["id"]
    until(lambda: model.in_flight == 4)
    client.post(f"/v1/runs/{paused}/pause")

    run = wait_for(client, run)
    assert (run["state"], run["accepted"] + run["cached"]) == ("succeeded", 6)
    assert sum(model.calls.values()) == 6


def test_a_run_repeats_a_call_of_another_caller_that_failed(client, model):
    add_labels(client, ["teal"])
    model.script("teal", replace(DOWN, delay=1.0), DOWN, DOWN)  # as often as describe tries
    with ThreadPoolExecutor(1) as pool:
        described = pool.submit(client.post, "/v1/describe", json={"labels": ["teal"]})
        until(lambda: model.calls["teal"])
        run = wait_for(client, start_run(client)["id"])
    assert described.result().json()[0]["status"] == "failed"
    assert (run["state"], run["accepted"], run["cached"], run["calls"]) == ("succeeded", 1, 0, 1)


def test_describe_goes_before_a_run(connect, model):
    client = connect(llm_concurrency=2)
    model.latency = 0.1
    add_labels(client, birds(60))
    run = start_run(client, concurrency=32)["id"]
    until(lambda: sum(model.calls.values()) >= 4)
    (one,) = client.post("/v1/describe", json={"labels": ["surf scoter"]}).json()
    assert one["status"] == "accepted"
    order = [call.label for call in model.requests]
    assert order.index("surf scoter") < 20  # it would have been the 33rd at best
    assert progress(client, run)["state"] == "running"
    client.post(f"/v1/runs/{run}/cancel")


def test_describe_hurries_what_a_run_has_in_its_queue_already(connect, model):
    client = connect(llm_concurrency=1)
    model.latency = 0.1
    add_labels(client, birds(60))
    run = start_run(client, concurrency=60)["id"]
    until(lambda: model.calls)
    labels = [{"name": "bird 55"}]
    (one,) = client.post("/v1/describe", json={"labels": labels}).json()
    assert one["status"] == "accepted"
    assert [call.label for call in model.requests].index("bird 55") < 30
    assert model.calls["bird 55"] == 1
    client.post(f"/v1/runs/{run}/cancel")


def test_an_estimate_asks_nothing_and_learns_from_what_was_answered(client, model):
    add_labels(client, birds(10))
    body = {"label_set": "birds", "samples": 2}
    first = client.post("/v1/runs/estimate", json=body).json()
    assert (first["total"], first["cached"], first["new_requests"]) == (20, 0, 20)
    assert first["cost_usd"] > 0
    assert first["basis"].startswith("the length of the prompt")
    assert not model.requests
    assert client.get("/v1/runs").json() == []
    wait_for(client, start_run(client)["id"])
    second = client.post("/v1/runs/estimate", json=body).json()
    assert (second["cached"], second["new_requests"]) == (10, 10)
    assert second["prompt_tokens"] == 500
    assert second["cost_usd"] == pytest.approx((500 * 1.0 + 200 * 10.0) / 1e6)
    assert second["basis"] == "the mean of 10 earlier answers"


# ---------------------------------------------------------------------- looking on, and kills


def test_progress_is_streamed_and_ends_with_the_run(client, model):
    model.latency = 0.05
    add_labels(client, birds(30))
    run = start_run(client, concurrency=2)["id"]
    views = []
    with client.stream("GET", f"/v1/runs/{run}/events") as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        for line in stream.iter_lines():
            if line.startswith("data:"):
                views.append(json.loads(line[5:]))
    assert len(views) >= 2
    assert [view["done"] for view in views] == sorted(view["done"] for view in views)
    assert (views[-1]["state"], views[-1]["done"]) == ("succeeded", 30)


def test_runs_are_listed_the_newest_first_and_by_state(client, model):
    add_labels(client, birds(2))
    add_labels(client, ["oak"], "trees")
    runs = [start_run(client)["id"], start_run(client, label_set="trees")["id"]]
    for run in runs:
        wait_for(client, run)
    assert [run["id"] for run in client.get("/v1/runs").json()] == runs[::-1]
    of_trees = client.get("/v1/runs", params={"label_set": "trees"}).json()
    assert [run["id"] for run in of_trees] == [runs[1]]
    assert client.get("/v1/runs", params={"state": "paused"}).json() == []
    assert client.get("/v1/runs", params={"limit": 1, "offset": 1}).json()[0]["id"] == runs[0]


@contextmanager
def serving(environment: dict[str, str]) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`enrich serve` as a process of its own; gives it and its URL."""
    command = [sys.executable, "-m", "enrich_service.cli", "serve", "--port", "0"]
    environment = os.environ | environment
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        reading = threading.Thread(target=process.stderr.read)  # a full pipe would block it
        try:
            for line in process.stderr:
                if found := re.search(r"running on (http://\S+)", line):
                    reading.start()
                    yield process, found.group(1)
                    break
            else:
                raise AssertionError("the service did not start")
        finally:
            process.kill()
            if reading.ident:
                reading.join()


def test_a_killed_service_goes_on_when_it_is_started_again_and_asks_nothing_twice(
    model, connect, tmp_path, migrated
):
    model.latency = 0.05
    environment = {
        "ENRICH_DATA_DIR": str(migrated(tmp_path / "data")),
        "OPENAI_BASE_URL": model.url,
        "ENRICH_RUN_LEASE_SECONDS": "1",
    }
    with serving(environment) as (process, url), httpx.Client(base_url=url) as client:
        add_labels(client, birds(80))
        run = start_run(client, concurrency=4)["id"]
        until(lambda: progress(client, run)["done"] >= 20)
        process.send_signal(signal.SIGKILL)
        process.wait()
    until(lambda: model.in_flight == 0)
    before = dict(model.calls)
    client = connect(run_lease_seconds=1.0)
    found = wait_for(client, run, "succeeded")
    assert (found["done"], found["accepted"], found["failed"]) == (80, 80, 0)
    asked_again = {label for label in before if model.calls[label] > before[label]}
    assert len(generations(client, run_id=run, status="accepted")) == 80
    # What was in flight or not yet stored at the moment of the kill is paid for and lost.
    assert len(asked_again) <= 4 * WORKERS
    assert sum(model.calls.values()) <= 80 + 4 * WORKERS


def test_a_run_whose_owner_died_before_the_clock_was_put_back_is_taken_up(connect, model, tmp_path):
    client = connect(run_lease_seconds=0.5)
    add_labels(client, birds(3))
    run = wait_for(client, start_run(client)["id"])["id"]
    engine = make_engine(Settings(data_dir=tmp_path / "data").sqlalchemy_url)
    with writing(engine) as session:
        row = session.get_one(Run, run)
        row.state, row.owner = RunState.RUNNING, "a process that was killed"
        row.owner_expires_at = utcnow() + timedelta(hours=1)
    engine.dispose()
    again = connect(run_lease_seconds=0.5)
    assert wait_for(again, run)["state"] == "succeeded"


def test_labels_counted_twice_after_a_lost_lease_are_counted_once_in_the_end(
    connect, model, tmp_path
):
    client = connect()
    add_labels(client, birds(3))
    model.latency = 0.5
    run = start_run(client, concurrency=1)["id"]
    wait_for(client, run, "running")
    engine = make_engine(Settings(data_dir=tmp_path / "data").sqlalchemy_url)
    with writing(engine) as session:  # as a process that lost the lease goes on counting
        session.get_one(Run, run).cached = 2
    engine.dispose()
    ended = wait_for(client, run)
    assert (ended["state"], ended["accepted"], ended["cached"]) == ("succeeded", 3, 0)
    assert ended["done"] == ended["total"] == 3


def test_every_label_ends_with_a_valid_text_whatever_the_server_does(client, model):
    names = birds(150)
    add_labels(client, names)
    model.behave = faulty({"429": 0.10, "500": 0.05, "reset": 0.02, "cut": 0.02}, seed=1)
    run = wait_for(client, start_run(client, concurrency=50)["id"])
    assert (run["state"], run["accepted"], run["failed"]) == ("succeeded", 150, 0)
    assert run["calls"] == sum(model.calls.values()) > 150
    assert set(model.answered.values()) == {1}  # no good answer was asked for a second time
    texts = {
        one["label"]: one["text"]
        for one in generations(client, run_id=run["id"], status="accepted")
    }
    assert set(texts) == set(names)
    assert all(label in text for label, text in texts.items())


BAD_RUNS = [
    ({"label_set": "nix"}, "no label set 'nix'"),
    ({"prompt": "nix"}, "no prompt 'nix'"),
    ({"alias": "nix"}, "no alias 'nix'"),
    ({"samples": 0}, "samples"),
    ({"concurrency": 0}, "concurrency"),
    ({"budget_usd": -1}, "budget_usd"),
    ({"colour": "red"}, "colour"),
]


def test_a_run_that_makes_no_sense_is_refused_and_not_stored(client, model):
    add_labels(client, birds(1))
    for body, message in BAD_RUNS:
        answer = client.post("/v1/runs", json={"label_set": "birds"} | body)
        assert answer.status_code in (404, 422)
        assert message in answer.json()["detail"]
    assert client.get("/v1/runs").json() == []
    assert not model.requests
