"""Parts of the GPU benchmark on a CPU with small models, and the script without a GPU."""

import subprocess
import sys

import pytest
import torch

from benchmarks.speed import gpu
from distill.models.teacher import load_teacher
from tests.distill.conftest import write_teacher

CPU = torch.device("cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_it_is_skipped_with_a_note():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.speed.gpu"], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout) == (0, "gpu: skipped, PyTorch finds no CUDA GPU here\n")


@pytest.fixture
def photos(tmp_path):
    return gpu.write_photos(tmp_path, 96)


def test_all_sides_of_the_teacher_are_measured(photos, tmp_path):
    found = gpu.teacher_rates(load_teacher(write_teacher(tmp_path / "teacher")), photos, 8, 0.01)
    assert min(found.ours, found.plain, found.network, found.decoding) > 0


def test_all_sides_of_a_student_are_measured(photos, tmp_path, capsys):
    found = gpu.student_rates("test_resnet", photos, tmp_path, CPU, size=32, batch=16, seconds=0.01)
    assert min(found.ours, found.plain, found.network) > 0
    gpu.show({"test_resnet": found}, "CPU")
    assert "test_resnet" in capsys.readouterr().out


def test_neighbours_are_timed():
    assert gpu.neighbour_seconds(CPU, 100) > 0
