"""Files that other users of the machine cannot read: the database, its backups, artifacts.

What a person exports is not among them: it gets the permissions that their umask says.
"""

import os
from contextlib import suppress
from pathlib import Path


def make_private_folder(folder: Path) -> None:
    """Make `folder`, mode 0700, unless it exists; one that exists keeps its permissions."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)


def make_private_file(file: Path) -> None:
    """Make `file`, empty and with mode 0600, unless it exists.

    One that exists and that others may read or write gets mode 0600 too, where it can be changed.
    """
    descriptor = os.open(file, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if os.fstat(descriptor).st_mode & 0o007:
            with suppress(OSError):  # of another owner, or on a read-only file system
                os.fchmod(descriptor, 0o600)
    finally:
        os.close(descriptor)


def make_private_database(file: Path) -> None:
    """Make an SQLite `file` private, with its companions; new companions take its mode."""
    make_private_file(file)
    for companion in (Path(f"{file}-wal"), Path(f"{file}-shm")):
        if companion.exists():
            make_private_file(companion)
