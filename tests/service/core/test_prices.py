"""Runs with common models show what they cost without any setting."""

import json

from typer.testing import CliRunner

from enrich_service.cli import app
from enrich_service.core.settings import Settings


def test_a_price_that_is_given_overrides_the_known_one(monkeypatch):
    monkeypatch.setenv("ENRICH_PRICES", '{"gpt-4o-mini": [1, 2], "mine": [3, 4]}')
    prices = Settings().prices
    assert (prices["gpt-4o-mini"], prices["mine"]) == ((1, 2), (3, 4))
    assert prices["gpt-4o"] == (2.5, 10)


def estimate(*options):
    words = ["run", "start", "ducks", "--estimate", "--json", *options]
    return CliRunner().invoke(app, words)


def test_the_estimate_of_a_run_is_in_dollars_or_says_that_the_price_is_unknown(
    migrated, tmp_path, monkeypatch
):
    monkeypatch.setenv("ENRICH_DATA_DIR", str(migrated(tmp_path / "data")))
    monkeypatch.setenv("OPENAI_API_KEY", "sk-none")
    assert CliRunner().invoke(app, ["labels", "add", "ducks", "teal"]).exit_code == 0
    known = estimate("--model", "gpt-4o-mini")
    assert json.loads(known.stdout)["cost_usd"] > 0 and known.stderr == ""
    unknown = estimate("--model", "somebody/priceless")
    assert json.loads(unknown.stdout)["cost_usd"] is None
    assert unknown.stderr == "The price of the model is unknown: set ENRICH_PRICES.\n"
