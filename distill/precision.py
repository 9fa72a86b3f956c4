"""What networks are quick in: bfloat16 or float32, and which kernels."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

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
    kernels = _QuickBackward() if quick and device.type == "cpu" else nullcontext()
    with torch.autocast(device.type, torch.bfloat16, enabled=quick), kernels:
        yield


class _QuickBackward(TorchFunctionMode):
    """Goes around what has a slow backward pass in bfloat16 on a CPU.

    Networks of depthwise convolutions, such as MobileNets, would train more slowly with bfloat16
    than without, and ViTs hardly more quickly. The forward passes are quick either way.
    """

    def __torch_function__(
        self,
        func: Any,  # noqa: ANN401 - torch's own signature
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        return _QUICK.get(func, func)(*args, **(kwargs or {}))


def _conv2d(input: Tensor, weight: Tensor, *rest: Any, **more: Any) -> Tensor:  # noqa: ANN401
    """As torch's own, in float32 where `weight` [out, in / groups, height, width] has groups."""
    if weight.shape[1] == input.shape[-3]:
        return functional.conv2d(input, weight, *rest, **more)
    with torch.autocast("cpu", enabled=False):
        return functional.conv2d(input.float(), weight, *rest, **more)


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


_QUICK: Final[dict[Any, Callable[..., Tensor]]] = {
    functional.conv2d: _conv2d,
    functional.scaled_dot_product_attention: _attention,
}
