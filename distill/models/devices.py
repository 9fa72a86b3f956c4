"""Choice of device and precision by the hardware.

Nothing is decided by a timing, so that the same machine trains the same students.

    device    CUDA, else Apple's MPS, else the CPU
    student   bfloat16 if the device supports it natively, else float32
    teacher   the same; float16 on a GPU without bfloat16, since it is only evaluated
"""

import re
from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor

from contract import Precision
from distill.errors import DeviceError

DTYPES: Final = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def choose_device(name: str = "auto") -> torch.device:
    """The device for `name`: auto, cpu, cuda, cuda:N or mps.

    Raises:
        DeviceError: this machine does not have the device, or the name is unknown.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    if not re.fullmatch(r"cpu|mps|cuda(:\d+)?", name):
        raise DeviceError(f"there is no device {name!r}: choose auto, cpu, cuda, cuda:0 or mps")
    device = torch.device(name)
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    missing = device.type == "cuda" and (device.index or 0) >= gpus
    if missing or (device.type == "mps" and not torch.backends.mps.is_available()):
        raise DeviceError(
            f"this machine has no device {name!r} (PyTorch finds {gpus or 'no'} CUDA "
            f"GPU{'s' if gpus > 1 else ''}): use the device 'auto' or 'cpu'"
        )
    return device


def bfloat16_is_fast(device: torch.device) -> bool:
    """Whether `device` supports bfloat16 natively; emulated bfloat16 is slower than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "mps" or not torch.backends.cpu.get_cpu_capability().startswith("AVX512"):
        return False  # the capability respects ATEN_CPU_CAPABILITY
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def metrics_device(device: torch.device) -> torch.device:
    """The device for metrics and diagnostics, which need float64; Apple's MPS does not have it."""
    return device if device.type == "cuda" else torch.device("cpu")


def student_dtype(device: torch.device, precision: Precision = "auto") -> torch.dtype:
    """The dtype of a student's activations in training."""
    if precision != "auto":
        return DTYPES[precision]
    return torch.bfloat16 if bfloat16_is_fast(device) else torch.float32


def teacher_dtype(device: torch.device, precision: Precision = "auto") -> torch.dtype:
    """The dtype of a teacher's image activations."""
    if precision != "auto":
        return DTYPES[precision]
    if device.type == "cuda" and not bfloat16_is_fast(device):
        return torch.float16
    return student_dtype(device)


def dtype_name(dtype: torch.dtype) -> str:
    """The name of a dtype, such as 'bfloat16'."""
    return str(dtype).removeprefix("torch.")


def describe_device(device: torch.device) -> str:
    """The device, with the name of the GPU or the vector instructions of the CPU."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    if device.type == "cpu":
        return f"cpu ({torch.backends.cpu.get_cpu_capability()})"
    return str(device)


class FittingBatches:
    """Applies a function to a batch in parts of the largest size that fits in memory.

    If a part does not fit, `size` is halved for this and all later batches.
    """

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, function: Callable[[Tensor], Tensor], batch: Tensor) -> Tensor:
        """The results of `function` on the parts of `batch`, concatenated.

        Raises:
            torch.OutOfMemoryError: a single row does not fit.
        """
        while True:
            try:
                return torch.cat([function(part) for part in torch.split(batch, self.size)])
            except torch.OutOfMemoryError:
                if self.size == 1:
                    raise
            # Outside of the except block: the exception keeps the tensors of its frames alive.
            self.size = max(1, self.size // 2)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
