"""Optimisers: which one, how it steps, and what it computes in."""

import copy

import pytest
import torch
from timm.optim import param_groups_weight_decay
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from contract import TrainConfig
from distill.training.optimisers import make_optimiser


def config(**changes) -> TrainConfig:
    return TrainConfig(data="d", teacher="t", learning_rate=0.8, **changes)


def test_the_optimiser_follows_the_config():
    model = nn.Linear(2, 2)
    sgd = make_optimiser(config(optimiser="sgd", weight_decay=0.1), model)
    assert isinstance(sgd, torch.optim.SGD)
    assert {group["momentum"] for group in sgd.param_groups} == {0.9}
    assert sorted(group["weight_decay"] for group in sgd.param_groups) == [0, 0.1]
    assert isinstance(make_optimiser(config(optimiser="adamw"), model), torch.optim.AdamW)


@pytest.mark.parametrize("order", [torch.channels_last, torch.contiguous_format])
def test_adamw_steps_as_torchs(order):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(16, 2)).to(memory_format=order)
    plain = copy.deepcopy(model)
    ours = make_optimiser(config(optimiser="adamw", weight_decay=0.1), model)
    torchs = torch.optim.AdamW(param_groups_weight_decay(plain, 0.1), lr=0.8)
    for _ in range(3):
        for mine, other in zip(model.parameters(), plain.parameters(), strict=True):
            mine.grad = torch.randn_like(mine)
            other.grad = mine.grad.contiguous()
        ours.step()
        torchs.step()
    torch.testing.assert_close(model.state_dict(), plain.state_dict())


def test_muon_steps_along_each_direction_of_a_matrix_alike():
    model = nn.Conv2d(3, 4, 3)  # its kernel is 4 by 27 as a matrix
    model.weight.grad = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    model.bias.grad = torch.tensor([1.0, -1.0, 2.0, -2.0])
    before, bias = model.weight.detach().clone(), model.bias.detach().clone()
    optimiser = make_optimiser(config(optimiser="muon", weight_decay=0), model)
    optimiser.step()

    taken = (before - model.weight.detach()).reshape(4, 27)
    stretch = torch.linalg.svdvals(taken)
    assert stretch.max() < 1.5 * stretch.min()
    assert torch.linalg.svdvals(model.weight.grad.reshape(4, 27)).diff().abs().max() > 0.3
    torch.testing.assert_close((bias - model.bias.detach()).sign(), model.bias.grad.sign())


QUINTIC = (  # https://leloykun.github.io/ponder/muon-opt-coeffs
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
)


class Types(TorchDispatchMode):
    """The types of all matrix products within."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[torch.dtype] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if "mm" in func.name():
            self.found |= {arg.dtype for arg in args if isinstance(arg, torch.Tensor)}
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
def test_muon_computes_in_the_precision_of_the_network(precision):
    model = nn.Linear(8, 8)
    optimiser = make_optimiser(config(optimiser="muon", precision=precision), model)
    model(torch.randn(3, 8)).square().sum().backward()
    with Types() as products:
        optimiser.step()
    assert products.found == {getattr(torch, precision)}


def test_muon_in_float32_steps_nearly_as_timms():
    """timm's computes the orthogonal step in bfloat16, which is exact to two or three digits."""
    gradient = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))
    steps = []
    for cpu_kernels in (True, False):
        model = nn.Linear(6, 8, bias=False)
        model.weight.grad, before = gradient.clone(), model.weight.detach().clone()
        settings = config(
            optimiser="muon", weight_decay=0, cpu_kernels=cpu_kernels, precision="float32"
        )
        make_optimiser(settings, model).step()
        steps.append(model.weight.detach() - before)
    torch.testing.assert_close(*steps, rtol=0.1, atol=0.02)


@pytest.mark.parametrize("shape", [(8, 6), (8, 72), (72, 8), (16, 16), (4, 3, 3, 3)])
@pytest.mark.parametrize("rank", ["full", "low"])
def test_muon_in_float32_orthogonalises_as_a_slow_iteration_in_float64(shape, rank):
    generator = torch.Generator().manual_seed(0)
    gradient = torch.randn(*shape, generator=generator)
    if rank == "low":
        gradient[1:] = gradient[:1] + 1e-3 * gradient[1:]
    model = nn.Module()
    model.weight = nn.Parameter(torch.zeros(shape))
    model.weight.grad = gradient.clone()
    make_optimiser(config(optimiser="muon", weight_decay=0, precision="float32"), model).step()

    matrix = gradient.double().flatten(1)
    matrix /= matrix.norm()
    for a, b, c in QUINTIC:
        square = matrix @ matrix.mT
        matrix = a * matrix + b * square @ matrix + c * square @ square @ matrix
    expected = -0.8 * 0.2 * max(matrix.shape) ** 0.5 * matrix.view(shape)
    torch.testing.assert_close(model.weight.detach().double(), expected, rtol=1e-3, atol=1e-3)
