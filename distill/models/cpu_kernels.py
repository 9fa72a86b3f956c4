"""Faster replacements of some torch functions for training on a CPU (`cpu_kernels = true`).

They avoid slow backward passes; torch's forward passes are fast. `benchmarks.speed.cpu_kernels`
measures each of them.

    convolution with few output positions   float32 and bfloat16
    grouped convolution in float32          bfloat16 only: torch's backward pass is slower there
    attention as two matrix products        bfloat16 only, for the same reason

Convolution: in the last stages of a network, feature maps have few positions and many channels.
For these, torch's kernel for the weight gradient reaches at most a quarter of its usual throughput;
one matrix product per kernel element takes 1/7 to 3/4 of its time.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional, grad
from torch.overrides import TorchFunctionMode

MAX_OUTPUT_POSITIONS: Final = 16  # above, torch's kernel is faster than matrix products
MAX_ATTENTION_TOKENS: Final = 256  # the stored attention weights grow with the square

Pair = tuple[int, int]  # vertical, horizontal


class FunctionOverrides(TorchFunctionMode):
    """Context in which torch functions are replaced; `functions` maps originals to replacements."""

    def __init__(self, functions: Mapping[Any, Callable[..., Any]]) -> None:
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


def cpu_kernel_overrides(*, bfloat16: bool) -> FunctionOverrides:
    """The context of all replacements, for training in bfloat16 (autocast) or in float32."""
    functions: dict[Any, Callable[..., Tensor]] = {functional.conv2d: conv2d_override}
    if bfloat16:
        functions[functional.scaled_dot_product_attention] = attention
    return FunctionOverrides(functions)


def conv2d_override(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Pair = 1,
    padding: int | Pair | str = 0,
    dilation: int | Pair = 1,
    groups: int = 1,
) -> Tensor:
    """Like torch's conv2d; grouped convolutions run in float32, others by `conv2d`.

    In bfloat16, networks with depthwise convolutions, such as MobileNets, would train more slowly
    than in float32.
    """
    if groups > 1:
        with torch.autocast("cpu", enabled=False):
            return functional.conv2d(input.float(), weight, bias, stride, padding, dilation, groups)
    if torch.is_autocast_enabled("cpu"):
        input, weight = input.bfloat16(), weight.bfloat16()
        bias = None if bias is None else bias.bfloat16()
    return conv2d(input, weight, bias, stride, padding, dilation)


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    *args: Any,  # noqa: ANN401
    **kwargs: Any,  # noqa: ANN401
) -> Tensor:
    """Like torch's scaled_dot_product_attention of [..., tokens, dim], by plain matrix products.

    Calls torch's function for masks, dropout, other options and long sequences.
    """
    is_plain = attn_mask is None and not dropout_p and not any((*args, *kwargs.values()))
    if not is_plain or key.shape[-2] > MAX_ATTENTION_TOKENS:
        return functional.scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, *args, **kwargs
        )
    weights = torch.softmax((query * query.shape[-1] ** -0.5) @ key.mT, dim=-1)
    return weights @ value


def conv2d(
    images: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Pair = 1,
    padding: int | Pair | str = 0,
    dilation: int | Pair = 1,
) -> Tensor:
    """Like torch's conv2d without groups: images [n, in, h, w], weight [out, in, *kernel].

    Returns [n, out, *positions]. With few output positions, it can be differentiated only once.
    """
    if isinstance(padding, str) or not weight.requires_grad or images.ndim != 4:
        return functional.conv2d(images, weight, bias, stride, padding, dilation)
    geometry = _pair(stride), _pair(padding), _pair(dilation)
    positions = tuple(
        (size + 2 * pad - gap * (kernel - 1) - 1) // step + 1
        for size, kernel, step, pad, gap in zip(
            images.shape[2:], weight.shape[2:], *geometry, strict=True
        )
    )
    if positions[0] * positions[1] > MAX_OUTPUT_POSITIONS:
        return functional.conv2d(images, weight, bias, *geometry)
    outputs: Tensor = _SmallOutputConv2d.apply(images, weight, bias, geometry)
    return outputs


def _pair(value: int | Pair) -> Pair:
    return (value, value) if isinstance(value, int) else value


class _SmallOutputConv2d(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        images: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        geometry: tuple[Pair, Pair, Pair],  # stride, padding, dilation
    ) -> Tensor:
        ctx.save_for_backward(images, weight)
        ctx.geometry = geometry
        return functional.conv2d(images, weight, bias, *geometry)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        images, weight = ctx.saved_tensors
        needs_images, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        conv2d_input: Callable[..., Tensor] = grad.conv2d_input  # untyped in torch
        return (
            conv2d_input(images.shape, weight, gradient, *ctx.geometry) if needs_images else None,
            _weight_gradient(images, weight, gradient, ctx.geometry) if needs_weight else None,
            gradient.sum((0, 2, 3)) if needs_bias else None,
            None,
        )


def _weight_gradient(
    images: Tensor, weight: Tensor, gradient: Tensor, geometry: tuple[Pair, Pair, Pair]
) -> Tensor:
    """The gradient of `weight` from that of the outputs, by a matrix product per kernel element."""
    stride, padding, dilation = geometry
    rows, columns = (
        [
            _valid_range(
                dilation[axis] * tap - padding[axis],
                stride[axis],
                images.shape[2 + axis],
                gradient.shape[2 + axis],
            )
            for tap in range(weight.shape[2 + axis])
        ]
        for axis in (0, 1)
    )
    images, gradient = images.permute(0, 2, 3, 1), gradient.permute(0, 2, 3, 1)
    # Channels last, the memory format of the weights, so that no copy is needed.
    result = weight.new_empty(len(weight), len(rows), len(columns), weight.shape[1])
    for i, (outputs_down, inputs_down) in enumerate(rows):
        for j, (outputs_across, inputs_across) in enumerate(columns):
            inputs = images[:, inputs_down, inputs_across].flatten(0, 2)
            outputs = gradient[:, outputs_down, outputs_across].flatten(0, 2)
            torch.mm(outputs.mT, inputs, out=result[:, i, j])
    return result.permute(0, 3, 1, 2)


def _valid_range(offset: int, step: int, size: int, positions: int) -> tuple[slice, slice]:
    """The output positions whose input at `offset` is not padding, and the inputs there."""
    first = max(0, -(offset // step))  # rounded up
    stop = max(first, min(positions, (size - 1 - offset) // step + 1))
    start = first * step + offset
    return slice(first, stop), slice(start, start + (stop - first) * step, step)
