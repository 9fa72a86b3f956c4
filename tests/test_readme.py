"""What the README tells people to type is typed here."""

import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import typer

pytest.importorskip("torch")
pytest.importorskip("fastapi")

from demo.world import write_world

ROOT = Path(__file__).parents[1]


def blocks() -> list[str]:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    return re.findall(r"```sh\n(.*?)```", readme, re.DOTALL)


def run(script: str, folder: Path) -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euc", script],
        cwd=folder,
        env=os.environ | {"PATH": path, "ENRICH_DATA_DIR": str(folder / "data")},
        capture_output=True,
        text=True,
        timeout=1200,  # far more than it takes
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_way_by_hand_ends_with_a_student_and_a_report(tmp_path):
    (script,) = (block for block in blocks() if "enrich run start" in block)
    lines = [line for line in script.splitlines() if "activate" not in line]
    write_world(tmp_path / "charms", train=6, val_on_train=3, val=4)  # fewer than demo.world writes
    lines = [line for line in lines if "demo.world" not in line]
    (tmp_path / "demo").symlink_to(ROOT / "demo")
    (tmp_path / "docs").mkdir()
    config = (ROOT / "docs" / "charms.toml").read_text(encoding="utf-8")
    (tmp_path / "docs" / "charms.toml").write_text(config.replace("epochs = 8", "epochs = 1"))
    said = run("\n".join(lines), tmp_path)
    assert "succeeded" in said
    assert (tmp_path / "distill-out" / "report.html").is_file()


def test_every_make_target_of_the_readme_exists():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    named = re.findall(r"make (\w+)", "\n".join(blocks()))
    assert named
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in named)


@pytest.mark.parametrize("program", ["enrich", "distill"])
def test_every_command_and_option_that_the_readme_names_exists(program):
    app = import_module("enrich_service.cli" if program == "enrich" else "distill.cli.main").app
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    named = re.findall(rf"`({program} [^`]+)`", readme)
    assert len(named) > 5
    for line in named:
        command, words = typer.main.get_command(app), line.split()[1:]
        while words and words[0] in getattr(command, "commands", {}):
            command = command.commands[words.pop(0)]
            command = command.load() if hasattr(command, "load") else command
        assert not getattr(command, "commands", {}) or not words, line
        known = {option for one in command.params for option in one.opts}
        assert {word for word in words if word.startswith("--")} <= known, line
