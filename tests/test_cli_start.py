"""The commands start quickly: they import their code when they run."""

import subprocess
import sys
from importlib import import_module

import pytest
import typer
from typer.testing import CliRunner

MODULES = ["enrich_service.cli", "distill.cli.main"]
SLOW = {
    "alembic", "fastapi", "open_clip", "openai", "pydantic", "sqlalchemy", "sqlmodel", "timm",
    "torch", "transformers", "uvicorn",
}  # fmt: skip


def slow_imports(module: str, *arguments: str) -> set[str]:
    """Which slow packages a process has imported after it ran a command."""
    code = (
        f"import sys; from {module} import app; app({list(arguments)}, standalone_mode=False); "
        "print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return SLOW & set(done.stderr.split())


@pytest.mark.parametrize("module", MODULES)
def test_help_imports_nothing_slow(module):
    assert slow_imports(module, "--help") == set()


@pytest.mark.parametrize(
    ("program", "command", "other"),
    [
        *[("distill", name, "enrich") for name in ("students", "labels")],
        *[("enrich", name, "distill") for name in ("predict", "train")],
    ],
)
def test_a_command_of_the_other_program_is_named_in_one_line(program, command, other):
    module = {"distill": "distill.cli.main", "enrich": "enrich_service.cli"}[program]
    code = f"from {module} import app; app(['{command}', 'list', '--json'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == (
        f"{program}: there is no command '{program} {command}': did you mean '{other} {command}'?\n"
    )
    assert slow_imports(module, command) <= {"pydantic"}  # of `contract`


def test_a_command_on_labels_imports_the_database_and_nothing_else_that_is_slow(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("ENRICH_DATA_DIR", str(tmp_path))
    assert "alembic" in slow_imports("enrich_service.cli", "labels", "list")  # it migrates
    assert slow_imports("enrich_service.cli", "labels", "list") == {
        "pydantic",
        "sqlalchemy",
        "sqlmodel",
    }


@pytest.mark.parametrize("module", MODULES)
def test_the_list_of_commands_has_the_summary_of_each_command(module, capsys):
    app = import_module(module).app

    def listed(group: typer.core.TyperGroup) -> str:
        group.main(["--help"], prog_name="program", standalone_mode=False)
        return capsys.readouterr().out

    lazy, loaded = typer.main.get_command(app), typer.main.get_command(app)
    for name, command in lazy.commands.items():
        real = command.load()
        real.name = name
        loaded.add_command(real)
    assert listed(lazy) == listed(loaded)


def test_the_help_of_a_command_is_that_of_the_real_one():
    app = import_module("enrich_service.cli").app
    assert "--label2text" in CliRunner().invoke(app, ["labels", "add", "--help"]).stdout
    assert "--context" in CliRunner().invoke(app, ["describe", "--help"]).stdout


@pytest.mark.parametrize(
    ("module", "typo", "meant"),
    [("enrich_service.cli", "labls", "labels"), ("distill.cli.main", "trian", "train")],
)
def test_a_mistyped_command_is_answered_with_the_right_one(module, typo, meant):
    call = CliRunner().invoke(import_module(module).app, [typo])
    assert call.exit_code == 2
    assert f"Did you mean '{meant}'" in call.stderr
