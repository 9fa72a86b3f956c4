"""Learning rates, and the presets that choose among them."""

import pytest
import torch
from torch import nn

from contract import TrainConfig
from distill.cli.train import read_config, read_preset
from distill.errors import UserError
from distill.training.schedule import learning_rate


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
