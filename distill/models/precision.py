"""What networks are quick in: bfloat16 or float32, and which kernels."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from distill.models.cpu_kernels import Pair, conv2d

TOKENS: Final = 256  # up to which attention keeps its weights, whose number grows as their square


def bfloat16_is_quick(device: torch.device) -> bool:
    """Whether bfloat16 is quicker than float32 here; where it is emulated it is slower."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


@contextmanager
def training_precision(device: torch.device) -> Iterator[None]:
    """A network that is called within computes in bfloat16 where that is quicker, by autocast."""
    quick = bfloat16_is_quick(device)
    kernels = nullcontext() if device.type != "cpu" else _Instead(_BFLOAT16 if quick else _FLOAT32)
    with torch.autocast(device.type, torch.bfloat16, enabled=quick), kernels:
        yield


@contextmanager
def muon_precision(device: torch.device) -> Iterator[None]:
    """timm's Muon, which asks for bfloat16 wherever it is, gets float32 where that is quicker."""
    with nullcontext() if bfloat16_is_quick(device) else _Instead({Tensor.to: _to_float32}):
        yield


class _Instead(TorchFunctionMode):
    """Calls other functions in place of some of torch's."""

    def __init__(self, functions: Mapping[Any, Callable[..., Tensor]]) -> None:
        self._functions = functions
        super().__init__()

    def __torch_function__(
        self,
        func: Any,  # noqa: ANN401 - torch's own signature
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        return self._functions.get(func, func)(*args, **(kwargs or {}))


def _to_float32(tensor: Tensor, *where: Any, **how: Any) -> Tensor:  # noqa: ANN401
    """As torch's own, but to float32 in place of bfloat16."""
    if how.get("dtype") is torch.bfloat16:
        how["dtype"] = torch.float32
    return tensor.to(*where, **how)


def _conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Pair = 1,
    padding: int | Pair | str = 0,
    dilation: int | Pair = 1,
    groups: int = 1,
) -> Tensor:
    """As torch's own, in float32 where `weight` [out, in / groups, height, width] has groups."""
    if groups > 1:
        with torch.autocast("cpu", enabled=False):
            return functional.conv2d(input.float(), weight, bias, stride, padding, dilation, groups)
    if torch.is_autocast_enabled("cpu"):
        input, weight = input.bfloat16(), weight.bfloat16()
        bias = None if bias is None else bias.bfloat16()
    return conv2d(input, weight, bias, stride, padding, dilation)


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    *rest: Any,  # noqa: ANN401
    **more: Any,  # noqa: ANN401
) -> Tensor:
    """As torch's own of [..., tokens, dim], one product after the other where that is all."""
    plain = attn_mask is None and not dropout_p and not any((*rest, *more.values()))
    if not plain or key.shape[-2] > TOKENS:
        return functional.scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, *rest, **more
        )
    weights = torch.softmax((query * query.shape[-1] ** -0.5) @ key.mT, dim=-1)
    return weights @ value


# They go around what has a slow backward pass on a CPU; the forward passes are quick. In bfloat16
# networks of depthwise convolutions, such as MobileNets, would train more slowly than in float32,
# and ViTs hardly more quickly. In either those train slowly whose last stages have few places, such
# as ResNets on small images.
_FLOAT32: Final[dict[Any, Callable[..., Tensor]]] = {functional.conv2d: _conv2d}
_BFLOAT16: Final = _FLOAT32 | {functional.scaled_dot_product_attention: _attention}
