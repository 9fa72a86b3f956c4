import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from http.client import HTTPConnection

import pytest
from typer.testing import CliRunner

from enrich_service.cli import app


@pytest.fixture
def enrich(tmp_path, monkeypatch, migrated):
    """Run `enrich` on an empty data folder; gives the finished call."""
    monkeypatch.setenv("ENRICH_DATA_DIR", str(migrated(tmp_path / "data")))
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(app, [str(one) for one in arguments])


def data_of(call):
    assert call.exit_code == 0, call.output
    return json.loads(call.stdout)


def test_the_way_from_labels_to_a_release_needs_no_server(enrich, tmp_path):
    made = enrich("labels", "add", "ducks", "mallard", "teal", "--context", "a bird", "--json")
    assert data_of(made)["labels"] == 2
    shown = data_of(enrich("labels", "show", "ducks", "--json"))
    assert [one["context"] for one in shown["items"]] == ["a bird", "a bird"]
    release = data_of(enrich("release", "create", "ducks", "r1", "--allow-missing", "--json"))
    assert [one["id"] for one in data_of(enrich("release", "list", "--json"))] == [release["id"]]
    out = tmp_path / "r1.json"
    assert enrich("export", "release", "r1", "-o", out).exit_code == 0
    assert json.loads(out.read_text())["hash"] == release["hash"]
    there = enrich("import", "release", out, "--name", "r2", "--json")
    assert data_of(there)["hash"] == release["hash"]
    assert data_of(enrich("release", "diff", "r1", "2", "--json"))["changed"] == []
    assert data_of(enrich("jobs", "list", "--json")) == []


def test_pairs_go_in_and_out(enrich, tmp_path):
    (tmp_path / "l.txt").write_text("n1 1 wood_duck\n")
    (tmp_path / "d.txt").write_text("The wood duck has a green crest and red eyes.\n")
    done = data_of(enrich("import", "pairs", "ducks", "l.txt", "d.txt", "--json"))
    assert done["generations"] == 1
    data_of(enrich("release", "create", "ducks", "r", "--json"))
    assert enrich("export", "pairs", "r", "out").exit_code == 0
    assert (tmp_path / "out/chatgpt.txt").read_text() == (tmp_path / "d.txt").read_text()
    lines = enrich("export", "jsonl").stdout.splitlines()
    assert json.loads(lines[0]) == {"record": "enrich-export", "format": 1}
    (tmp_path / "all.jsonl").write_text("\n".join(lines))
    assert data_of(enrich("import", "jsonl", "all.jsonl", "--json"))["generations"] == 0


def test_a_folder_of_class_folders_becomes_a_label_set(enrich, tmp_path):
    for key in ("n1", "n2"):
        (tmp_path / "photos" / key).mkdir(parents=True)
    (tmp_path / "names.txt").write_text("n1 1 teal\nn2 2 mallard\n")
    call = enrich("labels", "add", "p", "--folder", "photos", "--label2text", "names.txt")
    assert call.exit_code == 0
    shown = data_of(enrich("labels", "show", "p", "--json"))
    assert [one["name"] for one in shown["items"]] == ["teal", "mallard"]
    assert "mallard" in enrich("labels", "show", "p").stdout


def test_a_json_file_of_names_or_of_labels_becomes_a_label_set(enrich, tmp_path):
    (tmp_path / "names.json").write_text('["teal", "mallard"]')
    (tmp_path / "labels.json").write_text('[{"key": "n1", "name": "teal", "context": "a bird"}]')
    assert (
        data_of(enrich("labels", "add", "a", "--from-json", "names.json", "--json"))["labels"] == 2
    )
    assert enrich("labels", "add", "b", "--from-json", "labels.json").exit_code == 0
    (label,) = data_of(enrich("labels", "show", "b", "--json"))["items"]
    assert (label["key"], label["name"], label["context"]) == ("n1", "teal", "a bird")
    (tmp_path / "wrong.json").write_text('{"teal": 1}')
    wrong = enrich("labels", "add", "c", "--from-json", "wrong.json")
    assert wrong.exit_code == 1
    assert wrong.stderr.startswith("enrich: The JSON file is not a label list")
    assert wrong.stderr.count("\n") == 1


def test_prompts_are_added_compared_and_pointed_at(enrich, tmp_path):
    body = {
        "name": "mine",
        "kind": "description",
        "user": "{{ label | tojson }}",
        "output_schema": {"type": "object"},
    }
    (tmp_path / "p.json").write_text(json.dumps(body))
    assert data_of(enrich("prompts", "add", "p.json", "--json"))["number"] == 1
    (tmp_path / "p.json").write_text(json.dumps(body | {"system": "Be brief."}))
    assert data_of(enrich("prompts", "add", "p.json", "--json"))["number"] == 2
    assert "+Be brief." in enrich("prompts", "diff", "mine", 1, 2).stdout
    assert data_of(enrich("prompts", "alias", "mine", "production", 1, "--json"))["version"] == 1
    assert data_of(enrich("prompts", "alias", "mine", "production", 2, "--json"))["version"] == 2
    back = enrich("prompts", "rollback", "mine", "production", "--reason", "worse", "--json")
    assert data_of(back)["version"] == 1
    shown = data_of(enrich("prompts", "show", "mine", "--alias", "production", "--json"))
    assert shown["number"] == 1
    assert data_of(enrich("prompts", "tag", "mine", "birds", "--json"))["tags"] == ["birds"]
    assert [one["name"] for one in data_of(enrich("prompts", "list", "--tag", "birds", "--json"))]
    assert enrich("prompts", "archive", "mine").exit_code == 0
    assert "mine" not in [one["name"] for one in data_of(enrich("prompts", "list", "--json"))]


def test_a_release_goes_out_in_every_format_and_comes_back(enrich, tmp_path):
    lists = {"teal": ["The teal has a green stripe."], "mallard": ["The mallard has a green head."]}
    (tmp_path / "cupl.json").write_text(json.dumps(lists))
    done = data_of(enrich("import", "sentences", "cupl.json", "ducks", "--json"))
    assert done["generations"] == 2
    (tmp_path / "d.json").write_text(json.dumps({"teal": ["a green stripe"]}))
    assert data_of(enrich("import", "descriptors", "d.json", "ducks", "--json"))["generations"]
    release = data_of(enrich("release", "create", "ducks", "r", "--json"))
    assert data_of(enrich("export", "sentences", "r")) == lists
    assert data_of(enrich("export", "descriptors", "r"))["teal"] == ["a green stripe"]
    assert enrich("export", "labels", "ducks").stdout.startswith("key,name,context")
    assert enrich("export", "release-csv", "r", "-o", "r.csv").exit_code == 0
    there = data_of(enrich("import", "release-csv", "r.csv", "r2", "ducks", "--json"))
    assert there["hash"] == release["hash"]
    assert enrich("export", "generations", "-o", "g.csv").exit_code == 0
    assert data_of(enrich("import", "generations", "g.csv", "--json"))["existing"] == 3
    assert enrich("export", "reviews").stdout.startswith("generation,kind,label_name,action")
    (tmp_path / "near.json").write_text(json.dumps({"teal": ["mallard"]}))
    assert enrich("labels", "confusable", "ducks", "--file", "near.json").exit_code == 0
    assert enrich("export", "confusable", "ducks").stdout.split() == [
        "key,confusable",
        "teal,mallard",
    ]
    assert data_of(enrich("export", "folder", "r", "paper", "--json"))["hash"] == release["hash"]
    assert data_of(enrich("import", "release", "paper", "--json"))["existing"] == 1


def test_texts_are_listed_edited_and_reviewed(enrich, tmp_path):
    (tmp_path / "l.txt").write_text("n1 1 wood_duck\n")
    (tmp_path / "d.txt").write_text("The wood duck has a green crest and red eyes.\n")
    data_of(enrich("import", "pairs", "ducks", "l.txt", "d.txt", "--json"))
    (text,) = data_of(enrich("texts", "list", "--opinion", "open", "--json"))["items"]
    assert data_of(enrich("texts", "show", text["id"], "--json"))["label"] == "wood duck"
    refused = enrich("release", "create", "ducks", "r", "--approved-only")
    assert "no approved text" in refused.stderr
    said = data_of(enrich("texts", "approve", text["id"], "--author", "ada", "--json"))
    assert [(one["action"], one["author"]) for one in said] == [("approve", "ada")]
    assert data_of(enrich("release", "create", "ducks", "r", "--approved-only", "--json"))
    for action in ("lock", "unlock", "reject"):
        assert enrich("texts", action, text["id"]).exit_code == 0
    refused = enrich("texts", "edit", text["id"], "Better.")
    assert refused.exit_code == 1
    assert "`enrich texts write`" in refused.stderr  # it was imported, no prompt asked for it
    (label,) = data_of(enrich("labels", "show", "ducks", "--json"))["items"]
    own = "The wood duck has a white bridle and a crest that hangs over its neck."
    assert data_of(enrich("texts", "write", label["id"], own, "--json"))["text"] == own
    log = data_of(enrich("texts", "log", text["id"], "--json"))
    assert [one["action"] for one in log] == ["reject", "unlock", "lock", "approve"]
    assert "wood duck" in enrich("texts", "list", "--opinion", "rejected").stdout


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"teal": "mallard"}', "confusable.teal: Input should be a valid list"),
        ('{"teal": [], "teal": ["mallard"]}', "two lists for 'teal'"),
        ("[", "Expecting value"),
    ],
)
def test_a_file_of_confusable_labels_that_is_none_is_told_in_one_line(
    enrich, tmp_path, text, message
):
    enrich("labels", "add", "ducks", "mallard", "teal")
    (tmp_path / "near.json").write_text(text)
    call = enrich("labels", "confusable", "ducks", "--file", "near.json")
    assert call.exit_code == 1
    assert message in call.stderr and call.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["labels", "show", "nix"], "no label set 'nix'"),
        (["labels", "add", "x"], "Give exactly one of: class names"),
        (["labels", "add", "x", "a", "a"], "key 'a' of label 1"),
        (["release", "create", "nix", "r"], "no label set 'nix'"),
        (["release", "create", "nix", "r", "--source", "p"], "PROMPT@VERSION"),
        (["release", "create", "nix", "r", "--source", "p@0"], "no label set 'nix'"),
        (["export", "release", "nix"], "no release 'nix'"),
        (["prompts", "show", "nix"], "no prompt 'nix'"),
        (["jobs", "cancel", "7"], "no job 7"),
        (["jobs", "confusable", "7"], "no job 7"),
        (["labels", "confusable", "nix", "--from-names"], "no label set 'nix'"),
        (["labels", "confusable", "nix"], "either"),
        (["texts", "approve", "7"], "no generation 7"),
        (["texts", "edit", "7", "x"], "no generation 7"),
        (["texts", "write", "7", "x"], "no label 7"),
        (["serve", "--host", "0.0.0.0"], "ENRICH_ALLOW_REMOTE=1"),
    ],
)
def test_a_mistake_is_told_in_one_line_and_exits_with_1(enrich, arguments, message):
    call = enrich(*arguments)
    assert call.exit_code == 1
    assert message in call.stderr
    assert call.stderr.count("\n") == 1
    assert call.stdout == ""


@pytest.mark.parametrize(
    "arguments",
    [
        ["labels", "show", "nix"],
        ["prompts", "show", "nix"],
        ["run", "show", "7"],
        ["texts", "show", "7"],
        ["texts", "approve", "7"],
        ["texts", "log", "7"],
        ["keys", "revoke", "7"],
        ["export", "release", "nix"],
        ["export", "release", "7"],
        ["jobs", "show", "7"],
    ],
)
def test_who_names_what_is_not_there_is_told_a_command_that_lists_what_is(enrich, arguments):
    told = re.search(r"`enrich ([^`]+)`", enrich(*arguments).stderr)
    assert told
    data_of(enrich(*told[1].split(), "--json"))


@pytest.mark.parametrize(
    "arguments",
    [
        ["jsonl", "bad"],
        ["pairs", "x", "bad"],
        ["pairs", "x", "l.txt", "bad"],
        ["release", "bad"],
        ["release-csv", "bad", "r", "x"],
        ["generations", "bad"],
        ["descriptors", "bad", "x"],
        ["sentences", "bad", "x"],
    ],
)
def test_a_file_that_is_not_utf8_is_told_in_one_line_and_leaves_nothing(
    enrich, tmp_path, arguments
):
    (tmp_path / "l.txt").write_text("n1 1 teal\n")
    (tmp_path / "bad").write_bytes('{"record":"enrich-export","format":1}\né'.encode("latin-1"))
    call = enrich("import", *arguments)
    assert call.exit_code == 1
    assert call.stderr.startswith("enrich: ")
    assert call.stderr.endswith("save it as UTF-8\n")
    assert call.stderr.count("\n") == 1
    assert data_of(enrich("labels", "list", "--json")) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["jsonl", "-o"],
        ["release", "r", "-o"],
        ["release-csv", "r", "-o"],
        ["labels", "ducks", "-o"],
        ["generations", "-o"],
        ["descriptors", "r", "-o"],
        ["sentences", "r", "-o"],
        ["pairs", "r"],
        ["folder", "r"],
    ],
)
def test_a_place_that_cannot_be_written_is_told_in_one_line(enrich, tmp_path, arguments):
    enrich("labels", "add", "ducks", "teal")
    enrich("release", "create", "ducks", "r", "--allow-missing")
    (tmp_path / "file").touch()
    no_files = (tmp_path / "nix/x", "/") if "-o" in arguments else ()
    for place in (tmp_path / "file/x", *no_files):
        call = enrich("export", *arguments, place)
        assert call.exit_code == 1
        assert call.stderr.startswith(f"enrich: Cannot write {place} (")
        assert call.stderr.endswith("choose another path\n")
        assert call.stderr.count("\n") == 1


def test_an_export_of_what_is_not_there_leaves_an_older_file_as_it_is(enrich, tmp_path):
    (tmp_path / "old.csv").write_text("kept")
    call = enrich("export", "generations", "--label-set", "nix", "-o", "old.csv")
    assert "no label set 'nix'" in call.stderr
    assert (tmp_path / "old.csv").read_text() == "kept"


@pytest.mark.parametrize("command", [["prompts", "add"], ["try"]])
def test_a_prompt_in_which_a_field_stands_twice_is_refused(enrich, tmp_path, command):
    body = '{"name": "mine", "kind": "description", "user": "{{ label }}", "output_schema": %s}'
    (tmp_path / "top.json").write_text(body.replace("{", '{"user": "a",', 1) % "{}")
    (tmp_path / "below.json").write_text(body % '{"type": "object", "type": "object"}')
    for file, field in (("top.json", "user"), ("below.json", "type")):
        call = enrich(*command, file, *(["teal"] if command == ["try"] else []))
        assert call.exit_code == 1
        assert call.stderr == f"enrich: The file has two values for '{field}'\n"
    assert "mine" not in [one["name"] for one in data_of(enrich("prompts", "list", "--json"))]


def test_a_release_that_lacks_texts_says_how_to_allow_it(enrich):
    enrich("labels", "add", "ducks", "mallard")
    refused = enrich("release", "create", "ducks", "r")
    assert refused.exit_code == 1 and "--allow-missing" in refused.stderr
    assert enrich("release", "create", "ducks", "r", "--allow-missing").exit_code == 0


def test_a_setting_that_makes_no_sense_is_named(enrich, monkeypatch):
    monkeypatch.setenv("ENRICH_LEASE_SECONDS", "soon")
    call = enrich("labels", "list")
    assert call.exit_code == 1
    assert call.stderr.startswith("enrich: ENRICH_LEASE_SECONDS")


@pytest.mark.parametrize(
    ("variable", "value", "form"),
    [
        ("ENRICH_PRICES", "xx", '{"gpt-4o-mini": [0.15, 0.6]}'),
        ("ENRICH_IMAGE_ROOTS", "/photos", '["/images"]'),
        ("ENRICH_LLM_HOSTS", "localhost", '["api.openai.com"]'),
        ("ENRICH_CORS_ORIGINS", "https://example.org", '["https://example.org"]'),
    ],
)
def test_a_setting_that_is_no_json_is_named_with_the_form_that_is_wanted(
    enrich, monkeypatch, variable, value, form
):
    monkeypatch.setenv(variable, value)
    call = enrich("labels", "list")
    assert call.exit_code == 1
    assert call.stderr.startswith(f"enrich: {variable} is not valid JSON")
    assert form in call.stderr
    assert call.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("secret", "DATABASE_URL is not a database URL"),
        ("nix://u:secret@h/d", "DATABASE_URL is not a database URL"),
        ("postgresql+asyncmy://u:secret@h/d", "DATABASE_URL is not a database URL"),
        ("mysql+pymysql://u:secret@h/d", "DATABASE_URL needs the package pymysql"),
    ],
)
def test_an_address_of_no_database_is_named_and_not_repeated(enrich, monkeypatch, url, message):
    monkeypatch.setenv("DATABASE_URL", url)
    call = enrich("labels", "list")
    assert call.exit_code == 1
    assert message in call.stderr
    assert "secret" not in call.output
    assert call.stderr.count("\n") == 1


def test_settings_are_listed_and_secrets_are_masked(enrich, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-planted-1")
    monkeypatch.setenv("DATABASE_URL", "postgresql+psycopg://u:planted-2@h/d")
    monkeypatch.setenv("ENRICH_LLM_URL", "https://u:planted-3@h/v1")
    for arguments in (["settings"], ["settings", "--json"]):
        call = enrich(*arguments)
        assert call.exit_code == 0
        assert "planted" not in call.output
    found = {one["name"]: one for one in data_of(enrich("settings", "--json"))}
    assert found["llm_api_key"]["variables"] == ["ENRICH_LLM_API_KEY", "OPENAI_API_KEY"]
    assert found["lease_seconds"]["value"] == "60.0"


def test_long_commands_show_how_far_they_are_on_a_terminal_alone(enrich, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    monkeypatch.setenv("TERM", "xterm")
    (tmp_path / "l.txt").write_text("n1 1 teal\n")
    (tmp_path / "photos/n1").mkdir(parents=True)
    (tmp_path / "photos/n1/1.jpg").write_bytes(b"any")
    captions = ("--prompt", "image-caption", "--images", "photos")
    for arguments, title in (
        (("import", "pairs", "ducks", "l.txt", "--json"), "Importing"),
        (("export", "jsonl"), "Writing"),
        (("export", "jsonl", "-o", "all.jsonl"), "Writing"),
        (("import", "jsonl", "all.jsonl", "--json"), "Importing"),
        (("run", "start", "ducks", *captions, "--estimate", "--json"), "Counting the requests"),
    ):
        terminal, end = pty.openpty()
        command = [sys.executable, "-m", "enrich_service.cli", *arguments]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=end, text=True, check=True)
        os.close(end)
        assert title in os.read(terminal, 4096).decode()
        os.close(terminal)
        if arguments[:2] != ("import", "pairs"):  # the label set is there by now
            again = enrich(*arguments)
            assert again.stderr == ""
            assert again.stdout == done.stdout


def test_serve_starts_migrates_answers_keeps_idle_connections_and_stops_at_a_signal(tmp_path):
    environment = os.environ | {"ENRICH_DATA_DIR": str(tmp_path / "data")}
    command = [sys.executable, "-m", "enrich_service.cli", "serve", "--port", "0"]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        url = ""
        for line in process.stderr:
            if "running on" in line:
                url = line.split("running on ")[1].split()[0]
                break
        assert url.startswith("http://127.0.0.1:")
        idle = HTTPConnection(url.removeprefix("http://"))
        for pause in (6, 0):  # the server's default is to close after 5 s
            idle.request("GET", "/readyz")
            with idle.getresponse() as answer:
                assert answer.status == 200 and answer.read()
            time.sleep(pause)
        idle.close()
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=20)


def test_the_service_is_imported_without_torch():
    code = "import enrich_service.app, sys; assert 'torch' not in sys.modules; print('ok')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "ok\n"
