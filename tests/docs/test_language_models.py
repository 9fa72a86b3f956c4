"""Every command of docs/language-models.md that can run on any machine is run, in its order."""

import re
import shlex
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from enrich_service.cli import app
from enrich_service.core.settings import environment_names
from tests.llm_server import LlmServer

DOCS = Path(__file__).parents[2] / "docs"
BLOCK = re.compile(r"^```(\w+)(?: (\S+))?\n(.*?)^```$", re.DOTALL | re.MULTILINE)
PAGE = (DOCS / "language-models.md").read_text("utf-8")


def blocks(language):
    return [(how, text) for kind, how, text in BLOCK.findall(PAGE) if kind == language]


def commands(text):
    assert all(line.startswith("$ ") for line in text.splitlines()), text
    return [line[2:] for line in text.splitlines()]


@pytest.fixture
def shell(tmp_path, monkeypatch):
    """Do what lines of a shell say (`export` and `enrich`); gives all that they print."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ENRICH_DATA_DIR", str(tmp_path / "data"))
    for key in ("harlequin_duck", "surf_scoter"):
        folder = tmp_path / "photos" / "train" / key
        folder.mkdir(parents=True)
        Image.new("RGB", (8, 8), "black" if key == "surf_scoter" else "blue").save(folder / "1.png")
    for name, text in blocks("json"):
        (tmp_path / name).write_text(text, "utf-8")

    def run(lines):
        printed = ""
        for line in lines:
            command, *arguments = shlex.split(line)
            if command == "export":
                for name, _, value in (one.partition("=") for one in arguments):
                    monkeypatch.setenv(name, value)
            else:
                assert command == "enrich", line
                call = CliRunner().invoke(app, arguments)
                assert call.exit_code == 0, f"{line}\n{call.output}"
                printed += call.stdout
        return printed

    return run


RUN = [text for how, text in blocks("console") if how == "run"]


@pytest.mark.parametrize("text", RUN)
def test_what_can_run_here_runs(shell, text):
    with LlmServer() as server:
        lines = [line.replace("http://127.0.0.1:8080/v1", server.url) for line in commands(text)]
        assert shell(lines)


@pytest.mark.parametrize("text", [text for how, text in blocks("console") if how != "run"])
def test_the_enrich_commands_beside_foreign_ones_run_too(shell, text):
    """Foreign servers and packages are left out; the rest meets a server at the same variables."""
    foreign = ("pip ", "vllm ", "llama-server ", "ollama ", "enrich llm up")
    lines = [line for line in commands(text) if not line.startswith(foreign)]
    with LlmServer() as server:
        lines = [re.sub(r"http://127\.0\.0\.1:\d+/v1", server.url, line) for line in lines]
        if "OPENAI_API_KEY" in text:
            lines = [f"export OPENAI_BASE_URL={server.url}", *lines]
        assert "harlequin duck" in shell(lines)
        asked = {call.body["model"] for call in server.requests}
    wanted = re.search(r"ENRICH_LLM_MODEL=(\S+)", text)
    assert asked == {wanted[1]}


def test_the_variables_that_the_page_names_are_settings():
    named = set(re.findall(r"\b(?:ENRICH|OPENAI)_[A-Z_]+", PAGE))
    fields = ("llm_url", "llm_api_key", "llm_model", "llm_concurrency", "prices", "image_roots")
    known = {name for field in fields for name in environment_names(field)}
    assert named == known


def test_the_commands_that_need_another_terminal_exist():
    call = CliRunner().invoke(app, ["llm", "up", "--help"])
    assert call.exit_code == 0
    assert "--port" in call.output
