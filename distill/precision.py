"""Where bfloat16 is quicker than float32."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode


def bfloat16_is_quick(device: torch.device) -> bool:
    """Whether bfloat16 is quicker than float32 here; where it is emulated it is slower."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


@contextmanager
def training_precision(device: torch.device) -> Iterator[None]:
    """A network that is called within computes in bfloat16 where that is quicker, by autocast."""
    quick = bfloat16_is_quick(device)
    with torch.autocast(device.type, torch.bfloat16, enabled=quick):
        if quick and device.type == "cpu":
            with _GroupedInFloat32():
                yield
        else:
            yield


class _GroupedInFloat32(TorchFunctionMode):
    """Convolutions of several groups stay in float32, as depthwise ones are.

    Their backward pass in bfloat16 is slow on a CPU: so slow that networks made of them, such as
    MobileNets, would train more slowly than without bfloat16.
    """

    def __torch_function__(
        self,
        func: Any,  # noqa: ANN401 - torch's own signature
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        call = _conv2d if func is functional.conv2d else func
        return call(*args, **(kwargs or {}))


def _conv2d(input: Tensor, weight: Tensor, *rest: Any, **more: Any) -> Tensor:  # noqa: ANN401
    """As torch's own, out of autocast where `weight` [out, in / groups, height, width] tells so."""
    if weight.shape[1] == input.shape[-3]:
        return functional.conv2d(input, weight, *rest, **more)
    with torch.autocast("cpu", enabled=False):
        return functional.conv2d(input.float(), weight, *rest, **more)
