"""The wheel alone, in an environment that has never seen the checkout, is all a user needs."""

import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
import tomllib
import zipfile
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("contract", "distill", "enrich_service", "migrations")
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def run(*command: object, **options: object) -> str:
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, timeout=300, **options
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A copy of what the wheel is built from, so that nothing is left in the checkout."""
    folder = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    for name in PACKAGES:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    return folder


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    files = sorted(path.relative_to(source) for path in source.rglob("*") if path.is_file())
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet")
    run(*pip, "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", out, source)
    (wheel,) = out.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        inside = set(archive.namelist())
    missing = [str(file) for file in files if len(file.parts) > 1 and str(file) not in inside]
    assert missing == []
    return wheel


@pytest.fixture(scope="module")
def programs(wheel, tmp_path_factory) -> Path:
    """The folder of `enrich` and `distill` in a virtual environment that the wheel is installed in.

    Its dependencies are those of the running environment, by a .pth file. Paths in such a file do
    not have their own .pth files read, and an editable install of the checkout is one.
    """
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", folder)
    python = folder / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python)
    run(*pip, "install", "--quiet", "--no-deps", "--no-index", "--no-compile", wheel)
    (packages,) = folder.glob("lib/python*/site-packages")
    outer = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (packages / "dependencies.pth").write_text("\n".join(outer) + "\n")
    return folder / "bin"


@pytest.fixture
def outside(tmp_path) -> dict[str, object]:
    """Options of a process that does not see the checkout."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return {"cwd": tmp_path, "env": environment | {"ENRICH_DATA_DIR": str(tmp_path / "data")}}


def test_both_commands_start_and_print_their_version(programs, outside):
    for name in ("enrich", "distill"):
        assert run(programs / name, "--version", **outside) == f"{name} {VERSION}\n"
        assert "Commands" in run(programs / name, "--help", **outside)


def test_all_packages_come_from_the_wheel(programs, outside):
    code = f"import {', '.join(PACKAGES)}; print(*(p.__file__ for p in ({', '.join(PACKAGES)})))"
    for file in run(programs / "python", "-c", code, **outside).split():
        assert Path(file).is_relative_to(programs.parent)


def test_the_presets_are_found(programs, outside):
    code = "from distill.cli.train import read_preset; print(read_preset('resnet')['student'])"
    assert "resnet" in run(programs / "python", "-c", code, **outside)


def test_the_service_migrates_a_new_database_and_serves_pages(programs, outside, tmp_path):
    log = tmp_path / "service.log"
    with log.open("wb") as stderr:
        command = [str(programs / "enrich"), "serve", "--port", "0"]
        process = subprocess.Popen(command, stderr=stderr, **outside)
    try:
        deadline = time.monotonic() + 120
        while not (found := re.search(r"running on (\S+)", log.read_text())):
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        with httpx.Client(base_url=found[1], timeout=30) as client:
            for path in ("/healthz", "/readyz", "/", "/static/style.css", "/docs"):
                assert client.get(path, follow_redirects=True).status_code == 200, path
            prompts = client.get("/v1/prompts").json()
            assert "visual-description" in [prompt["name"] for prompt in prompts]
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=20)
