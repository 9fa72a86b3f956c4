"""What trains in bfloat16, and what does not."""

import pytest
import timm
import torch
from timm.layers import create_conv2d
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from torch.testing import assert_close

from distill.models.precision import training_precision

CPU = torch.device("cpu")
IMAGES = torch.rand(2, 8, 6, 6)
DEPTHWISE = nn.Conv2d(8, 8, 3, groups=8)
TENSORFLOW = create_conv2d(8, 16, 3, stride=2, padding="same", groups=4)  # with timm's own padding
POINTWISE = nn.Conv2d(8, 16, 1)


@pytest.mark.parametrize("grouped", [DEPTHWISE, TENSORFLOW])
def test_grouped_convolutions_train_in_float32(grouped):
    network = nn.Sequential(nn.Conv2d(8, 8, 1), grouped)

    with training_precision(CPU, "bfloat16"):
        middle = network[0](IMAGES)
        output = network[1](middle)
    output.square().mean().backward()

    assert (middle.dtype, output.dtype) == (torch.bfloat16, torch.float32)
    assert_close(output, grouped(middle.float()))  # what float32 gives
    assert all(parameter.grad.any() for parameter in network.parameters())


def test_other_layers_train_in_bfloat16():
    with training_precision(CPU, "bfloat16"):
        assert POINTWISE(IMAGES).dtype == torch.bfloat16
        assert nn.Linear(6, 3)(IMAGES).dtype == torch.bfloat16


def test_everything_trains_in_float32_where_that_is_asked_for():
    with training_precision(CPU, "float32"):
        assert DEPTHWISE(IMAGES).dtype == POINTWISE(IMAGES).dtype == torch.float32


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"attn_mask": None, "dropout_p": 0.0},
        {"is_causal": True},
        {"scale": 0.5},
        {"attn_mask": torch.tensor([[0.0, -1.0, 2.0]])},
    ],
)
def test_attention_gives_the_result_of_torch(settings):
    query, key, value = (torch.randn(2, 4, 3, 8, requires_grad=True) for _ in range(3))
    expected = scaled_dot_product_attention(query, key, value, **settings)
    expected_gradients = torch.autograd.grad(expected.square().sum(), (query, key, value))

    with training_precision(CPU, "bfloat16"):
        output = scaled_dot_product_attention(query, key, value, **settings)
    gradients = torch.autograd.grad(output.float().square().sum(), (query, key, value))

    assert output.dtype == torch.bfloat16
    assert_close(output.float(), expected, rtol=0.02, atol=0.02)
    assert_close(gradients, expected_gradients, rtol=0.1, atol=0.1)


def test_without_cpu_kernels_torch_computes_alone():
    images = torch.rand(2, 8, 2, 2)
    layer = nn.Conv2d(8, 8, 3, padding=1)
    with training_precision(CPU, cpu_kernels=False):
        plain = layer(images)
    with training_precision(CPU):
        replaced = layer(images)

    assert plain.grad_fn.name() == "ConvolutionBackward0"
    assert replaced.grad_fn.name() != "ConvolutionBackward0"
    assert_close(replaced, plain, rtol=0.02, atol=0.02)


@pytest.mark.parametrize(
    ("name", "size"), [("mobilenetv3_small_050", 224), ("test_vit", 160), ("resnet10t", 64)]
)
def test_outputs_and_gradients_are_close_to_those_in_float32(name, size):
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=3).eval()  # no dropout, no batch statistics
    images = torch.rand(2, 3, size, size)

    def output_and_gradients():
        output = network(images).float()
        gradients = torch.autograd.grad(output.square().sum(), list(network.parameters()))
        return output, torch.cat([gradient.flatten() for gradient in gradients])

    expected = output_and_gradients()
    with training_precision(CPU, "bfloat16"):
        found = output_and_gradients()

    for ours, exact in zip(found, expected, strict=True):
        assert (ours - exact).norm() < 0.05 * exact.norm()
