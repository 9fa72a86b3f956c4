import subprocess
import sys

import pytest

from distill.data.atomic_file import atomic_file


def test_what_a_killed_process_left_goes_with_the_next_writing(tmp_path):
    path = tmp_path / "cache [1].u8"
    program = (
        "import os, signal, sys; from pathlib import Path; from distill.data.atomic_file import *\n"
        "with atomic_file(Path(sys.argv[1])) as file:\n"
        "    file.write(b'half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", program, str(path)])
    (left,) = tmp_path.iterdir()
    assert left.name.endswith(".partial")
    with atomic_file(path) as file:
        file.write(b"whole")
    assert [one.name for one in tmp_path.iterdir()] == [path.name]
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
