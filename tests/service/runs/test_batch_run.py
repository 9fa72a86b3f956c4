"""Runs by the Batch API: what is sent, what is paid, and what a kill or a bad day leaves."""

import json
import os
import signal

import httpx
import pytest

from enrich_service.runs.batch import collector
from enrich_service.runs.batch import run as batch_run
from tests.llm_batches import Fate
from tests.llm_server import Answer
from tests.service.llm_fixtures import add_labels, data_of, start_run, wait_for
from tests.service.runs.test_runs import birds, generations, serving, until


def start_batch_run(client, labels=6, **body):
    add_labels(client, birds(labels))
    return start_run(client, mode="batch", **body)


def asked_twice(model):
    return {label: count for label, count in model.calls.items() if count > 1}


def test_a_run_by_batch_sends_one_file_and_pays_half(client, model):
    run = wait_for(client, start_batch_run(client)["id"])

    assert (run["state"], run["accepted"], run["mode"]) == ("succeeded", 6, "batch")
    # The first label is asked live: a wrong model or key would else be told after a day.
    [batch] = run["batches"]
    assert (batch["status"], batch["requests"], batch["completed"]) == ("completed", 5, 5)
    assert batch["ended_at"] and batch["error"] is None
    [sent] = model.batching.batches.values()
    rows = generations(client, run_id=run["id"])
    keys = {client.get(f"/v1/generations/{row['id']}").json()["dedupe_key"] for row in rows}
    lines = model.batching.lines(sent)
    assert {line["custom_id"] for line in lines} < keys and len(lines) == 5
    assert lines[0]["body"]["response_format"]["type"] == "json_schema"
    full = (50 * 1.0 + 20 * 10.0) / 1_000_000
    assert run["cost_usd"] == pytest.approx(full + 5 * full / 2)
    page = client.get(f"/runs/{run['id']}").text
    assert sent.id in page and "batch, half the price" in page
    assert not asked_twice(model)


def test_an_estimate_is_of_half_the_price(client, model):
    add_labels(client, birds(4))
    live, batch = (
        client.post("/v1/runs/estimate", json={"label_set": "birds", "mode": mode}).json()
        for mode in ("live", "batch")
    )
    assert batch["cost_usd"] == pytest.approx(live["cost_usd"] / 2) and live["cost_usd"] > 0
    assert not model.calls and not model.batching.files


def test_what_is_too_much_for_one_file_goes_into_several(client, model, monkeypatch):
    monkeypatch.setattr(batch_run, "MAX_REQUESTS", 4)
    run = wait_for(client, start_batch_run(client, labels=12)["id"])
    assert (run["state"], run["accepted"]) == ("succeeded", 12)
    assert [one["requests"] for one in run["batches"]] == [4, 4, 3]
    assert not asked_twice(model)


def test_no_file_is_larger_than_a_provider_takes(client, model, monkeypatch):
    monkeypatch.setattr(batch_run, "MAX_BYTES", 5000)
    run = wait_for(client, start_batch_run(client, labels=9)["id"])
    assert run["accepted"] == 9 and len(run["batches"]) > 1
    inputs = [model.batching.files[one.input_file_id] for one in model.batching.batches.values()]
    assert all(len(file.content) <= 5000 for file in inputs)


def test_bad_answers_are_asked_again_in_the_next_batch(client, model):
    names = birds(6)
    model.script(names[2], Answer(content="no JSON at all"))
    model.script(names[3], Answer(finish_reason="length"))
    model.script(names[4], *(3 * [Answer(content='{"description": "As an AI, I cannot."}')]))
    run = wait_for(client, start_batch_run(client)["id"])

    assert (run["state"], run["accepted"], run["rejected"]) == ("succeeded", 5, 1)
    assert [one["requests"] for one in run["batches"]] == [5, 3, 1]
    assert {label: model.calls[label] for label in names[2:5]} == {
        names[2]: 2,
        names[3]: 2,
        names[4]: 3,
    }
    again = [call for call in model.requests if call.label == names[3]][1]
    assert again.body["max_tokens"] > model.requests[1].body["max_tokens"]


def test_characters_that_cannot_be_stored_are_replaced_in_the_answers_of_a_batch(client, model):
    model.script("bird 1", Answer(content='{"description": "A bird \ud83d with red wings."}'))
    run = wait_for(client, start_batch_run(client)["id"])
    assert (run["state"], run["accepted"]) == ("succeeded", 6)
    [bad] = generations(client, label="bird 1", status="retried")
    assert bad["text"] == "A bird \ufffd with red wings."


def test_questions_that_fail_on_their_own_are_told_and_retried(client, model):
    names = birds(6)
    model.script(names[2], Answer(400, body='{"error": {"message": "that is a bad question"}}'))
    model.script(names[3], *(3 * [Answer(500)]))
    run = wait_for(client, start_batch_run(client)["id"])

    assert (run["state"], run["accepted"], run["failed"]) == ("failed", 4, 2)
    assert model.calls[names[3]] == 3
    client.post(f"/v1/runs/{run['id']}/retry")
    run = wait_for(client, run["id"])
    assert (run["state"], run["accepted"], run["failed"]) == ("succeeded", 6, 0)


def test_what_an_expired_batch_has_answered_is_taken_in(client, model):
    model.batching.fates.append(Fate(expires_after=2))
    run = wait_for(client, start_batch_run(client)["id"])
    assert (run["state"], run["accepted"], run["failed"]) == ("failed", 3, 3)
    failed = generations(client, status="failed")[0]["id"]
    assert "expired" in client.get(f"/v1/generations/{failed}").json()["problems"][0]

    client.post(f"/v1/runs/{run['id']}/retry")
    run = wait_for(client, run["id"])
    assert (run["state"], run["accepted"]) == ("succeeded", 6)
    assert [one["status"] for one in run["batches"]] == ["expired", "completed"]
    assert not asked_twice(model)


def test_a_batch_that_is_refused_ends_the_run_with_one_line(client, model):
    model.batching.fates.append(Fate(fails="the model is not for batches"))
    run = wait_for(client, start_batch_run(client)["id"])
    assert run["state"] == "failed" and "the model is not for batches" in run["error"]
    assert "\n" not in run["error"]
    client.post(f"/v1/runs/{run['id']}/retry")
    assert wait_for(client, run["id"])["accepted"] == 6


def test_what_finds_no_room_in_the_queue_is_sent_in_smaller_batches(client, model, monkeypatch):
    monkeypatch.setattr(collector, "QUEUE_FULL_DELAY_S", 0.5)
    model.batching.room = 3
    run = wait_for(client, start_batch_run(client, labels=8)["id"])
    assert (run["state"], run["accepted"], run["failed"]) == ("succeeded", 8, 0)
    found = [(one["requests"], one["status"]) for one in run["batches"]]
    assert found == [(7, "failed"), *[(3, "completed")] * 2, (1, "completed")]
    assert "is full" in run["batches"][0]["error"] and not asked_twice(model)


def test_of_several_batches_those_that_find_no_room_wait_for_the_others(client, model, monkeypatch):
    monkeypatch.setattr(batch_run, "MAX_REQUESTS", 3)
    model.batching.room = 4
    model.batching.fates.append(Fate(seconds=1.0))
    run = wait_for(client, start_batch_run(client, labels=10)["id"])
    assert (run["state"], run["accepted"]) == ("succeeded", 10)
    completed = [one["requests"] for one in run["batches"] if one["status"] == "completed"]
    assert completed == [3, 3, 3] and not asked_twice(model)


def test_a_question_that_alone_finds_no_room_ends_the_run(client, model, monkeypatch):
    monkeypatch.setattr(collector, "QUEUE_FULL_DELAY_S", 0.0)
    model.batching.room = 0
    run = wait_for(client, start_batch_run(client, labels=4)["id"])
    assert run["state"] == "failed" and "Enqueued token limit reached" in run["error"]
    assert [one["requests"] for one in run["batches"]] == [3, 1]


def test_a_server_without_batches_is_told_in_one_line(client, model):
    model.batching = None
    run = wait_for(client, start_batch_run(client)["id"])
    assert run["state"] == "failed" and "does not support batches" in run["error"]
    assert run["accepted"] == 1 and "\n" not in run["error"]


def test_a_cancelled_run_cancels_its_batch(client, model):
    model.batching.fates.append(Fate(seconds=60))
    run = start_batch_run(client)
    until(lambda: [one.status for one in model.batching.batches.values()] == ["in_progress"])
    client.post(f"/v1/runs/{run['id']}/cancel")
    until(lambda: [one.status for one in model.batching.batches.values()] == ["cancelled"])
    until(lambda: client.get(f"/v1/runs/{run['id']}").json()["batches"][0]["ended_at"])
    run = client.get(f"/v1/runs/{run['id']}").json()
    assert (run["state"], run["accepted"], run["failed"]) == ("cancelled", 1, 0)

    client.post(f"/v1/runs/{run['id']}/retry")
    assert wait_for(client, run["id"])["accepted"] == 6


def test_what_a_cancelled_batch_has_answered_is_kept(client, model, enrich):
    model.batching.fates.append(Fate(seconds=60, cancelled_after=2))
    run = start_batch_run(client)["id"]
    until(lambda: [one.status for one in model.batching.batches.values()] == ["in_progress"])
    # By the command, which only writes it down: the service that works on the run tells it.
    assert data_of(enrich("run", "cancel", run, "--json"))["state"] == "cancelled"
    until(lambda: client.get(f"/v1/runs/{run}").json()["batches"][0]["ended_at"])
    found = client.get(f"/v1/runs/{run}").json()
    assert (found["state"], found["accepted"], found["failed"]) == ("cancelled", 3, 0)

    client.post(f"/v1/runs/{run}/retry")
    assert wait_for(client, run)["accepted"] == 6
    assert not asked_twice(model)


def test_a_paused_run_takes_in_what_it_sent_and_goes_on(client, model):
    model.batching.fates.append(Fate(seconds=1.5))
    run = start_batch_run(client)["id"]
    until(lambda: [one.status for one in model.batching.batches.values()] == ["in_progress"])
    client.post(f"/v1/runs/{run}/pause")
    until(lambda: client.get(f"/v1/runs/{run}").json()["accepted"] == 6)
    assert client.get(f"/v1/runs/{run}").json()["state"] == "paused"
    client.post(f"/v1/runs/{run}/resume", json={})
    assert wait_for(client, run, "succeeded")["accepted"] == 6
    assert len(model.batching.batches) == 1 and not asked_twice(model)


@pytest.mark.parametrize("step", ["upload", "create"])
def test_what_the_provider_did_and_could_not_tell_is_not_done_again(client, model, step):
    model.batching.lost_answers.append(step)
    run = wait_for(client, start_batch_run(client)["id"])
    assert (run["state"], run["accepted"], len(run["batches"])) == ("succeeded", 6, 1)
    assert len(model.batching.uploads()) == len(model.batching.batches) == 1
    assert not asked_twice(model)


def test_two_runs_over_the_same_labels_ask_once(client, model):
    model.batching.fates.append(Fate(seconds=2))
    first = start_batch_run(client)
    until(lambda: model.batching.batches)
    second = start_run(client, mode="batch")
    both = [wait_for(client, run["id"]) for run in (first, second)]
    assert [run["state"] for run in both] == ["succeeded", "succeeded"]
    assert (both[0]["accepted"], both[1]["cached"]) == (6, 6)
    assert not asked_twice(model)


def test_a_batch_run_waits_for_what_a_live_run_is_asking(client, model):
    names = birds(6)
    model.script(names[5], Answer(delay=1.5))
    add_labels(client, names)
    live = start_run(client)
    until(lambda: model.calls[names[5]] == 1)
    batch = wait_for(client, start_run(client, mode="batch")["id"])
    assert (batch["state"], batch["cached"], batch["batches"]) == ("succeeded", 6, [])
    assert wait_for(client, live["id"])["accepted"] == 6
    assert not asked_twice(model)


def test_who_asks_live_waits_for_what_a_batch_is_asking(client, model):
    model.batching.fates.append(Fate(seconds=60, cancelled_after=2))
    batch = start_batch_run(client)
    until(lambda: [one.status for one in model.batching.batches.values()] == ["in_progress"])

    add_labels(client, [*birds(6), "knot"], "more birds")
    live = start_run(client, label_set="more birds")

    def live_run():
        return client.get(f"/v1/runs/{live['id']}").json()

    until(lambda: (live_run()["waiting_on_other_runs"], live_run()["accepted"]) == (5, 1))
    assert (live_run()["state"], live_run()["cached"]) == ("running", 1)
    assert "5 waiting on other runs" in client.get(f"/runs/{live['id']}").text

    name = birds(6)[1]
    refused = client.post("/v1/describe", json={"labels": [name]})
    assert refused.status_code == 409
    assert f"{name!r} is part of a batch of run {batch['id']}" in refused.json()["detail"]
    refused, known = client.post("/v1/describe", json={"labels": [name, birds(6)[0]]}).json()
    assert (refused["status"], known["status"]) == ("failed", "accepted")
    [new] = client.post("/v1/describe", json={"labels": [name], "refresh": True}).json()
    assert new["status"] == "accepted" and model.calls[name] == 1

    client.post(f"/v1/runs/{batch['id']}/cancel")  # two it had answered by then
    run = wait_for(client, live["id"])
    assert (run["state"], run["cached"], run["accepted"]) == ("succeeded", 3, 4)
    assert asked_twice(model) == {name: 2}


def test_no_more_is_sent_than_the_budget_allows_at_the_worst(client, model):
    run = wait_for(client, start_batch_run(client, labels=20, budget_tokens=1000)["id"])
    assert run["state"] == "paused" and "budget" in run["error"]
    assert 1 < run["accepted"] < 20
    assert run["prompt_tokens"] + run["completion_tokens"] <= 1000


@pytest.mark.parametrize(
    ("body", "said"),
    [({"prompt": "image-caption", "images": "/nowhere"}, "runs over images are live")],
)
def test_what_no_batch_can_ask_is_refused(client, body, said):
    add_labels(client, birds(2))
    answer = client.post("/v1/runs", json={"label_set": "birds", "mode": "batch", **body})
    assert answer.status_code == 422 and said in answer.json()["detail"]
    assert client.get("/v1/runs").json() == []


def test_a_replay_file_takes_no_batches(connect, tmp_path):
    replies = tmp_path / "replies.jsonl"
    replies.write_text('{"label": "bird 0", "prompt": "visual-description", "reply": "x"}\n')
    client = connect(llm_url=f"replay:{replies}")
    add_labels(client, birds(2))
    answer = client.post("/v1/runs", json={"label_set": "birds", "mode": "batch"})
    assert answer.status_code == 422 and "replay file" in answer.json()["detail"]
    assert client.get("/v1/runs").json() == []


@pytest.mark.parametrize("moment", ["in progress", "upload", "create"])
def test_a_killed_service_sends_nothing_twice(model, connect, tmp_path, migrated, moment):
    """At the latter two the provider did what it was asked for, and nobody was told."""
    environment = {
        "ENRICH_DATA_DIR": str(migrated(tmp_path / "data")),
        "OPENAI_BASE_URL": model.url,
        "ENRICH_LLM_MODEL": "small",
        "ENRICH_RUN_LEASE_SECONDS": "1",
    }
    model.batching.fates.append(Fate(seconds=3))
    if moment != "in progress":
        model.batching.lost_answers.append(moment)
    with serving(environment) as (process, url), httpx.Client(base_url=url, timeout=30) as client:
        run = start_batch_run(client)["id"]
        if moment == "in progress":
            until(lambda: any(b.status == "in_progress" for b in model.batching.batches.values()))
        else:
            until(lambda: not model.batching.lost_answers)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    found = wait_for(connect(run_lease_seconds=1.0), run, seconds=60)
    assert (found["state"], found["accepted"]) == ("succeeded", 6)
    assert len(model.batching.uploads()) == len(model.batching.batches) == 1
    assert not asked_twice(model)


def test_a_later_process_asks_as_the_server_was_asked_before_and_nothing_live(enrich, model):
    said = "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."

    def behave(call):
        if "max_tokens" in call.body:
            return Answer(400, body=json.dumps({"error": {"message": said}}))
        return None

    model.behave, model.formats = behave, ("json_object", "text")
    for label_set, count in (("birds", 4), ("fish", 3)):
        names = [f"{label_set} {n}" for n in range(count)]
        data_of(enrich("labels", "add", label_set, *names, "--json"))
        run = data_of(enrich("run", "start", label_set, "--batch", "--json"))
        assert (run["state"], run["accepted"]) == ("succeeded", count)
        assert [batch["requests"] for batch in run["batches"]] == [3]
    paths = [call.path for call in model.requests if call.label.startswith("fish")]
    assert paths == 3 * ["/v1/batches"]


def test_the_command_asks_by_batch_and_says_what_it_would_cost(enrich, model):
    data_of(enrich("labels", "add", "birds", *birds(4), "--json"))
    estimate = data_of(enrich("run", "start", "birds", "--batch", "--estimate", "--json"))
    run = data_of(enrich("run", "start", "birds", "--batch", "--json"))
    assert (run["state"], run["accepted"], run["mode"]) == ("succeeded", 4, "batch")
    assert estimate["cost_usd"] > 0 and len(run["batches"]) == 1
