"""Paths that a job may read: only folders that the worker's operator allows (`--data-root`).

Anyone who may queue a job chooses its paths, which are on the worker's machine.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from contract import TrainConfig
from distill.data.sources.coco import CocoExport
from distill.data.sources.find import base_folder, find_source
from distill.data.sources.hugging_face import SCHEME
from distill.data.sources.manifest_file import ManifestFile
from distill.data.sources.yolo import YoloExport
from distill.errors import DataError


def check_allowed_paths(config: TrainConfig, roots: Sequence[Path]) -> None:
    """Check that the job's images, captions, weights and local teacher lie below `roots`.

    Raises:
        DataError: a path is outside, contains `..`, or a folder has a link that leads outside.
    """
    allowed = [root.resolve() for root in roots]
    _check_data(config.data, allowed)
    if config.captions is not None:
        captions = base_folder(config.data) / config.captions
        if ".." in captions.parts or not _is_inside(captions, allowed):
            raise DataError(f"the job's captions {config.captions} are not in its data folder")
    if config.weights is not None:
        _check_path("weights", config.weights, allowed)
    if config.teacher.startswith("local-dir:"):
        _check_folder("teacher", config.teacher.removeprefix("local-dir:"), allowed)


def _check_data(data: str, allowed: Sequence[Path]) -> None:
    """Check a data folder, or a file, and the files that it lists."""
    if data.startswith(SCHEME):  # on the hub, as a teacher may be
        return
    _check_folder("data folder", data, allowed)
    source = find_source(data)
    if isinstance(source, ManifestFile):
        for image in source.images(Path()):
            _check_path("image", str(image.path), allowed)
    if isinstance(source, CocoExport | YoloExport):
        for path in source.files():
            _check_path("file", str(path), allowed)


def _check_path(what: str, name: str, allowed: Sequence[Path]) -> None:
    if ".." in Path(name).parts or not _is_inside(Path(name), allowed):
        raise DataError(
            f"the job's {what} {name} is not below {' or '.join(map(str, allowed))}: put it there, "
            "or start the worker with another --data-root"
        )


def _check_folder(what: str, name: str, allowed: Sequence[Path]) -> None:
    _check_path(what, name, allowed)
    folder = Path(name)
    for inner, folders, files in os.walk(folder):  # does not follow links: their targets are
        for entry in (*folders, *files):  # inside, and so walked themselves, or refused
            path = Path(inner, entry)
            if path.is_symlink() and not _is_inside(path, allowed):
                raise DataError(f"the job's {what} has a link that leads out of it: {path}")


def _is_inside(path: Path, allowed: Sequence[Path]) -> bool:
    return any(path.resolve().is_relative_to(root) for root in allowed)
