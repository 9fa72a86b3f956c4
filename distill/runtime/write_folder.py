"""Writes classifier folders atomically: a kill leaves either the old folder or the new one."""

import secrets
import shutil
from pathlib import Path

from distill.data.files.atomic_file import write_atomically
from distill.errors import ClassifierError, ClassifierNotSaved, counted, some
from distill.runtime.manifest import ADDED, BAKED, MANIFEST, Manifest, read_manifest


def write_folder(folder: Path, manifest: Manifest, files: dict[str, bytes]) -> None:
    """Write a classifier folder atomically, replacing an old classifier.

    Raises:
        ClassifierError: it cannot be written, or `folder` has other files.
    """
    check_target(folder)
    token = secrets.token_hex(8)
    partial, old = (folder.parent / f".{folder.name}.{token}.{x}" for x in ("partial", "old"))
    try:
        partial.mkdir(parents=True)
        for name, content in files.items():
            write_atomically(partial / name, content)
        write_atomically(partial / MANIFEST, _as_json(manifest))
        if folder.exists():
            folder.replace(old)
        partial.replace(folder)
    except OSError as error:
        if old.exists() and not folder.exists():
            old.replace(folder)
        raise ClassifierNotSaved(
            f"cannot write the classifier {folder} ({error.strerror}): free some space or choose "
            "another folder"
        ) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def check_target(folder: Path) -> None:
    """Raise ClassifierError if `folder` has anything but a classifier in it."""
    if folder.is_file():
        raise ClassifierError(f"{folder} is a file: choose a folder for the classifier")
    if folder.is_dir() and not (folder / MANIFEST).is_file() and any(folder.iterdir()):
        raise ClassifierError(f"{folder} has other files and no classifier: choose another folder")


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


def save_in_place(folder: Path, manifest: Manifest, bank: bytes) -> None:
    """Replace the text bank and the manifest of the classifier in `folder`.

    Raises:
        ClassifierError: the folder cannot be written.
    """
    try:
        # One sync after the manifest is enough: renames in a folder reach the disk in order.
        write_atomically(folder / manifest.text_bank, bank, sync_folder=False)
        write_atomically(folder / MANIFEST, _as_json(manifest))
    except OSError as error:
        raise ClassifierNotSaved(
            f"cannot write the classifier {folder} ({error.strerror}): free some space"
        ) from None
    for path in (*folder.glob("text_bank*.safetensors"), folder / BAKED):
        if path.name not in manifest.files:
            path.unlink(missing_ok=True)


def _as_json(manifest: Manifest) -> bytes:
    return manifest.model_dump_json(indent=1).encode() + b"\n"
