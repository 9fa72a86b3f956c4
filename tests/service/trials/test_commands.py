import json

import pytest
from typer.testing import CliRunner

from enrich_service.cli import app
from tests.service.trials.test_try_prompt import BODY


@pytest.fixture
def enrich(tmp_path, monkeypatch, model, migrated):
    """Run `enrich` on an empty data folder, with the local server as language model."""
    monkeypatch.setenv("ENRICH_DATA_DIR", str(migrated(tmp_path / "data")))
    monkeypatch.setenv("OPENAI_BASE_URL", model.url)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.json").write_text(json.dumps(BODY | {"name": "mine"}))
    return lambda *arguments: CliRunner().invoke(app, [str(one) for one in arguments])


def data_of(call):
    assert call.exit_code == 0, call.output
    return json.loads(call.stdout)


def test_a_prompt_file_is_tried_beside_a_saved_version(enrich):
    call = enrich("try", "p.json", "teal", "--against", "standard@1", "--json")
    (one,) = data_of(call)["labels"]
    assert one["candidate"]["status"] == one["against"]["status"] == "accepted"
    shown = enrich("try", "p.json", "teal", "--against", "standard@1").stdout
    assert "new: The teal" in shown
    assert "standard@1: The teal" in shown


def test_two_versions_are_compared_after_their_runs(enrich):
    enrich("labels", "add", "birds", "teal", "mallard")
    for prompt in ("standard", "succinct"):
        data_of(enrich("run", "start", "birds", "--prompt", prompt, "--json"))
    found = data_of(enrich("compare", "birds", "standard@1", "succinct@production", "--json"))
    assert (found["a"]["accepted"], found["b"]["accepted"]) == (2, 2)
    assert "a: The teal" in enrich("compare", "birds", "standard@1", "succinct@1").stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["try", "p.json", "teal", "--against", "nix@1"], "no prompt 'nix'"),
        (["try", "p.json", "teal", "--against", "nix"], "PROMPT@VERSION"),
        (["try", "p.json", *["teal"] * 11], "labels"),
        (["try", "bad.json", "teal"], "kind"),
        (["compare", "nix", "standard@1", "succinct@1"], "no label set 'nix'"),
        (["compare", "nix", "standard@0", "succinct@1"], "no label set 'nix'"),
    ],
)
def test_a_mistake_is_told_in_one_line(enrich, tmp_path, arguments, message):
    (tmp_path / "bad.json").write_text('{"name": "mine", "user": "x", "output_schema": {}}')
    call = enrich(*arguments)
    assert call.exit_code == 1
    assert message in call.stderr
    assert call.stderr.count("\n") == 1
