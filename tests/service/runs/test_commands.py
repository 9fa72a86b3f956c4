import json
import re
import signal
import subprocess
import sys
import time

import pytest

from enrich_service.runs import commands
from tests.llm_server import Answer
from tests.service.llm_fixtures import data_of

REPLY = json.dumps({"description": "The teal has a green stripe behind its eye and grey flanks."})


def birds(n):
    return [f"bird {i}" for i in range(n)]


# --------------------------------------------------------------------------------------- describe


def test_names_are_described_in_a_table_and_as_one_json_document(enrich, model):
    call = enrich("describe", "teal", "surf scoter")
    assert call.exit_code == 0
    assert "The surf scoter has a" in call.stdout
    found = data_of(enrich("describe", "teal", "surf scoter", "--json"))
    assert [(one["label"], one["status"], one["cached"]) for one in found] == [
        ("teal", "accepted", True),
        ("surf scoter", "accepted", True),
    ]
    assert all(one["label"] in one["text"] for one in found)
    assert sum(model.calls.values()) == 2
    assert not data_of(enrich("describe", "teal", "--refresh", "--json"))[0]["cached"]


def test_context_prompt_and_model_can_be_chosen(enrich, model):
    options = ("--context", "a bird", "--prompt", "attributes", "--model", "large")
    (one,) = data_of(enrich("describe", "teal", *options, "--json"))
    assert one["attributes"]["colours"]
    assert '"context": "a bird"' in model.requests[0].text
    assert model.requests[0].body["model"] == "large"


def test_recorded_replies_answer_without_a_server(enrich, tmp_path, monkeypatch):
    line = {"label": "teal", "prompt": "visual-description", "reply": REPLY}
    (tmp_path / "replies.jsonl").write_text(json.dumps(line))
    monkeypatch.setenv("OPENAI_BASE_URL", f"replay:{tmp_path / 'replies.jsonl'}")
    (one,) = data_of(enrich("describe", "teal", "--json"))
    assert (one["source"], one["provider"]) == ("replay", "replay:replies.jsonl")
    assert one["text"] == json.loads(REPLY)["description"]


def test_without_a_key_one_line_names_the_two_variables(enrich, monkeypatch):
    monkeypatch.delenv("OPENAI_BASE_URL")
    for arguments in (("describe", "teal"), ("run", "start", "nix")):
        call = enrich(*arguments)
        assert call.exit_code == 1
        assert call.stdout == ""
        assert call.stderr.count("\n") == 1
        assert "OPENAI_API_KEY" in call.stderr
        assert "OPENAI_BASE_URL" in call.stderr


def test_a_name_without_a_text_is_told_and_exits_with_1(enrich, model):
    sorry = json.dumps({"description": "I'm sorry, but I cannot describe it."})
    model.script("teal", *[Answer(content=sorry)] * 3)
    call = enrich("describe", "teal", "mallard", "--json")
    assert call.exit_code == 1
    assert [one["status"] for one in json.loads(call.stdout)] == ["rejected", "accepted"]
    assert "'teal' rejected: refusal:" in call.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["describe", "a\x07"], "control character U+0007"),
        (["describe", "x" * 10_000], "10000 characters"),
        (["describe", *birds(101)], "labels"),
        (["describe", "a", "--prompt", "nix"], "no prompt 'nix'"),
        (["run", "start", "nix"], "no label set 'nix'"),
        (["run", "start", "nix", "--samples", "0"], "samples"),
        (["run", "resume", "7"], "no run 7"),
        (["run", "show", "7"], "no run 7"),
        (["run", "retry", "7"], "no run 7"),
        (["run", "pause", "7"], "no run 7"),
        (["run", "cancel", "7"], "no run 7"),
    ],
)
def test_a_mistake_is_told_in_one_line(enrich, model, arguments, message):
    call = enrich(*arguments)
    assert call.exit_code == 1
    assert message in call.stderr
    assert call.stderr.count("\n") == 1
    assert call.stdout == ""
    assert not model.requests


# -------------------------------------------------------------------------------------------- runs


def test_a_run_is_estimated_started_shown_and_listed(enrich, model):
    data_of(enrich("labels", "add", "birds", *birds(12), "--json"))
    guess = data_of(enrich("run", "start", "birds", "--estimate", "--json"))
    assert (guess["total"], guess["new_requests"]) == (12, 12)
    assert not model.requests
    run = data_of(enrich("run", "start", "birds", "--author", "ada", "--json"))
    assert (run["state"], run["accepted"], run["author"]) == ("succeeded", 12, "ada")
    assert data_of(enrich("run", "show", run["id"], "--json")) == run
    assert data_of(enrich("run", "list", "--json")) == [run]
    assert data_of(enrich("run", "list", "--state", "failed", "--json")) == []
    assert "succeeded" in enrich("run", "show", run["id"]).stdout
    again = data_of(enrich("run", "start", "birds", "--json"))
    assert (again["cached"], again["calls"]) == (12, 0)


def test_a_spent_budget_tells_how_to_go_on(enrich, model):
    data_of(enrich("labels", "add", "birds", *birds(12), "--json"))
    call = enrich(
        "run", "start", "birds", "--budget-tokens", 210, "--concurrency", 1, "--json"
    )  # three answers of 70 tokens
    assert call.exit_code == 75
    assert json.loads(call.stdout)["state"] == "paused"
    assert call.stderr.strip().endswith("continue with `enrich run resume 1`")
    assert "budget" in call.stderr
    done = data_of(enrich("run", "resume", 1, "--budget-tokens", 100_000, "--json"))
    assert (done["state"], done["accepted"]) == ("succeeded", 12)
    assert set(model.calls.values()) == {1}


def test_a_failed_run_says_how_to_ask_for_the_rest(enrich, model):
    data_of(enrich("labels", "add", "birds", *birds(5), "--json"))
    no = Answer(400, body='{"error": {"message": "not today"}}')
    model.behave = lambda call: no if call.label == "bird 2" else None
    call = enrich("run", "start", "birds", "--json")
    assert call.exit_code == 1
    assert json.loads(call.stdout)["failed"] == 1
    assert "get the others with `enrich run retry 1`" in call.stderr
    model.behave = lambda call: None
    assert data_of(enrich("run", "retry", 1, "--json"))["accepted"] == 5
    assert model.calls["bird 1"] == 1
    again = enrich("run", "retry", 1)
    assert (again.exit_code, again.stdout) == (1, "")
    assert again.stderr == "enrich: Run 1 already has an answer for every label.\n"


def test_a_run_whose_output_is_a_file_tells_now_and_then_how_far_it_is(enrich, model, monkeypatch):
    monkeypatch.setattr(commands, "PROGRESS_INTERVAL_S", 0.0)
    model.latency = 0.3
    data_of(enrich("labels", "add", "birds", *birds(8), "--json"))
    call = enrich("run", "start", "birds", "--concurrency", 1, "--json")
    assert json.loads(call.stdout)["accepted"] == 8
    lines = [line for line in call.stderr.splitlines() if line.startswith("enrich: run 1: ")]
    told = re.compile(
        r"enrich: run 1: \d of 8, [\d.]+ per second, \$0\.00\d\d so far, 0:00:\d\d left"
    )
    assert any(told.fullmatch(line) for line in lines)


def test_ctrl_c_pauses_a_run_that_resume_finishes(enrich, model):
    model.latency = 0.05
    data_of(enrich("labels", "add", "birds", *birds(60), "--json"))
    command = [sys.executable, "-m", "enrich_service.cli", "run", "start", "birds"]
    process = subprocess.Popen(
        [*command, "--concurrency", "4", "--json"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    end = time.monotonic() + 120
    while sum(model.calls.values()) < 8:
        assert time.monotonic() < end and process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 75, err
    run = json.loads(out)
    assert run["state"] == "paused"
    assert 4 <= run["done"] < 60
    assert "continue with `enrich run resume 1`" in err
    assert "Traceback" not in err
    model.latency = 0.0
    done = data_of(enrich("run", "resume", run["id"], "--json"))
    assert (done["state"], done["accepted"]) == ("succeeded", 60)
    assert set(model.calls.values()) == {1}  # calls in flight came in and were kept
    assert enrich("run", "resume", run["id"]).exit_code == 1  # nothing is left to ask


def test_a_run_of_another_process_is_paused_and_cancelled_from_here(enrich, model):
    model.latency = 0.05
    data_of(enrich("labels", "add", "birds", *birds(60), "--json"))
    command = [sys.executable, "-m", "enrich_service.cli", "run", "start", "birds", "--json"]
    process = subprocess.Popen(
        [*command, "--concurrency", "2"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    end = time.monotonic() + 120
    while sum(model.calls.values()) < 4:
        assert time.monotonic() < end and process.poll() is None
        time.sleep(0.02)
    assert data_of(enrich("run", "cancel", 1, "--json"))["state"] == "cancelled"
    out, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert json.loads(out)["state"] == "cancelled"
    assert "run 1 cancelled" in err
    assert sum(model.calls.values()) < 60
