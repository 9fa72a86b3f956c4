"""Restricts the paths that a job may read to the worker's allowed folders (`--data-root`).

Whoever may queue a job chooses its paths, which refer to files on the worker's machine.
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
    """Check that the job's images, captions, weights and local teacher are below `roots`.

    Raises:
        DataError: a path is outside or contains `..`, or a folder has a link to outside.
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
    """Check a data folder, or a data file and the files that it lists."""
    if data.startswith(SCHEME):  # on the Hugging Face Hub
        return
    _check_folder("data folder", data, allowed)
    source = find_source(data)
    if isinstance(source, ManifestFile):
        for image in source.images(Path()):
            _check_path("image", str(image.path), allowed)
    if isinstance(source, CocoExport | YoloExport):
        for path in source.files():
            _check_path("file", str(path), allowed)


def _check_path(kind: str, name: str, allowed: Sequence[Path]) -> None:
    if ".." in Path(name).parts or not _is_inside(Path(name), allowed):
        raise DataError(
            f"the job's {kind} {name} is not below {' or '.join(map(str, allowed))}: put it there, "
            "or start the worker with another --data-root"
        )


def _check_folder(kind: str, name: str, allowed: Sequence[Path]) -> None:
    _check_path(kind, name, allowed)
    folder = Path(name)
    for parent, folders, files in os.walk(folder):  # does not follow links
        for entry in (*folders, *files):
            path = Path(parent, entry)
            if path.is_symlink() and not _is_inside(path, allowed):
                raise DataError(f"the job's {kind} has a link to outside: {path}")


def _is_inside(path: Path, allowed: Sequence[Path]) -> bool:
    return any(path.resolve().is_relative_to(root) for root in allowed)
