"""What a convolution gives and learns, wherever its outputs have a few positions or many."""

import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch.nn import functional
from torch.testing import assert_close

from distill.models.cpu_kernels import conv2d


def pairs(least, most):
    return st.tuples(*[st.integers(least, most)] * 2)


@given(
    size=pairs(1, 8),
    window=pairs(1, 4),
    stride=pairs(1, 3),
    padding=pairs(0, 3),
    dilation=pairs(1, 3),
)
def test_the_gradients_are_those_of_torch(size, window, stride, padding, dilation):
    assume(
        all(
            gap * (taps - 1) < length + 2 * pad
            for length, taps, pad, gap in zip(size, window, padding, dilation, strict=True)
        )
    )
    images = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(5, 3, *window, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(5, dtype=torch.float64, requires_grad=True)
    expected = functional.conv2d(images, weight, bias, stride, padding, dilation)
    weighed = torch.randn_like(expected)

    found = conv2d(images, weight, bias, stride, padding, dilation)

    assert_close(found, expected)
    inputs = images, weight, bias
    assert_close(
        torch.autograd.grad(found, inputs, weighed),
        torch.autograd.grad(expected, inputs, weighed),
    )


def test_what_is_not_to_be_learned_is_left_out():
    images, weight = torch.randn(2, 3, 4, 4), torch.randn(5, 3, 3, 3)
    learned = weight.clone().requires_grad_()

    conv2d(images, learned).sum().backward()  # neither the images' gradients nor a bias

    expected = images.unfold(2, 3, 1).unfold(3, 3, 1).sum((0, 2, 3))  # each place sees a window
    assert_close(learned.grad, expected.expand_as(weight))
    assert conv2d(images, weight).grad_fn is None
    with torch.no_grad():
        assert conv2d(images, learned).grad_fn is None


def test_words_for_the_padding_and_single_images_are_understood():
    image, weight = torch.randn(3, 4, 4), torch.randn(5, 3, 3, 3, requires_grad=True)

    assert_close(conv2d(image, weight, padding="same"), functional.conv2d(image, weight, padding=1))
