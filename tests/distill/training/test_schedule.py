"""Learning rates, and the presets that choose among them."""

import copy

import pytest
import torch
from timm.optim import param_groups_weight_decay
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from contract import TrainConfig
from distill.cli.train import read_config, read_preset
from distill.errors import UserError
from distill.models import precision
from distill.training.schedule import learning_rate, make_optimiser


def config(**changes) -> TrainConfig:
    return TrainConfig(data="d", teacher="t", learning_rate=0.8, **changes)


def rates(config: TrainConfig, epochs: int, steps: int = 4) -> list[float]:
    return [learning_rate(config, step, steps, epochs * steps) for step in range(epochs * steps)]


def test_steps_divide_by_ten_after_each_third():
    found = rates(config(schedule="steps", warmup_epochs=0), 9)
    assert found == pytest.approx([0.8] * 12 + [0.08] * 12 + [0.008] * 12)
    assert rates(config(schedule="steps", warmup_epochs=1), 9)[:5] == pytest.approx(
        [0.2, 0.4, 0.6, 0.8, 0.8]
    )


@pytest.mark.parametrize("epochs", [1, 5, 90])
def test_one_cycle_is_that_of_torch(epochs):
    optimiser = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=1)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=0.8, total_steps=4 * epochs)
    expected = []
    for _ in range(4 * epochs):
        expected.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        if len(expected) < 4 * epochs:
            scheduler.step()
    assert rates(config(schedule="one-cycle"), epochs) == pytest.approx(expected)


def test_the_optimiser_is_the_one_of_the_config():
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


def test_adamw_copies_no_gradient_that_has_its_channels_last():
    model = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    optimiser = make_optimiser(config(optimiser="adamw"), model)
    model(torch.randn(5, 3, 4, 4)).square().sum().backward()
    with profile(activities=[ProfilerActivity.CPU]) as done:
        optimiser.step()
    names = {event.name for event in done.events()}
    assert "aten::_fused_adamw_" in names
    assert "aten::clone" not in names


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


@pytest.mark.parametrize("preset", ["resnet", "vit"])
def test_a_preset_needs_no_more_than_the_data(preset, tmp_path):
    path = tmp_path / "config.toml"
    path.write_text('data = "images"')
    found = read_config(path, preset)
    assert found == TrainConfig(data="images", **read_preset(preset))
    assert (found.image_size, found.batch_size) == (224, 128)


def test_the_config_overrides_the_preset(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text('data = "images"\nepochs = 3')
    found = read_config(path, "resnet")
    assert (found.epochs, found.optimiser, found.learning_rate) == (3, "sgd", 0.05)


def test_a_preset_that_is_none_is_answered_with_those_there_are():
    with pytest.raises(UserError, match="no preset 'cnn': choose resnet or vit"):
        read_preset("cnn")


class Types(TorchDispatchMode):
    """The types of all matrix products within."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[torch.dtype] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if "mm" in func.name():
            self.found |= {arg.dtype for arg in args if isinstance(arg, torch.Tensor)}
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("quick", "expected"), [(True, torch.bfloat16), (False, torch.float32)])
def test_muon_computes_in_bfloat16_where_that_is_quick(monkeypatch, quick, expected):
    monkeypatch.setattr(precision, "bfloat16_is_quick", lambda _: quick)
    model = nn.Linear(8, 8)
    optimiser = make_optimiser(config(optimiser="muon"), model)
    model(torch.randn(3, 8)).square().sum().backward()
    with Types() as products:
        optimiser.step()
    assert products.found == {expected}
