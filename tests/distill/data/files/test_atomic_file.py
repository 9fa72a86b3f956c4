import errno
import os
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from distill.data.files.atomic_file import atomic_file, write_atomically


def test_what_a_killed_process_left_goes_with_the_next_writing(tmp_path):
    path = tmp_path / "cache [1].u8"
    program = (
        "import os, signal, sys; from pathlib import Path\n"
        "from distill.data.files.atomic_file import *\n"
        "with atomic_file(Path(sys.argv[1])) as file:\n"
        "    file.write(b'half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", program, str(path)])
    (left,) = tmp_path.iterdir()
    assert left.name.endswith(".partial")
    with atomic_file(path) as file:
        file.write(b"whole")
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert path.read_bytes() == b"whole"


def test_two_that_write_the_same_file_at_once_do_not_mix(tmp_path):
    """As the trainings of two containers do: they have one folder, and often one process id."""
    path = tmp_path / "cache.u8"
    with atomic_file(path) as first:
        first.write(b"first")
        with atomic_file(path) as second:
            second.write(b"second")
        assert path.read_bytes() == b"second"
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_leaves_the_old_file(tmp_path):
    path = tmp_path / "cache.u8"
    path.write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), atomic_file(path) as file:
        file.write(b"new")
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == b"old"


def test_many_writers_of_one_file_all_succeed(tmp_path):
    """None removes the temporary file of another that it has not locked yet."""
    path = tmp_path / "cache.u8"

    def write_often(content: bytes) -> None:
        for _ in range(300):
            write_atomically(path, content)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write_often, (b"a", b"b", b"c", b"d")))
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_synced_gets_the_file(tmp_path, monkeypatch):
    sync = os.fsync

    def sync_files_alone(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", sync_files_alone)
    write_atomically(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"new"
