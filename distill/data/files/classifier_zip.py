"""Packs a classifier folder into `classifier.zip`, which a job uploads to the service.

Equal folders give identical files, so that the service stores them once.
"""

import shutil
import zipfile
from pathlib import Path
from typing import Final

from distill.data.files.atomic_file import atomic_file

FOLDER: Final = "classifier"  # in the folder of a run
MANIFEST: Final = "classifier.json"  # in each classifier folder
LOCK: Final = ".classifier.lock"  # in a classifier folder that was saved, see `write_folder`
STORED: Final = (".onnx", ".safetensors", ".bin")  # weights do not compress
EPOCH: Final = (1980, 1, 1, 0, 0, 0)  # the earliest time in the ZIP format


def zip_folder(folder: Path, path: Path) -> None:
    """Write the files below `folder` to the ZIP file `path`, with names relative to `folder`.

    The lock file is left out.

    Raises:
        OSError: a file cannot be read or written.
    """
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file.name != LOCK)
    with atomic_file(path) as target, zipfile.ZipFile(target, "w") as archive:
        for file in files:
            entry = zipfile.ZipInfo(file.relative_to(folder).as_posix(), EPOCH)
            entry.external_attr = 0o644 << 16
            is_stored = file.suffix in STORED
            entry.compress_type = zipfile.ZIP_STORED if is_stored else zipfile.ZIP_DEFLATED
            entry.file_size = file.stat().st_size  # above 2 GiB, it must be known in advance
            with file.open("rb") as source, archive.open(entry, "w") as written:
                shutil.copyfileobj(source, written, 1 << 20)
