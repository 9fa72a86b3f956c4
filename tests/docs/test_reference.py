"""The generated reference names everything that the code has."""

import re
import runpy
from importlib import import_module
from pathlib import Path

import pytest
import typer

pytest.importorskip("torch")
pytest.importorskip("fastapi")

from contract import LossWeights, TrainConfig
from enrich_service.app import create_app
from enrich_service.core.settings import Settings, environment_names

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reference")
    runpy.run_path(str(ROOT / "docs/make_reference.py"))["write"](folder)
    return {path.stem: path.read_text("utf-8") for path in folder.glob("*.md")}


def rows(page):
    """The first cell of each row of the page's tables → the others."""
    found = re.findall(r"^\| (.+?) \| (.*) \|$", page, re.MULTILINE)
    return {first: others.split(" | ") for first, others in found}


def test_every_field_of_a_config_is_listed_with_default_and_meaning(pages):
    table = rows(pages["configuration"])
    for model in (TrainConfig, LossWeights):
        for name in model.model_fields:
            _, default, meaning = table[f"`{name}`"]
            assert default and meaning, name
    assert table["`image_size`"][:2] == ["integer ≥ 16, ≤ 1,024", "`64`"]
    assert table["`data`"][1] == "required"


def test_every_setting_is_listed_with_its_variables(pages):
    table = rows(pages["settings"])
    for field in Settings.model_fields:
        cells = table[" or ".join(f"`{name}`" for name in environment_names(field))]
        assert all(cells), field
    assert table["`ENRICH_PORT`"][1] == "`8000`"


def test_every_route_and_model_of_the_service_is_listed(pages):
    document = create_app(Settings()).openapi()
    for path, methods in document["paths"].items():
        for method in methods:
            assert f"\n`{method.upper()} {path}`\n" in pages["rest"]
    for name in document["components"]["schemas"]:
        assert f"\n### {name}\n" in pages["rest"]


@pytest.mark.parametrize(
    ("program", "module"), [("enrich", "enrich_service.cli"), ("distill", "distill.cli.main")]
)
def test_every_command_and_option_is_listed(pages, program, module):
    def check(command, name):
        command = command.load() if hasattr(command, "load") else command
        assert f"# `{name}`" in pages[program]
        for option in command.params:
            assert all(text in pages[program] for text in option.opts), name
        for inner_name, inner in getattr(command, "commands", {}).items():
            check(inner, f"{name} {inner_name}")

    check(typer.main.get_command(import_module(module).app), program)


def test_the_python_pages_name_modules_that_exist(pages):
    names = re.findall(r"^::: (\S+)$", pages["python-distill"], re.MULTILINE)
    assert {"distill.method.losses", "distill.method.metrics"} <= set(names)
    names += re.findall(r"^::: (\S+)$", pages["python-client"], re.MULTILINE)
    for name in names:
        assert import_module(name).__doc__, name


def test_every_page_of_the_site_is_in_its_navigation(pages):
    config = (ROOT / "zensical.toml").read_text("utf-8")
    named = set(re.findall(r'= "(\S+\.md)"', config))
    written = {str(path.relative_to(ROOT / "docs")) for path in ROOT.glob("docs/**/*.md")}
    generated = {f"reference/{name}.md" for name in pages}
    assert named == {name for name in written if not name.startswith("reference/")} | generated
