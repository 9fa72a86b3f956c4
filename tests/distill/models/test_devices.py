"""Which device is chosen, in which precision it computes, and how large a batch fits."""

import os
import subprocess
import sys

import pytest
import torch

from contract import TrainConfig
from distill.errors import DeviceError
from distill.models.devices import FittingBatches, choose_device, student_dtype, teacher_dtype

CPU = torch.device("cpu")


def test_auto_is_a_gpu_or_else_the_cpu():
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert choose_device().type == choose_device("auto").type == expected
    assert choose_device("cpu") == CPU


@pytest.mark.parametrize("name", ["cuda:99", "gpu", "meta", "", "cuda:-1"])
def test_a_missing_device_is_a_one_line_error(name):
    with pytest.raises(DeviceError) as error:
        choose_device(name)
    assert repr(name) in str(error.value) and "\n" not in str(error.value)


def test_a_device_of_a_configuration_is_checked_when_it_is_read():
    for name in ("auto", "cpu", "cuda", "cuda:1", "mps"):
        assert TrainConfig(data="d", teacher="t", device=name).device == name
    with pytest.raises(ValueError, match="a device is auto, cpu, cuda, cuda:0 or mps"):
        TrainConfig(data="d", teacher="t", device="meta")


@pytest.mark.parametrize("dtype_of", [student_dtype, teacher_dtype])
def test_the_precision_can_be_set(dtype_of):
    assert dtype_of(CPU, "float32") is torch.float32
    assert dtype_of(CPU, "bfloat16") is torch.bfloat16


def test_an_emulated_processor_without_bfloat16_computes_in_float32():
    code = (
        "import torch; from distill.models.devices import student_dtype\n"
        "print(student_dtype(torch.device('cpu')))"
    )
    environment = os.environ | {"ATEN_CPU_CAPABILITY": "avx2"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.stdout == "torch.float32\n", done.stderr


def test_batches_are_halved_until_they_fit_and_stay_so():
    sizes: list[int] = []

    def encode(part: torch.Tensor) -> torch.Tensor:
        sizes.append(len(part))
        if len(part) > 5:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return part * 2

    fitting, batch = FittingBatches(16), torch.arange(10)
    assert fitting(encode, batch).equal(batch * 2)
    assert fitting(encode, batch).equal(batch * 2)
    assert fitting.size == 4
    assert sizes == [10, 8, 4, 4, 2, 4, 4, 2]


def test_where_not_even_one_row_fits_the_error_is_passed_on():
    def encode(_part: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with pytest.raises(torch.OutOfMemoryError):
        FittingBatches(8)(encode, torch.arange(3))
