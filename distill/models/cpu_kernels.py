"""A convolution that learns as quickly on small images as on large ones, on a CPU.

In the last stages of a network an image has a few places and many channels. There the kernel that
torch calls for the weights' gradient reaches a quarter of its speed and less; matrix products, one
for each tap of the convolution's window, take a seventh to three quarters of its time.

Where the window covers the whole image from every place, as one of 3 × 3 does with 2 × 2 places,
more than half of what a kernel reads is padding. Without it the convolution is a matrix product,
which takes three quarters of a kernel's time forward and half of it backward.
"""

import math
from collections.abc import Callable, Sequence
from itertools import product
from typing import Any, Final

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional, grad

PLACES: Final = 16  # of an output image, up to which the products are quicker

Pair = tuple[int, int]  # vertically, horizontally


def conv2d(
    images: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Pair = 1,
    padding: int | Pair | str = 0,
    dilation: int | Pair = 1,
) -> Tensor:
    """As torch's own without groups: [n, in, h, w] and [out, in, *window] to [n, out, *places].

    Where the outputs have few places it can be differentiated once.
    """
    if isinstance(padding, str) or not weight.requires_grad or images.ndim != 4:
        return functional.conv2d(images, weight, bias, stride, padding, dilation)
    geometry = _pair(stride), _pair(padding), _pair(dilation)
    places = tuple(
        (size + 2 * pad - gap * (window - 1) - 1) // step + 1
        for size, window, step, pad, gap in zip(
            images.shape[2:], weight.shape[2:], *geometry, strict=True
        )
    )
    if places[0] * places[1] > PLACES:
        return functional.conv2d(images, weight, bias, *geometry)
    outputs: Tensor = _FewPlaces.apply(images, weight, bias, places, *geometry)
    return outputs


def _pair(value: int | Pair) -> Pair:
    return (value, value) if isinstance(value, int) else value


class _FewPlaces(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        images: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        places: Pair,
        stride: Pair,
        padding: Pair,
        dilation: Pair,
    ) -> Tensor:
        matrix = _as_matrix(weight, images.shape[2:], places, stride, padding, dilation)
        ctx.save_for_backward(images, weight, matrix)
        ctx.geometry = stride, padding, dilation
        if matrix is None:
            return functional.conv2d(images, weight, bias, stride, padding, dilation)
        outputs = _through(matrix, images, places)
        return outputs if bias is None else outputs.add_(bias.view(-1, 1, 1))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slopes: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        images, weight, matrix = ctx.saved_tensors
        of_images, of_weight, of_bias, *_ = ctx.needs_input_grad
        if not of_images:
            image_slopes = None
        elif matrix is None:
            conv2d_input: Callable[..., Tensor] = grad.conv2d_input  # torch gives it no types
            image_slopes = conv2d_input(images.shape, weight, slopes, *ctx.geometry)
        else:
            image_slopes = _through(matrix.mT, slopes, images.shape[2:])
        return (
            image_slopes,
            _weight_slopes(images, weight, slopes, *ctx.geometry) if of_weight else None,
            slopes.sum((0, 2, 3)) if of_bias else None,
            *(None for _ in range(4)),
        )


def _as_matrix(
    weight: Tensor, size: Sequence[int], places: Pair, stride: Pair, padding: Pair, dilation: Pair
) -> Tensor | None:
    """What `weight` makes of flat images, [places · out, size · in], if each sees it all."""
    starts = [
        [pad - step * place for place in range(count)]  # the tap that sees the first row or column
        for count, step, pad in zip(places, stride, padding, strict=True)
    ]
    taps = weight.permute(0, 2, 3, 1)
    all_seen = all(
        0 <= start <= window - length
        for length, window, along in zip(size, taps.shape[1:3], starts, strict=True)
        for start in along
    )
    if not (all_seen and any(padding) and dilation == (1, 1)):
        return None
    matrix = taps.new_empty(*places, len(taps), *size, taps.shape[-1])
    for block, (down, across) in zip(matrix.flatten(0, 1), product(*starts), strict=True):
        block.copy_(taps[:, down : down + size[0], across : across + size[1]])
    return matrix.flatten(3).flatten(0, 2)


def _through(matrix: Tensor, images: Tensor, places: Sequence[int]) -> Tensor:
    """`images` [n, in, h, w] through `matrix` [places · out, h · w · in] to [n, out, *places]."""
    outputs = torch.empty(
        (len(images), len(matrix) // math.prod(places), *places),
        dtype=images.dtype,
        device=images.device,
        memory_format=torch.channels_last,
    )
    torch.mm(_flat(images), matrix.mT, out=_flat(outputs))
    return outputs


def _flat(images: Tensor) -> Tensor:
    """[n, channels, h, w] as [n, h · w · channels]; with the channels last nothing is moved."""
    return images.permute(0, 2, 3, 1).flatten(1)


def _weight_slopes(
    images: Tensor, weight: Tensor, slopes: Tensor, stride: Pair, padding: Pair, dilation: Pair
) -> Tensor:
    """The slopes of `weight` from those of the outputs: one product for each tap of the window."""
    rows, columns = (
        [
            _reach(
                dilation[axis] * tap - padding[axis],
                stride[axis],
                images.shape[2 + axis],
                slopes.shape[2 + axis],
            )
            for tap in range(weight.shape[2 + axis])
        ]
        for axis in (0, 1)
    )
    images, slopes = images.permute(0, 2, 3, 1), slopes.permute(0, 2, 3, 1)
    # In memory as the weights are themselves, with the channels last, so that nothing is moved.
    found = weight.new_empty(len(weight), len(rows), len(columns), weight.shape[1])
    for i, (outputs_down, inputs_down) in enumerate(rows):
        for j, (outputs_across, inputs_across) in enumerate(columns):
            inputs = images[:, inputs_down, inputs_across].flatten(0, 2)
            outputs = slopes[:, outputs_down, outputs_across].flatten(0, 2)
            torch.mm(outputs.mT, inputs, out=found[:, i, j])
    return found.permute(0, 3, 1, 2)


def _reach(offset: int, step: int, size: int, places: int) -> tuple[slice, slice]:
    """The outputs, of `places`, that see an input at `offset` from theirs; and those inputs."""
    first = max(0, -(offset // step))  # rounded up
    behind = max(first, min(places, (size - 1 - offset) // step + 1))
    start = first * step + offset
    return slice(first, behind), slice(start, start + (behind - first) * step, step)
