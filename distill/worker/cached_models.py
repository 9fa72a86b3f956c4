"""Finds the teachers and students in the Hugging Face cache, which need no download.

Only file names are read: no model is loaded, and torch is not imported. open_clip's names of its
pretrained models are read by a subprocess, once per version of open_clip.
"""

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

from distill.data.files.atomic_file import write_atomically
from distill.worker.data_folders import TEACHER_CONFIG

PREFIX: Final = "models--"
TEACHER_WEIGHTS: Final = "open_clip_model.safetensors"
STUDENT_WEIGHTS: Final = "model.safetensors"
NAMES_COMMAND: Final = (sys.executable, "-m", "distill.models.pretrained_names")
NAMES_TIMEOUT_S: Final = 300.0  # of the subprocess, which imports torch


def cached_teachers(hub: Path, work_dir: Path) -> list[str]:
    """Names of the teachers in the cache folder `hub`: hf-hub:ORGANISATION/NAME or NAME@TAG.

    open_clip's names are cached in `work_dir`.
    """
    teachers: list[str] = []
    unnamed: list[str] = []
    for repository, files in _repositories(hub):
        if TEACHER_WEIGHTS not in files:
            continue
        if TEACHER_CONFIG in files:
            teachers.append(f"hf-hub:{repository}")
        else:
            unnamed.append(repository)
    if unnamed:
        names = _open_clip_names(work_dir)
        teachers += [name for repository in unnamed for name in names.get(repository, ())]
    return sorted(teachers)


def cached_students(hub: Path) -> list[str]:
    """Names of the timm models whose pretrained weights are in the cache folder `hub`."""
    return [
        repository.removeprefix("timm/")
        for repository, files in _repositories(hub)
        if repository.startswith("timm/") and STUDENT_WEIGHTS in files
    ]


def _repositories(hub: Path) -> Iterator[tuple[str, set[str]]]:
    """The models in the cache, with the files of all their snapshots that exist."""
    with suppress(OSError):
        for folder in sorted(hub.glob(f"{PREFIX}*")):
            organisation, separator, name = folder.name.removeprefix(PREFIX).partition("--")
            files = {path.name for path in folder.glob("snapshots/*/*") if path.exists()}
            yield (f"{organisation}/{name}" if separator else organisation), files


def _open_clip_names(work_dir: Path) -> Mapping[str, Sequence[str]]:
    """open_clip's names by repository; empty if they cannot be read."""
    try:
        file = work_dir / "cache" / f"open_clip-names-{version('open_clip_torch')}.json"
    except PackageNotFoundError:
        return {}
    with suppress(OSError, ValueError):
        known: dict[str, list[str]] = json.loads(file.read_bytes())
        return known
    try:
        output = subprocess.run(
            NAMES_COMMAND, capture_output=True, timeout=NAMES_TIMEOUT_S, check=True
        ).stdout
        names: dict[str, list[str]] = json.loads(output)
        write_atomically(file, output)
    except (OSError, ValueError, subprocess.SubprocessError):
        return {}
    return names
