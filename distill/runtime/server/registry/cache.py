"""Cache of downloaded classifiers in folders, which are unpacked atomically.

CACHE/STUDENT@ALIAS/VERSION-SHA256/   a classifier folder
CACHE/STUDENT@ALIAS/last.json         the last version served, for a start without the service
"""

import secrets
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import BinaryIO, Final
from urllib.parse import quote

from pydantic import ValidationError

from contract import error_line
from distill.data.files.atomic_file import write_atomically
from distill.errors import ClassifierError
from distill.runtime.manifest import MANIFEST
from distill.runtime.server.registry.client import Target

MAX_FILES: Final = 100
MAX_UNPACKED: Final = 8 * 1024**3  # bytes
CHUNK: Final = 1024**2  # bytes
LAST: Final = "last.json"


class ClassifierCache:
    """The classifiers of one alias, in a folder below `root`."""

    def __init__(self, root: Path, student: str, alias: str) -> None:
        self._folder = root / f"{quote(student, safe='')}@{quote(alias, safe='')}"

    def last(self) -> Target | None:
        """The last version served, if it is still in the cache."""
        try:
            target = Target.model_validate_json((self._folder / LAST).read_bytes())
        except (OSError, ValidationError):
            return None
        return target if self._path(target).is_dir() else None

    def get(self, target: Target, download: Callable[[BinaryIO], None]) -> Path:
        """The folder of a version; if it is not cached, `download` writes its zip file first.

        Raises:
            ClassifierError: the zip file has no valid classifier, or cannot be written.
            ServiceError: raised by `download`.
        """
        path = self._path(target)
        if path.is_dir():
            return path
        partial = self._folder / f".{secrets.token_hex(8)}.partial"
        try:
            partial.mkdir(parents=True)
            with tempfile.TemporaryFile(dir=partial) as file:
                download(file)
                _unpack(file, partial)
            if not path.is_dir():  # another server may share the cache
                partial.replace(path)
        except OSError as error:
            raise ClassifierError(
                f"cannot write the cache {self._folder} ({error.strerror}): free some space, or "
                "choose another one with --cache"
            ) from None
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return path

    def drop(self, target: Target) -> None:
        """Remove a version that cannot be loaded, so that it is downloaded again."""
        shutil.rmtree(self._path(target), ignore_errors=True)

    def keep_only(self, target: Target) -> None:
        """Remember `target` as the last version, and remove all others."""
        try:
            write_atomically(self._folder / LAST, target.model_dump_json(indent=1) + "\n")
        except OSError as error:
            raise ClassifierError(
                f"cannot write the cache {self._folder} ({error.strerror}): free some space"
            ) from None
        for path in self._folder.iterdir():
            if path.is_dir() and path != self._path(target) and path.suffix != ".partial":
                shutil.rmtree(path, ignore_errors=True)

    def _path(self, target: Target) -> Path:
        return self._folder / f"{target.version}-{target.sha256[:16]}"


def _unpack(file: BinaryIO, folder: Path) -> None:
    """Unpack a zip file that has the files of a classifier at its root.

    Raises:
        ClassifierError: it is not such a zip file.
    """
    file.seek(0)
    try:
        with zipfile.ZipFile(file) as archive:
            _check(archive)
            for entry in archive.infolist():
                with archive.open(entry) as packed, (folder / entry.filename).open("xb") as out:
                    shutil.copyfileobj(packed, out, CHUNK)
    except (zipfile.BadZipFile, zlib.error, RuntimeError, EOFError) as error:
        reason = error_line(error)
        raise ClassifierError(f"the classifier is not a readable zip file ({reason})") from None


def _check(archive: zipfile.ZipFile) -> None:
    entries = archive.infolist()
    names = [entry.filename for entry in entries]
    for name in names:
        if name in (".", "..") or {PurePosixPath(name).name, PureWindowsPath(name).name} != {name}:
            raise ClassifierError(f"the classifier has a file outside its folder: {name[:200]!r}")
    if MANIFEST not in names:
        raise ClassifierError(f"the classifier has no {MANIFEST}")
    if len(set(names)) < len(names) or len(names) > MAX_FILES:
        raise ClassifierError(f"the classifier has a file twice, or more than {MAX_FILES} files")
    if sum(entry.file_size for entry in entries) > MAX_UNPACKED:
        raise ClassifierError(f"the classifier has more than {MAX_UNPACKED / 1e9:.0f} GB unpacked")
