"""The commands of README, CONTRIBUTING and docs/ work.

A console or Python block after `<!-- run -->` is run, in the order of its page, in one folder and
with one database per page. Photos, teacher and language model are small or local stand-ins. All
other commands, in blocks and in text, are checked to exist with the options that they are given.
"""

import json
import os
import re
import shlex
import shutil
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest
import typer

pytest.importorskip("torch")
pytest.importorskip("fastapi")

import numpy as np
from PIL import Image
from typer.testing import CliRunner

from demo.measure import recorded_descriptions
from demo.world import charms, render, write_world
from tests.llm_server import Answer, LlmServer

ROOT = Path(__file__).parents[2]
PAGES = {
    str(path.relative_to(ROOT)): path.read_text("utf-8")
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/**/*.md")))
    if "reference" not in path.parts  # generated: see test_reference.py
}
FENCE = re.compile(r'^```(\w+)(?: title="(\S+)")?\n(.*?)^```$', re.DOTALL | re.MULTILINE)
RUN = re.compile(r"^<!-- run -->\n```(console|python)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
PROGRAMS = {"enrich": "enrich_service.cli", "distill": "distill.cli.main"}

# Named on the pages, but not part of this project or not to be started in a test.
NOT_RUN = (". ", "pip ", "vllm ", "llama-server ", "ollama ", "enrich llm up")
# Quick and local in the place of what a user has.
STAND_INS = {
    "ViT-B-32@laion2b_s34b_b79k": f"local-dir:{ROOT}/demo/teacher",
    'student = "resnet18"': 'student = "test_resnet"',
    "--student resnet18": "--student test_resnet",
    "image_size = 128": "image_size = 32",
}
# The pages use photos of the demo's world, whose teacher was trained on such descriptions.
SEEN, UNSEEN = ("harlequin_duck", "surf_scoter"), ("king_eider", "bufflehead")
PHOTOS = {"train": (SEEN, 70), "val_on_train": (SEEN, 8), "val": (UNSEEN, 8)}
LOOKS = dict(zip(SEEN + UNSEEN, sorted(charms(), key=lambda charm: not charm.seen), strict=False))


def console_lines(page):
    blocks = [text for language, _, text in FENCE.findall(PAGES[page]) if language == "console"]
    return [line for text in blocks for line in text.splitlines()]


def commands():
    """(page, command) for each line of a console block and each `program …` in the text."""
    for page, text in PAGES.items():
        prose = FENCE.sub("", text)
        inline = re.findall(r"`((?:enrich|distill|make|python -m|torchrun|docker) [^`]+)`", prose)
        for command in [*(line.removeprefix("$ ") for line in console_lines(page)), *inline]:
            yield page, command


def replaced(text):
    for of_the_page, here in STAND_INS.items():
        text = text.replace(of_the_page, here)
    return re.sub(r"^epochs = \d+$", "epochs = 1", text, flags=re.MULTILINE)


def write_photos(folder):
    rng = np.random.default_rng(0)
    for split, (keys, count) in PHOTOS.items():
        for key in keys:
            (folder / split / key).mkdir(parents=True)
            for number in range(1, count + 1):
                image = Image.fromarray(render(LOOKS[key].look, rng))
                image.save(folder / split / key / f"{number}.jpg")
    # Somebody's own: class folders alone.
    shutil.copytree(folder / "train", folder.with_name("my-photos"))


def describe(call):
    """The recorded description of what the photos show, under the label's name; a translation."""
    if "Translate into French" in call.text:
        text = f"Le {call.label} est un petit oiseau bleu avec des taches blanches sur la tête."
        return Answer(content=json.dumps({"description": text}))
    charm = LOOKS.get(call.label.replace(" ", "_"))
    if charm is None or call.response_format != "json_schema":
        return None
    if list(call.body["response_format"]["json_schema"]["schema"]["properties"]) != ["description"]:
        return None
    text = recorded_descriptions()[charm.name]
    text = re.sub(charm.name, call.label, text, flags=re.IGNORECASE)
    return Answer(content=json.dumps({"description": text}))


@pytest.fixture
def shell(tmp_path, monkeypatch, migrated, brief_timing):
    """A function that runs one line of a page: `export`, `python -m demo.world` or a command."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ENRICH_DATA_DIR", str(migrated(tmp_path / "data")))
    for folder in ("docs", "demo"):
        (tmp_path / folder).mkdir()
    (tmp_path / "demo/teacher").symlink_to(ROOT / "demo/teacher")
    (tmp_path / "demo/replies.jsonl").symlink_to(ROOT / "demo/replies.jsonl")
    (tmp_path / "docs/charms.toml").write_text(replaced((ROOT / "docs/charms.toml").read_text()))

    def run(line):
        program, *words = shlex.split(line)
        if program == "export":
            for name, _, value in (word.partition("=") for word in words):
                monkeypatch.setenv(name, value)
        elif words[:2] == ["-m", "demo.world"]:
            write_world(tmp_path / words[2], train=4, val_on_train=2, val=2)
        else:
            app = import_module(PROGRAMS[program]).app
            call = CliRunner().invoke(app, words)
            assert call.exit_code == 0, f"{line}\n{call.output}{call.exception or ''}"
            if words[0] == "init":  # writes what a page shows elsewhere
                config = tmp_path / words[words.index("--out") + 1]
                config.write_text(replaced(config.read_text("utf-8")), "utf-8")

    return run


@pytest.mark.parametrize("page", [page for page, text in PAGES.items() if RUN.search(text)])
def test_commands_on_a_page_run(page, shell, tmp_path, monkeypatch):
    write_photos(tmp_path / "photos")
    for _, name, text in FENCE.findall(PAGES[page]):
        if name:
            (tmp_path / name).write_text(replaced(text), "utf-8")
    with LlmServer(behave=describe) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        for language, block in RUN.findall(PAGES[page]):
            if language == "python":
                exec(block, {})
                continue
            for line in block.splitlines():
                assert line.startswith("$ "), line
                if not line.startswith(NOT_RUN, 2):
                    shell(re.sub(r"http://127\.0\.0\.1:\d+/v1", server.url, replaced(line[2:])))
        asked = {call.body["model"] for call in server.requests}
    assert set(re.findall(r"\bENRICH_LLM_MODEL=(\S+)", PAGES[page])) <= asked


def test_the_short_way_of_the_readme_is_the_tutorial():
    readme, tutorial = PAGES["README.md"], PAGES["docs/tutorial.md"]
    assert set(console_lines("README.md")) - {"$ make demo", "$ make test"} <= set(
        console_lines("docs/tutorial.md")
    )
    files = {name: text for _, name, text in FENCE.findall(tutorial) if name}
    assert files == {name: text for _, name, text in FENCE.findall(readme) if name}


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_command_and_option_on_the_pages_exists(program):
    root = typer.main.get_command(import_module(PROGRAMS[program]).app)
    checked = 0
    for page, line in commands():
        words = shlex.split(line.replace("…", "etc"), comments=True)
        while words and re.match(r"[A-Z_]+=", words[0]):
            del words[0]
        if program not in words or words[0] not in (program, "torchrun", "docker"):
            continue
        words = words[words.index(program) + 1 :]
        command = root
        while words and words[0] in getattr(command, "commands", {}):
            command = command.commands[words.pop(0)]
            command = command.load() if hasattr(command, "load") else command
        if getattr(command, "commands", {}):  # a group
            assert all(word.startswith("--") for word in words), f"{page}: {line}"
        known = {option for option in command.params for option in option.opts} | {"--help"}
        options = {word for word in words if re.match(r"--?[a-z]", word)}
        assert options <= known, f"{page}: {line}"
        checked += 1
    assert checked > 20


def test_every_make_target_and_module_on_the_pages_exists():
    makefile = (ROOT / "Makefile").read_text("utf-8")
    lines = [line for _, line in commands()]
    targets = {line.split()[1] for line in lines if line.startswith("make ")}
    assert {"demo", "test", "docs"} <= targets
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)
    found = [re.search(r"(?:python|torchrun .*) -m ([\w.]+)", line) for line in lines]
    modules = {match[1] for match in found if match}
    assert "benchmarks" in modules
    assert not [module for module in modules if find_spec(module) is None]


def test_the_services_and_profiles_of_compose_on_the_pages_exist():
    compose = (ROOT / "docker-compose.yml").read_text("utf-8")
    lines = [line for _, line in commands() if line.startswith("docker compose")]
    assert len(lines) > 5
    for line in lines:
        for profile in re.findall(r"--profile (\S+)", line):
            assert f"profiles: [{profile}]" in compose, line
        for service in re.findall(r"--scale ([\w-]+)=|(?:exec|run) (\w+)", line):
            assert f"\n  {''.join(service)}:\n" in compose, line
        for file in re.findall(r"-f (\S+)", line):
            assert (ROOT / file).is_file(), line


def test_the_variables_on_the_pages_are_settings():
    from enrich_service.core.settings import Settings, environment_names

    known = {name for field in Settings.model_fields for name in environment_names(field)}
    known |= set(re.findall(r"^\s*([A-Z_]+)=", (ROOT / ".env.example").read_text(), re.MULTILINE))
    known |= {"ENRICH_SHARED", "OPENAI_MODEL"}  # of the benchmarks and of distill.runtime
    for page, text in PAGES.items():
        assert set(re.findall(r"\b(?:ENRICH|OPENAI)_[A-Z_]+", text)) <= known, page


def test_links_to_files_lead_somewhere():
    for page, text in PAGES.items():
        for target in re.findall(r"\]\((?!http)([^)#]+)", text):
            path = os.path.normpath((ROOT / page).parent / target)
            generated = Path(path).is_relative_to(
                ROOT / "docs" / "reference"
            )  # make docs sees to it
            assert generated or Path(path).exists(), f"{page}: {target}"


def test_the_file_tree_of_the_readme_is_the_tree():
    (block,) = (text for kind, _, text in FENCE.findall(PAGES["README.md"]) if kind == "text")
    named, parent = set(), ""
    for line in block.splitlines():
        name = line.split()[0]
        if not line.startswith(" "):
            parent = name
        named.add(name if name == parent else parent + name)
    assert not [name for name in named if not (ROOT / name).exists()]
    packages = {
        f"{path.parent.relative_to(ROOT)}/"
        for package in ("enrich_service", "distill")
        for path in ROOT.glob(f"{package}/*/__init__.py")
    }
    assert packages <= named
