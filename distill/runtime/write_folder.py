"""Writes classifier folders atomically: a kill leaves either the old folder or the new one.

A process that changes a folder holds an exclusive lock on a file in it. So if two processes save
the same classifier, the second one sees the change of the first.
"""

import errno
import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import BinaryIO, Final

from distill.data.files.atomic_file import write_atomically
from distill.errors import (
    ClassifierChanged,
    ClassifierError,
    ClassifierNotSaved,
    counted,
    some,
)
from distill.runtime.manifest import (
    ADDED,
    BAKED,
    LOCK,
    MANIFEST,
    MODEL_CARD,
    OPEN_CLIP,
    PHOTO_STATISTICS,
    SPEED_CHART,
    TEXT_ENCODER,
    TOKENIZER,
    Manifest,
    read_manifest,
)

BANKS: Final = "text_bank*.safetensors"
OWN_FILES: Final = (  # patterns of all that an export or a save writes
    *(MANIFEST, LOCK, BAKED, TEXT_ENCODER, TOKENIZER, PHOTO_STATISTICS, MODEL_CARD, SPEED_CHART),
    *("image_encoder.*", "image_encoder_openvino.*", BANKS, OPEN_CLIP),
    *(f"{MANIFEST}.*.partial", f"{BANKS}.*.partial"),  # of a save that was killed
)
ADVICE: Final = {
    errno.EBUSY: "it may be a mount point, choose a folder in it",
    errno.EACCES: "choose a folder that you can write to",
    errno.EPERM: "choose a folder that you can write to",
    errno.EROFS: "choose a folder that you can write to",
}


def write_folder(folder: Path, manifest: Manifest, files: dict[str, bytes]) -> None:
    """Write a classifier folder atomically, replacing an old classifier.

    Raises:
        ClassifierError: it cannot be written, or `folder` has other files.
    """
    check_target(folder)
    target, token = folder.resolve(), secrets.token_hex(8)
    partial, old = (target.parent / f".{target.name}.{token}.{x}" for x in ("partial", "old"))
    try:
        partial.mkdir(parents=True)
        for name, content in files.items():
            write_atomically(partial / name, content)
        write_atomically(partial / MANIFEST, _as_json(manifest))
        with _locked(target) if target.is_dir() else nullcontext():
            check_target(folder)
            if target.exists():
                target.replace(old)
            partial.replace(target)
    except OSError as error:
        if old.exists() and not target.exists():
            old.replace(target)
        raise _not_saved(folder, error) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def check_target(folder: Path) -> None:
    """Raise ClassifierError if `folder` has other files than a classifier or cannot be replaced."""
    if folder.is_file():
        raise ClassifierError(f"{folder} is a file: choose a folder for the classifier")
    if not folder.is_dir():
        return
    _check_replaceable(folder.resolve())
    names = sorted(path.name for path in folder.iterdir())
    if names and MANIFEST not in names:
        raise ClassifierError(f"{folder} has other files and no classifier: choose another folder")
    others = [name for name in names if not _is_own(name)]
    if others:
        raise ClassifierError(
            f"{folder} has other files beside the classifier ({some(others)}), which would be "
            "lost: move them, or choose another folder"
        )


def _check_replaceable(folder: Path) -> None:
    if folder.is_mount() or Path.cwd().is_relative_to(folder):
        kind = "a mount point" if folder.is_mount() else "the current folder or one above it"
        raise ClassifierError(
            f"{folder} is {kind} and cannot be replaced: choose a folder in it, such as "
            f"{folder / 'classifier'}"
        )


def _is_own(name: str) -> bool:
    return any(fnmatch(name, pattern) for pattern in OWN_FILES)


def check_nothing_added(folder: Path) -> None:
    """Raise ClassifierError if `folder` has a classifier to which classes were added."""
    try:
        classes = read_manifest(folder).classes
    except ClassifierError:  # there is none, or a broken one, which may be replaced
        return
    added = [each.name for each in classes if each.origin == ADDED or each.photos]
    if added:
        raise ClassifierError(
            f"{folder} has {counted(len(added), 'class')} with texts or photos that were added "
            f"({some(added)}), which would be lost: move it elsewhere, or delete it"
        )


def save_in_place(folder: Path, manifest: Manifest, bank: bytes, *, replaces: Manifest) -> None:
    """Replace the text bank and the manifest of the classifier in `folder`.

    Raises:
        ClassifierChanged: the manifest in the folder is not `replaces`.
        ClassifierNotSaved: the folder cannot be written.
    """
    try:
        with _locked(folder):
            _check_unchanged(folder, replaces)
            # One sync after the manifest is enough: renames in a folder reach the disk in order.
            write_atomically(folder / manifest.text_bank, bank, sync_folder=False)
            write_atomically(folder / MANIFEST, _as_json(manifest))
            for path in (*folder.glob(BANKS), *folder.glob(f"{BANKS}.*.partial"), folder / BAKED):
                if path.name not in manifest.files:
                    with suppress(OSError):  # the classifier is saved; only space is lost
                        path.unlink(missing_ok=True)
    except FileNotFoundError:  # the folder is gone
        raise _changed(folder) from None
    except OSError as error:
        raise _not_saved(folder, error) from None


def _check_unchanged(folder: Path, manifest: Manifest) -> None:
    try:
        unchanged = read_manifest(folder) == manifest
    except ClassifierError:
        unchanged = False
    if not unchanged:
        raise _changed(folder)


def _changed(folder: Path) -> ClassifierChanged:
    return ClassifierChanged(
        f"another program has changed the classifier {folder} since it was loaded: load it again "
        "(restart a server)"
    )


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the exclusive lock of a classifier folder; waits for another process that holds it.

    Raises:
        OSError: the folder is missing, or the lock file cannot be written.
    """
    path = folder / LOCK
    while True:
        with path.open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if _is_at(path, file):
                yield
                return
        # Another process has replaced the folder while this one waited.


def _is_at(path: Path, file: BinaryIO) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _not_saved(folder: Path, error: OSError) -> ClassifierNotSaved:
    advice = ADVICE.get(error.errno or 0, "free some space or choose another folder")
    return ClassifierNotSaved(f"cannot write the classifier {folder} ({error.strerror}): {advice}")


def _as_json(manifest: Manifest) -> bytes:
    return manifest.model_dump_json(indent=1).encode() + b"\n"
