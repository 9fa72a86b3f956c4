"""Files that other users of the machine cannot read: the database, its backups, artifacts.

Exported files are not private: they get the permissions of the umask.
"""

import os
from contextlib import suppress
from pathlib import Path


def make_private_folder(folder: Path) -> None:
    """Create `folder` with mode 0700. An existing folder keeps its permissions."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)


def make_private_file(file: Path) -> None:
    """Create an empty `file` with mode 0600.

    An existing file that others may read or write gets mode 0600 too, if permitted.
    """
    descriptor = os.open(file, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if os.fstat(descriptor).st_mode & 0o007:
            with suppress(OSError):  # owned by another user, or on a read-only file system
                os.fchmod(descriptor, 0o600)
    finally:
        os.close(descriptor)


def make_private_database(file: Path) -> None:
    """Make an SQLite `file` private, and its -wal and -shm files; new ones inherit its mode."""
    make_private_file(file)
    for companion in (Path(f"{file}-wal"), Path(f"{file}-shm")):
        if companion.exists():
            make_private_file(companion)
